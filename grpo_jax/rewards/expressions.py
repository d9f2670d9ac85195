"""Expressions of mathematics, compared by math-verify with sympy under it.

Both may take forever, so this belongs into a process that can be killed
(`isolation.workers`). No text is evaluated as code. An expression goes through
latex2sympy2_extended, whose parser is a grammar (ANTLR) that builds sympy's
objects one by one. Two of its ways lead to sympy's `parse_expr`, hence to
`eval`, and are not taken: math-verify's for plain text, which is rewritten as
LaTeX here, and the parser's own for numerals, which `_Parser` replaces. Some of
sympy's routines also evaluate text that they make from an expression, such as
`lambdify` when an equation is solved. In a worker an audit hook ends the
process as soon as anything calls `eval`, `exec` or `compile`: such an answer
counts as crashed.

Text is in the spelling of `latex.canonical`. This module does not import JAX.
"""

import re
from typing import Any

import math_verify
import sympy
from latex2sympy2_extended import latex2sympy2, math_normalization

from grpo_jax.rewards import latex

_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_IMAGINARY = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])")
_NORMALIZATION = math_normalization.NormalizationConfig(
  basic_latex=True,
  units=False,
  malformed_operators=True,
  nits=True,
  boxed="none",
)
# Places to which two constants are computed before they are compared.
_PLACES = 30


def equal(reference: str, answer: str) -> bool:
  """Equality by math-verify; False where one of both is no mathematics."""
  is_real = not any(map(_IMAGINARY.search, (reference, answer)))
  expected, given = (_parse(text, is_real) for text in (reference, answer))
  if expected is None or given is None or _apart(expected, given):
    return False
  return math_verify.verify(
    expected, given, allow_set_relation_comp=True, timeout_seconds=None
  )


def value(text: str) -> float | None:
  """The real number that a constant is, to the places of a float."""
  parsed = _parse(text, is_real=True)
  if not isinstance(parsed, sympy.Expr) or not parsed.is_number:
    return None
  number: Any = parsed.evalf(15)
  return float(number) if number.is_Float or number.is_Rational else None


def copied(reference: str, answer: str, question: str) -> bool:
  """Whether the answer is a formula of the question, unlike the reference.

  Formulas are compared as they are written, apart from spelling and from the
  order of summands and factors.

  Args:
    reference: the right answer.
    answer: one that is equal to it.
    question: as the dataset has it.
  """
  formulas = latex.formulas(question)
  if not question or answer == reference:
    return False
  if latex.written(answer, question):
    return _form(answer) != _form(reference) or _form(answer) is None
  given = _form(answer)
  return (
    given is not None
    and given != _form(reference)
    and given in map(_form, filter(None, formulas))
  )


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
      equal(reference, answer)
    except Exception:
      continue


def _parse(text: str, is_real: bool) -> Any:
  """Sympy's object; None where the text is no mathematics."""
  text = _COMMA.sub("", text)
  text = math_normalization.normalize_latex(text, _NORMALIZATION)
  try:
    return _Parser(is_real=is_real).parse(text)
  except Exception:  # The parser raises whatever it meets.
    return None


def _apart(one: Any, other: Any) -> bool:
  """Whether two constants differ by more than rounding.

  math-verify compares to 15 places after the point, so that any two numbers
  below 1e-15 are equal to it, and then tries to simplify the difference. Each
  is computed by itself: to compute a difference that is 0 to any number of
  places takes forever.
  """
  if not all(isinstance(x, sympy.Expr) and x.is_number for x in (one, other)):
    return False
  numbers = [x.evalf(_PLACES) for x in (one, other)]
  if not all(_is_complex(x) for x in numbers):
    return False
  difference, *sizes = (
    abs(x).evalf(_PLACES) for x in (numbers[0] - numbers[1], *numbers)
  )
  return bool(difference > 1e-5 * max(sizes))


def _is_complex(number: Any) -> bool:
  return all(
    part.is_Float or part.is_Rational for part in number.as_real_imag()
  )


def _form(text: str) -> Any:
  """What is written, sums and products in one order; None if unreadable."""
  parsed = _parse(text, is_real=True)
  return None if parsed is None else _ordered(parsed)


def _ordered(expression: Any) -> Any:
  arguments = getattr(expression, "args", ())
  name = type(expression).__name__
  if not arguments:
    return name, str(expression)
  parts = [_ordered(argument) for argument in arguments]
  if isinstance(expression, sympy.Add | sympy.Mul):
    flat = []
    for part in parts:
      flat += part[1] if part[0] == name else [part]
    parts = sorted(flat, key=repr)
  return name, parts


class _Parser(latex2sympy2._Latex2Sympy):
  """The parser of LaTeX, with numerals that do not pass through `eval`."""

  def parse_number(self, text: str) -> sympy.Number:
    text = text.replace(",", "")
    return sympy.Integer(text) if text.isdigit() else sympy.Float(text)
