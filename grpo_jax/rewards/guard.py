"""A user's reward function that is slow, raises, or hangs ends no run.

It is called in a thread with a deadline, tried again where it raises, then
asked about each row alone, so that one row is one row's loss. What it gets are
copies. B completions.
"""

import asyncio
import copy
import functools
import inspect
import math
import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from grpo_jax import types
from grpo_jax.rewards import terms

_ROWS = 256  # That the deadline is for.
# Where so many rows alone have raised and none has a score, it is down.
_DOWN = 32
# Threads of a function that were left behind; with so many it is not called.
_MOST_HUNG = 4
_HUNG: dict[str, list[threading.Thread]] = {}


class Limits(NamedTuple):
  """How long a function may take, and how often it is tried.

  Attributes:
    deadline: seconds for the scores of 256 completions, attempts and waits
      included; in proportion for more.
    attempts: calls, at most, before each row is asked about alone.
    backoff: seconds before the second attempt; doubled before each further one,
      and multiplied by a random number from 0.5 to 1.5.
  """

  deadline: float | int = 600.0
  attempts: int = 3
  backoff: float | int = 1.0

  def check(self, where: str) -> None:
    """Raises ValueError unless all are finite and above 0."""
    for name, value in self._asdict().items():
      kinds = int if name == "attempts" else (int, float)
      if (
        isinstance(value, bool)
        or not isinstance(value, kinds)
        or not (value > 0 and math.isfinite(value))
      ):
        raise ValueError(f"{where}.{name}={value!r} must be above 0.")


def call(
  name: str,
  function: functools.partial,
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  limits: Limits,
  **given: np.ndarray | None,
) -> terms.Result:
  """The scores of a user's function; None for a row that it failed on.

  A thread that hangs is left behind when the deadline has passed: Python cannot
  end one. With four of them left the function is not called any more.

  Metrics beside its own: "failed", 1 where it raised, "timed_out", 1 where the
  deadline came first, and "no_score", 1 where it returned None.

  Args:
    name: of the term.
    function: its options are bound.
    problems: B problems.
    completions: B texts.
    limits: of time and attempts.
    **given: B values, by the names of keyword-only parameters.
  """
  count = len(completions)
  key = f"{name} {getattr(function.func, '__qualname__', function.func)}"
  hung = [thread for thread in _HUNG.get(key, ()) if thread.is_alive()]
  work = _Work(name, function, problems, completions, given, limits)
  if len(hung) < _MOST_HUNG:
    # A daemon, so that the process can end without it.
    thread = threading.Thread(
      target=work.run, name=f"reward {name}", daemon=True
    )
    thread.start()
    thread.join(limits.deadline * max(1.0, count / _ROWS))
    if thread.is_alive():
      hung.append(thread)
  _HUNG[key] = hung
  found, error = work.stop()
  failed = [isinstance(row, _Failed) for row in found]
  late = [row is None for row in found]
  if any(failed) or any(late):
    reason = (
      f"it did not return within its deadline of {limits.deadline:g} s"
      if any(late)
      else f"{type(error).__name__}: {error}"
    )
    logging.error(
      "The reward %r gave no score for %d of %d completions, which have no"
      " reward therefore: %s",
      name,
      sum(failed) + sum(late),
      count,
      reason,
    )
  rows = [row if isinstance(row, _Row) else _Row(None, {}) for row in found]
  metrics: dict[str, list[Any]] = {
    "failed": failed,
    "timed_out": late,
    "no_score": [isinstance(r, _Row) and r.score is None for r in found],
  }
  for own in dict.fromkeys(n for row in rows for n in row.metrics):
    metrics[own] = [row.metrics.get(own) for row in rows]
  return terms.Result([row.score for row in rows], metrics)


class _Row(NamedTuple):
  """What a function returned for one row."""

  score: Any
  metrics: Mapping[str, Any]


class _Failed(NamedTuple):
  """A row on which it raised."""

  error: BaseException


class _Work:
  """Calls of a function in a thread of their own, until they are stopped."""

  def __init__(
    self,
    name: str,
    function: functools.partial,
    problems: Sequence[types.Problem],
    completions: Sequence[str],
    given: Mapping[str, np.ndarray | None],
    limits: Limits,
  ):
    self._name, self._function = name, function
    self._problems, self._completions = problems, completions
    self._given, self._limits = given, limits
    self._found: list[_Row | _Failed | None] = [None] * len(completions)
    self._error: BaseException | None = None
    self._malformed: ValueError | None = None
    self._lock, self._stopped = threading.Lock(), threading.Event()

  def stop(self) -> tuple[list[_Row | _Failed | None], BaseException | None]:
    """Ends what goes on; returns what there is, and the last error.

    Raises:
      ValueError: it returned what are no scores.
    """
    self._stopped.set()
    with self._lock:
      if self._malformed is not None:
        raise self._malformed
      return list(self._found), self._error

  def run(self) -> None:
    """Calls the function with all rows, then with each alone."""
    rows, limits = range(len(self._found)), self._limits
    for attempt in range(limits.attempts):
      if attempt:
        wait = limits.backoff * 2.0 ** (attempt - 1)
        self._stopped.wait(wait * random.uniform(0.5, 1.5))
      if self._stopped.is_set() or self._ask(rows):
        return
    if len(rows) == 1:
      return
    scored = 0
    for row in rows:
      down = not scored and row >= _DOWN
      if self._stopped.is_set() or down:
        break
      scored += self._ask([row])

  def _ask(self, rows: Sequence[int]) -> bool:
    """Keeps what the function says of some rows; False where it raised."""
    try:
      returned = self._call(rows)
    except (
      BaseException
    ) as error:  # Also SystemExit, which is no reason to end.
      self._keep(rows, [_Failed(error)] * len(rows), error)
      return False
    try:
      self._keep(rows, _rows(self._name, returned, len(rows)))
    except ValueError as error:
      with self._lock:
        self._malformed = error
    return True

  def _call(self, rows: Sequence[int]) -> Any:
    # Fresh copies each time: what a call changes nobody sees.
    function = functools.partial(
      self._function.func, **copy.deepcopy(self._function.keywords)
    )
    problems = [self._problems[row] for row in rows]
    columns = {id(p.columns): p.columns for p in problems}
    columns = {k: copy.deepcopy(dict(x)) for k, x in columns.items()}
    problems = [p._replace(columns=columns[id(p.columns)]) for p in problems]
    given = {
      name: None if x is None else np.array(x)[list(rows)]
      for name, x in self._given.items()
    }
    returned = function(
      problems, [self._completions[row] for row in rows], **given
    )
    if inspect.iscoroutine(returned):
      returned = asyncio.run(returned)
    return returned

  def _keep(
    self,
    rows: Sequence[int],
    found: Sequence[_Row | _Failed],
    error: BaseException | None = None,
  ) -> None:
    with self._lock:
      if self._stopped.is_set():
        return
      self._error = error or self._error
      for row, each in zip(rows, found, strict=True):
        self._found[row] = each


def _rows(name: str, returned: Any, count: int) -> list[_Row]:
  """What was returned, by row; ValueError where it is not one for each."""
  metrics: Mapping[str, Sequence[Any]] = {}
  if isinstance(returned, terms.Result):
    returned, metrics = returned.scores, returned.metrics
  scores = terms.listed(name, returned, count)
  columns = {
    key: terms.listed(f"{name}/{key}", values, count)
    for key, values in metrics.items()
  }
  return [
    _Row(score, {key: values[row] for key, values in columns.items()})
    for row, score in enumerate(scores)
  ]
