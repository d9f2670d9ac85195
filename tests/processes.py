"""Commands of the project, run as users run them: in a process of their own."""

import os
import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).parents[1]


def main(
  experiment: str,
  workdir: pathlib.Path,
  *flags: str,
  fails: bool = False,
  **environment: str,
) -> str:
  """Runs `grpo_jax.main` to its end; returns what was printed.

  Args:
    experiment: file, and argument after a colon.
    workdir: of the run.
    *flags: of the command line.
    fails: whether it is to end with a sentence; that one is returned.
    **environment: variables that differ. Programs are compiled as users
      compile them, for one device.
  """
  variables = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "grpo_jax.main",
      f"--config={experiment}",
      f"--workdir={workdir}",
      *flags,
    ],
    cwd=REPOSITORY,
    env=variables | environment,
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert (done.returncode != 0) == fails, done.stderr[-2000:]
  return done.stderr if fails else done.stdout
