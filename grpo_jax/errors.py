"""Mistakes in a config, told in one sentence that says what was meant."""

import difflib
import os
import pathlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Section(Protocol):
  """Fields by their names: a dict, or a section of a config."""

  def keys(self) -> Any:
    """The names."""

  def items(self) -> Any:
    """The names with their values."""

  def values(self) -> Any:
    """The values."""

  def get(self, key: Any, default: Any = None, /) -> Any:
    """A value, or the default where there is none."""

  def __getitem__(self, key: Any, /) -> Any:
    """A value."""

  def __contains__(self, key: Any, /) -> bool:
    """Whether there is such a field."""
    ...

  def __iter__(self) -> Iterator[Any]:
    """The names."""
    ...

  def __len__(self) -> int:
    """How many there are."""
    ...


class ConfigError(ValueError):
  """A mistake in a config, told in one sentence."""


def nearest(name: str, names: Iterable[str]) -> str:
  """The end of a sentence on an unknown name: what may have been meant."""
  names = sorted(names)
  close = difflib.get_close_matches(name, names, n=1)
  if close:
    return f"did you mean {close[0]!r}?"
  return f"there are {', '.join(map(repr, names)) or 'none'}."


def check_local(name: str, path: str | os.PathLike) -> None:
  """Raises ConfigError for an address such as gs://BUCKET/FOLDER.

  Args:
    name: of the flag or field that has it.
    path: that must be one of a file system.
  """
  if "://" in os.fspath(path):
    raise ConfigError(
      f"{name}={os.fspath(path)} is no path of a file system: mount the store,"
      " and give the folder where it is (docs/pods.md)."
    )


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
  path: str, section: Iterable[Any], fields: Collection[Any]
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


def check_choice(path: str, choice: Any, choices: Collection[str]) -> None:
  """Raises ConfigError where a field names nothing that there is.

  Args:
    path: how the sentence names the field, such as "config.objective".
    choice: its value.
    choices: the names that there are.
  """
  if isinstance(choice, str) and choice in choices:
    return
  names = ", ".join(map(repr, choices))
  close = difflib.get_close_matches(str(choice), choices, n=1)
  end = f"; did you mean {close[0]!r}?" if close else "."
  raise ConfigError(f"{path}={choice!r} must be one of {names}{end}")
