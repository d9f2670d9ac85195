"""The optax chain of every stage: clip, AdamW, a schedule with warm-up."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.tree_util import DictKey

SCHEDULES = ("constant", "linear", "cosine")
# Of the numbers of a section: the least, a bound above, and whether a number
# must be above the least. A learning rate below 0 climbs the loss.
_RANGES = {
  "learning_rate": (0.0, math.inf, True),
  "warmup_updates": (0.0, math.inf, False),
  "final_fraction": (0.0, math.inf, False),
  "b1": (0.0, 1.0, False),
  "b2": (0.0, 1.0, False),
  "eps": (0.0, math.inf, False),
  "weight_decay": (0.0, math.inf, False),
  "clip_norm": (0.0, math.inf, True),
}


def make_schedule(
  total_updates: int,
  *,
  learning_rate: float,
  schedule: str = "constant",
  warmup_updates: int = 0,
  final_fraction: float = 0.0,
) -> optax.Schedule:
  """Returns the learning rate as a function of the optimizer update.

  Args:
    total_updates: optimizer updates of the whole run.
    learning_rate: at the end of the warm-up.
    schedule: what follows it: constant, linear or cosine.
    warmup_updates: of linear growth from 0.
    final_fraction: share of the learning rate that is left at the end.

  Raises:
    ValueError: an unknown schedule, or a warm-up longer than the run.
  """
  if schedule not in SCHEDULES:
    raise ValueError(f"schedule={schedule!r} must be one of {SCHEDULES}.")
  if warmup_updates >= total_updates and warmup_updates:
    raise ValueError(
      f"warmup_updates={warmup_updates} must be below the run's"
      f" {total_updates} optimizer updates."
    )
  rest = total_updates - warmup_updates
  after = {
    "constant": lambda: optax.constant_schedule(learning_rate),
    "linear": lambda: optax.linear_schedule(
      learning_rate, learning_rate * final_fraction, rest
    ),
    "cosine": lambda: optax.cosine_decay_schedule(
      learning_rate, rest, alpha=final_fraction
    ),
  }[schedule]()
  if not warmup_updates:
    return after
  # The first update already moves: the rate grows from 1 / warmup_updates.
  grow = optax.linear_schedule(
    learning_rate / warmup_updates, learning_rate, warmup_updates - 1
  )
  return optax.join_schedules([grow, after], [warmup_updates])


def make_optimizer(
  total_updates: int,
  *,
  learning_rate: float,
  schedule: str = "constant",
  warmup_updates: int = 0,
  final_fraction: float = 0.0,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  clip_norm: float = 1.0,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Returns AdamW (arXiv 1711.05101) behind a clip, and its learning rate.

  Norm scales and biases are not decayed.

  Args:
    total_updates: optimizer updates of the whole run.
    learning_rate: at the end of the warm-up.
    schedule: what follows it; see `make_schedule`.
    warmup_updates: of linear growth.
    final_fraction: share of the learning rate that is left at the end.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    weight_decay: times the learning rate, per update.
    clip_norm: the gradient's global norm is at most this.

  Raises:
    ValueError: an unknown schedule, or a warm-up longer than the run.
  """
  rate = make_schedule(
    total_updates,
    learning_rate=learning_rate,
    schedule=schedule,
    warmup_updates=warmup_updates,
    final_fraction=final_fraction,
  )
  adamw = optax.adamw(
    rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_decayed
  )
  return optax.chain(optax.clip_by_global_norm(clip_norm), adamw), rate


def check(section: Mapping[str, Any], path: str = "optimizer") -> None:
  """Raises ValueError where a number of an optimizer is out of its range.

  Args:
    section: keyword arguments of `make_optimizer`.
    path: how a sentence names it.
  """
  for name, (least, below, open_) in _RANGES.items():
    if name not in section:
      continue
    value = section[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and (least < value < below or (value == least and not open_)):
      continue
    what = f"above {least:g}" if open_ else f"at least {least:g}"
    end = " and finite" if below == math.inf else f" and below {below:g}"
    raise ValueError(f"{path}.{name}={value!r} must be {what}{end}.")


def _decayed(params: Any) -> Any:
  def one(path: tuple[DictKey, ...], _: Any) -> bool:
    name = path[-1].key
    return not (name.endswith("norm") or name.endswith("bias"))

  return jax.tree_util.tree_map_with_path(one, params)
