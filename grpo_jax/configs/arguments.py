"""Arguments of experiments, given after a colon to `--config`."""

import types
from collections.abc import Mapping
from typing import Any

from grpo_jax.errors import ConfigError, nearest


def parse_arg(arg: str | None, **defaults: Any) -> types.SimpleNamespace:
  """The arguments of an experiment, given after a colon to `--config`.

  With `parse_arg(arg, model=("tiny", "qwen2.5-7b"), smoke=False, seed=0)`:

    experiment.py                     the defaults: model "tiny"
    experiment.py:smoke               smoke is True
    experiment.py:qwen2.5-7b,seed=3   a choice by its value alone, key=value

  Args:
    arg: words and key=value pairs between commas, or None.
    **defaults: names with their values where `arg` does not mention them. A
      tuple lists the choices, the default first. Other values say their type:
      bool, int, float or str.

  Raises:
    ConfigError: a word that no argument knows, a value of another type, or an
      argument given twice.
  """
  values = {
    name: default[0] if isinstance(default, tuple) else default
    for name, default in defaults.items()
  }
  seen = set()
  for part in filter(None, (part.strip() for part in (arg or "").split(","))):
    name, equals, text = part.partition("=")
    if equals:
      if name not in defaults:
        raise ConfigError(
          f"The experiment has no argument {name!r}; {nearest(name, defaults)}"
        )
      value = _convert(name, text, defaults[name])
    else:
      name, value = _word(part, defaults)
    if name in seen:
      raise ConfigError(f"The experiment's argument {name!r} is given twice.")
    seen.add(name)
    values[name] = value
  return types.SimpleNamespace(**values)


def _word(word: str, defaults: Mapping[str, Any]) -> tuple[str, Any]:
  """The argument that a bare word stands for, and its value."""
  words = {name: (name, True) for name, d in defaults.items() if d is False}
  for name, default in defaults.items():
    if isinstance(default, tuple):
      words |= {choice: (name, choice) for choice in default}
  if word not in words:
    raise ConfigError(
      f"The experiment has no argument {word!r}; {nearest(word, words)}"
    )
  return words[word]


def _convert(name: str, text: str, default: Any) -> Any:
  if isinstance(default, tuple):
    if text not in default:
      raise ConfigError(
        f"The experiment's argument {name!r} cannot be {text!r};"
        f" {nearest(text, default)}"
      )
    return text
  if isinstance(default, bool):
    booleans = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() in booleans:
      return booleans[text.lower()]
  else:
    try:
      return type(default)(text)
    except ValueError:
      pass
  raise ConfigError(
    f"The experiment's argument {name!r} must be of type"
    f" {type(default).__name__}, not {text!r}."
  )
