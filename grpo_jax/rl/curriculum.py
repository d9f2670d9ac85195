"""Which prompts come next, where that depends on how far a run has come.

Problems come in the order of a `PromptSource`, epoch after epoch. Passed over
are those of a source whose step has not come, and, if so configured, most of
those that the policy solves always or never: their groups teach nothing.

P prompts, G completions each; B = P * G rows.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from grpo_jax.data import prompts
from grpo_jax.types import Problem, PromptBatch


@dataclasses.dataclass(frozen=True)
class PassRates:
  """How pass rates decide which problems are asked less often.

  Attributes:
    term: the reward, of values in [0, 1], whose mean over a group is its rate.
    margin: a running rate within this of 0 or 1 is as good as 0 or 1.
    share: chance that such a problem is asked when its turn comes.
    memory: what a running rate keeps of itself when a group adds its own.
  """

  term: str = "accuracy"
  margin: float = 0.05
  share: float = 0.25
  memory: float = 0.5

  def __post_init__(self):
    if not 0 <= self.margin < 0.5:
      raise ValueError(f"curriculum.margin={self.margin} must be in [0, 0.5).")
    if not 0 < self.share <= 1:
      raise ValueError(f"curriculum.share={self.share} must be in (0, 1].")
    if not 0 <= self.memory < 1:
      raise ValueError(f"curriculum.memory={self.memory} must be in [0, 1).")


class RolloutPrompts(NamedTuple):
  """The prompts of one rollout.

  Attributes:
    turn: number of this rollout, from 0.
    indices: of the problems in the dataset, P of them.
    batch: in NumPy, [P, S].
    problems: P of them.
  """

  turn: int
  indices: list[int]
  batch: PromptBatch
  problems: list[Problem]


def first_steps(
  problems: Iterable[Problem], from_step: Mapping[str, int]
) -> dict[str, int]:
  """Returns, by source of problems, the steps done before they are asked.

  Args:
    problems: all there are.
    from_step: the steps of some sources; it is 0 for the others.

  Raises:
    ValueError: it names a source that no problem has, or none is asked first.
  """
  sources = sorted({problem.source for problem in problems})
  for name in from_step:
    if name not in sources:
      raise ValueError(
        f"config.from_step names {name!r}, and no problem is of that source;"
        f" there are {', '.join(sources)}."
      )
  steps = {source: from_step.get(source, 0) for source in sources}
  if steps and min(steps.values()) > 0:
    raise ValueError("config.from_step leaves no problem for the first step.")
  return steps


class Curriculum:
  """Batches of prompts one after the other, with a state to go on from."""

  def __init__(
    self,
    source: prompts.PromptSource,
    *,
    seed: int,
    from_step: Mapping[str, int],
    pass_rates: PassRates | None = None,
  ):
    """Begins with the first prompts of the source.

    Args:
      source: the problems, in their order.
      seed: of what is passed over.
      from_step: what `first_steps` returned.
      pass_rates: of what is asked less often; None for nothing.
    """
    self._source = source
    self._seed = seed
    self._from_step = from_step
    self._settings = pass_rates
    self._turn = 0
    self._place = 0
    self._passed = 0
    self._rates: dict[int, float] = {}

  @property
  def problems(self) -> Sequence[Problem]:
    """All problems, with their prompts."""
    return self._source.problems

  def next(self, step: int) -> RolloutPrompts:
    """The next prompts, when `step` steps are done."""
    indices, first = [], self._place
    while len(indices) < self._source.num_prompts:
      index = self._source.at(self._place)
      if self._is_asked(index, step):
        indices.append(index)
      self._place += 1
    self._passed = self._place - first - len(indices)
    self._turn += 1
    return RolloutPrompts(self._turn - 1, indices, *self._source.batch(indices))

  def _is_asked(self, index: int, step: int) -> bool:
    if step < self._from_step[self._source.problem(index).source]:
      return False
    if index not in self._rates or not self._is_settled(self._rates[index]):
      return True
    draw = np.random.default_rng([self._seed, self._place]).random()
    return draw < self._settings.share

  def _is_settled(self, rate: float) -> bool:
    return min(rate, 1.0 - rate) <= self._settings.margin

  def record(
    self,
    indices: Sequence[int],
    terms: Mapping[str, Float[np.ndarray, " B"]],
  ) -> None:
    """Adds to the pass rates what the groups of P problems earned.

    Args:
      indices: as they were asked.
      terms: each reward of their P * G completions; NaN is left out.
    """
    if self._settings is None:
      return
    groups = terms[self._settings.term].reshape(len(indices), -1)
    for index, group in zip(indices, groups, strict=True):
      known = group[~np.isnan(group)]
      if not known.size:
        continue
      rate = float(known.mean(dtype=np.float64))
      kept = self._settings.memory if index in self._rates else 0.0
      self._rates[index] = (
        kept * self._rates.get(index, 0.0) + (1.0 - kept) * rate
      )

  def metrics(self) -> dict[str, float | int]:
    """What to log; nothing where problems are not asked by their pass rates.

    `curriculum/passed_over`: problems left out before the last prompts.
    `curriculum/rated`: problems asked so far. `curriculum/easy|hard`: share of
    these whose rate is within the margin of 1 or of 0.
    """
    if self._settings is None:
      return {}
    rates = np.array(list(self._rates.values()))
    margin = self._settings.margin
    return {
      "curriculum/passed_over": self._passed,
      "curriculum/rated": len(rates),
      "curriculum/easy": float(np.mean(rates >= 1.0 - margin)),
      "curriculum/hard": float(np.mean(rates <= margin)),
    }

  def get_state(self) -> dict[str, Any]:
    """What `set_state` needs to go on from here, as JSON."""
    rates = {str(index): rate for index, rate in self._rates.items()}
    return {"turn": self._turn, "place": self._place, "rates": rates}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on where `get_state` was called, to the bit."""
    self._turn, self._place = state["turn"], state["place"]
    self._rates = {int(i): rate for i, rate in state["rates"].items()}
