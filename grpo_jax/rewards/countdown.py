"""Is an expression made of the given numbers, and does it reach the target?

What may stand in one: numbers as the problem writes them, + - * / between two
operands, parentheses, blanks. Whatever else wears the same characters is wrong:
`**`, `//`, a sign in front of an operand (-3, +3), digits joined or split,
leading zeros, decimal points, an equation. Text is cut into tokens and
evaluated with two stacks in exact fractions; nothing is evaluated as code.
"""

import fractions
import operator
import re

# No solution is longer; parentheses may be redundant, but not without end.
MAX_LENGTH = 1_000

_TOKEN = re.compile(r"[ \t\r\n]*([0-9]+|[-+*/()])")
_OPERATIONS = {
  "+": (1, operator.add),
  "-": (1, operator.sub),
  "*": (2, operator.mul),
  "/": (2, operator.truediv),
}


def check(reference: str, expression: str) -> float | None:
  """1.0 where the expression solves the problem, and 0.0 where it does not.

  Args:
    reference: one solution. The numbers in it are those of the problem, and its
      value is the target, so that the question may be worded in any way.
    expression: of the model.

  Returns:
    None where the reference is no expression: such a problem has no answer.
  """
  expected, given = evaluate(reference), evaluate(expression)
  if expected is None:
    return None
  if given is None:
    return 0.0
  same_numbers = sorted(given[1]) == sorted(expected[1])
  return float(same_numbers and given[0] == expected[0])


def evaluate(text: str) -> tuple[fractions.Fraction, list[str]] | None:
  """The value of an expression and its numbers as written, in order.

  None where it is no expression of at most `MAX_LENGTH` characters, or divides
  by zero. Takes time linear in the text's length.
  """
  text = text.strip()
  if len(text) > MAX_LENGTH:
    return None
  values, signs, numbers = [], [], []

  def reduce() -> None:
    right, left = values.pop(), values.pop()
    values.append(_OPERATIONS[signs.pop()][1](left, right))

  position, operand_next = 0, True
  try:
    while position < len(text):
      token = _TOKEN.match(text, position)
      if token is None:
        return None
      position, symbol = token.end(), token[1]
      if operand_next != (symbol == "(" or symbol.isdigit()):
        return None
      if symbol.isdigit():
        numbers.append(symbol)
        values.append(fractions.Fraction(int(symbol)))
        operand_next = False
      elif symbol == "(":
        signs.append(symbol)
      elif symbol == ")":
        while signs and signs[-1] != "(":
          reduce()
        if not signs:
          return None
        signs.pop()
      else:
        priority = _OPERATIONS[symbol][0]
        while (
          signs and signs[-1] != "(" and (_OPERATIONS[signs[-1]][0] >= priority)
        ):
          reduce()
        signs.append(symbol)
        operand_next = True
    if operand_next or "(" in signs:
      return None
    while signs:
      reduce()
  except ZeroDivisionError:
    return None
  return values[0], numbers
