"""All fields of a stage's config, for people: with defaults and meanings."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from grpo_jax import errors, schema
from grpo_jax.configs import comments as comments_lib

ABSENT = schema.UNKNOWN


class Row(NamedTuple):
  """A field, or a section as a whole.

  Attributes:
    section: its dotted path, empty at the top.
    field: its name in the section.
    value: in the config; ABSENT where the config does not set it.
    default: where it is not set; ABSENT where there is none.
    comment: what it means.
    choices: the names that it may have; empty for any value.
    is_section: whether fields of it follow.
  """

  section: str
  field: str
  value: Any
  default: Any
  comment: str
  choices: tuple[str, ...]
  is_section: bool

  @property
  def path(self) -> str:
    """The dotted path of the field."""
    return f"{self.section}.{self.field}" if self.section else self.field


def table(node: schema.Fields) -> list[Row]:
  """All fields of a stage with the defaults of `configs.stages`.

  `value` of a row is what the stage's config sets by default.

  Args:
    node: `SCHEMA` of the stage's module.
  """
  return list(_rows(node, node.opened(None), None, "", {}, ""))


class Choice(NamedTuple):
  """A row of a table of functions that a config can choose.

  Attributes:
    section: of the config that holds its options.
    by: dotted path of the field that chooses.
    name: of the row.
    title: first line of its function's docstring.
    options: its own options, by name.
  """

  section: str
  by: str
  name: str
  title: str
  options: dict[str, schema.Option]


def choices(node: schema.Fields) -> list[Choice]:
  """The rows of all tables that a stage's config can choose from.

  Tables of sections that are off by default, too; those of datasets once.

  Args:
    node: `SCHEMA` of the stage's module.
  """
  found, tables = [], []

  def visit(node: schema.Node | None, section: Any, path: str) -> None:
    if isinstance(node, schema.Optional):
      node, section = node.node, node.opened(section)
    if isinstance(node, schema.Kind) and node.table not in tables:
      tables.append(node.table)
      around = path.rpartition(".")[0] if node.beside else path
      by = f"{around}.{node.by}" if around else node.by
      for name, function in node.table.items():
        options = schema.options_of(function, node.given)
        title = schema.title(function)
        found.append(Choice(path, by, name, title, options))
    if not isinstance(node, schema.Fields | schema.Options):
      return
    for name, option in node.options(section, None).items():
      inner = section.get(name) if isinstance(section, Mapping) else None
      visit(option.node, inner, f"{path}.{name}" if path else name)

  visit(node, node.opened(None), "")
  return found


def text(node: schema.Fields, config: Any, usual: Any) -> str:
  """All fields of a config as text, each with what it means above it.

  Args:
    node: what the config may hold.
    config: the config.
    usual: a config to compare with; where the values differ both are told.
  """
  before = {
    row.path: row.default if row.value is ABSENT else row.value
    for row in _rows(node, _plain(usual), None, "", {}, "")
  }
  lines = []
  for row in _rows(node, _plain(config), None, "", {}, ""):
    indent = "  " * row.path.count(".")
    about = [row.comment] if row.comment else []
    if row.choices:
      about.append(f"One of {', '.join(row.choices)}.")
    if row.is_section or not indent:
      lines.append("")
    for line in textwrap.wrap(" ".join(about), 78 - len(indent)):
      lines.append(f"{indent}# {line}")
    lines.append(indent + _assignment(row, before.get(row.path, ABSENT)))
  return "\n".join(lines).strip("\n")


def resolved(config: Mapping[str, Any]) -> str:
  """A config as text, one line for each field."""
  lines = []

  def visit(path: str, value: Any) -> None:
    if isinstance(value, Mapping) and value:
      for name, part in value.items():
        visit(f"{path}.{name}", part)
    else:
      lines.append(f"{path} = {value!r}")

  visit("config", config)
  return "\n".join(lines)


def _assignment(row: Row, usual: Any) -> str:
  """The field as text: its value, and its default where that differs."""
  name = f"config.{row.path}"
  if row.is_section and isinstance(row.value, Mapping):
    return name
  if row.value is ABSENT:
    if row.default is ABSENT:
      return f"{name}  (not set)"
    return f"{name} = {row.default!r}  (not set: the default)"
  note = ""
  if usual is not ABSENT and usual != row.value:
    note = f"  (default: {usual!r})"
  return f"{name} = {row.value!r}{note}"


def _rows(
  node: schema.Node,
  section: Any,
  parent: Any,
  path: str,
  said: Mapping[str, str],
  prefix: str,
) -> Iterator[Row]:
  """The fields of a section, and those of sections within it.

  Args:
    node: what the section may hold.
    section: plain data.
    parent: the section around it.
    path: of the section in the config.
    said: comments of the code by dotted path.
    prefix: of the section's paths in `said`.
  """
  inner = node.node if isinstance(node, schema.Optional) else node
  if isinstance(inner, schema.Fields) and callable(inner.template):
    own = comments_lib.comments(inner.template.__name__)
    if own:
      said, prefix = own, ""
  for name, option in node.options(section, parent).items():
    value = section.get(name, ABSENT)
    where = f"{prefix}{name}"
    comment = said.get(where) or option.comment
    default = ABSENT if option.default is schema.REQUIRED else option.default
    has_fields = option.node is not None
    if isinstance(option.node, schema.Named) and option.node.known:
      comment += f" There are {', '.join(option.node.known)}."
    yield Row(
      path, str(name), value, default, comment, option.choices, has_fields
    )
    if has_fields and option.node.stands_for(value):
      continue
    if has_fields:
      yield from _rows(
        option.node,
        option.node.opened(None if value is ABSENT else value),
        section,
        f"{path}.{name}" if path else str(name),
        said,
        f"{where}.",
      )


def _plain(value: Any) -> Any:
  if isinstance(value, errors.Section):
    return {name: _plain(part) for name, part in value.items()}
  return value
