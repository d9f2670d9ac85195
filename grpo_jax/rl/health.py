"""Warnings where a run does not learn, told from the scalars of its steps.

A reward that can have but one value, a judge that is down, a policy that has
collapsed: such a run goes on to its last step without an error. What is looked
at is in `metrics.jsonl`, so a run that goes on knows what came before.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# Shares from here on are all: one row of a thousand may do otherwise.
_ALL = 0.999
# Nats per token. Healthy runs of the experiments here end between 0.017 and
# 0.8; below this a completion of 100 tokens is drawn again in nine of ten.
_LEAST_ENTROPY = 1e-3
# Of the gradient's norm, which is 0.02 to 2 in healthy runs. What rounding
# leaves of a KL of 0 is about 1e-9.
_LEAST_GRADIENT = 1e-7
# Lengths have collapsed when they are this share of what they were, and what
# they earn is no more; or an answer of so many tokens, the stop token included.
_SHRUNK, _SHORTEST = 0.1, 2.0
# Of a deviation and of equal means: less is rounding.
_EQUAL = 1e-9

Row = Mapping[str, Any]
# What a term logs that says why it gave no score, and what to look at.
_CAUSES = {
  "ungradable": (
    "cannot compare any answer with its reference answer: give the problems the"
    ' source whose rule reads such answers, as source="math"'
  ),
  "unreachable": (
    "had no reply from the judge: see that its server is up, and that url,"
    " model and api_key_env are right; the log has its error"
  ),
  "unreadable": (
    "found no verdict in the judge's replies: they may be cut (max_tokens), or"
    " the judge does not follow its template"
  ),
  "failed": "raised an error for every completion; the log has the error",
  "timed_out": (
    "did not return in time: make it faster, or raise its deadline"
  ),
  "no_score": "returned None for every completion",
}
# What to look at where a term never varies.
_HINTS = {
  "accuracy": (
    "no answer is right: the problems may be too hard for this policy, or its"
    " answers in a form that is not read"
  ),
  "format": (
    "no completion has the form that it wants, such as"
    " <think>...</think><answer>...</answer>, of which a chat template does not"
    " tell the model: say it in the prompt, or leave the term out"
  ),
  "tag_count": (
    "none of the tags that it counts is in its place, such as <think> and"
    " <answer>, of which a chat template does not tell the model: say it in the"
    " prompt, or leave the term out"
  ),
}


@dataclasses.dataclass(frozen=True)
class Term:
  """A reward term that counts.

  Attributes:
    kind: of a built-in one; else its name.
    best: its best value, at which it may well stay; None where it is unknown.
  """

  kind: str
  best: float | None = None


@dataclasses.dataclass
class Finding:
  """Something that held for several steps in a row.

  Attributes:
    name: of what it is.
    text: a sentence or two: what it is, and what to look at.
    first: its first step; 0 for what was known at the start.
    last: its last step so far.
  """

  name: str
  text: str
  first: int
  last: int

  def record(self) -> dict[str, Any]:
    """Returns a line of `warnings.jsonl`."""
    return {
      "step": self.first,
      "until": self.last,
      "name": self.name,
      "text": self.text,
    }

  def __str__(self) -> str:
    if not self.last:
      return self.text
    return f"Steps {self.first} to {self.last}: {self.text}"


class Health:
  """Looks at one step after the other; nothing of it is stored.

  Attributes:
    warnings: all so far, in order.
    terms: reward terms that count, by name.
    patience: steps in a row until something is said.
    texts: what holds at the newest step, by name.
    values: each term's newest mean.
    varied: terms that had two values in the run; "" where groups had.
    early: mean length and reward of the first `patience` steps.
  """

  def __init__(
    self,
    terms: Mapping[str, Term],
    notes: Iterable[str] = (),
    *,
    patience: int = 5,
  ):
    """Begins before the first step.

    Args:
      terms: those of nonzero weight, by name.
      notes: what was known at the start.
      patience: steps in a row, each of which must be so, until something is
        said.

    Raises:
      ValueError: `patience` is below 1.
    """
    if patience < 1:
      raise ValueError(f"config.health.patience={patience} must be at least 1.")
    self.terms, self.patience = terms, patience
    self.warnings = [Finding("start", note, 0, 0) for note in notes]
    self.texts: dict[str, str] = {}
    self.values: dict[str, float] = {}
    self.varied: set[str] = set()
    self.early: list[tuple[float, float]] = []
    self._open: dict[str, Finding] = {}
    self._streaks: dict[str, tuple[int, int]] = {}  # First step, and how many.
    self._steps, self._top = 0, -math.inf

  def add(self, row: Row) -> list[Finding]:
    """Takes the scalars of a step; returns the warnings that are new.

    Args:
      row: `step`, and metrics by name, None where there is no number, as
        `metrics.jsonl` has them.
    """
    step, new = row["step"], []
    self._steps += 1
    found = self.texts = {}
    for rule in (_no_score, _one_outcome, _constant, _collapse, _no_gradient):
      found |= rule(self, row)
    for name in [n for n in self._streaks if n not in found]:
      if not self._not_asked(name, row):
        del self._streaks[name]
        self._open.pop(name, None)
    for name, text in found.items():
      first, count = self._streaks.get(name, (step, 0))
      self._streaks[name] = first, count + 1
      if name in self._open:
        self._open[name].last = step
      elif count + 1 >= self.patience:
        new.append(self._warn(name, text, first, step))
    self._remember(row)
    return new

  def finish(self) -> list[Finding]:
    """Returns the warnings that a run shorter than `patience` still needs.

    That no row had a score is no chance, however short the run was.
    """
    return [
      self._warn(name, self.texts[name], first, first + count - 1)
      for name, (first, count) in list(self._streaks.items())
      if name.startswith("no_score")
      and count == self._steps
      and name not in self._open
    ]

  def records(self) -> list[dict[str, Any]]:
    """Returns all warnings as lines of `warnings.jsonl`."""
    return [warning.record() for warning in self.warnings]

  def _warn(self, name: str, text: str, first: int, last: int) -> Finding:
    warning = Finding(name, text, first, last)
    self._open[name] = warning
    self.warnings.append(warning)
    return warning

  def _not_asked(self, name: str, row: Row) -> bool:
    """Whether a step says nothing of a term, which it did not ask."""
    _, _, term = name.partition(":")
    metrics = ("mean", *_CAUSES)
    return bool(term) and all(
      row.get(f"rewards/{term}/{metric}") is None for metric in metrics
    )

  def _remember(self, row: Row) -> None:
    if _is(row, "frac_reward_zero_std", below=1.0):
      self.varied.add("")
    for name in self.terms:
      mean = row.get(f"rewards/{name}/mean")
      if mean is None:
        continue
      known = self.values.setdefault(name, mean)
      if not self.is_constant(row, name) or abs(mean - known) > _EQUAL:
        self.varied.add(name)
      self.values[name] = mean
    reward = row.get("reward")
    if reward is None:
      return
    self._top = max(self._top, reward)
    if len(self.early) < self.patience:
      self.early.append((row.get("completions/mean_length", 0.0), reward))

  def is_constant(self, row: Row, name: str) -> bool:
    """Whether a term has one value for all completions of a step."""
    std = row.get(f"rewards/{name}/std")
    return std is None or std <= _EQUAL

  def is_learned(self, row: Row) -> bool:
    """Whether nothing is left to learn: all earn the most there ever was."""
    reward = row.get("reward")
    return (
      _is(row, "frac_reward_zero_std")
      and "" in self.varied
      and reward is not None
      and reward >= self._top - 1e-6
    )


def _no_score(health: Health, row: Row) -> Iterator[tuple[str, str]]:
  """No completion had a score: of a term, or of all together."""
  known = False
  for name in health.terms:
    for cause, text in _CAUSES.items():
      if _is(row, f"rewards/{name}/{cause}"):
        known = True
        yield (
          f"no_score:{name}",
          f"config.rewards.{name} {text}. Such completions have no reward and"
          " teach nothing.",
        )
        break
  if not known and _is(row, "frac_reward_invalid"):
    names = [
      name for name in health.terms if row.get(f"rewards/{name}/mean") is None
    ]
    yield (
      "no_score",
      "No completion had a reward, because no score came from"
      f" {_listed(names)}; nothing is learned. Look at what it returns.",
    )


def _one_outcome(health: Health, row: Row) -> Iterator[tuple[str, str]]:
  """All completions of each prompt earn the same."""
  if (
    not _is(row, "frac_reward_zero_std")
    or _is(row, "frac_reward_invalid")
    or health.is_learned(row)
  ):
    return
  details = [
    _said(health, row, name)
    for name in health.terms
    if health.is_constant(row, name)
    and row.get(f"rewards/{name}/mean") is not None
  ]
  yield (
    "one_outcome",
    "In every group all completions earn the same, so every advantage is 0 and"
    f" nothing is learned. {' '.join(details)} Look at completions.jsonl, which"
    " has each completion with each term.",
  )


def _constant(health: Health, row: Row) -> Iterator[tuple[str, str]]:
  """A term that is the same number for all completions of all steps."""
  if "one_outcome" in health.texts:
    return
  for name, term in health.terms.items():
    mean = row.get(f"rewards/{name}/mean")
    if mean is None or not health.is_constant(row, name):
      continue
    before = health.values.get(name, mean)
    may_stay = name in health.varied if term.best is None else mean == term.best
    if abs(mean - before) <= _EQUAL and not may_stay:
      yield (
        f"constant:{name}",
        f"{_said(health, row, name)} A term that never varies teaches nothing.",
      )


def _said(health: Health, row: Row, name: str) -> str:
  """The sentence on a term that has but one value."""
  term, mean = health.terms[name], row[f"rewards/{name}/mean"]
  hint = _HINTS.get(term.kind) if mean != term.best else None
  end = f": {hint}." if hint else "."
  return f"config.rewards.{name} is {mean:g} for every completion{end}"


def _collapse(health: Health, row: Row) -> Iterator[tuple[str, str]]:
  """What is written is cut, or next to nothing, or always the same."""
  if _is(row, "completions/clipped_ratio"):
    yield (
      "truncated",
      "Every completion ran out of room before a stop token: raise"
      " config.sampling.max_new_tokens, or see whether the policy was taught to"
      " end with one of the tokenizer's stop tokens.",
    )
  if health.is_learned(row):
    return
  length = row.get("completions/mean_length")
  if length is not None and _is_short(health, row, length):
    yield (
      "length",
      f"Completions have collapsed to {length:.1f} tokens in the mean, and earn"
      " no more for it: a term may reward what is short, or the learning rate"
      " be too high. Look at completions.jsonl.",
    )
  entropy = row.get("entropy")
  if entropy is not None and entropy <= _LEAST_ENTROPY:
    yield (
      "entropy",
      f"The policy's entropy is {entropy:.1e} nats a token, so the completions"
      " of a group are all but equal: lower the learning rate, raise"
      " config.loss.kl_coef or config.loss.entropy_coef, or go on from an"
      " earlier checkpoint (--fork).",
    )


def _is_short(health: Health, row: Row, length: float) -> bool:
  early, reward = health.early, row.get("reward")
  if len(early) < health.patience:
    return length <= _SHORTEST
  longest = sum(x for x, _ in early) / len(early)
  earned = sum(x for _, x in early) / len(early)
  worse = reward is None or reward <= earned
  return worse and length <= max(_SHORTEST, _SHRUNK * longest)


def _no_gradient(health: Health, row: Row) -> Iterator[tuple[str, str]]:
  """Rewards differ, and still nothing moves."""
  if row.get("learning_rate") == 0:
    yield (
      "learning_rate",
      "The learning rate is 0: see config.optimizer and its schedule.",
    )
  quiet = {"one_outcome", "no_score"} & {
    n.partition(":")[0] for n in health.texts
  }
  if quiet or health.is_learned(row):
    return
  differ = _is(row, "frac_reward_zero_std", below=1.0)
  if differ and _is(row, "frac_advantage_zero"):
    size = max(abs(row.get("reward") or 0.0), row.get("reward_std") or 0.0)
    why = (
      f"rewards of {size:.0e} are too large for float32: scale them down to"
      " about 1"
      if size > 1e15
      else "see config.advantages and the scale of the rewards"
    )
    yield (
      "advantages",
      f"Every advantage is 0 although rewards differ: {why}.",
    )
    return
  gradient = row.get("grad_norm")
  if gradient is not None and gradient <= _LEAST_GRADIENT:
    yield (
      "gradient",
      f"The gradient's norm is {gradient:.1e}, so no update changes the policy:"
      " see config.loss, config.advantages and the rewards.",
    )


def _is(row: Row, name: str, below: float | None = None) -> bool:
  """Whether a share is all, or below a bound; False where there is none."""
  share = row.get(name)
  if share is None:
    return False
  return share >= _ALL if below is None else share < below


def _listed(names: list[str]) -> str:
  return ", ".join(f"config.rewards.{name}" for name in names) or "any term"
