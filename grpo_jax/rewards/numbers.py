r"""Numbers as answers write them: the one reader that every rule uses.

What is read, in the spelling of `latex.canonical`: a sign; digits with or
without a point, which may come first or last (`.5`, `5.`); thousands in groups
(the commas of `1,234` are gone by then); scientific notation
(`5 \times 10^{3}`, `5e3`); fractions of two such numbers and mixed numbers;
repeating decimals (`0.\overline{3}`); percent. What is left to compute is no
number: `2+3`, `\sqrt{4}`, `2^3`. Values are exact.
"""

import fractions
import functools
import re
from typing import NamedTuple

from grpo_jax.rewards import latex

# A reference with as many places and digits is a rounded result.
_LONG = 6
_TOLERANCE = fractions.Fraction(1, 1000)

_PERCENT = re.compile(r"\s*(?:\\?%|percent|per cent|pct\.?)$")
_DIGITS = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_DECIMAL = re.compile(
  rf"([-+]?)([0-9]{{1,3}}(?: [0-9]{{3}})+(?:\.[0-9]+)?|{_DIGITS})"
  r"(?: ?(?:\\times|\\cdot|x) ?(?:10|\{10\})"
  r"\^(?:\{([-+]?[0-9]{1,3})\}|([-+]?[0-9]{1,3}))"
  r"|[eE]([-+]?[0-9]{1,3}))?"
)
_REPEATING = re.compile(
  r"([-+]?)([0-9]*)\.([0-9]*)\\(?:overline|bar)\{([0-9]+)\}"
)
_SIGNED = rf"[-+]?{_DIGITS}"
_RATIO = re.compile(
  rf"([-+]?)(?:([0-9]+) ?)?\\frac ?(?:\{{({_SIGNED})\}}|([0-9]))"
  rf" ?(?:\{{({_SIGNED})\}}|([0-9]))"
  rf"|([-+]?)(?:([0-9]+) )?({_DIGITS})/(-?{_DIGITS})"
)


class Number(NamedTuple):
  """A rational number as it was written.

  Attributes:
    value: what it is, a percentage not yet divided by 100.
    percent: whether it is one.
    decimals: places after the point; None for a fraction.
    digits: significant digits; 0 for a fraction.
  """

  value: fractions.Fraction
  percent: bool = False
  decimals: int | None = None
  digits: int = 0


@functools.lru_cache(256)
def read(text: str) -> Number | None:
  """The number that the text is; None where it is none or has to be computed.

  Args:
    text: in the spelling of `latex.canonical`.
  """
  text = _bare(latex.TEXT.sub(r"\1", text).strip())
  number = _PERCENT.sub("", text)
  percent = number != text
  for pattern, convert in (
    (_DECIMAL, _decimal),
    (_RATIO, _ratio),
    (_REPEATING, _repeating),
  ):
    match = pattern.fullmatch(number)
    if match:
      found = convert(match)
      return found and found._replace(percent=percent)
  # A sign outside of brackets, as in -(1/2).
  if not percent and number[:1] == "-" and number[1:2] in ("(", "{", "["):
    found = read(number[1:])
    return found and found._replace(value=-found.value)
  return None


def same(expected: Number, given: Number) -> bool:
  """Exact equality, but for percent and for what was rounded.

  50% is 50 and 1/2. A decimal stands for a fraction when it has six places or
  more and is the fraction rounded to them. A reference with six places and six
  significant digits or more is the result of a computation in floats: answers
  are equal to it that differ by less than 1e-3, as PAL has it
  (https://arxiv.org/abs/2211.10435), and by less than a thousandth of it.
  """
  pairs = [(_value(expected), _value(given))]
  if expected.percent != given.percent:
    pairs.append((expected.value, given.value))
  if any(one == other for one, other in pairs):
    return True
  if expected.decimals is None and (given.decimals or 0) >= _LONG:
    return round(pairs[0][0], given.decimals) == pairs[0][1]
  if (expected.decimals or 0) >= _LONG and expected.digits >= _LONG:
    return any(
      abs(one - other) < _TOLERANCE * min(1, abs(one)) for one, other in pairs
    )
  return False


def near(one: Number, other: Number) -> bool:
  """Whether they are equal, or one is the other rounded to its last place."""
  pairs = [(one.value, other.value)]
  if one.percent != other.percent:
    pairs.append((_value(one), _value(other)))
  places = [n.decimals for n in (one, other) if n.decimals is not None]
  half = fractions.Fraction(1, 2 * 10 ** min(places)) if places else 0
  whole = all(n.decimals == 0 for n in (one, other))
  return any(a == b or (not whole and abs(a - b) <= half) for a, b in pairs)


def _value(number: Number) -> fractions.Fraction:
  return number.value / 100 if number.percent else number.value


def of_float(value: float) -> Number:
  """The number that a float is."""
  return Number(fractions.Fraction(value))


def _bare(text: str) -> str:
  """The text without brackets around all of it."""
  if text.startswith("\\{") and text.endswith("\\}"):
    text = text[2:-2].strip()
  while text[:1] in ("(", "[", "{") and text:
    if latex.closing(text, 0) != len(text) - 1:
      return text
    text = text[1:-1].strip()
  return text


def _decimal(match: re.Match[str]) -> Number:
  sign, digits, *exponents = match.groups()
  digits = digits.replace(" ", "")
  power = int(next(filter(None, exponents), 0))
  value = fractions.Fraction(digits)
  if power:
    value *= fractions.Fraction(10) ** power
  places = max(len(digits.partition(".")[2]) - power, 0)
  significant = len(digits.replace(".", "").lstrip("0"))
  return Number(
    -value if sign == "-" else value, decimals=places, digits=significant
  )


def _repeating(match: re.Match[str]) -> Number:
  sign, whole, start, period = match.groups()
  value = fractions.Fraction(int(whole + start or 0)) + fractions.Fraction(
    int(period), 10 ** len(period) - 1
  )
  value /= 10 ** len(start)
  return Number(-value if sign == "-" else value)


def _ratio(match: re.Match[str]) -> Number | None:
  groups = match.groups()
  if groups[9]:
    sign, whole, over, under = groups[6:]
  else:
    sign, whole = groups[:2]
    over, under = groups[2] or groups[3], groups[4] or groups[5]
  denominator = fractions.Fraction(under)
  if not denominator:
    return None
  value = int(whole or 0) + fractions.Fraction(over) / denominator
  return Number(-value if sign == "-" else value)
