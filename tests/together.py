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
_NOT_MET = ("Gloo context initialization failed", "Gloo connect", "not all")


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
  **environment: str,
) -> Iterator[list[subprocess.Popen]]:
  """Starts processes of so many devices each; ends those that are left.

  What they print goes to files beside the run's directory.
  """
  variables = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  variables |= {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
  paths = (REPOSITORY, REPOSITORY / "tests", os.environ.get("PYTHONPATH", ""))
  variables["PYTHONPATH"] = os.pathsep.join(map(str, paths))
  port, running = free_port(), []
  try:
    for process in range(processes):
      more = (
        f"--coordinator=127.0.0.1:{port}",
        f"--num_processes={processes}",
        f"--process_id={process}",
        "--join_timeout=120",
      )
      with (
        _log(workdir, process, "out").open("w") as out,
        _log(workdir, process, "err").open("w") as err,
      ):
        running.append(
          subprocess.Popen(
            [
              sys.executable,
              "-m",
              "grpo_jax.main",
              f"--config={experiment}",
              f"--workdir={workdir}",
              *flags,
              *(more if processes > 1 else ()),
            ],
            cwd=REPOSITORY,
            env=variables | environment | {"PROCESS": str(process)},
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
  timeout: float = 300,
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


def run(
  experiment: str | os.PathLike, workdir: pathlib.Path, *flags, **options
) -> list[Ended]:
  """Runs to the end, again where the processes did not meet."""
  for _ in range(3):
    with started(experiment, workdir, *flags, **options) as running:
      found = ended(running, workdir)
    if not any(text in each.err for each in found for text in _NOT_MET):
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
  path, deadline = workdir / history, time.monotonic() + 300
  while not path.exists() or path.read_bytes().count(b"\n") < step:
    for number_, each in enumerate(running):
      log = _log(workdir, number_, "err")
      assert each.poll() is None, log.read_text("utf-8", "replace")[-3000:]
    assert time.monotonic() < deadline, "It takes too long."
    time.sleep(0.02)
  running[process].send_signal(number)


def _log(workdir: pathlib.Path, process: int, kind: str) -> pathlib.Path:
  return workdir.with_name(f"{workdir.name}.{process}.{kind}")
