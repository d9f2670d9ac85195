"""Mistakes in a config, told in one sentence that says what was meant.

A section holds the keyword arguments of one function, so that function's
signature is the schema, and a field that it does not know is an error before
anything is compiled.
"""

import difflib
import inspect
import os
import pathlib
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ml_collections import config_dict

# A config_dict.ConfigDict is no Mapping to Python.
Section = Mapping | config_dict.ConfigDict


class ConfigError(ValueError):
  """A mistake in a config, told in one sentence."""


def nearest(name: str, names: Iterable[str]) -> str:
  """The end of a sentence on an unknown name: what may have been meant."""
  names = sorted(names)
  close = difflib.get_close_matches(name, names, n=1)
  if close:
    return f"did you mean {close[0]!r}?"
  return f"there are {', '.join(map(repr, names)) or 'none'}."


def check_section(
  name: str,
  section: Section,
  function: Callable[..., Any],
  given: Collection[str] = (),
) -> None:
  """Raises ConfigError unless `function(**section)` fits its signature.

  The fields are the function's keyword-only parameters, or all of them where
  it has none, as with the fields of a dataclass.

  Args:
    name: how the config names the section, such as "loss".
    section: the keyword arguments.
    function: what the section feeds.
    given: parameters that the stage itself fills in; no fields.
  """
  parameters = inspect.signature(function).parameters.values()
  keyword_only = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
  fields = {
    p.name: p.default is p.empty
    for p in keyword_only or parameters
    if p.kind is not p.VAR_KEYWORD
  }
  for p in parameters:
    if p.kind is p.VAR_KEYWORD:
      # `**terms: Unpack[Terms]` takes the optional fields of a TypedDict.
      terms = typing.get_args(p.annotation)
      if not terms:
        raise TypeError(f"{function} takes any keyword; it is no schema.")
      fields |= dict.fromkeys(terms[0].__annotations__, False)
  fields = {
    field: needed for field, needed in fields.items() if field not in given
  }
  check_names(f"config.{name}", section, fields)
  for field, needed in fields.items():
    if needed and field not in section:
      raise ConfigError(f"config.{name} lacks the field {field!r}.")


def check_fields(
  config: Section,
  template: Section,
  *,
  free: Collection[str] = (),
  path: str = "config",
) -> None:
  """Raises ConfigError where `config` has a field that `template` lacks.

  Args:
    config: the config of a run, with its sections.
    template: a config of the same stage as its builder returns it.
    free: sections whose names are the user's own, such as the rewards.
    path: how the sentence names `config`.
  """
  check_names(path, config, template)
  for field, value in config.items():
    if field in free or not isinstance(template[field], Section):
      continue
    if not isinstance(value, Section):
      raise ConfigError(f"{path}.{field} must be a section, not {value!r}.")
    check_fields(value, template[field], free=free, path=f"{path}.{field}")


def made_by(path: str | os.PathLike) -> str:
  """The command that makes what a run should have left at a path.

  Runs go to runs/NAME or runs/NAME-ARGUMENT by default, after the experiment
  experiments/NAME.py[:ARGUMENT].
  """
  return run_behind(path) or (
    f"python -m grpo_jax.main --config=experiments/pretrain.py --workdir={path}"
  )


def run_behind(path: str | os.PathLike) -> str | None:
  """The command of the run in whose default directory a path is, if in any."""
  for part in reversed(pathlib.Path(path).parts):
    name, _, argument = part.partition("-")
    file = pathlib.Path("experiments") / f"{name}.py"
    if file.is_file():
      config = f"{file}:{argument}" if argument else str(file)
      return f"python -m grpo_jax.main --config={config}"
  return None


def check_names(
  path: str, section: Iterable[str], fields: Collection[str]
) -> None:
  """Raises ConfigError where the section has a field that is not known.

  Args:
    path: how the sentence names the section, such as "config.loss".
    section: names in it.
    fields: the names that there are.
  """
  for field in section:
    if field not in fields:
      raise ConfigError(
        f"{path} has no field {field!r}; {nearest(field, fields)}"
      )
