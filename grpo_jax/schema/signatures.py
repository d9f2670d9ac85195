"""The options of a function, told by its signature and its docstring."""

import dataclasses
import functools
import inspect
import re
import textwrap
import typing
from collections.abc import Callable
from typing import Any

# Of a field that has no default, and of one whose default stands elsewhere.
REQUIRED, UNKNOWN = object(), object()


@dataclasses.dataclass(frozen=True)
class Option:
  """A field that may be set.

  Attributes:
    default: its value where the section lacks it; REQUIRED where it must not,
      and UNKNOWN where the default stands elsewhere.
    annotation: of its type; UNKNOWN without one.
    comment: what it means.
    node: what it holds, where it is a section.
    chooses: whether it decides which other fields there are.
    choices: the values of one that chooses a row of a table.
  """

  default: Any = REQUIRED
  annotation: Any = UNKNOWN
  comment: str = ""
  node: Any = None
  chooses: bool = False
  choices: tuple[str, ...] = ()


def options_of(
  function: Callable[..., Any],
  given: tuple[str, ...] = (),
  *,
  own: bool = True,
) -> dict[Any, Option]:
  """The options of a function: its keyword-only parameters; all of a class.

  The keys of `**terms: Unpack[Terms]`, where Terms is a TypedDict, are options
  too, that may be left out.

  Args:
    function: or a class. What it takes under any keyword is no option.
    given: parameters that are no options.
    own: whether options beside those of a TypedDict count.
  """
  parameters = inspect.signature(function).parameters.values()
  named = [
    p
    for p in parameters
    if p.kind is p.KEYWORD_ONLY
    or (inspect.isclass(function) and p.kind is p.POSITIONAL_OR_KEYWORD)
  ]
  comments = documented(function)
  factories = {}
  if inspect.isclass(function) and dataclasses.is_dataclass(function):
    # The signature has something else in the place of what they return.
    factories = {
      field.name: field.default_factory()
      for field in dataclasses.fields(function)
      if field.default_factory is not dataclasses.MISSING
    }
  found = {
    p.name: Option(
      factories.get(p.name, REQUIRED if p.default is p.empty else p.default),
      UNKNOWN if p.annotation is p.empty else p.annotation,
      comments.get(p.name, ""),
      choices=_literals(p.annotation),
    )
    for p in named
    if own
  }
  for p in parameters:
    terms = typing.get_args(p.annotation)
    if p.kind is p.VAR_KEYWORD and terms:
      comments = documented(terms[0])
      for name, annotation in terms[0].__annotations__.items():
        found[name] = Option(UNKNOWN, annotation, comments.get(name, ""))
  return {name: option for name, option in found.items() if name not in given}


def documented(function: Callable[..., Any]) -> dict[str, str]:
  """By the name of a parameter what the docstring says of it."""
  text = inspect.getdoc(plain_function(function)) or ""
  block = re.search(
    r"^(?:Args|Attributes):\n((?:[ \t]+.*\n?|\n)*)", text, re.MULTILINE
  )
  if not block:
    return {}
  entries = re.split(r"^(?=[*\w])", textwrap.dedent(block[1]), flags=re.M)
  found = {}
  for entry in filter(None, entries):
    names, _, rest = entry.partition(":")
    for name in names.split(","):
      found[name.strip("* ")] = " ".join(rest.split())
  return found


def title(function: Callable[..., Any] | None) -> str:
  """The first line of a function's docstring."""
  text = inspect.getdoc(plain_function(function)) if function else ""
  return (text or "").partition("\n")[0]


def _literals(annotation: Any) -> tuple[Any, ...]:
  """The values of a Literal."""
  is_literal = typing.get_origin(annotation) is typing.Literal
  return typing.get_args(annotation) if is_literal else ()


def plain_function(function: Any) -> Any:
  """Returns the function behind partial ones."""
  while isinstance(function, functools.partial):
    function = function.func
  return function
