"""What differs between two configs of a run, and what of it may change.

Configs are trees of JSON here. A field's name is its path, such as
`evaluate.every`.
"""

from collections.abc import Mapping
from typing import Any

# These change no step of a run, only where it ends and what it tells.
MUTABLE = (
  "total_steps",
  "log_every",
  "print_completions_every",
  "health.patience",
  "evaluate.every",
  "checkpoint.every",
  "checkpoint.keep",
)
# Where functions stand now whose "module:function" runs of earlier versions
# name in their config.
MOVED = {
  "grpo_jax.reward_models": "grpo_jax.reward_models.terms",
  "grpo_jax.rewards.chat": "grpo_jax.rewards.small_talk",
  "grpo_jax.rewards.judge": "grpo_jax.rewards.judges.judge",
  "grpo_jax.rewards.judge_http": "grpo_jax.rewards.judges.judge_http",
}
ABSENT = "(absent)"


def upgrade(config: Any) -> Any:
  """Returns a config of an earlier version with the names of today."""
  if isinstance(config, Mapping):
    return {name: upgrade(value) for name, value in config.items()}
  if isinstance(config, list):
    return [upgrade(value) for value in config]
  if isinstance(config, str):
    module, colon, function = config.partition(":")
    return f"{MOVED.get(module, module)}{colon}{function}"
  return config


def differences(
  old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
  """Returns the fields that differ, by name: the old value and the new one."""
  found: dict[str, tuple[Any, Any]] = {}

  def compare(name: str, old: Any, new: Any) -> None:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
      if old != new:
        found[name] = old, new
      return
    for field in sorted(set(old) | set(new)):
      compare(
        f"{name}.{field}" if name else field,
        old.get(field, ABSENT),
        new.get(field, ABSENT),
      )

  compare("", old, new)
  return found


def falling_rate(config: Mapping[str, Any]) -> str | None:
  """Returns the optimizer whose learning rate falls until the last step.

  Its section's name, or None: then what a step does is the same wherever the
  run ends.
  """
  sections = {"optimizer": config.get("optimizer")}
  sections["value.optimizer"] = (config.get("value") or {}).get("optimizer")
  for name, section in sections.items():
    section = section or {}
    kind = section.get("schedule", "constant")
    if kind != "constant" and section.get("final_fraction", 0.0) != 1.0:
      return name
  return None
