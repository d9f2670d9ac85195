"""One run of several processes on this machine, as a user starts it."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

REPOSITORY = pathlib.Path(__file__).parents[1]
# On a busy machine gloo may not find all processes within 30 seconds.
_NOT_MET = (
  "Gloo context initialization failed",
  "do not meet on their devices",
)


class Ended(NamedTuple):
  """What a process came to."""

  code: int
  out: str
  err: str


def free_port() -> int:
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


@contextlib.contextmanager
def started(
  experiment: str | os.PathLike,
  workdir: pathlib.Path,
  *flags: str,
  processes: int = 2,
  devices: int = 2,
) -> Iterator[list[subprocess.Popen]]:
  """Starts the processes of a run; see `started_commands`."""
  command = [
    *(sys.executable, "-m", "grpo_jax.main"),
    *(f"--config={experiment}", f"--workdir={workdir}"),
  ]
  common = f"--coordinator=127.0.0.1:{free_port()}", "--join_timeout=120"
  commands = [
    [
      *command,
      *common,
      f"--num_processes={processes}",
      f"--process_id={process}",
      *flags,
    ]
    for process in range(processes)
  ]
  with started_commands(commands, workdir, devices) as running:
    yield running


@contextlib.contextmanager
def started_commands(
  commands: Sequence[Sequence[str]], workdir: pathlib.Path, devices: int = 2
) -> Iterator[list[subprocess.Popen]]:
  """Starts processes of so many devices each; ends those that are left.

  What they print goes to files beside the run's directory. PROCESS is the
  number of each.
  """
  variables = dict(os.environ) | {
    "JAX_NUM_CPU_DEVICES": str(devices),
    "JAX_PLATFORMS": "cpu",
    # What costs is compiling, as in `conftest`.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "True",
  }
  paths = (REPOSITORY, REPOSITORY / "tests", os.environ.get("PYTHONPATH", ""))
  variables["PYTHONPATH"] = os.pathsep.join(map(str, paths))
  running = []
  try:
    for process, command in enumerate(commands):
      with (
        _log(workdir, process, "out").open("w") as out,
        _log(workdir, process, "err").open("w") as err,
      ):
        running.append(
          subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=variables | {"PROCESS": str(process)},
            stdout=out,
            stderr=err,
          )
        )
    yield running
  finally:
    for process in running:
      process.kill()
      process.wait()


def ended(
  running: Sequence[subprocess.Popen],
  workdir: pathlib.Path,
  timeout: float = 900,
) -> list[Ended]:
  """Waits for all processes; what they came to."""
  deadline = time.monotonic() + timeout
  found = []
  for number, process in enumerate(running):
    code = process.wait(timeout=max(1.0, deadline - time.monotonic()))
    out, err = (_log(workdir, number, kind) for kind in ("out", "err"))
    found.append(
      Ended(code, out.read_text("utf-8"), err.read_text("utf-8", "replace"))
    )
  return found


def did_not_meet(found: Sequence[Ended]) -> bool:
  """Whether processes did not find each other in time, on a busy machine."""
  return any(text in each.err for each in found for text in _NOT_MET)


def run(
  experiment: str | os.PathLike,
  workdir: pathlib.Path,
  *flags: str,
  timeout: float = 900,
  **options: int,
) -> list[Ended]:
  """Runs to the end, again where the processes did not meet."""
  for _ in range(3):
    with started(experiment, workdir, *flags, **options) as running:
      found = ended(running, workdir, timeout)
    if not did_not_meet(found):
      break
  for each in found:
    assert each.code == 0, each.err[-3000:]
  return found


def stop(
  number: signal.Signals,
  process: int,
  step: int,
  running: Sequence[subprocess.Popen],
  workdir: pathlib.Path,
  history: str = "metrics.jsonl",
) -> None:
  """Sends a signal to a process when the history has so many lines."""
  path, deadline = workdir / history, time.monotonic() + 900
  while not path.exists() or path.read_bytes().count(b"\n") < step:
    for number_, each in enumerate(running):
      log = _log(workdir, number_, "err")
      assert each.poll() is None, log.read_text("utf-8", "replace")[-3000:]
    assert time.monotonic() < deadline, "It takes too long."
    time.sleep(0.02)
  running[process].send_signal(number)


def _log(workdir: pathlib.Path, process: int, kind: str) -> pathlib.Path:
  return workdir.with_name(f"{workdir.name}.{process}.{kind}")
