"""A pool of processes that run functions on hostile text, and can be killed.

  outcomes = workers.shared().map(
    "package.module:function", [(text,), ...], deadline=5.0
  )

Each item has a deadline of wall-clock time, which begins when a worker that is
ready has got it. A worker that exceeds it, dies or breaks a rule of `worker` is
killed with its process group and replaced, in milliseconds: workers are forked
from a helper process that has imported the functions and never JAX. An item
whose worker died gets another one, with the whole deadline, up to twice.
"""

import atexit
import contextlib
import functools
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, Literal, NamedTuple, TypeVar

from grpo_jax.rewards.isolation import pipe, worker

_START_SECONDS = 120.0
# A worker is replaced after so many items: libraries cache what they parse.
_ITEMS_PER_WORKER = 256
# A process that died may have been killed for what others did, by a machine
# short of memory. What kills three in a row has done it itself.
_TRIES = 3

_Started = TypeVar("_Started")


class Outcome(NamedTuple):
  """What became of one item.

  Attributes:
    status: whether there is a value.
    value: what the function returned, as JSON gives it back.
    detail: why there is none.
  """

  status: Literal["value", "timed_out", "crashed"]
  value: Any = None
  detail: str = ""


class Pool:
  """Worker processes that start when they are needed.

  Methods may be called from any thread; items of all callers share the workers.

  Args:
    size: how many workers there are at most; at least 1.
    memory: bytes that a worker may take beyond what it starts with.
  """

  def __init__(self, size: int, *, memory: int = 1 << 30):
    if size < 1:
      raise ValueError(f"A pool needs at least 1 worker, not {size}.")
    self._memory = memory
    self._idle = queue.LifoQueue()
    self._lock = threading.Lock()
    self._helper = None
    self._threads = futures.ThreadPoolExecutor(size, "grading")

  def map(
    self, function: str, items: Sequence[tuple], *, deadline: float
  ) -> list[Outcome]:
    """Runs the function on each item and returns what became of it, in order.

    Args:
      function: "package.module:function". The module must not import JAX; its
        function `warm_up`, if it has one, is called once before workers start.
      items: the positional arguments, each tuple plain JSON data of at most
        `worker.MAX_BYTES`.
      deadline: seconds for each item.

    Raises:
      RuntimeError: the function cannot be imported, or no process started.
      ValueError: an item is too long.
    """
    self._try(lambda: self._prepare(function))
    run = functools.partial(self._run, function, deadline=deadline)
    return list(self._threads.map(run, items))

  def close(self) -> None:
    """Ends all processes; a later `map` starts new ones."""
    with self._lock:
      while not self._idle.empty():
        self._idle.get().channel.close()
      if self._helper is not None:
        self._helper.close()
        self._helper = None

  def _prepare(self, function: str) -> "_Helper":
    """Returns a helper that runs and has imported the function."""
    helper = self._helper
    if helper is None or not helper.alive():
      if helper is not None:
        helper.close()
      helper = self._helper = _Helper()
    if function not in helper.functions:
      problem = helper.request({"load": function})
      if problem:
        raise RuntimeError(f"{function!r} cannot be graded with: {problem}")
      helper.functions.add(function)
    return helper

  def _run(self, function: str, item: tuple, *, deadline: float) -> Outcome:
    message = worker.encode([function, item])
    for _ in range(_TRIES):
      outcome = self._run_once(function, message, deadline)
      if outcome is not None:
        return outcome
    return Outcome("crashed", detail="The worker died.")

  def _run_once(self, function, message, deadline) -> Outcome | None:
    """What became of an item; None where its worker died of it or otherwise."""
    process = self._ready(function)
    end = time.monotonic() + deadline
    outcome = None
    try:
      process.limit(end)
      process.channel.sendall(message)
      reply = worker.receive(process.channel, lambda: process.limit(end))
      process.items += 1
      if "value" in reply:
        if process.items < _ITEMS_PER_WORKER:
          self._idle.put(process)
        else:
          self._end(process)
        return Outcome("value", reply["value"])
      outcome = Outcome("crashed", detail=str(reply["error"]))
    except TimeoutError:
      outcome = Outcome("timed_out", detail=f"No result after {deadline} s.")
    except (pipe.Gone, OSError):
      pass
    self._end(process)
    return outcome

  def _ready(self, function: str) -> "_Worker":
    """A worker that waits for an item."""
    with contextlib.suppress(queue.Empty):
      while True:
        process = self._idle.get_nowait()
        if function in process.functions and process.alive():
          return process
        self._end(process)  # It would import in the item's time, or is dead.

    def start():
      process = self._prepare(function).fork(self._memory)
      process.limit(time.monotonic() + _START_SECONDS)
      worker.receive(process.channel)
      return process

    return self._try(start)

  def _try(self, start: Callable[[], _Started]) -> _Started:
    """Starts processes, again where one of them is killed meanwhile."""
    problem = None
    for _ in range(_TRIES):
      try:
        with self._lock:
          return start()
      except (pipe.Gone, OSError) as error:
        problem = error
    raise RuntimeError(f"No grading process could be started: {problem!r}.")

  def _end(self, process: "_Worker") -> None:
    process.channel.close()
    with self._lock:
      if process.helper is self._helper:
        try:
          process.helper.request({"end": process.pid})
        except (pipe.Gone, OSError):
          pass  # It died, and its workers with it.


class _Worker:
  """One worker process."""

  def __init__(self, helper: "_Helper", pid: int, channel: socket.socket):
    self.helper = helper
    self.pid = pid
    self.channel = channel
    self.functions = frozenset(helper.functions)
    self.items = 0

  def alive(self) -> bool:
    """Whether its end of the channel, on which it says nothing now, is open."""
    self.channel.settimeout(0.0)
    try:
      self.channel.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
      return True
    except OSError:
      pass
    return False

  def limit(self, end: float) -> None:
    """Lets reads and writes take until `end`."""
    left = end - time.monotonic()
    if left <= 0:
      raise TimeoutError
    self.channel.settimeout(left)


class _Helper:
  """The process that forks workers; see `worker`."""

  def __init__(self):
    self._control, theirs = socket.socketpair()
    self._control.settimeout(_START_SECONDS)
    self.functions = set()
    # Of the environment only what finds modules: a reward needs no secrets.
    environment = {
      key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ
    }
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    environment["PYTHONHASHSEED"] = "0"  # Sympy's ways depend on it.
    with theirs:
      self._process = subprocess.Popen(
        [
          sys.executable,
          "-m",
          "grpo_jax.rewards.isolation.worker",
          str(theirs.fileno()),
        ],
        pass_fds=[theirs.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the run, not for its workers.
      )

  def alive(self) -> bool:
    return self._process.poll() is None

  def request(self, message: dict[str, Any], fds: Sequence[int] = ()) -> Any:
    socket.send_fds(self._control, [b"!"], fds)
    self._control.sendall(worker.encode(message))
    return worker.receive(self._control)

  def fork(self, memory: int) -> _Worker:
    ours, theirs = socket.socketpair()
    with theirs:
      pid = self.request({"fork": memory}, [theirs.fileno()])
    return _Worker(self, pid, ours)

  def close(self) -> None:
    """Ends the helper with all of its workers, which it does by itself."""
    self._control.close()
    try:
      self._process.wait(timeout=10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()


@functools.cache
def shared(size: int = 0, memory: int = 1 << 30) -> Pool:
  """This process's pool of so many workers; 0 for all cores but one."""
  pool = Pool(size or max(1, (os.cpu_count() or 1) - 1), memory=memory)
  atexit.register(pool.close)
  return pool
