"""The stages: each module has `run(config, workdir) -> Outcome`."""

import importlib
from types import ModuleType

from grpo_jax import errors

NAMES = (
  "chain",
  "distill",
  "evaluate",
  "export",
  "preferences",
  "pretrain",
  "rejection",
  "reward_model",
  "rl",
  "sft",
)


def load(name: str) -> ModuleType:
  """Returns the module of a stage; no other is imported.

  Raises:
    ConfigError: there is no such stage.
  """
  if name not in NAMES:
    raise errors.ConfigError(
      f"config.stage={name!r} must be one of {NAMES};"
      f" {errors.nearest(name, NAMES)}"
    )
  return importlib.import_module(f"grpo_jax.stages.{name}")
