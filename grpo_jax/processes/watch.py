"""Which of the other processes is gone, told by those that are left."""

import contextlib
import ctypes
import itertools
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

import jax
from jax._src import distributed

from grpo_jax.processes import exchange

# Seconds. A process that JAX has not heard of for so long is dead.
HEARTBEAT = 30
_EVERY = 2
_ROOT = "grpo_jax"
_HANDLERS = []


class Watch:
  """Knows of which processes this one has heard, and what they said.

  JAX ends a process when another is dead; from here comes the sentence that
  names it. And JAX waits for what another's error makes impossible.
  """

  def __init__(self, process: int, num_processes: int, coordinator: str):
    """Begins to listen.

    Args:
      process: number of this one.
      num_processes: that were to come.
      coordinator: HOST:PORT of the first.
    """
    self._client = distributed.global_state.client
    self._own, self._expected = process, num_processes
    self._coordinator = coordinator
    name = f"{_ROOT}/host/{self._own:06}"
    self._client.key_value_set(name, socket.gethostname())
    exchange.wait("hosts")
    found = self._client.key_value_dir_get(f"{_ROOT}/host/")
    self._hosts = [host for _, host in sorted(found)]
    self._heard = [time.monotonic()] * len(self._hosts)
    self._beats = [""] * len(self._hosts)
    self._ended = threading.Event()
    on_abort(self._aborted)
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()

  def greeting(self) -> str:
    """Says who has come."""
    hosts = list(dict.fromkeys(self._hosts))
    shown = ", ".join(hosts[:8]) + (", ..." if hosts[8:] else "")
    kind = jax.devices()[0].device_kind
    return (
      f"{len(self._hosts)} of {self._expected} processes are here,"
      f" on {shown}: {jax.device_count()} devices ({kind})."
    )

  def end(self) -> None:
    """Stops to listen."""
    self._ended.set()
    self._thread.join()

  def _name(self, process: int) -> str:
    return f"process {process} on {self._hosts[process]}"

  def _listen(self) -> None:
    for beat in itertools.count():
      if self._ended.wait(_EVERY):
        return
      try:
        own = f"{_ROOT}/alive/{self._own:06}"
        self._client.key_value_set(own, str(beat), allow_overwrite=True)
        beats = self._client.key_value_dir_get(f"{_ROOT}/alive/")
        failed = self._client.key_value_dir_get(f"{_ROOT}/failed/")
      except jax.errors.JaxRuntimeError:
        continue  # JAX will notice, or has.
      for name, said in beats:
        process = int(name.rpartition("/")[2])
        if said != self._beats[process]:
          self._beats[process] = said
          self._heard[process] = time.monotonic()
      for name, said in sorted(failed):
        process = int(name.rpartition("/")[2])
        if process != self._own and not self._ended.is_set():
          with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_ROOT}/heard/{self._own:06}", "")
          _leave(
            f"{_beginning(self._name(self._own))} ends, for"
            f" {self._name(process)} ended with an error:\n{said}"
          )

  def _aborted(self) -> str:
    """What to say when JAX, having said why, ends this process."""
    # JAX's own heartbeats are half a timeout apart, so it may know of a death
    # that is no older than that.
    now = time.monotonic()
    lost = [
      f"{self._name(process)} ({now - heard:.0f} s)"
      for process, heard in enumerate(self._heard)
      if process != self._own and now - heard > HEARTBEAT / 3
    ]
    if self._own and not lost and not self._reaches_first():
      lost = [f"{self._name(0)}, which the others need to find each other"]
    own = _beginning(self._name(self._own))
    if lost:
      return (
        f"{own} ends, for nothing is heard any more of {', '.join(lost)}:"
        " killed, or cut off. The same command, on all hosts, goes on from the"
        " newest checkpoint."
      )
    return f"{own} was aborted; what is said above tells why."

  def _reaches_first(self) -> bool:
    host, _, port = self._coordinator.rpartition(":")
    try:
      socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
      return False
    return True


def on_abort(tell: Callable[[], str]) -> None:
  """Has JAX's abort() say a sentence and end with status 1."""
  # In C, since handlers of Python wait for the main thread, which may be in a
  # collective for good. What aborts is one thread; the others go on meanwhile.
  handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: _leave(tell()))
  ctypes.CDLL(None).signal(signal.SIGABRT, handler)
  _HANDLERS.append(handler)  # C keeps no reference.


def fail(
  error: BaseException,
  tell: Callable[[BaseException], str | None],
  process: int,
) -> NoReturn:
  """Says what happened here, has the others hear it, and ends."""
  said = tell(error)
  if said is None:
    said = "".join(traceback.format_exception(error)).rstrip()
  where = f"process {process} on {socket.gethostname()}"
  broken = isinstance(error, jax.errors.JaxRuntimeError)
  if broken and "RESOURCE_EXHAUSTED" not in str(error):
    # A collective breaks off where another process is gone. Then the watch, or
    # JAX, says which, and ends this one too.
    print(
      f"{str(error).splitlines()[0]}\n{_beginning(where)} looks for what ended"
      " another one.",
      file=sys.stderr,
      flush=True,
    )
    time.sleep(HEARTBEAT + 5 * _EVERY)
  print(said, file=sys.stderr, flush=True)
  client = distributed.global_state.client
  try:
    client.key_value_set(f"{_ROOT}/failed/{process:06}", said)
    if process == 0:
      # Without this process nobody hears anything.
      deadline = time.monotonic() + 5 * _EVERY
      heard = []
      while time.monotonic() < deadline and len(heard) < exchange.count() - 1:
        time.sleep(0.1)
        heard = client.key_value_dir_get(f"{_ROOT}/heard/")
  except jax.errors.JaxRuntimeError:
    pass  # It is gone already.
  _leave(f"{_beginning(where)} ended with this error, and so do the others.")


def _beginning(sentence: str) -> str:
  return sentence[0].upper() + sentence[1:]


def _leave(sentence: str) -> NoReturn:
  """Ends the process without waiting for the others, as JAX would."""
  with contextlib.suppress(OSError, ValueError):
    sys.stdout.flush()
  os.write(2, f"{sentence}\n".encode("utf-8", "replace"))
  os._exit(1)
