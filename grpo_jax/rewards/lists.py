"""Lists, sets, tuples, intervals, unions and matrices: their kind and parts.

Text is in the spelling of `latex.canonical`.
"""

import re

from grpo_jax.rewards import latex

_MATRIX = re.compile(
  r"\\begin\{([bp]?matrix|array)\}(?:\{[lcr| ]*\})?(.*)\\end\{\1\}"
)
_PLUS_MINUS = re.compile(r"\\pm\s*")
# Brackets that two numbers in them make an interval.
INTERVALS = ("()", "(]", "[)", "[]", "union")


def structure(text: str) -> tuple[str, list[str]] | None:
  """Kind and parts; None for what is a single thing.

  The kind is "set" (of a list too: 1, 2), "union", "matrix" with its shape, or
  the brackets of a tuple or an interval.
  """
  matrix = _MATRIX.fullmatch(text)
  if matrix:
    rows = [row.split("&") for row in matrix[2].split("\\\\") if row.strip()]
    return _matrix(rows)
  words = latex.TEXT.fullmatch(text)
  if words and "," in words[1]:
    return "set", [f"\\text{{{part}}}" for part in words[1].split(",")]
  for separator, kind in (("\\cup", "union"), (";", "set"), (",", "set")):
    parts = latex.split(text, separator)
    if len(parts) > 1:
      return kind, parts
  if text.count("\\pm") == 1:
    return "set", [
      _PLUS_MINUS.sub(sign, text).replace("\\mp", other)
      for sign, other in ("+-", "-+")
    ]
  brackets, inner = inside(text)
  parts = elements(inner)
  if not brackets or len(parts) < 2:
    return None
  if brackets == "{}":
    return "set", parts
  if brackets == "[]" and ";" in inner and "," in inner:
    return _matrix([latex.split(row, ",") for row in parts])
  rows = [inside(part) for part in parts]
  if brackets == "[]" and all(row[0] == "[]" for row in rows):
    return _matrix([latex.split(row[1], ",") for row in rows])
  return brackets, parts


def elements(text: str) -> list[str]:
  """What commas separate, or semicolons where there are any."""
  parts = latex.split(text, ";")
  return parts if len(parts) > 1 else latex.split(text, ",")


def inside(text: str) -> tuple[str, str]:
  """The brackets around the whole text, or none, and what they hold."""
  start = 1 if text.startswith("\\{") else 0
  if text[start : start + 1] not in ("(", "[", "{"):
    return "", text
  if latex.closing(text, start) != len(text) - 1:
    return "", text
  end = -2 if text.endswith("\\}") else -1
  return text[start] + text[-1], text[start + 1 : end].strip()


def bare(text: str) -> str:
  """The text without brackets that hold a single thing."""
  while True:
    brackets, inner = inside(text)
    if not brackets or len(elements(inner)) > 1:
      return text
    text = inner


def _matrix(rows: list[list[str]]) -> tuple[str, list[str]]:
  lengths = " ".join(str(len(row)) for row in rows)
  return f"matrix {lengths}", [cell.strip() for row in rows for cell in row]
