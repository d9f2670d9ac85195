"""A reward model in the directory of its run.

The directory of a reward model's run holds what every run's does (`model.json`,
`tokenizer/`, `checkpoints/`) and `reward_model.json`, how it reads completions
and which of its scores is 0 and 1, written when it is finished; the parameters
are those of `learned.param_specs`.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.reward_models import learned
from grpo_jax.runs import directory
from grpo_jax.runs import source as source_lib

_FILE = "reward_model.json"


def save(
  workdir: str | os.PathLike,
  cfg: ModelConfig,
  reading: learned.Reading,
  *,
  mean: float = 0.0,
  std: float = 1.0,
) -> None:
  """Writes what says that the run's newest checkpoint is a reward model.

  Args:
    workdir: of the run.
    cfg: the model.
    reading: how it reads completions.
    mean: the score that becomes 0 where the model is loaded.
    std: the difference of scores that becomes 1; above 0.
  """
  directory.save_model(workdir, cfg)
  content = dataclasses.asdict(reading) | {"mean": mean, "std": std}
  text = json.dumps(content, indent=2, ensure_ascii=False)
  directory.write_text(pathlib.Path(workdir) / _FILE, text + "\n")


def is_saved(workdir: str | os.PathLike) -> bool:
  """Returns whether a directory holds what `save` writes."""
  return (pathlib.Path(workdir) / _FILE).is_file()


def load(
  workdir: str | os.PathLike, mesh: Mesh, **overrides: Any
) -> tuple[ModelConfig, Params, learned.Reading]:
  """Returns model, parameters and reading of a run's newest reward model.

  Its head gives scores of the mean and the unit that were saved.

  Args:
    workdir: of the run.
    mesh: to place the parameters on.
    **overrides: as for `runs.source.load_policy`.

  Raises:
    FileNotFoundError: there is none.
  """
  reading, mean, std = read(workdir)
  cfg, params, _ = source_lib.load_policy(
    workdir, mesh, specs=learned.param_specs, **overrides
  )
  with jax.set_mesh(mesh):
    head = params["reward"]
    head = {"weight": head["weight"] / std, "bias": (head["bias"] - mean) / std}
  return cfg, params | {"reward": head}, reading


def read(workdir: str | os.PathLike) -> tuple[learned.Reading, float, float]:
  """Returns reading, mean and standard deviation of a run's reward model."""
  if not is_saved(workdir):
    raise FileNotFoundError(
      f"No reward model in {workdir}: it has no file {_FILE}, which the stage"
      " reward_model writes when it is finished."
    )
  content = json.loads((pathlib.Path(workdir) / _FILE).read_text())
  mean, std = content.pop("mean", 0.0), content.pop("std", 1.0)
  return learned.Reading(**content), mean, std
