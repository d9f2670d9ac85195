"""What the sections of a config may hold, told by the functions that they feed.

A section holds the options of a function, so its signature is the schema: the
keyword-only parameters are the fields, with their types, their defaults and, in
the docstring, what they mean. One description of a stage serves three readers:
the check before anything is compiled, the command line, where any field that
may be set can be set, and the list of all fields.

  Options   the options of one function
  Kind      those of a row of a table, which a field chooses by its name
  Fields    what a config of the stage holds by default, sections within it
  Optional  a section that may be None
  Named     sections, or scalars, by names of the user's own or of a table
  Chosen    a section that says by itself what it may hold
  Free      names and values of the user's own
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from grpo_jax import errors
from grpo_jax.schema.signatures import (
  REQUIRED,
  UNKNOWN,
  Option,
  options_of,
  plain_function,
  title,
)


class Node:
  """What a section may hold. `parent` is the section around it."""

  def options(self, section: Any, parent: Any) -> dict[Any, Option]:
    """The fields that are known by their names, also those not set."""
    del section, parent
    return {}

  def option(self, name: Any, section: Any, parent: Any) -> Option | None:
    """The field of a key; None where there can be none."""
    return self.options(section, parent).get(name)

  def check(self, path: str, section: Any, parent: Any) -> None:
    """Raises ConfigError where the section does not fit.

    Args:
      path: how a sentence names the section, such as "config.loss".
      section: to be checked.
      parent: the section around it.
    """
    if not isinstance(section, errors.Section):
      raise errors.ConfigError(f"{path} must be a section, not {section!r}.")
    options = self.options(section, parent)
    errors.check_names(path, section, options)
    # Choices first: what other sections may hold depends on them.
    for name, option in options.items():
      if name in section and option.choices:
        errors.check_choice(f"{path}.{name}", section[name], option.choices)
    for name, option in options.items():
      if name in section:
        if option.node is not None:
          option.node.check(f"{path}.{name}", section[name], section)
      elif option.default is REQUIRED:
        raise errors.ConfigError(f"{path} lacks the field {name!r}.")

  def opened(self, value: Any) -> dict[Any, Any]:
    """The section whose fields are to be set; begun where there is none."""
    return dict(value.items()) if isinstance(value, errors.Section) else {}

  def key(self, name: str) -> Any:
    """The key of a field whose name the command line gives."""
    return name

  def stands_for(self, value: Any) -> bool:
    """Whether a value that is no section may stand in its place."""
    del value
    return False

  def chosen(
    self, name: str, section: dict[Any, Any], old: Any
  ) -> dict[Any, Any]:
    """The section after the choice `section[name]`, which was `old` before.

    What belonged to the old choice is left out.
    """
    del name, old
    return section


@dataclasses.dataclass(frozen=True)
class Options(Node):
  """The options of one function: its keyword-only parameters.

  Attributes:
    function: what the section feeds; or a class, all of whose parameters are
      options.
    given: parameters that the stage itself fills in; no options.
    partial: whether the section says only what differs from elsewhere, so that
      what it lacks is not the default of the function.
    shared: a function whose options the section holds, too, and not partially.
    nodes: of options that are sections.
    choices: of options with a name in a table, those names.
  """

  function: Callable[..., Any]
  given: tuple[str, ...] = ()
  partial: bool = False
  shared: Callable[..., Any] | None = None
  nodes: Mapping[str, Node] = dataclasses.field(default_factory=dict)
  choices: Mapping[str, Collection[str]] = dataclasses.field(
    default_factory=dict
  )

  def options(self, section: Any, parent: Any) -> dict[Any, Option]:
    del section, parent
    found = options_of(self.function, self.given)
    if self.partial:
      found = {
        name: dataclasses.replace(option, default=UNKNOWN)
        for name, option in found.items()
      }
    if self.shared is not None:
      found = options_of(self.shared, self.given) | found
    return {
      name: dataclasses.replace(
        option,
        node=self.nodes.get(name),
        choices=tuple(self.choices.get(name, option.choices)),
      )
      for name, option in found.items()
    }


@dataclasses.dataclass(frozen=True)
class Kind(Node):
  """The options of a row of a table of functions, chosen by its name.

  Attributes:
    table: functions by their names.
    by: the field that holds the name.
    beside: whether that field stands beside the section, not in it.
    given: parameters of the rows that are no options.
    shared: a function whose keyword-only parameters are options of every row.
    default: the name where no field says one, or a function of the section
      around this one that returns it.
  """

  table: Mapping[str, Callable[..., Any]]
  by: str = "kind"
  beside: bool = False
  given: tuple[str, ...] = ()
  shared: Callable[..., Any] | None = None
  default: str | Callable[[Any], str] | None = None

  def choice(self, section: Any, parent: Any) -> Any:
    """The name that is chosen."""
    holder = parent if self.beside else section
    default = self.default(parent) if callable(self.default) else self.default
    return holder.get(self.by, default) if holder is not None else default

  def options(self, section: Any, parent: Any) -> dict[Any, Option]:
    choice = self.choice(section, parent)
    found = {}
    if not self.beside:
      default = self.default(parent) if callable(self.default) else self.default
      found[self.by] = Option(
        REQUIRED if default is None else default,
        str,
        title(self.table.get(choice)),
        chooses=True,
        choices=tuple(self.table),
      )
    if self.shared is not None:
      found |= options_of(self.shared, self.given)
    if choice in self.table:
      found |= options_of(self.table[choice], self.given)
    return found

  def check(self, path: str, section: Any, parent: Any) -> None:
    choice = self.choice(section, parent)
    if not self.beside and choice is not None:
      # First: what else there may be depends on it.
      errors.check_choice(f"{path}.{self.by}", choice, self.table)
    super().check(path, section, parent)

  def kept(self, section: Any, old: Any, new: Any) -> dict[Any, Any]:
    """What of a section is no option of the old row alone.

    Args:
      section: made for the old row.
      old: the name of that row.
      new: of the row that is chosen instead.
    """
    before, after = self.table.get(old), self.table.get(new)
    if plain_function(before) is plain_function(after):
      return dict(section)
    names = set() if self.beside else {self.by}
    if self.shared is not None:
      names |= set(options_of(self.shared, self.given))
    if before is not None:
      names |= set(options_of(before, self.given, own=False))
    return {name: section[name] for name in section if name in names}

  def chosen(
    self, name: str, section: dict[Any, Any], old: Any
  ) -> dict[Any, Any]:
    if self.beside or name != self.by:
      return section
    return self.kept(section, old, section[name])


@dataclasses.dataclass(frozen=True)
class Fields(Node):
  """What a config holds by default, and sections of other kinds within it.

  Attributes:
    template: the section with all its fields, or a function that returns it.
    nodes: of sections, by their dotted path in it.
    choices: of fields with a name in a table, those names, by the dotted path.
  """

  template: Any
  nodes: Mapping[str, Node] = dataclasses.field(default_factory=dict)
  choices: Mapping[str, Collection[str]] = dataclasses.field(
    default_factory=dict
  )

  def options(self, section: Any, parent: Any) -> dict[Any, Option]:
    del section, parent
    found = {}
    choosing = {n.by: n.table for n in self._kinds_beside().values()}
    choices = {**self.choices, **choosing}
    for name, value in self._values().items():
      node = self.nodes.get(name)
      if node is None and isinstance(value, errors.Section):
        node = Fields(
          value, _below(name, self.nodes), _below(name, self.choices)
        )
      found[name] = Option(
        value,
        node=node,
        chooses=name in choosing,
        choices=tuple(choices.get(name, ())),
      )
    return found

  def opened(self, value: Any) -> dict[Any, Any]:
    return (
      dict(value.items())
      if isinstance(value, errors.Section)
      else self._values()
    )

  def chosen(
    self, name: str, section: dict[Any, Any], old: Any
  ) -> dict[Any, Any]:
    for field, node in self._kinds_beside().items():
      if node.by == name and isinstance(section.get(field), errors.Section):
        kept = node.kept(section[field], old, section[name])
        section = {**section, field: kept}
    return section

  def _values(self) -> dict[Any, Any]:
    return _plain(self.template() if callable(self.template) else self.template)

  def _kinds_beside(self) -> dict[str, Kind]:
    return {
      name: node
      for name, node in self.nodes.items()
      if "." not in name and isinstance(node, Kind) and node.beside
    }


@dataclasses.dataclass(frozen=True)
class Optional(Node):
  """A section that may be None; setting a field of it switches it on."""

  node: Node

  def options(self, section: Any, parent: Any) -> dict[Any, Option]:
    return self.node.options(section, parent)

  def option(self, name: Any, section: Any, parent: Any) -> Option | None:
    return self.node.option(name, section, parent)

  def check(self, path: str, section: Any, parent: Any) -> None:
    if section is not None:
      self.node.check(path, section, parent)

  def opened(self, value: Any) -> dict[Any, Any]:
    return self.node.opened(value)

  def chosen(
    self, name: str, section: dict[Any, Any], old: Any
  ) -> dict[Any, Any]:
    return self.node.chosen(name, section, old)


@dataclasses.dataclass(frozen=True)
class Named(Node):
  """Sections by names of the user's own, or by those of a table.

  Attributes:
    node: what each of them holds, or a function of its name that returns that.
    names: those that there are; None for any.
    known: those that mean something already, where there may be others.
    numbers: whether the names are whole numbers.
    closed: whether the command line can add none.
  """

  node: Node | Callable[[str], Node]
  names: tuple[str, ...] | None = None
  known: Collection[str] = ()
  numbers: bool = False
  closed: bool = False

  def key(self, name: str) -> Any:
    return int(name) if self.numbers and name.isdecimal() else name

  def options(self, section: Any, parent: Any) -> dict[Any, Option]:
    names = self.names if self.names is not None else (section or ())
    return {name: self.option(name, section, parent) for name in names}

  def option(self, name: Any, section: Any, parent: Any) -> Option | None:
    del parent
    if self.names is not None and name not in self.names:
      return None
    if self.closed and name not in (section or ()):
      return None
    node = self.node if isinstance(self.node, Node) else self.node(name)
    return Option(UNKNOWN, node=node)


@dataclasses.dataclass(frozen=True)
class Chosen(Node):
  """A section that says by itself what it may hold.

  What it feeds checks it.

  Attributes:
    choose: takes the section and returns its node.
    scalars: types of a value that may stand in the place of the section.
    scalar: the field that such a value is; empty for none.
  """

  choose: Callable[[Any], Node]
  scalars: tuple[type, ...] = ()
  scalar: str = ""

  def options(self, section: Any, parent: Any) -> dict[Any, Option]:
    return self._node(section).options(section, parent)

  def option(self, name: Any, section: Any, parent: Any) -> Option | None:
    return self._node(section).option(name, section, parent)

  def check(self, path: str, section: Any, parent: Any) -> None:
    del path, section, parent

  def opened(self, value: Any) -> dict[Any, Any]:
    if isinstance(value, errors.Section):
      return dict(value.items())
    if self.scalar and isinstance(value, self.scalars):
      return {self.scalar: value}
    return self._node({}).opened(None)

  def stands_for(self, value: Any) -> bool:
    return isinstance(value, self.scalars)

  def chosen(
    self, name: str, section: dict[Any, Any], old: Any
  ) -> dict[Any, Any]:
    return self._node(section).chosen(name, section, old)

  def _node(self, section: Any) -> Node:
    return self.choose(section if isinstance(section, errors.Section) else {})


@dataclasses.dataclass(frozen=True)
class Free(Node):
  """Names and values of the user's own."""

  def options(self, section: Any, parent: Any) -> dict[Any, Option]:
    del parent
    return {name: Option(UNKNOWN) for name in section or ()}

  def option(self, name: Any, section: Any, parent: Any) -> Option | None:
    del name, section, parent
    return Option(UNKNOWN)

  def check(self, path: str, section: Any, parent: Any) -> None:
    if not isinstance(section, errors.Section):
      raise errors.ConfigError(f"{path} must be a section, not {section!r}.")


def check(
  node: Node, config: Any, path: str = "config", parent: Any = None
) -> None:
  """Raises ConfigError, in one sentence, unless a config fits its schema."""
  node.check(path, config, parent)


def completed(node: Node, section: Any, parent: Any = None) -> Any:
  """The section as plain data with the defaults of all that it lacks.

  Sections that say only what differs from elsewhere stay as they are. So two
  configs of one meaning are equal, whether they name a default or leave it out.
  """
  if not isinstance(section, errors.Section):
    return section
  plain = {name: _plain(value) for name, value in section.items()}
  options = node.options(plain, parent)
  for name, option in options.items():
    if option.default is not REQUIRED and option.default is not UNKNOWN:
      plain.setdefault(name, _plain(option.default))
  for name, option in options.items():
    if option.node is not None and name in plain:
      plain[name] = completed(option.node, plain[name], plain)
  return plain


def _below(name: str, paths: Mapping[str, Any]) -> dict[Any, Any]:
  """Those of dotted paths that begin with a name, without it."""
  start = f"{name}."
  return {
    path.removeprefix(start): value
    for path, value in paths.items()
    if path.startswith(start)
  }


def _plain(value: Any) -> Any:
  """Sections as dicts; no part is shared."""
  if isinstance(value, errors.Section):
    return {name: _plain(part) for name, part in value.items()}
  return value
