"""Answers in one spelling of LaTeX, so that equal ones are mostly equal text.

This module does not import JAX: processes that grade are forked with it.
"""

import functools
import re

PLAIN = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
# Formulas in a text. A dollar before a digit and a blank after it is money.
FORMULA = re.compile(
  r"(?<!\\)\$\$(?:\\.|[^$\\])+\$\$"
  r"|(?<!\\)\$(?=[^\s$])(?:\\.|[^$\\])*?(?<=\S)\$(?![0-9])"
  r"|(?<!\\)\$\s(?:\\.|[^$\\])+?\$(?![0-9])"
  r"|\\\((?:(?!\\[()]).)*\\\)|\\\[(?:(?!\\[\[\]]).)*\\\]",
  re.DOTALL,
)
WIDE = {0xFF01 + i: chr(0x21 + i) for i in range(94)}
_SYMBOLS = str.maketrans(
  # Full-width letters, digits and marks, and the marks of CJK.
  WIDE
  | {
    "\u3000": " ",
    "\u3001": ",",
    "\u3002": ".",
    "\u300c": "",
    "\u300d": "",
    "\u3010": "",
    "\u3011": "",
    "\uffe5": "",
    "\u2212": "-",
    "\u2013": "-",
    "\u2010": "-",
    "\u2011": "-",
    "\u00a0": " ",
    "\u2009": r"\,",
    "\u202f": r"\,",
    "\u200b": "",
    "\u2060": "",
    "\ufeff": "",
    "\u2018": "'",
    "\u2019": "'",
    "\u2032": "'",
    "\u00d7": r"\times ",
    "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ",
    "\u2217": r"\cdot ",
    "\u00f7": "/",
    "\u2044": "/",
    "\u2215": "/",
    "\u2236": ":",
    "\u03c0": r"\pi ",
    "\u03b8": r"\theta ",
    "\u03b1": r"\alpha ",
    "\u03b2": r"\beta ",
    "\u221e": r"\infty ",
    "\u2264": r"\le ",
    "\u2266": r"\le ",
    "\u2265": r"\ge ",
    "\u2267": r"\ge ",
    "\u2260": r"\ne ",
    "\u2248": r"\approx ",
    "\u2208": r"\in ",
    "\u222a": r"\cup ",
    "\u2229": r"\cap ",
    "\u00b1": r"\pm ",
    "\u2213": r"\mp ",
    "\u00b0": r"^\circ ",
    "\u2103": r"^\circ ",
    "\u00bd": r"\frac{1}{2}",
    "\u2153": r"\frac{1}{3}",
    "\u2154": r"\frac{2}{3}",
    "\u00bc": r"\frac{1}{4}",
    "\u00be": r"\frac{3}{4}",
    "\u20ac": "",
    "\u00a3": "",
    "\u00a5": "",
    "\u20b9": "",
    "\n": " ",
    "\t": " ",
  }
)
_RAISED = str.maketrans(
  "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b",
  "0123456789+-",
)
_LOWERED = {0x2080 + i: str(i) for i in range(10)}
_SCRIPTS = (
  (
    re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b]+"),
    lambda match: f"^{{{match[0].translate(_RAISED)}}}",
  ),
  (
    re.compile("[\u2080-\u2089]+"),
    lambda match: f"_{{{match[0].translate(_LOWERED)}}}",
  ),
)
# A blank of LaTeX between digits, or a comma that LaTeX is told to set as one.
_GROUP = r"(?:\{,\}|\s*,\s*\\!\s*|\\[,;: ]\s*|~)"
_FONTS = (
  "mbox|mathrm|textnormal|textbf|textit|textrm|mathbf|emph|textsf|mathsf"
  "|boldsymbol|mathit|operatorname|bm|textup"
)
_REWRITES = [
  (re.compile(pattern), replacement)
  for pattern, replacement in (
    (rf"(?<=[0-9]){_GROUP}(?=[0-9]{{3}}(?![0-9]))", ""),
    (r"(?<!\\)\\[()\[\]]|\\?\$", ""),  # Delimiters and dollars.
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\s*\.?", ""),
    (r"\\(?:text)?color\s*\{[a-z]*\}", ""),
    (
      r"\\(?:displaystyle|textstyle|quad|qquad|phantom|large|Large|bf|rm"
      r"|therefore|implies|Rightarrow|limits)(?![A-Za-z])",
      " ",
    ),
    (r"(?<!\\)\\[!,;:> ]|~", " "),
    (r"\\(?:[dtc]|nice|s)frac(?![A-Za-z])", r"\\frac"),
    (
      r"\{\s*([^{}]*?)\s*\\over(?![A-Za-z])\s*([^{}]*?)\s*\}",
      r"\\frac{\1}{\2}",
    ),
    (r"^\s*([^{}]*?)\s*\\over(?![A-Za-z])\s*([^{}]*?)\s*$", r"\\frac{\1}{\2}"),
    (rf"\\(?:{_FONTS})\s*\{{", r"\\text{"),
    (
      r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])",
      "",
    ),
    (r"\\langle(?![A-Za-z])", "("),
    (r"\\rangle(?![A-Za-z])", ")"),
    (r"\\l[bB]race(?![A-Za-z])", r"\\{"),
    (r"\\r[bB]race(?![A-Za-z])", r"\\}"),
    (r"\\div(?![A-Za-z])", "/"),
    (r"\{,\}", ","),
    (r"\\le(?:q|qslant)(?![A-Za-z])|<=", r"\\le "),
    (r"\\ge(?:q|qslant)(?![A-Za-z])|>=", r"\\ge "),
    (r"\\neq(?![A-Za-z])|!=", r"\\ne "),
    (r":=|==", "="),
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
    (r"\s*\\(times|cdot)(?![A-Za-z])\s*", r"\\\1 "),
    (r"(?<!\\)\{\s+", "{"),
    (r"(?<!\\)\s+\}", "}"),
  )
]
_BLANKS = re.compile(r"\s*([-+=,;/(\[<>^_&])\s*|\s+(?=[)\]])")
# Commas between thousands; a comma beside them is followed by a blank.
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?!,\S)")
_AND_OR = re.compile(
  r"\s*,?\s*(?:\\text\{\s*,?\s*(?:and|or)\s*,?\s*\}"
  r"|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])"
  r"|\u6216\u8005?|[\u548c\u4e0e\u53ca])\s*"
)
TEXT = re.compile(r"\\text\{([^{}]*)\}")
# Text that names a number or a second answer, such as `\text{ or 7}`.
_NUMBER_TEXT = re.compile(r"\\text\{(\s*(?:and|or)\s[^{}]*|\s*-?[0-9.,]+\s*)\}")
_ALL_TEXT = re.compile(r"\s*\\text\{\s*([-+]?[0-9][^{}]*)\}\s*")
# What turns a number beside it into another one, or into none.
NEGATION = re.compile(
  r"(?<![A-Za-z])(?:not|no|non|never|neither|nor|cannot|without|except|unless"
  r"|wrong|incorrect|false|impossible|either|between|instead|rather|more|less"
  r"|fewer|greater|smaller|larger|than|least|most)(?![A-Za-z])|n't"
  r"|[\u4e0d\u975e\u672a\u6ca1]|\u81f3\u5c11|\u81f3\u591a|\u8d85\u8fc7",
  re.IGNORECASE,
)
_FRONT = re.compile(
  r"[A-Za-z] ?\\in(?![A-Za-z])|\\approx(?![A-Za-z])"
  # Words that end in "is", before a number or a formula.
  r"|\\text\{[^{}0-9]*(?:\b(?:is|are)|:|=)\s*\}"
  r"|[A-Za-z][A-Za-z ,']*\b(?:is|are):?\s+(?=[-+.0-9\\])"
  r"|(?:US|USD|EUR|RMB|CAD|Rs\.?)\s*(?=[-+]?[0-9])"
  r"|[\u4e00-\u9fff\u3040-\u30ff]+\s*(?=[-+]?\.?[0-9])"
)
_POWER = r"(?:\s*\^\s*(?:\{-?[0-9]\}|[0-9]))?"
_UNIT = rf"\\text\{{[^{{}}0-9]*\}}{_POWER}"
_TEXT_UNIT = re.compile(
  rf"\s*(?:\\frac\{{{_UNIT}\}}\{{{_UNIT}\}}"
  rf"|{_UNIT}(?:\s*(?:/|\\cdot)?\s*{_UNIT})*)$"
)
_SHORT = (
  r"(?:[cdkm]?m|[km]?g|ft|mph|in|mi|yd|lbs?|oz|[kmc]?[lL]|ms|hrs?|mins?|secs?"
  r"|yrs?|[sh]|[kM]?(?:W|V|Hz|J|Pa)|km/h|m/s|kWh|[CF]|(?<=\s)K|[ap]\.?m|of|at|by|on"
  r"|st|nd|rd|th)(?![A-Za-z])"
)
_LONG = r"[A-Za-z]{3}[A-Za-z']*"
# Signs of Chinese that stand for a number or a part of one.
_CHINESE_NUMBER = (
  "[\u767e\u5343\u4e07\u842c\u5104\u4ebf\u5146\u5341\u534a\u500d\u70b9\u4e00"
  "\u4e8c\u4e24\u4e09\u56db\u4e94\u516d\u4e03\u516b\u4e5d]|\u5206\u4e4b"
)
_CJK = "[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]"
_WORD_UNIT = re.compile(
  r"(?:(?<=[0-9})%])|(?<=\\pi))"
  rf"(?:\s*{_SHORT}(?:[ ./-]+[A-Za-z'.]+)*"
  rf"|\s+{_LONG}(?:[ ./-]+[A-Za-z'.]+)*"
  rf"|(?:(?!xyz|abc|ish){_LONG})(?:[ ./-]+[A-Za-z'.]+)*"
  rf"|\s*(?:(?!{_CHINESE_NUMBER}){_CJK})+)"
  rf"\.?{_POWER}$"
)
# Words after a number that are part of it.
_NO_UNIT = re.compile(
  r"\b(?:hundreds?|thousands?|[mb]illions?|trillions?|dozens?|score|half"
  r"|halves|thirds?|quarters?|fourths?|fifths?|sixths?|sevenths?|eighths?"
  r"|ninths?|tenths?|\w+dths?|twelfths?|percent|per cent|mod|modulo|over"
  r"|choose|times|plus|minus|factorial|squared|cubed|root|power|divided"
  r"|multiplied|and|or|if|is|are|was|but|maybe|perhaps|possibly|because)\b",
  re.IGNORECASE,
)


@functools.lru_cache(256)
def canonical(text: str) -> str:
  """The answer in one spelling of LaTeX, without delimiters and units."""
  if PLAIN.fullmatch(text):  # Most are, and it saves 60 patterns.
    return text
  for pattern, replacement in _SCRIPTS:
    text = pattern.sub(replacement, text)
  text = text.translate(_SYMBOLS)
  for pattern, replacement in _REWRITES:
    text = pattern.sub(replacement, text)
  for opening in ("\\sqrt(", "^("):
    text = _braced(text, opening)
  text = _NUMBER_TEXT.sub(r" \1 ", text)
  words = _ALL_TEXT.fullmatch(text)
  text = words[1] if words else text
  text = _AND_OR.sub(", ", " ".join(text.split()))
  text = _trimmed(_BLANKS.sub(r"\1", _without_thousands(text)))
  front = _FRONT.match(text)
  if front and not NEGATION.search(front[0]):
    text = text[front.end() :]
  text = text.removeprefix("=").strip()
  unit = _TEXT_UNIT.search(text)
  if unit and not _NO_UNIT.search(unit[0]) and not NEGATION.search(unit[0]):
    if TEXT.sub("", text[: unit.start()]).strip(" ()"):
      text = text[: unit.start()]
  unit = _WORD_UNIT.search(text)
  if unit and not _NO_UNIT.search(unit[0]) and not NEGATION.search(unit[0]):
    text = text[: unit.start()]
  return _trimmed(text)


def _trimmed(text: str) -> str:
  """Without blanks and marks around it; a point before a digit stays."""
  text = text.rstrip(" .,;:\\").lstrip(" ,;:")
  return text if re.match(r"\.[0-9]", text) else text.lstrip(" .,;:")


def _without_thousands(text: str) -> str:
  """Without the commas of `1,234`; a pair in brackets keeps its own."""

  def joined(match: re.Match[str]) -> str:
    before, after = text[: match.start()].rstrip(), text[match.end() :].lstrip()
    opened = before.endswith(("(", "[", "\\{"))
    closed = after.startswith((")", "]", "\\}"))
    return match[0] if opened and closed else match[0].replace(",", "")

  return _THOUSANDS.sub(joined, text)


def formulas(question: str) -> list[str]:
  """The formulas of a text in one spelling, whole and by their sides."""
  whole = [canonical(match[0]) for match in FORMULA.finditer(question)]
  sides = [side for text in whole for side in split(text, "=")]
  return list(dict.fromkeys([*whole, *sides]))


def written(answer: str, question: str) -> bool:
  """Whether a question has the answer as a formula, or in its plain text.

  Args:
    answer: in one spelling.
    question: as the dataset has it.
  """
  answer = _squeezed(answer)
  if answer in map(_squeezed, formulas(question)):
    return True
  pattern = r"\s*".join(map(re.escape, answer)) + r"(?![A-Za-z0-9])"
  if answer[:1].isalnum():
    pattern = rf"(?<![A-Za-z0-9\\]){pattern}"
  return bool(re.search(pattern, canonical(FORMULA.sub(" ", question))))


def _squeezed(text: str) -> str:
  return "".join(text.split())


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
