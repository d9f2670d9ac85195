"""What only one of several processes does, and what all must agree on.

Every process runs the same program on the same host data; arrays are global.
What one alone may do, or what could come out differently in two of them, goes
through the functions of this page. They speak through JAX's coordination
service, which the first process serves, and not through the devices, so that a
process may be late for them by as long as it takes. All processes call them in
the same order, from the main thread.

With one process each of them costs nothing and changes nothing.
"""

import itertools
import pickle
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
from jax._src import distributed
from jax.experimental import multihost_utils

_Value = TypeVar("_Value")

# Seconds. Preparing a large dataset takes hours; death is noticed without this.
_LONGEST_WAIT = 24 * 3600
_ROOT = "grpo_jax"
_calls, _checks = itertools.count(), itertools.count(1)


def count() -> int:
  """Returns the number of processes."""
  return jax.process_count()


def index() -> int:
  """Returns the number of this process, from 0."""
  return jax.process_index()


def is_first() -> bool:
  """Whether this process writes what is written once."""
  return index() == 0


def wait(name: str) -> None:
  """Returns when all processes have come here."""
  if count() > 1:
    barrier = f"{_ROOT}/{next(_calls)}/{name}"
    distributed.global_state.client.wait_at_barrier(
      barrier, _LONGEST_WAIT * 1000
    )


def first(name: str, do: Callable[[], _Value]) -> _Value:
  """Does it in the first process, then in the others, which find it done.

  Args:
    name: of what is done, for messages.
    do: makes something at a path unless it is there, or finds it.
  """
  if not is_first():
    wait(name)
    return do()
  done = do()
  wait(name)
  return done


def gather(value: _Value) -> list[_Value]:
  """Returns what each process has, in their order; any value of Python."""
  if count() == 1:
    return [value]
  client = distributed.global_state.client
  number = next(_calls)
  folder = f"{_ROOT}/gathered/{number}/"
  own = f"{folder}{jax.process_index():06}"
  client.key_value_set_bytes(own, pickle.dumps(value))
  wait("gather")
  found = sorted(client.key_value_dir_get_bytes(folder))
  # Nobody leaves before all have read.
  wait("gathered")
  client.key_value_delete(own)
  return [pickle.loads(content) for _, content in found]


def from_first(make: Callable[[], _Value]) -> _Value:
  """Returns in all processes what the first one makes.

  For what depends on a clock, a server or a file that changes.
  """
  if count() == 1:
    return make()
  return gather(make() if is_first() else None)[0]


def largest(values: Mapping[str, float]) -> dict[str, float]:
  """Returns the largest of each value over all processes."""
  found = gather(dict(values))
  return {name: max(each[name] for each in found) for name in values}


def asked_to_stop() -> bool:
  """Whether a SIGTERM came to any process; True in all at the same call.

  JAX's preemption service agrees on the call: the first that no process has
  made yet. False with one process.
  """
  if count() == 1:
    return False
  return multihost_utils.reached_preemption_sync_point(next(_checks))
