"""What a reward term may say beyond one number per completion.

B completions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

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
