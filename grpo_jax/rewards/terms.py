"""What a reward term may say beyond one number per completion.

B completions.
"""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple, TypeVar

import numpy as np

_Function = TypeVar("_Function", bound=Callable)


class Result(NamedTuple):
  """The scores of a term with more to log.

  Attributes:
    scores: B numbers; None where a completion cannot be scored.
    metrics: B values by name, None where there is none. The mean over the
      others is logged as `rewards/<term>/<name>`.
  """

  scores: Sequence[float | None]
  metrics: Mapping[str, Sequence[float | bool | None]]


def on_device(function: _Function) -> _Function:
  """Marks a term that computes with JAX.

  It runs in the thread that asks for the rewards, which knows the mesh, and not
  beside other programs of that thread: two programs of several devices that
  start in different orders on them wait for each other forever.
  """
  function.on_device = True  # pyrefly: ignore[missing-attribute]
  return function


def checked_empty(function: _Function) -> _Function:
  """Marks a term that checks its options also where there are no completions.

  It is called so before a run begins, and must raise ValueError or OSError in
  one sentence, quickly and without the devices.
  """
  function.checked_empty = True  # pyrefly: ignore[missing-attribute]
  return function


def listed(name: str, returned: Any, count: int) -> list[Any]:
  """What a term returned as a list of one value for each row.

  Args:
    name: of the term.
    returned: a sequence, or an array or tensor of one axis.
    count: how many there must be.

  Raises:
    ValueError: it is none, or not of that many.
  """
  unordered = isinstance(returned, str | bytes | Mapping | Set)
  try:
    size = len(returned)
  except TypeError:  # Also an array without axes.
    size = None
  if size is None or unordered:
    raise ValueError(
      f"Reward {name!r} returned {type(returned).__name__} instead of a"
      f" sequence of {count} numbers."
    )
  if size != count:
    raise ValueError(
      f"Reward {name!r} returned {size} values for {count} completions."
    )
  return list(returned)


def number(name: str, value: Any, row: int) -> float:
  """A value that a term returned as a number, exact to float32; NaN for None.

  Numbers of Python and NumPy, and arrays and tensors of any library without
  axes, wherever they are.

  Args:
    name: of the term.
    value: what it returned.
    row: of the completion.

  Raises:
    ValueError: it is no number, or not finite as a float32.
  """
  if value is None:
    return math.nan
  wrong = f"Reward {name!r} returned {value!r} for completion {row}"
  if not isinstance(value, numbers.Number) and not getattr(
    value, "shape", True
  ):
    value = value.item()
  if not isinstance(value, numbers.Real | np.bool_):
    raise ValueError(f"{wrong}, which is not a number.")
  try:
    with np.errstate(over="ignore"):
      as_float32 = float(np.float32(float(value)))
  except OverflowError:
    as_float32 = math.inf
  if not math.isfinite(as_float32):
    raise ValueError(f"{wrong}; rewards must be finite.")
  return as_float32
