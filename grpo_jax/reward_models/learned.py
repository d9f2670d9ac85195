"""Scores from a reward model of ours: of whole completions, or of their steps.

A reward model is a decoder with a scalar head in place of its vocabulary head:
`param_specs`. An outcome model scores a text at its end-of-sequence token, as a
Bradley-Terry model learns to, https://arxiv.org/abs/2203.02155 section 3.5, or
one that learned from labels of single texts, whose scores are probabilities. A
process model scores each step of reasoning at the step's last token, as a
logit: Math-Shepherd, https://arxiv.org/abs/2312.08935 section 3. `encode` says
which tokens those are; training on such texts and scoring them both use it.

B texts, T positions.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from grpo_jax import sharding, types
from grpo_jax.data import rows as rows_lib
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models import heads, scoring
from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params, Specs
from grpo_jax.rewards import parts, terms

AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
  "min": min,
  "mean": lambda steps: sum(steps) / len(steps),
  "last": lambda steps: steps[-1],
  "product": math.prod,
}


@dataclasses.dataclass(frozen=True)
class Reading:
  """How a reward model reads a completion; kept beside its parameters.

  Attributes:
    kind: "outcome" for one score, "process" for one score per step.
    template: what stands before the completion, with `{question}` in it.
    reads: a name in `parts.PARTS`: "answer" for helpfulness, which DeepSeek-R1
      judges by the final answer only, "completion" for safety, which it judges
      by everything. A process model reads the completion.
    separators: each ends a step; process models only.
    probability: the score of an outcome model is the probability that its logit
      stands for, as with a model of harmlessness; by default the logit.
  """

  kind: str
  template: str = "{question}"
  reads: str = "completion"
  separators: Sequence[str] = ("\n\n",)
  probability: bool = False

  def __post_init__(self):
    if not isinstance(self.separators, str):
      object.__setattr__(self, "separators", tuple(self.separators))
    if self.kind not in ("outcome", "process"):
      raise ValueError(f"kind={self.kind!r} must be outcome or process.")
    parts.check(self.reads)
    if self.kind == "process" and self.reads != "completion":
      raise ValueError("A process reward model reads the completion.")
    if self.kind == "process" and self.probability:
      raise ValueError("A process reward model says probabilities anyway.")
    if (
      isinstance(self.separators, str)
      or not self.separators
      or not all(self.separators)
      or "{question}" not in self.template
    ):
      raise ValueError(
        "A reward model needs a list of separators of steps that are not"
        " empty, and a template with {question}."
      )


class RewardModel(NamedTuple):
  """A reward model and how it is run.

  Attributes:
    max_length: tokens; a longer text has no score.
    rows_per_batch: texts of one program; they divide over the mesh.
  """

  params: Params
  cfg: ModelConfig
  tokenizer: tokenizer.Tokenizer
  mesh: Mesh
  reading: Reading
  max_length: int
  rows_per_batch: int


class Encoded(NamedTuple):
  """A text for a reward model.

  Attributes:
    ids: its tokens.
    ends: indices of the tokens after which its scores are read.
    offsets: where the steps end in the completion, in characters; for an
      outcome model the end of the part that is read.
  """

  ids: list[int]
  ends: list[int]
  offsets: list[int]


class Steps(NamedTuple):
  """Scores of the steps of one completion.

  Attributes:
    scores: probability that each step is right.
    offsets: where each step ends in the completion, in characters.
  """

  scores: list[float]
  offsets: list[int]


def param_specs(cfg: ModelConfig) -> Specs:
  """Returns the parameters of a reward model: a decoder with a scalar head."""
  specs = params_lib.param_specs(cfg)
  specs.pop("head", None)
  return specs | {"reward": heads.scalar_specs(cfg)}


def from_policy(params: Params, cfg: ModelConfig, mesh: Mesh) -> Params:
  """Returns a policy's parameters with a new scalar head, which says 0."""
  head = params_lib.init_params(
    jax.random.key(0), heads.scalar_specs(cfg), mesh
  )
  body = {name: part for name, part in params.items() if name != "head"}
  return body | {"reward": head}


def encode(
  reading: Reading,
  tok: tokenizer.Tokenizer,
  problem: types.Problem,
  completion: str,
) -> Encoded:
  """Tokens of a problem and a completion, and where scores are read.

  Prompt and steps are tokenized apart, so that a step ends where a token does.
  """
  ids = [] if tok.bos_id is None else [tok.bos_id]
  ids += tok.encode(reading.template.replace("{question}", problem.question))
  text = parts.PARTS[reading.reads](problem, completion)
  if reading.kind == "outcome":
    ids += [*tok.encode(text), tok.eos_ids[0]]
    return Encoded(ids, [len(ids) - 1], [len(text)])
  ends, offsets, start = [], [], 0
  for end in step_offsets(text, reading.separators):
    ids += tok.encode(text[start:end])
    ends.append(len(ids) - 1)
    offsets.append(end)
    start = end
  return Encoded(ids, ends, offsets)


def step_offsets(text: str, separators: Sequence[str]) -> list[int]:
  """Where the steps of a text end, in characters; the last ends with the text.

  A separator belongs to the step before it. Steps without a word join the one
  before them, or after them at the start.
  """
  offsets, start = [], 0
  pattern = re.compile("|".join(map(re.escape, separators)))
  for end in [found.end() for found in pattern.finditer(text)] + [len(text)]:
    if text[start:end].strip():
      offsets.append(end)
    elif offsets:
      offsets[-1] = end
    start = end
  return offsets or [len(text)]


def outcome(
  model: RewardModel,
  problems: Sequence[types.Problem],
  completions: Sequence[str],
) -> terms.Result:
  """Scores of an outcome model; None for too long a text.

  They are in the model's own unit, or probabilities where its reading says so.

  Metrics: "too_long".
  """
  check_kind(model.reading, "outcome")
  rows = _encode_all(model, problems, completions)
  scores = [
    None if scalars is None else float(scalars[row.ends[0]])
    for row, scalars in zip(rows, _scalars(model, rows), strict=True)
  ]
  if model.reading.probability:
    scores = [None if x is None else _sigmoid(x) for x in scores]
  return terms.Result(scores, {"too_long": [s is None for s in scores]})


def process(
  model: RewardModel,
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  aggregate: str,
) -> terms.Result:
  """One score per completion of a process model; None for too long a text.

  Metrics: "steps", their number, and "too_long".

  Args:
    model: a process reward model.
    problems: B problems.
    completions: B texts.
    aggregate: of the steps' probabilities: a name in `AGGREGATES`.
  """
  check_aggregate(aggregate)
  steps = step_scores(model, problems, completions)
  return terms.Result(
    [None if s is None else AGGREGATES[aggregate](s.scores) for s in steps],
    {
      "steps": [None if s is None else len(s.scores) for s in steps],
      "too_long": [s is None for s in steps],
    },
  )


def step_scores(
  model: RewardModel,
  problems: Sequence[types.Problem],
  completions: Sequence[str],
) -> list[Steps | None]:
  """Scores of all steps of each completion; None for too long a text."""
  check_kind(model.reading, "process")
  rows = _encode_all(model, problems, completions)
  return [
    None
    if scalars is None
    else Steps([_sigmoid(x) for x in logits], row.offsets)
    for row, scalars in zip(rows, _scalars(model, rows), strict=True)
    for logits in [None if scalars is None else scalars[row.ends].tolist()]
  ]


def check_kind(reading: Reading, kind: str) -> None:
  """Raises ValueError where a reward model is of another kind."""
  if reading.kind != kind:
    raise ValueError(
      f"This is a reward model of kind {reading.kind!r}, not {kind!r}."
    )


def check_aggregate(name: str) -> None:
  """Raises ValueError unless `name` is one of `AGGREGATES`."""
  if name not in AGGREGATES:
    raise ValueError(
      f"aggregate={name!r} must be one of {', '.join(AGGREGATES)}."
    )


def _encode_all(
  model: RewardModel,
  problems: Sequence[types.Problem],
  completions: Sequence[str],
) -> list[Encoded]:
  return [
    encode(model.reading, model.tokenizer, problem, completion)
    for problem, completion in zip(problems, completions, strict=True)
  ]


def _scalars(
  model: RewardModel, rows: Sequence[Encoded]
) -> list[np.ndarray | None]:
  """What the head says after each token of each row, as far as it has any."""
  found: list[np.ndarray | None] = [None] * len(rows)
  by_width: dict[int, list[int]] = {}
  for index, row in enumerate(rows):
    if len(row.ids) <= model.max_length:
      width = rows_lib.padded_width(len(row.ids), model.max_length)
      by_width.setdefault(width, []).append(index)
  size = model.rows_per_batch
  axes = sharding.split_rows(model.mesh, size)
  with jax.set_mesh(model.mesh):
    for width, indices in sorted(by_width.items()):
      for start in range(0, len(indices), size):
        chosen = indices[start : start + size]
        texts = [rows[index].ids for index in chosen]
        texts += [[]] * (size - len(chosen))  # One shape, hence one program.
        tokens, segments = rows_lib.pad(texts, width, model.tokenizer.pad_id)
        positions = np.broadcast_to(
          np.arange(width, dtype=np.int32), tokens.shape
        )
        batch = tokens, positions, segments
        placed = sharding.place(model.mesh, batch, axes[:1])
        scalars = sharding.to_host(
          _score(model.params, model.cfg, model.params["reward"], *placed)
        )
        for slot, index in enumerate(chosen):
          found[index] = scalars[slot]
  return found


_score = jax.jit(scoring.score_scalars, static_argnames="cfg")


def _sigmoid(logit: float) -> float:
  return 1 / (1 + math.exp(-min(max(logit, -80.0), 80.0)))
