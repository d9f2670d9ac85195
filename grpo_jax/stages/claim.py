"""A run's directory as stages claim it, and as `--fork` makes it.

Both know what a config of an earlier version left unsaid.
"""

import functools
import json
import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from grpo_jax import configs
from grpo_jax.runs import directory, progress
from grpo_jax.runs import fork as fork_lib

# Sections whose names are the user's: what is not in one is not wanted.
_FREE = (
  *("data", "rewards", "from_step", "schedule", "mesh", "datasets", "probes"),
  *("ways", "keep", "filters", "tests", "steps", "table"),
)


def claim(config: ConfigDict, workdir: str | os.PathLike) -> None:
  """Makes the directory this run's own; raises as `directory.claim`."""
  directory.claim(workdir, config.to_dict(), defaults=defaults())


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
  fork_lib.fork(parent, step, workdir, config.to_dict(), defaults=defaults())
  found = fork_lib.read(workdir)
  progress.say(f"From {found['path']}, after step {found['step']}.")
  for name, (old, new) in found["changes"].items():
    progress.say(f"  config.{name} is {new!r} and no longer {old!r}.")


@functools.cache
def defaults() -> dict[str, dict[str, Any]]:
  """Returns by stage the fields that a config of an earlier version may lack.

  They are as JSON has them, with what each is by default.
  """
  rl = configs.rl()
  rl.value = configs.value()
  stages = (
    *(rl, configs.pretrain(), configs.sft(), configs.distill()),
    *(configs.evaluate(), configs.preferences(), configs.reward_model()),
    *(configs.rejection(), configs.chain()),
  )
  plain = json.loads(json.dumps([stage.to_dict() for stage in stages]))
  return {stage["stage"]: _without_free(stage) for stage in plain}


def _without_free(section: dict[str, Any]) -> dict[str, Any]:
  return {
    name: _without_free(value) if isinstance(value, dict) else value
    for name, value in section.items()
    if name not in _FREE
  }
