"""The command line: an experiment, and any field of its config.

A field is set where it may be set, also where the experiment does not mention
it. What a field chooses by its name, such as `config.objective`, is chosen
first, whatever the order of the command line; then what belonged to the other
choice is gone, and what belongs to this one can be set.
"""

import importlib.util
import inspect
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_dict

from grpo_jax import errors, schema
from grpo_jax.configs import values

_OVERRIDE = re.compile(r"--?(config\.[^=]+)(?:=(.*))?", re.DOTALL)
_OFF, _ON = ("None", "off", "False", "false"), ("on", "True", "true")


def parse_flags(
  argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS
) -> list[str]:
  """Parses the flags; a mistake in them ends the program in one sentence.

  For `absl.app.run(main, flags_parser=configs.parse_flags)`.

  Args:
    argv: the command line, program name first.
    flag_values: flags to be set.

  Returns:
    What remains of the command line, program name first: the fields of the
    config that it sets, for `override`.
  """
  rest, fields = [], []
  waiting = list(argv)[::-1]
  while waiting:
    argument = waiting.pop()
    match = _OVERRIDE.fullmatch(argument)
    if not match:
      rest.append(argument)
    elif match[2] is not None:
      fields.append(f"{match[1]}={match[2]}")
    else:
      # The value is the next argument; without one the field is switched on.
      last = not waiting or waiting[-1].startswith("--")
      fields.append(f"{match[1]}={'True' if last else waiting.pop()}")
  try:
    return [*flag_values(rest), *fields]
  except flags.Error as error:
    sys.exit(str(error))


def load(path_and_argument: str) -> config_dict.ConfigDict:
  """The config of `experiments/NAME.py[:ARGUMENT]`.

  Raises:
    errors.ConfigError: there is no such file.
  """
  name, _, argument = path_and_argument.partition(":")
  path = pathlib.Path(name)
  if not path.is_file():
    others = [str(other) for other in path.parent.glob("*.py")]
    beside = pathlib.Path("experiments").glob("*.py")
    same = [str(other) for other in beside if other.stem == path.stem]
    raise errors.ConfigError(
      f"There is no config file {name!r};"
      f" {errors.nearest(same[0] if same else name, [*others, *same])}"
    )
  spec = importlib.util.spec_from_file_location("experiment", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise errors.ConfigError(f"{name} is no experiment: it has no get_config.")
  # An experiment without arguments of its own need not take any.
  takes_one = inspect.signature(module.get_config).parameters
  if argument and not takes_one:
    raise errors.ConfigError(f"{path} takes no argument such as {argument!r}.")
  return (
    module.get_config(argument or None) if takes_one else module.get_config()
  )


def stage_of(config: config_dict.ConfigDict, fields: Sequence[str]) -> str:
  """The stage that the config names, or a field of the command line."""
  for name, text in map(_split, fields):
    if name == "config.stage":
      return text
  return config.stage


def override(
  config: config_dict.ConfigDict, node: schema.Node, fields: Sequence[str]
) -> config_dict.ConfigDict:
  """The config with fields of the command line set.

  Args:
    config: of an experiment.
    node: what a config of its stage may hold.
    fields: what `parse_flags` returned, such as "config.loss.kl_coef=0.01".

  Raises:
    errors.ConfigError: there is no such field, or its value is of another type.
  """
  plain = config.to_dict()
  pending = [_split(field) for field in fields]
  while pending:
    # Choices first. A field may exist only after another one has been set.
    for choices in (True, False):
      index = _first(plain, node, pending, choices=choices)
      if index is not None:
        break
    name, text = pending.pop(index or 0)
    path = name.split(".")[1:]
    plain = _assign(plain, node, None, path, text, "config")
  return config_dict.ConfigDict(plain).lock()


def _first(
  plain: dict[Any, Any],
  node: schema.Node,
  pending: Sequence[tuple[str, str]],
  choices: bool,
) -> int | None:
  """The first field that can be set now."""
  for index, (name, _) in enumerate(pending):
    option = _find(plain, node, name.split(".")[1:])
    if option is not None and option.chooses == choices:
      return index
  return None


def _find(
  section: Any, node: schema.Node, path: Sequence[str]
) -> schema.Option | None:
  """The field at a path; None where there is none as things stand."""
  parent, option = None, None
  for name in path:
    if node is None:
      return None
    name = node.key(_indexed(name)[0])
    option = node.option(name, section, parent)
    if option is None:
      return None
    value = section.get(name)
    if option.node is not None:
      value = option.node.opened(value)
    parent, section, node = section, value, option.node
  return option


def _assign(
  section: dict[Any, Any],
  node: schema.Node,
  parent: Any,
  path: Sequence[str],
  text: str,
  where: str,
) -> dict[Any, Any]:
  """The section with the field at a path set."""
  (name, index), rest = _indexed(path[0]), path[1:]
  name = node.key(name)
  option = node.option(name, section, parent)
  if option is None:
    errors.check_names(where, [name], node.options(section, parent))
    raise errors.ConfigError(f"{where} has no field {name!r}.")
  field, old = f"{where}.{name}", section.get(name)
  if rest:
    if option.node is None:
      raise errors.ConfigError(
        f"{field} is no section and has no field {rest[0]!r}."
      )
    inner = option.node.opened(old)
    new = _assign(inner, option.node, section, rest, text, field)
    return {**section, name: new}
  if option.node is not None:
    if isinstance(node, schema.Named) and text == "None":
      return {key: section[key] for key in section if key != name}
    new = _section(field, text, option.node)
  elif index is not None:
    new = _at(field, old, index, text)
  else:
    new = values.parse(field, text, option, old)
  section = {**section, name: new}
  if not option.chooses:
    return section
  return node.chosen(name, section, option.default if old is None else old)


def _section(path: str, text: str, node: schema.Node) -> Any:
  """The value of a field that is a section."""
  value = values.literal(text)
  if isinstance(value, dict) or node.stands_for(value):
    return value
  if isinstance(node, schema.Optional):
    if text in _OFF:
      return None
    if text in _ON:
      return node.opened(None)
  raise errors.ConfigError(
    f"{path} is a section and cannot be {text!r}; set a field of it, such as"
    f" --{path}.{next(iter(node.options({}, {})), 'name')}=..."
  )


def _at(path: str, old: Any, index: int, text: str) -> Any:
  """A tuple or a list with one of its elements replaced."""
  if not isinstance(old, tuple | list) or index >= len(old):
    raise errors.ConfigError(f"{path} has no element [{index}].")
  option = schema.Option(old[index])
  value = values.parse(f"{path}[{index}]", text, option, old[index])
  return type(old)((*old[:index], value, *old[index + 1 :]))


def _indexed(name: str) -> tuple[str, int | None]:
  match = re.fullmatch(r"(.*)\[(\d+)\]", name)
  return (match[1], int(match[2])) if match else (name, None)


def _split(field: str) -> tuple[str, str]:
  name, _, text = field.partition("=")
  return name, text
