"""How good a reward model is on prompts that it did not learn from.

B pairs, or texts.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from grpo_jax.data.preferences import Labelled, Pair
from grpo_jax.reward_models import batches, calibration, learned

Evaluation = tuple[Mapping[str, float | int], calibration.Reliability]


def evaluate(
  model: learned.RewardModel, known: Sequence[Pair] | Sequence[Labelled]
) -> Evaluation:
  """Returns results by name, and how reliable the model's probabilities are.

  Raises:
    ValueError: all texts are too long for the model.
  """
  judge = _judge_pairs if isinstance(known[0], Pair) else _judge_labels
  return judge(model, known)


def pair_scores(
  model: learned.RewardModel, pairs: Sequence[Pair]
) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
  """Scores of chosen and of rejected texts; NaN for one that is too long."""
  problems = [pair.problem for pair in pairs]
  texts = [p.chosen for p in pairs] + [p.rejected for p in pairs]
  scores = learned.outcome(model, problems * 2, texts).scores
  scores = np.array([np.nan if s is None else s for s in scores], np.float64)
  return scores[: len(pairs)], scores[len(pairs) :]


def _judge_pairs(
  model: learned.RewardModel, pairs: Sequence[Pair]
) -> Evaluation:
  """Judges P(chosen above rejected) = sigmoid(difference of their scores).

  `accuracy`: the share of pairs whose chosen text scores higher, equal scores
  counting half; `accuracy_stderr`, its standard error; `loss`, in nats;
  `longer`: the accuracy of preferring the longer text, to compare with.
  `calibration_error`: of the probability of the text that scores higher.
  """
  chosen, rejected = pair_scores(model, pairs)
  scored = ~np.isnan(chosen - rejected)
  _require(scored, model)
  difference = (chosen - rejected)[scored]
  right = (np.sign(difference) + 1) / 2
  longer = [np.sign(len(p.chosen) - len(p.rejected)) for p in pairs]
  reliability = calibration.reliability(
    _sigmoid(np.abs(difference)), right, lowest=0.5
  )
  return {
    "pairs": len(difference),
    "too_long": int(np.count_nonzero(~scored)),
    **_share("accuracy", right),
    "longer": float(np.mean((np.array(longer)[scored] + 1) / 2)),
    "loss": float(np.mean(np.logaddexp(0.0, -difference))),
    "margin": float(np.mean(difference)),
    "calibration_error": reliability.error,
  }, reliability


def _judge_labels(
  model: learned.RewardModel, texts: Sequence[Labelled]
) -> Evaluation:
  """Judges the probabilities of all labels that are known.

  `accuracy`: the share that is on its label's side of one half; `positive`:
  the share of labels that are; `majority`: the accuracy of always saying what
  is more frequent; `roc_auc`: the chance that a positive one scores above a
  negative one; `loss`, in nats; `calibration_error`. Of a process model also
  `first_mistake`: the share of texts whose first step below one half is the
  first one labelled so, or that have neither.
  """
  scores = _probabilities(model, texts)
  scored = np.array([row is not None for row in scores])
  _require(scored, model)
  found, wanted, located = [], [], []
  for row, text in zip(scores, texts, strict=True):
    if row is None:
      continue
    batches.check_labels(text, len(row), model.reading)
    known = [
      (p, x) for p, x in zip(row, text.labels, strict=True) if x is not None
    ]
    found += [p for p, _ in known]
    wanted += [x for _, x in known]
    located.append(
      _first([p for p, _ in known]) == _first([x for _, x in known])
    )
  found, wanted = np.array(found), np.array(wanted)
  positive = wanted > 0.5
  reliability = calibration.reliability(found, wanted)
  inside = np.clip(found, 1e-12, 1 - 1e-12)
  loss = -(wanted * np.log(inside) + (1 - wanted) * np.log1p(-inside))
  results = {
    "texts": int(np.count_nonzero(scored)),
    "too_long": int(np.count_nonzero(~scored)),
    "labels": len(found),
    **_share("accuracy", (found > 0.5) == positive),
    "positive": float(positive.mean()),
    "majority": float(max(positive.mean(), 1 - positive.mean())),
    "roc_auc": calibration.area_under_roc(found, positive),
    "loss": float(loss.mean()),
    "calibration_error": reliability.error,
  }
  if model.reading.kind == "process":
    results |= _share("first_mistake", np.array(located))
  return results, reliability


def _probabilities(
  model: learned.RewardModel, texts: Sequence[Labelled]
) -> list[list[float] | None]:
  problems = [text.problem for text in texts]
  completions = [text.completion for text in texts]
  if model.reading.kind == "process":
    steps = learned.step_scores(model, problems, completions)
    return [None if s is None else s.scores for s in steps]
  scores = learned.outcome(model, problems, completions).scores
  return [None if s is None else [s] for s in scores]


def _first(probabilities: Sequence[float]) -> int | None:
  """The first step that is below one half; None where all are above."""
  below = (i for i, p in enumerate(probabilities) if p <= 0.5)
  return next(below, None)


def _share(name: str, right: np.ndarray) -> dict[str, float]:
  """A mean of values in [0, 1], and its standard error."""
  share = float(np.mean(right))
  error = math.sqrt(share * (1 - share) / len(right))
  return {name: share, f"{name}_stderr": error}


def _sigmoid(x: np.ndarray) -> np.ndarray:
  return 1 / (1 + np.exp(-x))


def _require(scored: np.ndarray, model: learned.RewardModel) -> None:
  if not scored.any():
    raise ValueError(
      f"All held-out texts have more than max_length={model.max_length} tokens."
    )
