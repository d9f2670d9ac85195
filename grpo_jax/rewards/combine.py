"""Several rewards weighed into one per completion, each kept for the log.

B completions, row b with its own problem.
"""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from grpo_jax import configs, types
from grpo_jax.rewards import answer, format

RewardFn = Callable[
  [Sequence[types.Problem], Sequence[str]], Sequence[float | None]
]

REWARDS: dict[str, RewardFn] = {
  "accuracy": answer.accuracy,
  "format": format.well_formed,
}


class Scores(NamedTuple):
  """What the completions earned.

  Attributes:
    rewards: the weighted sum of the terms; finite, and 0 where not valid.
    valid: False where a term of nonzero weight gave no score (None). Such a
      row leaves its group's mean and standard deviation.
    terms: each term before its weight; NaN where it gave no score.
  """

  rewards: Float[np.ndarray, " B"]
  valid: Bool[np.ndarray, " B"]
  terms: dict[str, Float[np.ndarray, " B"]]


def check(terms: Mapping[str, Any]) -> None:
  """Raises ValueError unless `terms` maps names in `REWARDS` to numbers."""
  if not terms:
    raise ValueError(f"No rewards are given; there are {sorted(REWARDS)}.")
  for name, weight in terms.items():
    if name not in REWARDS:
      raise ValueError(
        f"There is no reward {name!r}; {configs.nearest(name, REWARDS)}"
      )
    if not (isinstance(weight, numbers.Real) and math.isfinite(weight)):
      raise ValueError(
        f"The weight of reward {name!r} must be a finite number, not"
        f" {weight!r}."
      )


def score(
  terms: Mapping[str, float | int],
  problems: Sequence[types.Problem],
  completions: Sequence[str],
) -> Scores:
  """Weighs the rewards that `terms` names: sum over terms of weight * value.

  DeepSeek-R1 adds accuracy and format with equal weight,
  https://arxiv.org/abs/2501.12948 section 2.2. A term of weight 0 is computed
  and logged, and changes no reward.

  Args:
    terms: weight by name in `REWARDS`; any sign.
    problems: B problems, one for each completion.
    completions: B texts, without prompt and stop token.

  Raises:
    ValueError: a name is unknown, a weight is not finite, the counts differ, or
      a reward returned a wrong count or something that is no finite number.
  """
  check(terms)
  if len(problems) != len(completions):
    raise ValueError(
      f"{len(completions)} completions do not match {len(problems)} problems."
    )
  rewards = np.zeros(len(problems), np.float64)
  valid = np.ones(len(problems), bool)
  values = {}
  for name, weight in terms.items():
    values[name] = _values(
      name, REWARDS[name](problems, completions), len(valid)
    )
    if weight:
      valid &= ~np.isnan(values[name])
      rewards += weight * values[name].astype(np.float64)
  rewards = np.where(valid, rewards, 0.0).astype(np.float32)
  return Scores(rewards, valid, values)


def _values(name: str, returned, count: int) -> np.ndarray:
  """The scores of one term as float32, NaN for None; checks each of them."""
  try:
    len(returned)
  except TypeError:
    raise ValueError(
      f"Reward {name!r} returned {type(returned).__name__} instead of a"
      f" sequence of {count} numbers."
    ) from None
  if len(returned) != count:
    raise ValueError(
      f"Reward {name!r} returned {len(returned)} values for {count}"
      " completions."
    )
  values = np.full(count, np.nan, np.float32)
  for row, value in enumerate(returned):
    if value is None:
      continue
    number = np.asarray(value)
    if number.shape or number.dtype.kind not in "biuf":
      raise ValueError(
        f"Reward {name!r} returned {value!r} for completion {row}, which is"
        " not a number."
      )
    with np.errstate(over="ignore"):
      values[row] = number.astype(np.float32)
    if not np.isfinite(values[row]):
      raise ValueError(
        f"Reward {name!r} returned {value!r} for completion {row}; rewards"
        " must be finite."
      )
  return values
