"""Configs: arguments of experiments, checks, and the sections of each stage."""

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
from grpo_jax.configs.checks import (
  ConfigError,
  Section,
  check_fields,
  check_names,
  check_section,
  made_by,
  nearest,
  parse_arg,
  run_behind,
)
from grpo_jax.configs.experiments import (
  experiment,
)
from grpo_jax.configs.flags import (
  parse_flags,
)
from grpo_jax.configs.stages import (
  chain,
  collect,
  distill,
  evaluate,
  export,
  preferences,
  pretrain,
  rejection,
  reward_model,
  rl,
  sft,
  value,
)

__all__ = [
  "ConfigError",
  "Section",
  "built_in_evaluation",
  "built_in_reward_model",
  "built_in_rl",
  "built_in_sampling",
  "built_in_sft",
  "chain",
  "check_fields",
  "check_names",
  "check_section",
  "collect",
  "distill",
  "evaluate",
  "experiment",
  "export",
  "made_by",
  "miniature_base",
  "miniature_evaluation",
  "nearest",
  "parse_arg",
  "parse_flags",
  "preference_base",
  "preferences",
  "pretrain",
  "rejection",
  "reward_model",
  "rl",
  "run_behind",
  "sft",
  "shorten_base",
  "value",
]
