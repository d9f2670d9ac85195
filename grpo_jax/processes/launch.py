"""How the processes of a run find each other, and leave together."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax._src import cloud_tpu_init, clusters
from jax.experimental import multihost_utils

from grpo_jax import errors
from grpo_jax.processes import exchange
from grpo_jax.processes import watch as watch_lib

# Seconds. Others may be installing or be queued still.
JOIN_TIMEOUT = 1800
_SHUTDOWN = 60
_WARM_UPS = 5
_OPEN_MPI = {
  "num_processes": "OMPI_COMM_WORLD_SIZE",
  "process_id": "OMPI_COMM_WORLD_RANK",
}


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
    # Open MPI 5 does not say where its first process is, and JAX then reads
    # nothing of it.
    for name, variable in _OPEN_MPI.items():
      if getattr(self, name) is None and variable in os.environ:
        setattr(self, name, int(os.environ[variable]))
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
      if len(self._missing()) == 3 and not _has_launcher():
        return  # One host of TPUs may have no metadata of others.
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
    sentence = (
      f"Process {self.process_id} on {host}: not all {self.num_processes}"
      f" processes came to {self.coordinator} within {self.timeout} s. Start"
      " the same command on every host, and see that they reach this port."
    )
    # JAX may abort where others do not come.
    watch_lib.on_abort(lambda: sentence)
    try:
      jax.distributed.initialize(
        self.coordinator,
        self.num_processes,
        self.process_id,
        local_device_ids=self._devices,
        cluster_detection_method="deactivate",
        initialization_timeout=self.timeout,
        heartbeat_timeout_seconds=watch_lib.HEARTBEAT,
        shutdown_timeout_seconds=_SHUTDOWN,
      )
    except jax.errors.JaxRuntimeError as error:
      raise errors.ConfigError(sentence) from error


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
    watch = watch_lib.Watch(
      launch.process_id, launch.num_processes, launch.coordinator
    )
    _warm_up()
    if exchange.is_first():
      print(watch.greeting(), flush=True)
    yield
    exchange.wait("end")
  except BaseException as error:
    watch_lib.fail(error, tell, launch.process_id)
  watch.end()
  jax.distributed.shutdown()


def _warm_up() -> None:
  """Has all processes meet on the devices, while none has work to do.

  On CPUs the first collective must find its peers within 30 seconds.
  """
  for left in reversed(range(_WARM_UPS)):
    exchange.wait("warm up")
    problem = None
    try:
      seen = multihost_utils.process_allgather(np.int32(exchange.index()))
      assert seen.tolist() == list(range(exchange.count()))
    except jax.errors.JaxRuntimeError as error:
      problem = str(error)
    problems = [found for found in exchange.gather(problem) if found]
    if not problems:
      return
    if not left:
      raise errors.ConfigError(
        f"The processes do not meet on their devices: {problems[0]}"
      )
