"""The stages: each module has `run(config, workdir) -> Outcome`.

Beside it stand `check(config)`, which says in one sentence what cannot be run,
and `SCHEMA`, what the stage's config may hold.
"""

import importlib
from types import ModuleType

from grpo_jax import errors

NAMES = (
  "chain",
  "distill",
  "evaluate",
  "export",
  "preference",
  "preferences",
  "pretrain",
  "rejection",
  "reward_model",
  "rl",
  "sft",
)


def load(name: str) -> ModuleType:
  """Returns the module of a stage, which is imported now, and JAX with it.

  Raises:
    ConfigError: there is no such stage.
  """
  errors.check_choice("config.stage", name, NAMES)
  return importlib.import_module(f"grpo_jax.stages.{name}")
