"""A generative judge: what it is asked, and how its reply becomes a number.

DeepSeek-R1 had DeepSeek-V3 compare final answers with references where rules
cannot, https://arxiv.org/abs/2501.12948 section 2.3.3 (v2: the supplement on
generative reward models). Here a judge is a function from prompts to replies:
`judge_http` asks a server, `judge_local` a model of ours.

A completion may try to talk to the judge. It stands between two lines with a
mark that is a hash of it, so that it cannot hold its own mark: it cannot close
the fence, and a verdict counts only with that mark. What a judge lets itself be
told about the merits remains the judge's weakness.
"""

import hashlib
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import logging

from grpo_jax import types
from grpo_jax.rewards import parts, terms

_PROMPTS = pathlib.Path(__file__).parent / "judge_prompts"
_FIELD = re.compile(r"\{(question|reference|completion|tag|low|high)\}")
_NEEDED = ("question", "completion", "tag")


class Reply(NamedTuple):
  """What a judge said to one prompt.

  Attributes:
    text: all of it; None where there is no reply, or not the whole of one.
    error: why there is none.
  """

  text: str | None
  error: str = ""


# Prompts, and verdicts per prompt, to that many replies for each.
Ask = Callable[[Sequence[str], int], Sequence[Sequence[Reply]]]
# The least and the greatest score; None for a verdict.
Scale = tuple[float, float] | None


def judge(
  ask: Ask,
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  template: str,
  scale: Scale,
  reads: str,
  votes: int,
) -> terms.Result:
  """Scores completions by the mean of their verdicts, from 0 to 1.

  None where no verdict could be read, because the judge did not reply or did
  not end as it was told to; never 0. A completion without the part that is read
  is not shown and has score 0. Where no reply came at all, the log says so.

  Metrics: "unreachable", the share of replies that did not come; "unreadable",
  of replies without a verdict; "disagreement", the chance that two verdicts on
  the completion differ, for scores the mean of their distance; None where there
  are fewer than two.

  Args:
    ask: the judge.
    problems: B problems.
    completions: B texts.
    template: see `read_template`.
    scale: see `parse`.
    reads: a name in `parts.PARTS`.
    votes: verdicts per completion.

  Raises:
    ValueError: see `check`.
  """
  check(template=template, scale=scale, reads=reads, votes=votes)
  text = read_template(template, scale)
  shown, tags, prompts = [], [], []
  for row, problem in enumerate(problems):
    part = parts.PARTS[reads](problem, completions[row])
    if part.strip():
      tag, prompt = fill(text, problem, part, scale)
      shown.append(row)
      tags.append(tag)
      prompts.append(prompt)
  scores: list[float | None] = [0.0] * len(problems)
  metrics: dict[str, list[float | None]] = {
    name: [None] * len(problems)
    for name in ("unreachable", "unreadable", "disagreement")
  }
  replies = ask(prompts, votes)
  for row, tag, texts in zip(shown, tags, replies, strict=True):
    came = [r.text for r in texts if r.text is not None]
    verdicts = [parse(reply, tag, scale) for reply in came]
    verdicts = [v for v in verdicts if v is not None]
    scores[row] = sum(verdicts) / len(verdicts) if verdicts else None
    metrics["unreachable"][row] = 1 - len(came) / votes
    metrics["unreadable"][row] = 1 - len(verdicts) / len(came) if came else None
    metrics["disagreement"][row] = _disagreement(verdicts)
  errors = [r.error for texts in replies for r in texts if r.text is None]
  if errors and len(errors) == len(shown) * votes:
    logging.error(
      "The judge did not reply to any of %d completions, which have no reward"
      " therefore: %s",
      len(shown),
      max(set(errors), key=errors.count),
    )
  return terms.Result(scores, metrics)


def check(*, template: str, scale: Scale, reads: str, votes: int) -> None:
  """Raises ValueError unless `judge` can be called with these options."""
  parts.check(reads)
  if votes < 1:
    raise ValueError(f"{votes=} must be at least 1.")
  if scale is not None and not (len(scale) == 2 and scale[0] < scale[1]):
    raise ValueError(
      f"{scale=} must be the least score and a greater one, or None for a"
      " verdict of correct or wrong."
    )
  read_template(template, scale)


def check_votes(votes: int, temperature: float | int) -> None:
  """Raises ValueError where several verdicts would all be the same."""
  if votes > 1 and not temperature:
    raise ValueError(
      f"{votes=} at temperature 0 would be the same verdict {votes} times."
    )


def read_template(name_or_path: str, scale: Scale) -> str:
  """A template of the folder `judge_prompts` by its name, or a file's text.

  Its fields: {question}, {completion}, {tag}, and {reference} where it compares
  with the reference answer. It must ask for the line that `parse` reads; with a
  scale also {low} and {high}.

  Raises:
    ValueError: there is none, or a field is missing or has no value.
  """
  path = _PROMPTS / f"{name_or_path}.txt"
  if not path.is_file():
    path = pathlib.Path(name_or_path)
  if not path.is_file():
    names = ", ".join(sorted(p.stem for p in _PROMPTS.glob("*.txt")))
    raise ValueError(
      f"The judge's template {name_or_path!r} is neither a file nor one of"
      f" {names}."
    )
  text = path.read_text(encoding="utf-8")
  fields = set(_FIELD.findall(text))
  needed = {*_NEEDED, *(("low", "high") if scale else ())}
  if not needed <= fields:
    missing = sorted(needed - fields)[0]
    raise ValueError(f"The judge's template {path} has no {{{missing}}}.")
  if scale is None and fields & {"low", "high"}:
    raise ValueError(
      f"The judge's template {path} asks for a score; give scale=(low, high)."
    )
  return text


def fill(
  template: str, problem: types.Problem, completion: str, scale: Scale = None
) -> tuple[str, str]:
  """The mark of a completion, and the prompt that shows it to the judge."""
  low, high = scale or (None, None)
  fields = {
    "question": problem.question,
    "reference": problem.answer,
    "completion": completion,
    "low": f"{low}",
    "high": f"{high}",
  }
  content = "\0".join((template, *fields.values())).encode("utf-8", "replace")
  fields["tag"] = tag = hashlib.blake2b(content, digest_size=6).hexdigest()
  # In one pass: a field's name in the completion is text like any other.
  prompt = _FIELD.sub(lambda match: fields[match[1]], template)
  # A lone surrogate has no UTF-8; it becomes a question mark.
  return tag, prompt.encode("utf-8", "replace").decode()


def parse(reply: str, tag: str, scale: Scale = None) -> float | None:
  """The verdict in a judge's reply, from 0 to 1; None where there is none.

  The last line must be `Verdict TAG: correct` or `Verdict TAG: wrong`; with a
  scale `Score TAG: 7`, a decimal number within it, of which the least becomes 0
  and the greatest 1. No other line may begin as it does.
  """
  kind = "Score" if scale else "Verdict"
  lines = [line.strip() for line in reply.strip().splitlines()]
  verdicts = [line for line in lines if line.startswith(f"{kind} {tag}:")]
  if len(verdicts) != 1 or verdicts[0] != lines[-1]:
    return None
  said = verdicts[0].partition(":")[2].strip()
  if not scale:
    return {"correct": 1.0, "wrong": 0.0}.get(said)
  if not re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{1,9})?", said):
    return None
  low, high = scale
  score = float(said)
  return (score - low) / (high - low) if low <= score <= high else None


def _disagreement(verdicts: Sequence[float]) -> float | None:
  """Mean absolute difference over all pairs of verdicts."""
  count = len(verdicts)
  if count < 2:
    return None
  total = sum(abs(a - b) for a in verdicts for b in verdicts)
  return total / (count * (count - 1))
