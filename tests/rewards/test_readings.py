"""How answers are read: right ones in many spellings, and what is none."""

import json
import time

import pytest
import readings

from grpo_jax import types
from grpo_jax.rewards import answer, latex


def check(rule, rows):
  graded = answer.grades(
    [types.Problem("", reference, rule, "") for reference, _, _ in rows],
    [text for _, text, _ in rows],
  )
  bad = [
    (row, grade.outcome, grade.extracted)
    for row, grade in zip(rows, graded, strict=True)
    if (grade.score == 1.0) != bool(row[2])
  ]
  assert not bad


@pytest.mark.parametrize("fact", readings.MATH)
def test_of_mathematics(fact):
  check("math", readings.MATH[fact])


def test_of_one_number_by_the_same_reader():
  check("gsm8k", readings.NUMBER)
  numbers = [
    row for rows in readings.MATH.values() for row in rows if is_number(row[0])
  ]
  check("number", numbers)


def is_number(reference):
  return answer.rule_for(types.Problem("", reference, "", "")) == "number"


def test_a_formula_of_the_question_is_no_answer_in_another_form():
  for question, reference, text, right in readings.COPIED:
    graded = answer.grade(reference, f"\\boxed{{{text}}}", question=question)
    assert graded.score == right, (question, text, graded)


def test_no_question_of_math_500_is_its_own_answer(shared_data):
  """In 22 of them its last formula was, where it is not the reference."""
  lines = (shared_data / "math" / "math500.jsonl").read_text().splitlines()
  problems, texts = [], []
  for record in map(json.loads, lines):
    for formula in latex.FORMULA.finditer(record["problem"]):
      text = formula[0].strip("$")
      if latex.canonical(text) != latex.canonical(record["answer"]):
        problem = types.Problem(record["problem"], record["answer"], "math", "")
        problems.append(problem)
        texts.append(f"\\boxed{{{text}}}")
  outcomes = [g.outcome for g in answer.grades(problems, texts)]
  assert len(outcomes) > 1000 and "correct" not in outcomes


def test_what_math_verify_decides_at_once_is_decided_at_once():
  reference = r"\frac{\sqrt{\sqrt{11}+\sqrt{194}}}{15+2\sqrt{33}}"
  turned = r"\frac{\sqrt{\sqrt{11}+\sqrt{194}}}{2\sqrt{33}+15}"
  answer.grade(r"\sqrt{2}", r"\boxed{\sqrt{3}}")  # Starts the processes.
  start = time.monotonic()
  assert answer.grade(reference, f"\\boxed{{{turned}}}").score == 1.0
  assert time.monotonic() - start < 3
