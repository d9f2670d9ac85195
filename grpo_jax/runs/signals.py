"""Stopping between steps: a signal asks, the loop saves and leaves."""

import enum
import os
import signal
from types import FrameType

from grpo_jax import processes


class Outcome(enum.Enum):
  """What a stage's `run` came to."""

  FINISHED = "finished"
  # By a signal; the same command goes on from there.
  STOPPED = "stopped"


class StopRequest:
  """Whether SIGINT or SIGTERM came while the block ran.

  `with StopRequest() as stop:` catches the first such signal; a second one ends
  the process as it would without us.

  Of several processes all stop, after the same step, whichever has a signal.
  `bool(stop)` is then asked equally often in each. Their SIGTERM is JAX's.
  """

  SIGNALS = (signal.SIGINT, signal.SIGTERM)

  def __init__(self):
    """Nothing is caught until the block is entered."""
    self._asked = False

  def __enter__(self) -> "StopRequest":
    several = processes.count() > 1
    caught = (signal.SIGINT,) if several else self.SIGNALS
    self._before = {s: signal.signal(s, self._ask) for s in caught}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _ask(self, number: int, frame: FrameType | None) -> None:
    if processes.count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)
    else:
      self._asked = True
    for each, handler in self._before.items():
      signal.signal(each, handler)
    name = signal.Signals(number).name
    print(f"{name}: stopping after this step; once more to stop now.")

  def __bool__(self) -> bool:
    self._asked = self._asked or processes.asked_to_stop()
    return self._asked
