"""A run's directory as stages claim it, and as `--fork` makes it.

Both know what a config of an earlier version left unsaid.
"""

import json
import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from grpo_jax import processes, schema, stages
from grpo_jax.runs import directory, progress
from grpo_jax.runs import fork as fork_lib


def claim(config: ConfigDict, workdir: str | os.PathLike) -> None:
  """Makes the directory this run's own; raises as `directory.claim`."""
  processes.first(
    "claim",
    lambda: directory.claim(workdir, config.to_dict(), complete=complete),
  )


def fork(origin: str, config: ConfigDict, workdir: pathlib.Path) -> None:
  """Makes the directory of a run that goes on from a step of another.

  Args:
    origin: `RUN@STEP`, or `RUN` for its newest step.
    config: of the new run.
    workdir: of the new run.

  Raises:
    FileNotFoundError, ValueError: as `runs.fork.fork`.
  """
  parent, step = fork_lib.parse(origin)
  processes.first(
    "fork",
    lambda: fork_lib.fork(
      parent, step, workdir, config.to_dict(), complete=complete
    ),
  )
  found = fork_lib.read(workdir)
  progress.say(f"From {found['path']}, after step {found['step']}.")
  for name, (old, new) in found["changes"].items():
    progress.say(f"  config.{name} is {new!r} and no longer {old!r}.")


def complete(config: dict[str, Any]) -> dict[str, Any]:
  """Returns a config, as JSON has it, with the defaults of all it lacks."""
  whole = schema.completed(stages.load(config["stage"]).SCHEMA, config)
  return json.loads(json.dumps(whole))
