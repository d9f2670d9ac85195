"""Countdown: what solves a problem, and what only looks as if it did."""

import fractions
import itertools
import random
import time

import pytest

from grpo_jax import types
from grpo_jax.data.sources import countdown as data
from grpo_jax.rewards import answer, countdown

REFERENCE = "(25-22)*13+19"  # 58.


@pytest.mark.parametrize(
  "text",
  [
    REFERENCE,
    " 19 + 13 * ( 25 - 22 )\n",
    "((19))+(13*((25)-22))",
    "19-13*(22-25)",
  ],
)
def test_any_expression_of_the_numbers_that_reaches_the_target_is_right(text):
  assert countdown.check(REFERENCE, text) == 1.0


@pytest.mark.parametrize(
  "text",
  [
    "",
    " ",
    "58",
    "25+22+13+19",  # Another value.
    "39+19",  # Another number.
    "(25-22)*13",  # A number is left over.
    "(25-22)*13+19+25-25",  # One is used twice.
    "(25-22)*13+19=58",
    "25-22*13+19)",
    "((25-22)*13+19",
    "()(25-22)*13+19",
    "(25-22)13+19",  # No sign between operands.
    "(25-22)(13)+19",
    "25 -22*13 19",
    "(25-2 2)*13+19",  # Split.
    "(25-22)*1319",  # Joined.
    "+(25-22)*13+19",
    "-(22-25)*13+19",
    "(25--22)*13+19",
    "(25-22)*-13+19",
    "(25-22)**13+19",
    "(25-22)//13+19",
    "(025-22)*13+19",
    "(25.0-22)*13+19",
    "(25-22)*1_3+19",
    "(25-22)*0x13+19",
    "(25-22)*13+19j",
    "(２５-22)*13+19",
    "(25-22)×13+19",
    "(25−22)*13+19",
    "(25-22)*13+19#",
    "(25-22)*13+19;print(1)",
    "__import__('os').abort()",
    "lambda:(25-22)*13+19",
    "[25,22,13,19]",
    "(25-22)*13+19 " * 100,
  ],
)
def test_nothing_else_is(text):
  assert countdown.check(REFERENCE, text) == 0.0


def test_division_is_exact_and_by_zero_is_wrong():
  assert countdown.check("8/(3-8/3)", "8/(3-8/3)") == 1.0
  assert countdown.evaluate("8/(3-8/3)")[0] == 24
  assert countdown.evaluate("1/3+1/3+1/3")[0] == 1
  assert countdown.evaluate("7/2")[0] == fractions.Fraction(7, 2)
  assert countdown.check("3*4+5-5", "3*4/(5-5)") == 0.0


def test_signs_of_equal_rank_go_from_left_to_right():
  assert countdown.evaluate("20-5-3")[0] == 12
  assert countdown.evaluate("40/4/5")[0] == 2
  assert countdown.evaluate("40/4*5")[0] == 50
  assert countdown.evaluate("2+3*4-5")[0] == 9


def test_a_number_is_used_once_for_each_place_it_stands_at():
  assert countdown.check("7+7+3", "7+3+7") == 1.0
  assert countdown.check("7+7+3", "7+3*7") == 0.0
  assert countdown.check("7+7+3", "7+3+3") == 0.0
  assert countdown.check("7+7+3", "14+3") == 0.0


def test_a_reference_that_is_no_expression_cannot_be_graded():
  assert countdown.check("x", REFERENCE) is None
  assert countdown.check("", REFERENCE) is None


def write(tree, rng):
  """An expression's text, with blanks and redundant parentheses, by chance."""
  if isinstance(tree, int):
    text = str(tree)
  else:
    sign, left, right = tree
    text = " " * rng.randint(0, 1) + sign + " " * rng.randint(0, 1)
    text = f"({write(left, rng)}){text}({write(right, rng)})"
  return f"({text})" if rng.random() < 0.3 else text


def value(tree):
  if isinstance(tree, int):
    return fractions.Fraction(tree)
  sign, left, right = tree
  a, b = value(left), value(right)
  return {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[sign]


def test_values_are_those_of_the_tree_that_was_written():
  rng = random.Random(0)
  seen = 0
  for _ in range(500):
    trees = [rng.randint(0, 12) for _ in range(rng.randint(2, 6))]
    while len(trees) > 1:
      pair = [trees.pop(rng.randrange(len(trees))) for _ in range(2)]
      trees.append((rng.choice("+-*/"), *pair))
    text = write(trees[0], rng)
    try:
      expected = value(trees[0])
    except TypeError:
      expected = None
    found = countdown.evaluate(text)
    assert (found and found[0]) == expected, text
    seen += found is not None
  assert seen > 300


@pytest.mark.parametrize(
  "flood",
  [
    "(" * 100_000,
    "(" * 100_000 + "1" + ")" * 100_000,
    "1" + "+1" * 100_000,
    "9" * 1_000_000,
    "9**" * 100_000 + "9",
    " " * 1_000_000 + "1",
    "(" * 499 + "1" + ")" * 499,
    "9" * 499 + "*" + "9" * 499,
  ],
  ids=lambda text: text[:5],
)
def test_a_flood_of_text_is_wrong_at_once(flood):
  start = time.monotonic()
  assert countdown.check(REFERENCE, flood) == 0.0
  assert time.monotonic() - start < 2  # Seconds; takes a millisecond.


def test_problems_of_both_splits_are_solved_by_their_answers():
  for split in ("train", "test"):
    for problem in data.problems(split, size=300, seed=1):
      for extra, grade in (("", 1.0), ("+1", 0.0), ("=1", 0.0)):
        text = f"<think>So.</think><answer>{problem.answer}{extra}</answer>"
        assert answer.accuracy([problem], [text]).scores == [grade]


def test_no_two_numbers_alone_are_right_by_chance():
  problem = types.Problem("?", "3*4", "countdown", "")
  for a, sign, b in itertools.product("1234", "+-*/", "1234"):
    text = f"<answer>{a}{sign}{b}</answer>"
    right = sign == "*" and sorted((a, b)) == ["3", "4"]
    assert answer.accuracy([problem], [text]).scores == [float(right)]
