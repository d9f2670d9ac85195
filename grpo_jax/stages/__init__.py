"""One readable loop each: `run(config, workdir)`.

Beside it stand `check(config)`, which says in one sentence what cannot be run,
and `SCHEMA`, what the stage's config may hold.
"""

import importlib
import types

# A stage is the module of its name.
STAGES = (
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


def load(name: str) -> types.ModuleType:
  """The module of a stage, which is imported now, and JAX with it."""
  return importlib.import_module(f"grpo_jax.stages.{name}")
