r"""Whether answers are equal: numbers, expressions, sets, text; LaTeX or plain.

`decide` compares strings and rational numbers exactly, in time linear in them;
`equal` compares everything else by math-verify, and sympy under it, which may
take forever and so belongs into a process that can be killed (`workers`). This
module does not import JAX.

No text is evaluated as code. An expression goes through latex2sympy2_extended,
whose parser is a grammar (ANTLR) that builds sympy's objects one by one. Two of
its ways lead to sympy's `parse_expr`, hence to `eval`, and are not taken:
math-verify's for plain text, which is rewritten as LaTeX here, and the parser's
own for numerals, which `_Parser` replaces. Some of sympy's routines also
evaluate text that they make from an expression, such as `lambdify` when an
equation is solved. In a worker an audit hook ends the process as soon as
anything calls `eval`, `exec` or `compile`: such an answer counts as crashed.

Stricter than math-verify, because a policy would find out:

- Where the reference is a rational number, an answer must be written as one.
  Otherwise a question that is a formula could be its own answer: `17 \cdot 23`
  for 391.
- A word is compared as a word, not as a product of its letters.
- Tuples and intervals must have equal brackets, numbers equal bases.

Looser than a reader: units are ignored (3 m is 3 cm), 50% is 50 and also 1/2,
and an expression equals each of its forms, factored or expanded.
"""

import fractions
import re
from typing import Any, NamedTuple

import math_verify
import sympy
from latex2sympy2_extended import latex2sympy2, math_normalization

from grpo_jax.rewards import latex

# Longer answers are wrong: none that we grade comes near.
MAX_CHARACTERS = 1000
_MAX_PARTS = 64

_PERCENT = re.compile(r"\s*(?:\\?%|percent)$")
_NUMBER = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_DECIMAL = re.compile(
  rf"([-+]?{_NUMBER})(?:(?:\\times|\\cdot|x) ?10\^\{{?([-+]?[0-9]{{1,3}})\}}?"
  r"|[eE]([-+]?[0-9]{1,3}))?"
)
_RATIO = re.compile(
  rf"([-+]?)(?:([0-9]+) ?)?\\frac ?(?:\{{([-+]?{_NUMBER})\}}|([0-9]))"
  rf" ?(?:\{{([-+]?{_NUMBER})\}}|([0-9]))"
  rf"|([-+]?)(?:([0-9]+) )?({_NUMBER})/({_NUMBER})"
)
_BASE = re.compile(r"(-?[0-9A-Z]+)_\{?([0-9]{1,2})\}?")
# What follows the letter of an option must not name another one.
_CHOICE = re.compile(
  r"\(?([A-Z])\)?(?:[.:)] (?!,)(?:(?<![A-Za-z])[A-Z](?=[A-Za-z])|[^A-Z]"
  r"|(?<=[A-Za-z])[A-Z])*)?"
)
_WORDS = re.compile(r"[A-Za-z]{4,}(?:[ -][A-Za-z]+)*")
_CLOCK = re.compile(r"[0-9]+(?: ?: ?[0-9]+)+")
_THOUSANDS = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_MATRIX = re.compile(
  r"\\begin\{([bp]?matrix|array)\}(?:\{[lcr| ]*\})?(.*)\\end\{\1\}"
)
_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|lt|gt|ne)(?![A-Za-z])")
_NORMALIZATION = math_normalization.NormalizationConfig(
  basic_latex=True,
  units=False,
  malformed_operators=True,
  nits=True,
  boxed="none",
)


def decide(reference: str, answer: str) -> bool | None:
  """Whether the answers are equal, or None where `equal` has to tell."""
  if len(answer) > MAX_CHARACTERS:
    return False
  reference, answer = latex.canonical(reference), latex.canonical(answer)
  if not answer or not reference:
    return False
  return _simply_equal(*_aligned(reference, answer))


def equal(reference: str, answer: str) -> bool:
  """Whether the answers are equal, however long it takes to find out."""
  decided = decide(reference, answer)
  if decided is not None:
    return decided
  return _equal(latex.canonical(reference), latex.canonical(answer))


def is_number(text: str) -> bool:
  """Whether the answer is a rational number, written as one."""
  return _rational(latex.TEXT.sub(r"\1", latex.canonical(text))) is not None


def is_choice(text: str) -> bool:
  """Whether the answer is the letter of an option, such as (C)."""
  return bool(_CHOICE.fullmatch(latex.TEXT.sub(r"\1", latex.canonical(text))))


def warm_up() -> None:
  """Fills the parser's caches, which all workers then share."""
  for reference, answer in (
    (r"\frac{\sqrt{2}+\pi}{3} x^2", r"\sqrt[3]{5}"),
    (r"(x+1)(x-2)", r"x^2-x-2"),
    (r"y=2x+3-4i", r"2x-y+3=0"),
    (r"(-\infty,\sqrt{2})", r"x < 2"),
    (r"\sin x + \log_2 3 - |x|", r"\cos x^{2 + a} \cdot \ln 3 - n!"),
  ):
    try:
      _verify(reference, answer)
    except Exception:
      continue


def _aligned(reference: str, answer: str) -> tuple[str, str]:
  """Both texts, the one that is an equation without its left side.

  `x = 5` answers a reference of 5, and 5 one of `x = 5`. Where both are
  equations, they stay what they are unless both name the same thing.
  """
  pair = [reference, answer]
  sides = [latex.split(text, "=") for text in pair]
  if len(sides[0]) == len(sides[1]) == 2 and sides[0][0] == sides[1][0]:
    if _is_name(sides[0][0]):
      return sides[0][1], sides[1][1]
  if (len(sides[0]) > 1) != (len(sides[1]) > 1):
    which = int(len(sides[1]) > 1)
    left, right = sides[which][0], sides[which][-1]
    if len(latex.split(pair[which], ",")) == 1 and (which or _is_name(left)):
      pair[which] = right
  return pair[0], pair[1]


def _is_name(text: str) -> bool:
  return len(text) == 1 or bool(re.fullmatch(r"[A-Za-z]\([A-Za-z]\)", text))


def _structure(text: str) -> tuple[str, list[str]] | None:
  """Kind and parts of a list, set, tuple, interval, union or matrix."""
  if _THOUSANDS.fullmatch(text):
    return None
  matrix = _MATRIX.fullmatch(text)
  if matrix:
    rows = [row.split("&") for row in matrix[2].split("\\\\") if row.strip()]
    return _matrix(rows)
  words = latex.TEXT.fullmatch(text)
  if words and "," in words[1]:
    return "set", [f"\\text{{{part}}}" for part in words[1].split(",")]
  for separator, kind in (("\\cup", "union"), (",", "set")):
    parts = latex.split(text, separator)
    if len(parts) > 1:
      return kind, parts
  if text.count("\\pm") == 1:
    return "set", [
      text.replace("\\pm", sign).replace("\\mp", other)
      for sign, other in ("+-", "-+")
    ]
  brackets, inner = _inside(text)
  parts = latex.split(inner, ",")
  if not brackets or len(parts) < 2:
    return None
  if brackets == "{}":
    return "set", parts
  rows = [_inside(part) for part in parts]
  if brackets == "[]" and all(row[0] == "[]" for row in rows):
    return _matrix([latex.split(row[1], ",") for row in rows])
  return brackets, parts


def _matrix(rows: list[list[str]]) -> tuple[str, list[str]]:
  lengths = " ".join(str(len(row)) for row in rows)
  return f"matrix {lengths}", [cell.strip() for row in rows for cell in row]


def _inside(text: str) -> tuple[str, str]:
  """The brackets around the whole text, or none, and what they hold."""
  start = 1 if text.startswith("\\{") else 0
  if text[start : start + 1] not in ("(", "[", "{"):
    return "", text
  if latex.closing(text, start) != len(text) - 1:
    return "", text
  end = -2 if text.endswith("\\}") else -1
  return text[start] + text[-1], text[start + 1 : end].strip()


def _bare(text: str) -> str:
  """The text without brackets that hold a single thing."""
  while True:
    brackets, inner = _inside(text)
    if not brackets or len(latex.split(inner, ",")) > 1:
      return text
    text = inner


def _equal(reference: str, answer: str) -> bool:
  reference, answer = _aligned(_bare(reference), _bare(answer))
  expected, given = _structure(reference), _structure(answer)
  if expected is None or given is None:
    if expected is None and given is None:
      decided = _simply_equal(reference, answer)
      if decided is not None:
        return decided
    elif not _RELATION.search(answer if expected else reference):
      return False
    # An interval may also be written as an inequality.
    return _verify(reference, answer)
  (kind, parts), (other, others) = expected, given
  if kind != other or len(parts) != len(others) or len(parts) > _MAX_PARTS:
    return False
  if kind not in ("set", "union"):
    return all(map(_equal, parts, others))
  left = list(others)
  for part in parts:
    match = next((o for o in left if _equal(part, o)), None)
    if match is None:
      return False
    left.remove(match)
  return True


def _simply_equal(reference: str, answer: str) -> bool | None:
  """Equality of texts and of rational numbers; None for everything else."""
  if reference == answer:
    return True
  plain, other = latex.TEXT.sub(r"\1", reference), latex.TEXT.sub(r"\1", answer)
  base = _BASE.fullmatch(plain)
  if base:
    # Without a base the answer is in the one that was asked for.
    given = _BASE.fullmatch(other)
    return base.groups() == given.groups() if given else base[1] == other
  expected = _rational(plain)
  if expected is not None:
    given = _rational(_bare(other))
    return given is not None and _same_number(expected, given)
  choice = _CHOICE.fullmatch(plain)
  if choice:
    given = _CHOICE.fullmatch(other)
    return given is not None and given[1] == choice[1]
  if _CLOCK.fullmatch(plain):
    return plain.replace(" ", "") == other.replace(" ", "")
  if plain != reference or _WORDS.fullmatch(plain):
    if "," in plain:
      return None
    return plain.casefold().split() == other.casefold().split()
  return None


class _Rational(NamedTuple):
  """A number as it was written; `decimals` is None for a fraction."""

  value: fractions.Fraction
  percent: bool
  decimals: int | None


def _rational(text: str) -> _Rational | None:
  """The number that the text writes down, without anything to compute."""
  number = _PERCENT.sub("", text)
  percent = number != text
  decimal = _DECIMAL.fullmatch(number)
  if decimal:
    digits, *exponents = decimal.groups()
    power = int(exponents[0] or exponents[1] or 0)
    value = fractions.Fraction(digits.replace(",", "")) * (
      fractions.Fraction(10) ** power
    )
    places = len(digits.partition(".")[2]) if not power else 0
    return _Rational(value, percent, places)
  ratio = _RATIO.fullmatch(number)
  if ratio is None:
    return None
  parts = [part for part in ratio.groups()[:2]] + [
    ratio[3] or ratio[4],
    ratio[5] or ratio[6],
  ]
  if ratio[9]:
    parts = list(ratio.groups()[6:])
  sign, whole, over, under = parts
  over, under = (
    fractions.Fraction(part.replace(",", "")) for part in (over, under)
  )
  if not under:
    return None
  value = int(whole or 0) + over / under
  return _Rational(-value if sign == "-" else value, percent, None)


def _same_number(expected: _Rational, given: _Rational) -> bool:
  """Exact equality, but 50% is 50, and 0.333333 is 1/3.

  A decimal stands for a fraction when it has six places or more and is the
  fraction rounded to them.
  """
  bare = expected.value, given.value
  values = [x.value / 100 if x.percent else x.value for x in (expected, given)]
  if values[0] == values[1]:
    return True
  if expected.percent != given.percent and bare[0] == bare[1]:
    return True
  if expected.decimals is None and (given.decimals or 0) >= 6:
    return round(values[0], given.decimals) == values[1]
  return False


def _verify(reference: str, answer: str) -> bool:
  """Equality by math-verify; False where one of both is no mathematics."""
  is_real = not any(
    re.search(r"(?<![A-Za-z\\])i(?![A-Za-z])", t) for t in (reference, answer)
  )
  parsed = []
  for text in (reference, answer):
    text = _COMMA.sub("", text)
    text = math_normalization.normalize_latex(text, _NORMALIZATION)
    try:
      parsed.append(_Parser(is_real=is_real).parse(text))
    except Exception:  # The parser raises whatever it meets.
      return False
  expected, given = parsed
  if _apart(expected, given):
    return False
  return math_verify.verify(
    expected, given, allow_set_relation_comp=True, timeout_seconds=None
  )


def _apart(one: Any, other: Any) -> bool:
  """Whether two constants differ by more than rounding.

  math-verify compares to 15 places after the point, so that any two numbers
  below 1e-15 are equal to it, and then tries to simplify the difference.
  """
  if not all(isinstance(x, sympy.Expr) and x.is_number for x in (one, other)):
    return False
  sizes = [abs(x).evalf(15) for x in (one - other, one, other)]
  if not all(size.is_comparable for size in sizes):
    return False
  return bool(sizes[0] > 1e-5 * max(sizes[1:]))


class _Parser(latex2sympy2._Latex2Sympy):
  """The parser of LaTeX, with numerals that do not pass through `eval`."""

  def parse_number(self, text: str) -> sympy.Number:
    text = text.replace(",", "")
    return sympy.Integer(text) if text.isdigit() else sympy.Float(text)
