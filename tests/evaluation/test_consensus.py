"""Which wrong answers agree with one another, by the grader."""

import json

import numpy as np
import pytest

from grpo_jax import types
from grpo_jax.evaluation import consensus
from grpo_jax.rewards import answer, code


def votes(source, reference, texts, question="q"):
  problems = [types.Problem(question, reference, source, "")] * len(texts)
  scores = np.array(
    [
      np.nan if s is None else s
      for s in answer.accuracy(problems, texts).scores
    ]
  )
  return consensus.wrong_votes(problems, texts, scores, len(texts))[0]


def tagged(*answers):
  return [f"<think>x</think><answer>{a}</answer>" for a in answers]


@pytest.mark.parametrize("source", ["gsm8k", "mgsm", "jsonl"])
def test_numbers_agree_however_they_are_written(source):
  texts = tagged("1,000", "$1000", "1000.0 apples", "7", "18", "18", "a")
  assert votes(source, "18", texts) == [3, 1, 1]


def test_formulas_agree_by_mathematics():
  texts = tagged(
    r"\frac{1}{2}", "0.5", r"\sqrt{8}", r"2\sqrt{2}", "x+1", r"\boxed{1+x}", "3"
  )
  assert votes("math", "3", texts) == [2, 2, 2]


def test_expressions_agree_as_texts_without_blanks():
  texts = tagged("10+11", " 10 + 11", "11+10", "22+13", "12+13")
  question = "22,13,10,11=35?"
  assert votes("pair_sum", "22+13", texts, question) == [2, 1, 1]


def test_completions_without_an_answer_do_not_vote():
  assert votes("gsm8k", "18", ["no number", "<think>7", "", "7"]) == [1]


def test_problems_are_not_mixed():
  problems = [types.Problem("q", "1", "gsm8k", "")] * 3
  problems += [types.Problem("q", r"\pi", "math", "")] * 3
  texts = tagged("2", "2.0", "1", "2", r"\frac{4}{2}", "3")
  scores = np.array([0, 0, 1, 0, 0, 0.0])
  found = consensus.wrong_votes(problems, texts, scores, 3)
  assert found == [[2], [2, 1]]


def test_programs_and_ungradable_problems_have_no_votes():
  program = "```python\ndef f(x):\n  return 1\n```"
  tests = json.dumps(code.Asserts("assert f(1) == 2", ["f"])._asdict())
  problems = [types.Problem("q", tests, "mbpp", "")] * 2
  assert consensus.wrong_votes(problems, [program] * 2, np.zeros(2), 2) == [[]]
  problems = [types.Problem("q", "no number", "gsm8k", "")] * 2
  assert consensus.wrong_votes(problems, ["1", "1"], np.full(2, np.nan), 2) == [
    []
  ]
