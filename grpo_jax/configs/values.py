"""The value of a field, read from a text by the type that the field has."""

import ast
import collections.abc
import types
import typing
from typing import Any

from grpo_jax import errors, schema

_SCALARS = (bool, int, float, str)
_NONE = type(None)
_WORDS = {"true": True, "false": False}


def parse(path: str, text: str, option: schema.Option, current: Any) -> Any:
  """The value that a text gives to a field.

  Args:
    path: how a sentence names the field, such as "config.seed".
    text: such as "3", "1e-3", "true", "None", "('a', 'b')" or "a,b".
    option: the field.
    current: its value so far; None where it has none.

  Raises:
    errors.ConfigError: the text is of another type.
  """
  if option.choices:
    errors.check_choice(path, text, option.choices)
    return text
  types_ = types_of(option, current)
  if not types_:
    return _WORDS.get(text.lower(), _literal(text, text))
  for type_ in (_NONE, *_SCALARS[:-1], tuple, dict, str):
    if type_ in types_:
      value = _read(text, type_, alone=len(types_) == 1)
      if type(value) is type_:
        return value
  names = " or ".join(
    "None" if t is _NONE else t.__name__
    for t in (*_SCALARS, tuple, dict, _NONE)
    if t in types_
  )
  raise errors.ConfigError(f"{path} must be of type {names}, not {text!r}.")


def types_of(option: schema.Option, current: Any = None) -> set[type]:
  """The types that a field may have; none where nothing is known of it."""
  found = _annotated(option.annotation)
  default = option.default
  if not found:
    for value in (default, current):
      if value is not schema.REQUIRED and value is not schema.UNKNOWN:
        if value is not None:
          found.add(tuple if isinstance(value, list) else type(value))
  if found and default is None:
    found.add(_NONE)
  return found & {*_SCALARS, tuple, dict, _NONE}


def literal(text: str) -> Any:
  """The text as a Python literal; None where it is none."""
  return _literal(text, None)


def _literal(text: str, otherwise: Any) -> Any:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return otherwise


def _read(text: str, type_: type, alone: bool) -> Any:
  """The text as a value of a type, or something of another type."""
  if type_ is _NONE:
    return None if text == "None" else text
  if type_ is bool:
    digits = {"1": True, "0": False} if alone else {}
    return (_WORDS | digits).get(text.lower())
  if type_ in (int, float):
    try:
      return type_(text)
    except ValueError:
      return None
  if type_ is tuple:
    if text[:1] not in ("(", "["):
      parts = [part.strip() for part in text.split(",") if part.strip()]
      return tuple(_literal(part, part) for part in parts)
    value = _literal(text, None)
    return tuple(value) if isinstance(value, list) else value
  return _literal(text, None) if type_ is dict else text


def _annotated(annotation: Any) -> set[type]:
  """The types of an annotation that a text can give."""
  if annotation is None:
    return {_NONE}
  origin = typing.get_origin(annotation)
  if origin in (types.UnionType, typing.Union):
    return set().union(*map(_annotated, typing.get_args(annotation)))
  base = annotation if origin is None else origin
  if not isinstance(base, type):
    return set()
  if base in (*_SCALARS, _NONE):
    return {base}
  if issubclass(base, collections.abc.Mapping):
    return {dict}
  if base in (tuple, list) or base in (
    collections.abc.Sequence,
    collections.abc.Collection,
    collections.abc.Iterable,
  ):
    return {tuple}
  return set()
