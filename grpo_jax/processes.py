"""The processes of one run: one on each host, or several on one machine.

Every process runs the same program on the same host data; arrays are global.
What only one may do, or what could come out differently in two of them, goes
through the functions of this page. They speak through JAX's coordination
service, which the first process serves, and not through the devices, so that a
process may be late for them by as long as it takes. All processes call them in
the same order, from the main thread.

With one process each of them costs nothing and changes nothing.
"""

import contextlib
import ctypes
import itertools
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn, TypeVar

import jax
import numpy as np
from jax._src import cloud_tpu_init, clusters, distributed
from jax.experimental import multihost_utils

from grpo_jax import errors

_Value = TypeVar("_Value")

# Seconds. A process that JAX has not heard of for so long is dead.
HEARTBEAT = 30
# Others may be installing or be queued still.
JOIN_TIMEOUT = 1800
# Preparing a large dataset takes hours; death is noticed without this.
_LONGEST_WAIT = 24 * 3600
_SHUTDOWN, _EVERY = 60, 2
_WARM_UPS = 5

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


class Launch:
  """How a process finds the others.

  Args:
    coordinator: HOST:PORT of the first process.
    num_processes: of the run.
    process_id: of this one, from 0.
    timeout: seconds for all to come.

  What is None is asked of SLURM, Open MPI, Kubernetes or the metadata of a TPU,
  as `jax.distributed.initialize` does.
  """

  def __init__(
    self,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = JOIN_TIMEOUT,
  ):
    """Asks the environment.

    Raises:
      ConfigError: something is missing, or does not fit.
    """
    self.coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    self.num_processes, self.process_id = num_processes, process_id
    self.timeout = timeout
    self._devices = None
    if self._missing() and self.num_processes != 1:
      self._ask()
    self._check()

  @property
  def alone(self) -> bool:
    """Whether there is one process."""
    return self.num_processes in (None, 1)

  def _missing(self) -> list[str]:
    flags = {
      "--coordinator=HOST:PORT": self.coordinator,
      "--num_processes": self.num_processes,
      "--process_id": self.process_id,
    }
    return [flag for flag, value in flags.items() if value is None]

  def _ask(self) -> None:
    if not (_has_launcher() or cloud_tpu_init.running_in_cloud_tpu_vm):
      return
    try:
      found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        self.coordinator,
        self.num_processes,
        self.process_id,
        None,
        None,
        self.timeout,
      )
    except (RuntimeError, OSError, KeyError) as error:
      raise errors.ConfigError(
        f"The launcher does not say which processes there are ({error}); give"
        f" {', '.join(self._missing())}."
      ) from error
    self.coordinator, self.num_processes, self.process_id = found[:3]
    self._devices = found[3]
    if self.num_processes is None and _has_launcher():
      self.num_processes = -1

  def _check(self) -> None:
    missing = self._missing()
    if self.num_processes == 1 or len(missing) == 3:
      return
    if missing or self.num_processes == -1:
      missing = missing or ["--num_processes"]
      raise errors.ConfigError(
        "This is one process of several, and"
        f" {', '.join(missing)} {'are' if missing[1:] else 'is'} missing."
      )
    host, _, port = self.coordinator.rpartition(":")
    if not host or not port.isdecimal():
      raise errors.ConfigError(
        f"--coordinator={self.coordinator} must be HOST:PORT."
      )
    if not 0 <= self.process_id < self.num_processes:
      raise errors.ConfigError(
        f"--process_id={self.process_id} must be at least 0 and below"
        f" --num_processes={self.num_processes}."
      )

  def connect(self) -> None:
    """Waits until all processes are there.

    Raises:
      ConfigError: they are not, within the timeout.
    """
    host = socket.gethostname()
    print(
      f"Process {self.process_id} of {self.num_processes} on {host}: waiting"
      f" for all of them at {self.coordinator}, for {self.timeout} s at most.",
      flush=True,
    )
    jax.config.update("jax_enable_preemption_service", True)
    try:
      jax.distributed.initialize(
        self.coordinator,
        self.num_processes,
        self.process_id,
        local_device_ids=self._devices,
        cluster_detection_method="deactivate",
        initialization_timeout=self.timeout,
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=_SHUTDOWN,
      )
    except jax.errors.JaxRuntimeError as error:
      raise errors.ConfigError(
        f"Process {self.process_id} on {host}: not all {self.num_processes}"
        f" processes came to {self.coordinator} within {self.timeout} s. Start"
        " the same command on every host, and see that they reach this port"
        f" ({str(error).splitlines()[0][:200]})."
      ) from error


def _has_launcher() -> bool:
  """Whether something that JAX can ask started this process with others."""
  many = any(
    int(os.environ.get(name) or 1) > 1
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
  )
  in_step = "SLURM_STEP_NODELIST" in os.environ
  if many and (in_step or "OMPI_COMM_WORLD_SIZE" in os.environ):
    return True
  kubernetes = ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX")
  return all(name in os.environ for name in kubernetes)


@contextlib.contextmanager
def joined(
  launch: Launch, tell: Callable[[BaseException], str | None]
) -> Iterator[None]:
  """Joins the processes of a run, and leaves them together.

  An error in one of them ends all: the others say which it was. Where one dies
  without a word, they say which they have not heard of.

  Args:
    launch: how they find each other.
    tell: an error's sentence; None where its traceback is to be shown.
  """
  if launch.alone:
    yield
    return
  launch.connect()
  try:
    watch = _Watch(launch)
    _warm_up()
    if is_first():
      print(watch.greeting(), flush=True)
    yield
    wait("end")
  except BaseException as error:
    _fail(error, tell, launch.process_id)
  watch.end()
  jax.distributed.shutdown()


def _warm_up() -> None:
  """Has all processes meet on the devices, while none has work to do.

  On CPUs the first collective must find its peers within 30 seconds.
  """
  for left in reversed(range(_WARM_UPS)):
    wait("warm up")
    problem = None
    try:
      seen = multihost_utils.process_allgather(np.int32(jax.process_index()))
      assert seen.tolist() == list(range(count()))
    except jax.errors.JaxRuntimeError as error:
      problem = str(error)
    problems = [found for found in gather(problem) if found]
    if not problems:
      return
    if not left:
      raise errors.ConfigError(
        f"The processes do not meet on their devices: {problems[0]}"
      )


class _Watch:
  """Knows of which processes this one has heard, and what they said.

  JAX ends a process when another is dead; from here comes the sentence that
  names it. And JAX waits for what another's error makes impossible.
  """

  def __init__(self, launch: Launch):
    """Begins to listen."""
    self._client = distributed.global_state.client
    self._launch = launch
    self._own = launch.process_id
    name = f"{_ROOT}/host/{self._own:06}"
    self._client.key_value_set(name, socket.gethostname())
    wait("hosts")
    found = self._client.key_value_dir_get(f"{_ROOT}/host/")
    self._hosts = [host for _, host in sorted(found)]
    self._heard = [time.monotonic()] * len(self._hosts)
    self._beats = [""] * len(self._hosts)
    self._ended = threading.Event()
    # JAX calls abort(). In C, since Python's handlers wait for the main thread,
    # which may be in a collective for good.
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
    self._on_abort = handler(self._aborted)
    ctypes.CDLL(None).signal(signal.SIGABRT, self._on_abort)
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()

  def greeting(self) -> str:
    """Says who has come."""
    hosts = list(dict.fromkeys(self._hosts))
    shown = ", ".join(hosts[:8]) + (", ..." if hosts[8:] else "")
    kind = jax.devices()[0].device_kind
    return (
      f"{len(self._hosts)} of {self._launch.num_processes} processes are here,"
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
            f"{self._name(self._own).capitalize()} ends, for"
            f" {self._name(process)} ended with an error:\n{said}"
          )

  def _aborted(self, number: int) -> None:
    """Called by abort(), in whatever thread, after JAX said why."""
    now = time.monotonic()
    lost = [
      f"{self._name(process)} ({now - heard:.0f} s)"
      for process, heard in enumerate(self._heard)
      if process != self._own and now - heard > HEARTBEAT / 2
    ]
    if self._own and not lost and not self._reaches_first():
      lost = [f"{self._name(0)}, which the others need to find each other"]
    own = self._name(self._own).capitalize()
    if lost:
      _leave(
        f"{own} ends, for nothing is heard any more of {', '.join(lost)}:"
        " killed, or cut off. The same command, on all hosts, goes on from the"
        " newest checkpoint."
      )
    _leave(f"{own} was aborted; what is said above tells why.")

  def _reaches_first(self) -> bool:
    host, _, port = self._launch.coordinator.rpartition(":")
    try:
      socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
      return False
    return True


def _fail(
  error: BaseException,
  tell: Callable[[BaseException], str | None],
  process: int,
) -> NoReturn:
  """Says what happened here, has the others hear it, and ends."""
  said = tell(error)
  if said is None:
    said = "".join(traceback.format_exception(error)).rstrip()
  where = f"process {process} on {socket.gethostname()}"
  if isinstance(error, jax.errors.JaxRuntimeError):
    # A collective breaks off where another process is gone. Then the watch, or
    # JAX, says which, and ends this one too.
    print(
      f"{str(error).splitlines()[0]}\n{where.capitalize()} looks for what ended"
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
      while time.monotonic() < deadline:
        if len(client.key_value_dir_get(f"{_ROOT}/heard/")) == count() - 1:
          break
        time.sleep(0.1)
  except jax.errors.JaxRuntimeError:
    pass  # It is gone already.
  _leave(f"{where.capitalize()} ended with this error, and so do the others.")


def _leave(sentence: str) -> NoReturn:
  """Ends the process without waiting for the others, as JAX would."""
  with contextlib.suppress(OSError, ValueError):
    sys.stdout.flush()
  os.write(2, f"{sentence}\n".encode("utf-8", "replace"))
  os._exit(1)
