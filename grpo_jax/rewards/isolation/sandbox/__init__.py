"""Programs that nobody has read, run where they can do no harm.

A program gets a scratch folder of bounded size, Python with its standard
library, standard input, and an output of bounded size. It is held by limits on
processor time, wall-clock time, memory, size of files and number of processes,
by a filter of system calls (`seccomp`), and what it starts ends with it. With
`isolation="namespaces"` (Linux 5.14 or newer) it also

  - sees no file but system libraries and Python, read-only, and its scratch;
  - has no network, not even to this machine;
  - sees, signals and traces no process but those that it started;
  - is an unprivileged user without capabilities, also when we are root.

With `isolation="limits"` it is an unprivileged user if we are root, otherwise
the user that we are. The filter leaves it no socket but pairs and no signal but
to itself; Landlock (Linux 5.13 or newer) leaves it the same files as above.
Where the kernel has no Landlock it reads what its user reads and writes no file
at all. Where the kernel filters no calls either, which `check` warns of, files,
network and the processes of its user are open to it.

What remains: defects of the kernel; the processor's shared state (timing); for
the moment between two looks at what it holds, more memory than its bound.
"""

import functools
import logging
import marshal
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from grpo_jax.rewards.isolation.sandbox import scratch

_LOG = logging.getLogger(__name__)
ISOLATIONS = ("namespaces", "limits")
# The interpreter under a virtual environment: programs see no packages.
PYTHON = os.path.realpath(sys.executable)

_LAUNCHER = pathlib.Path(__file__).with_name("launcher.py")
_SYSTEM = ("/bin", "/lib", "/lib32", "/lib64", "/sbin", "/usr")
_LOADER = "/etc/ld.so.cache"
# Says whether the filter is in force: keyrings and AF_VSOCK are refused.
_TRIAL = """
import ctypes, socket
libc = ctypes.CDLL(None, use_errno=True)
held = libc.syscall({keyctl}, 0, -3, 0) < 0 and ctypes.get_errno() == 1
try:
  socket.socket(40, 1)
  held = False
except OSError as error:
  held = held and error.errno == 97
print(6 * 7, held)
"""
_KEYCTL = {"x86_64": 250, "aarch64": 219}
# Seconds that a sandbox has beyond the program's own, to start and to end.
_GRACE = 5.0


class IsolationError(OSError):
  """The machine does not give the isolation that is asked for."""


class Limits(NamedTuple):
  """What a program may use.

  Attributes:
    cpu_seconds: processor time of each process.
    wall_seconds: from start to end.
    memory_mb: what all of its processes hold together, and the address space of
      each of them, MiB. The scratch folder and the output come on top.
    processes: processes and threads at one time, its own included.
    file_mb: the scratch folder, each file in it, and the output, MiB.
  """

  cpu_seconds: int = 5
  wall_seconds: float | int = 10.0
  memory_mb: int = 512
  processes: int = 8
  file_mb: int = 8


class Ended(NamedTuple):
  """How a program ended.

  Attributes:
    exit: its exit status, negative for a signal; None where it was killed from
      outside.
    timed_out: it used up its processor or wall-clock time.
    output: what it wrote to standard output.
  """

  exit: int | None
  timed_out: bool
  output: bytes


class Sandbox:
  """One running program; `wait` or `kill` must be called once.

  Args:
    files: text by name, in the scratch folder, which is the working folder.
    arguments: what follows `python` on the command line.
    stdin: the whole of its standard input.
    limits: see `Limits`.
    isolation: one of `ISOLATIONS`.
    channel: descriptors that the program keeps; named by the same numbers.
  """

  def __init__(
    self,
    files: Mapping[str, str],
    arguments: Sequence[str],
    *,
    stdin: bytes = b"",
    limits: Limits,
    isolation: str,
    channel: Sequence[int] = (),
  ):
    self._scratch = None
    if isolation == "limits":
      self._scratch = tempfile.mkdtemp(prefix="grpo_jax_program_")
    order = {
      "parent": os.getpid(),
      "isolation": isolation,
      "scratch": self._scratch,
      "visible": _visible(),
      "files": dict(files),
      "argv": [PYTHON, "-s", "-S", "-B", *arguments],
      # Sets of strings have one order, so that a program has one reward.
      "environment": {
        "HOME": self._scratch or "/tmp",
        "LANG": "C.UTF-8",
        "PATH": "/usr/bin:/bin",
        "PYTHONHASHSEED": "0",
      },
      "channel": list(channel),
      "cpu_seconds": limits.cpu_seconds,
      "wall_seconds": limits.wall_seconds,
      "memory_bytes": limits.memory_mb << 20,
      "processes": limits.processes,
      "scratch_bytes": limits.file_mb << 20,
      "file_bytes": limits.file_mb << 20,
    }
    self._deadline = time.monotonic() + limits.wall_seconds + _GRACE
    self._limit = limits.file_mb << 20
    order_fd = _file(marshal.dumps(order))
    stdin_fd = _file(stdin)
    self._output = os.memfd_create("output")
    self._status, status_fd = os.pipe()
    try:
      self._process = subprocess.Popen(
        [PYTHON, "-I", "-S", _LAUNCHER, str(order_fd), str(status_fd)],
        stdin=stdin_fd,
        stdout=self._output,
        stderr=subprocess.DEVNULL,
        pass_fds=(order_fd, status_fd, *channel),
        env={},
        cwd="/",
        start_new_session=True,
      )
    finally:
      for fd in (order_fd, stdin_fd, status_fd):
        os.close(fd)

  def wait(self) -> Ended:
    """Returns when the program, and all that it started, has ended.

    Raises:
      IsolationError: the program was not started, because the isolation or a
        limit was refused; or its launcher was killed.
    """
    try:
      self._process.wait(max(self._deadline - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
      ended = self.kill()
      # It may have ended long ago, and what it left took long to remove.
      return ended if ended.exit is not None else ended._replace(timed_out=True)
    status = self._close()
    if status is None:
      raise IsolationError("the launcher of a program ended without a word")
    return status

  def kill(self) -> Ended:
    """Ends the program now, and all that it started."""
    # The launcher alone can end what lives outside a namespace of its own.
    self._process.send_signal(
      signal.SIGTERM if self._scratch else signal.SIGKILL
    )
    try:
      self._process.wait(2 * _GRACE)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    return self._close() or Ended(None, False, b"")

  def _close(self) -> Ended | None:
    """What the launcher told, if it did."""
    os.set_blocking(self._status, False)
    try:
      status = marshal.loads(os.read(self._status, 4096))
    except (BlockingIOError, EOFError):
      status = None
    output = os.pread(self._output, self._limit, 0)
    os.close(self._status)
    os.close(self._output)
    if self._scratch:
      scratch.remove(self._scratch)
    if status is None:
      return None
    if "refused" in status:
      raise IsolationError(status["refused"])
    return Ended(status.get("exit"), status.get("timed_out", False), output)


@functools.cache
def check(isolation: str) -> None:
  """Raises an error of one sentence unless this machine can isolate so.

  Raises:
    ValueError: there is no such isolation.
    IsolationError: the machine refuses it.
  """
  if isolation not in ISOLATIONS:
    raise ValueError(f"{isolation=} must be one of {', '.join(ISOLATIONS)}.")
  trial = _TRIAL.format(keyctl=_KEYCTL.get(platform.machine(), -1))
  try:
    ended = Sandbox(
      {}, ["-c", trial], limits=Limits(), isolation=isolation
    ).wait()
    if ended.output == b"42 True\n":
      return
    if ended.output == b"42 False\n" and isolation == "limits":
      _LOG.warning(
        "This kernel filters no system calls (seccomp), so that programs under"
        " isolation='limits' have files, network, keyrings, shared memory and"
        " the processes of their user: run none here that you would not trust."
      )
      return
    reason = f"a trial program ended with {ended.exit}"
  except (AttributeError, OSError) as error:
    reason = str(error)
  advice = (
    "allow user namespaces and seccomp on this machine, or accept"
    ' isolation="limits", which shuts programs in less well'
    if isolation == "namespaces"
    else "programs need Linux and a Python that every user can read"
  )
  raise IsolationError(
    f"Programs cannot be run with {isolation=} here ({reason}): {advice}."
  )


def _visible() -> list[str]:
  """Folders and files of the system that a program reads."""
  paths = [*_SYSTEM, _LOADER]
  prefix = os.path.realpath(sys.base_prefix)
  if not prefix.startswith("/usr/") and prefix != "/usr":
    paths.append(prefix)
  return paths


def _file(content: bytes) -> int:
  """A descriptor, at its start, of a file in memory."""
  fd = os.memfd_create("input")
  with open(fd, "wb", closefd=False) as file:
    file.write(content)
  os.lseek(fd, 0, os.SEEK_SET)
  return fd
