"""Answers in one spelling of LaTeX, so that equal ones are mostly equal text.

This module does not import JAX: processes that grade are forked with it.
"""

import functools
import re

_SYMBOLS = str.maketrans(
  {
    "\u2212": "-",
    "\u2013": "-",
    "\u00a0": " ",
    "\u202f": " ",
    "\u00d7": r"\times ",
    "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ",
    "\u00f7": "/",
    "\u2044": "/",
    "\u03c0": r"\pi ",
    "\u03b8": r"\theta ",
    "\u03b1": r"\alpha ",
    "\u03b2": r"\beta ",
    "\u221e": r"\infty ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u2260": r"\ne ",
    "\u2248": r"\approx ",
    "\u2208": r"\in ",
    "\u222a": r"\cup ",
    "\u00b1": r"\pm ",
    "\u2213": r"\mp ",
    "\u00b0": r"^\circ ",
    "\u00b2": "^{2}",
    "\u00b3": "^{3}",
    "\u00bd": r"\frac{1}{2}",
    "\u00bc": r"\frac{1}{4}",
    "\u00be": r"\frac{3}{4}",
    "\u20ac": "",
    "\u00a3": "",
    "\n": " ",
    "\t": " ",
  }
)
_REWRITES = [
  (re.compile(pattern), replacement)
  for pattern, replacement in (
    (r"(?<!\\)\\[()\[\]]|\\?\$", ""),  # Delimiters and dollars.
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\s*\.?", ""),
    (r"\\(?:displaystyle|textstyle|quad|qquad|phantom)(?![A-Za-z])", " "),
    (r"(?<!\\)\\[!,;:> ]|~", " "),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (
      r"\\(?:mbox|mathrm|textnormal|textbf|textit|textrm|mathbf)\s*\{",
      r"\\text{",
    ),
    (
      r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])",
      "",
    ),
    (r"\\langle(?![A-Za-z])", "("),
    (r"\\rangle(?![A-Za-z])", ")"),
    (r"\\l[bB]race(?![A-Za-z])", r"\\{"),
    (r"\\r[bB]race(?![A-Za-z])", r"\\}"),
    (r"\{,\}", ","),
    (r"\\le(?:q|qslant)(?![A-Za-z])|<=", r"\\le "),
    (r"\\ge(?:q|qslant)(?![A-Za-z])|>=", r"\\ge "),
    (r"\\neq(?![A-Za-z])|!=", r"\\ne "),
    (r"\*\*", "^"),
    (r"\*", r"\\cdot "),
    (r"(?<![A-Za-z\\])(?:infinity|infty|inf|oo)(?![A-Za-z])", r"\\infty "),
    (
      r"(?<![A-Za-z\\])(pi|sin|cos|tan|sec|csc|cot|log|ln)(?![A-Za-z])",
      r"\\\1 ",
    ),
    (r"(?<=[)\]])\s*U\s*(?=[(\[])", r"\\cup "),
    # Fractions in parentheses, as `(5)/(13)i`.
    (
      r"(?<![A-Za-z])\(\s*(-?[0-9]+(?:,[0-9]{3})*)\s*\)\s*/"
      r"\s*\(\s*([0-9]+(?:,[0-9]{3})*)\s*\)",
      r"\\frac{\1}{\2}",
    ),
    (r"\u221a\s*([0-9]+|[a-z](?![a-z]))", r"\\sqrt{\1}"),
    (r"\u221a", r"\\sqrt"),
    (r"(?<![A-Za-z\\])sqrt(?![A-Za-z])", r"\\sqrt"),
    (r"\s*([-+=,/(\[<>^_&])\s*|\s+(?=[)\]])", r"\1"),
  )
]
_AND_OR = re.compile(
  r"\s*,?\s*(?:\\text\{\s*,?\s*(?:and|or)\s*,?\s*\}|\b(?:and|or)\b)\s*"
)
TEXT = re.compile(r"\\text\{([^{}]*)\}")
_FRONT = re.compile(r"[A-Za-z] ?\\in(?![A-Za-z])|\\approx(?![A-Za-z])")
_TEXT_UNIT = re.compile(r"\s*\\text\{[^{}]*\}(?:\s*\^\s*\{?[0-9]\}?)?$")
_WORD_UNIT = re.compile(
  r"(?:(?<=[0-9})])|(?<=\\pi))"
  r"(?:\s+[A-Za-z][A-Za-z./ ]*[A-Za-z]\.?"
  r"|\s*(?:[ckm]?m|[km]?g|ft|mph|in|[shL]))"
  r"(?:\s*\^\s*\{?[0-9]\}?)?$"
)
# Words after a number that are part of it.
_NO_UNIT = re.compile(
  r"\b(?:hundred|thousand|million|billion|trillion|dozen|half|halves|thirds"
  r"|quarters?|percent|mod|over|choose|times|plus|minus|factorial|squared"
  r"|cubed|root)\b",
  re.IGNORECASE,
)


@functools.lru_cache(64)
def canonical(text: str) -> str:
  """The answer in one spelling of LaTeX, without delimiters and units."""
  text = text.translate(_SYMBOLS)
  for pattern, replacement in _REWRITES:
    text = pattern.sub(replacement, text)
  for opening in ("\\sqrt(", "^("):
    text = _braced(text, opening)
  text = _AND_OR.sub(", ", " ".join(text.split()))
  front = _FRONT.match(text)
  text = text[front.end() if front else 0 :]
  text = text.partition("\\approx")[0].strip(" .,;:")
  unit = _TEXT_UNIT.search(text)
  if unit and TEXT.sub("", text[: unit.start()]).strip(" ()"):
    text = text[: unit.start()]
  unit = _WORD_UNIT.search(text)
  if unit and not _NO_UNIT.search(unit[0]):
    text = text[: unit.start()]
  return text.strip(" .,;:")


def closing(text: str, start: int) -> int | None:
  """Where the bracket that opens at `start` is closed, by one of any kind."""
  depth = 0
  for i in range(start, len(text)):
    if text[i] in "([{":
      depth += 1
    elif text[i] in ")]}":
      depth -= 1
      if depth == 0:
        return i
  return None


def split(text: str, separator: str) -> list[str]:
  """The text cut at a separator outside of brackets."""
  parts, depth, begin = [], 0, 0
  for i in range(len(text)):
    if text[i] in "([{":
      depth += 1
    elif text[i] in ")]}":
      depth -= 1
    elif depth == 0 and text.startswith(separator, i):
      parts.append(text[begin:i].strip())
      begin = i + len(separator)
  return [*parts, text[begin:].strip()]


def _braced(text: str, opening: str) -> str:
  r"""The text with `\sqrt(...)` as `\sqrt{...}`, or `^(...)` as `^{...}`."""
  characters = list(text)
  start = text.find(opening)
  while start >= 0:
    bracket = start + len(opening) - 1
    end = closing(text, bracket)
    if end is not None:
      characters[bracket], characters[end] = "{", "}"
    start = text.find(opening, bracket)
  return "".join(characters)
