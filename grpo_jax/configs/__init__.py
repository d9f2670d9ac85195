"""Configs: arguments of experiments, checks, and the sections of each stage."""

from grpo_jax.configs import fields
from grpo_jax.configs.arguments import parse_arg
from grpo_jax.configs.built_in import (
  built_in_evaluation,
  built_in_reward_model,
  built_in_rl,
  built_in_sampling,
  built_in_sft,
  miniature_base,
  miniature_evaluation,
  preference_base,
  shorten_base,
)
from grpo_jax.configs.experiments import (
  experiment,
)
from grpo_jax.configs.flags import (
  load,
  override,
  parse_flags,
  stage_of,
)
from grpo_jax.configs.manual import help_text
from grpo_jax.configs.real import (
  is_real,
  real_evaluation,
  real_preferences,
  real_rl,
  real_sft,
)
from grpo_jax.configs.stages import (
  chain,
  collect,
  distill,
  evaluate,
  export,
  preference,
  preferences,
  pretrain,
  rejection,
  reward_model,
  rl,
  sft,
  value,
)
from grpo_jax.errors import ConfigError

__all__ = [
  "ConfigError",
  "built_in_evaluation",
  "built_in_reward_model",
  "built_in_rl",
  "built_in_sampling",
  "built_in_sft",
  "chain",
  "collect",
  "distill",
  "evaluate",
  "experiment",
  "export",
  "fields",
  "help_text",
  "is_real",
  "load",
  "miniature_base",
  "miniature_evaluation",
  "override",
  "parse_arg",
  "parse_flags",
  "preference",
  "preference_base",
  "preferences",
  "pretrain",
  "real_evaluation",
  "real_preferences",
  "real_rl",
  "real_sft",
  "rejection",
  "reward_model",
  "rl",
  "sft",
  "shorten_base",
  "stage_of",
  "value",
]
