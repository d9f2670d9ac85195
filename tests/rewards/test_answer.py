"""The accuracy rules: what counts as right, and what cannot be passed off."""

import collections
import json
import random
import time

import hostile
import pytest
import surface
import ways

from grpo_jax import types
from grpo_jax.rewards import answer
from grpo_jax.rewards.isolation import workers


def pair_sum(question="35,22,13,19=35?"):
  return types.Problem(question, "22+13", "pair_sum", f"User: {question}\n")


def addition(question="17+25=?"):
  return types.Problem(question, "42", "addition", f"User: {question}\n")


def gsm8k(reference="She has 6 * 3 = <<6*3=18>>18 eggs.\n#### 18"):
  return types.Problem("How many?", reference, "gsm8k", "User: How many?\n")


def math(reference=r"\frac{1}{2}"):
  return types.Problem("How much?", reference, "math", "User: How much?\n")


def grade(problem, completion):
  (value,) = answer.accuracy([problem], [completion]).scores
  return value


class TestTheOnePairOfTags:
  @pytest.mark.parametrize(
    "completion",
    [
      "<answer>22+13</answer>",
      "<think>22+13=35 ok</think><answer>22+13</answer>",
      "<think>a</think>\n<answer> 22+13 </answer>\n",
      "<think></think><answer>22+13</answer>",
      "22+13=35 so <answer>22+13</answer>",
    ],
  )
  def test_an_answer_that_ends_the_completion_counts(self, completion):
    assert grade(pair_sum(), completion) == 1.0

  @pytest.mark.parametrize(
    "completion",
    [
      "",
      "22+13",
      "<answer>22+13",
      "22+13</answer>",
      "</answer>22+13<answer>",
      "<answer></answer>",
      # Several answers, equal ones too.
      "<answer>22+13</answer><answer>22+13</answer>",
      "<answer>35+22</answer> no <answer>22+13</answer>",
      "<answer>22+13</answer></answer>",
      # Before the thinking, within it, or followed by more text.
      "<answer>22+13</answer><think>22+13=35</think>",
      "<think>so <answer>22+13</answer></think>",
      "<think>so <answer>22+13</answer>",
      "<think>a</think><think><answer>22+13</answer>",
      "<answer>22+13</answer> or 35+0",
      # Tags inside the answer.
      "<answer><answer>22+13</answer></answer>",
      "<answer><think>22+13</think></answer>",
      "<answer>22+13<think></answer>",
    ],
  )
  def test_nothing_else_does(self, completion):
    assert grade(pair_sum(), completion) == 0.0
    assert grade(gsm8k("#### 35"), completion.replace("22+13", "35")) in (
      # A bare number is an answer to GSM8K.
      1.0 if completion == "22+13" else 0.0,
    )

  def test_thinking_that_the_prompt_opened_must_be_closed(self):
    problem = pair_sum()._replace(prompt="35,22,13,19=35? <think>\n")
    assert grade(problem, "22+13=35</think><answer>22+13</answer>") == 1.0
    assert grade(problem, "22+13=35 <answer>22+13</answer>") == 0.0


class TestPairSum:
  @pytest.mark.parametrize("text", ["22+13", "13+22", " 1 3 + 2 2 "])
  def test_either_order_and_blanks_are_right(self, text):
    assert grade(pair_sum(), f"<answer>{text}</answer>") == 1.0

  @pytest.mark.parametrize(
    "text",
    [
      "35+22",
      "35",
      "35+0",
      "30+5",
      "22+13=35",
      "22+13+0",
      "2213",
      "22*13",
      "22-13",
      "022+13",
      "+22+13",
      "22++13",
      "-22+13",
      "２２+13",
      "22+13.0",
      "__import__('os').abort()+13",
    ],
  )
  def test_other_sums_and_other_forms_are_wrong(self, text):
    assert grade(pair_sum(), f"<answer>{text}</answer>") == 0.0

  def test_a_number_is_used_once_for_each_place_it_stands_at(self):
    once, twice = pair_sum("20,11,12,13=40?"), pair_sum("20,11,20,13=40?")
    assert grade(once, "<answer>20+20</answer>") == 0.0
    assert grade(twice, "<answer>20+20</answer>") == 1.0

  @pytest.mark.parametrize("question", ["", "35,22,13=35?", "17+25=?", "a"])
  def test_a_question_that_is_none_cannot_be_graded(self, question):
    assert grade(pair_sum(question), "<answer>22+13</answer>") is None

  def test_agrees_with_a_search_over_all_pairs(self):
    rng = random.Random(0)
    for _ in range(300):
      numbers = [rng.randint(10, 14) for _ in range(4)]
      target = rng.randint(20, 28)
      x, y = rng.randint(10, 14), rng.randint(10, 14)
      right = any(
        numbers[i] == x and numbers[j] == y and x + y == target
        for i in range(4)
        for j in range(4)
        if i != j
      )
      problem = pair_sum(f"{','.join(map(str, numbers))}={target}?")
      assert grade(problem, f"<answer>{x}+{y}</answer>") == float(right)


class TestAddition:
  def test_only_the_sum_is_right(self):
    assert grade(addition(), "<answer> 4 2 </answer>") == 1.0
    for text in ("41", "17+25", "042", "+42", "42.0", "17+25=42", ""):
      assert grade(addition(), f"<answer>{text}</answer>") == 0.0

  def test_a_question_that_is_none_cannot_be_graded(self):
    assert grade(addition("17-25=?"), "<answer>42</answer>") is None


class TestNumber:
  @pytest.mark.parametrize(
    "completion",
    [
      "<answer>1234</answer>",
      "<answer>$1,234.00</answer>",
      "<answer>1,234 dollars</answer>",
      "<answer>\\boxed{1234}</answer>",
      "<think>12 + 3 #### 7</think> <answer>1234</answer>",
      "1000 + 234 = 1234\n#### 1234",
      "#### 12\n#### $1,234",
      "1000 + 234 is\n#### 1,234 dollars\nQuestion: 5 apples?",
      "<think>it is 7</think> So the answer is 1,234.",
      "2 * 617 = 1234",
      "the answer is 01234.0",
    ],
  )
  def test_is_read_from_tags_then_marks_then_the_end(self, completion):
    assert grade(gsm8k("#### 1,234"), completion) == 1.0

  @pytest.mark.parametrize(
    "completion",
    [
      "",
      "none",
      "-1234",
      "1234.5",
      "1,2345",
      "12,34",
      "12 34",
      "1234 then 7",
      "<answer>1234 or 1235</answer>",
      "<answer>617 * 2</answer>",
      "<answer></answer> 1234",
      "<answer>7</answer> 1234",
      "#### 1234 #### 7",
      "#### 7 or 1234",
      "1234 ####",
      "<think>1234",
      "<think>1234</think>",
      "#### 1234 <think>so it was</think>",
      "#### 1e1234",
    ],
  )
  def test_other_numbers_and_hedges_are_wrong(self, completion):
    assert grade(gsm8k("#### 1,234"), completion) == 0.0

  @pytest.mark.parametrize(
    "reference, text",
    [
      ("-5", "-5"),
      ("-5", "-$5"),
      ("-5", "\u22125"),
      ("0.5", ".5"),
      ("3.", "3"),
    ],
  )
  def test_signs_and_points_are_read(self, reference, text):
    assert grade(gsm8k(reference), f"so {text}") == 1.0
    assert grade(gsm8k(reference), f"so 9{text}") == 0.0

  def test_is_compared_exactly_where_floats_would_agree(self):
    big = 2**53
    assert grade(gsm8k(f"#### {big + 1}"), f"#### {big + 1}") == 1.0
    assert grade(gsm8k(f"#### {big + 1}"), f"#### {big}") == 0.0
    assert grade(gsm8k("0.3"), "0.30000000000000000001") == 0.0

  @pytest.mark.parametrize(
    "reference", ["", "#### ", "a lot", r"\sqrt{2}", "9" * 1001]
  )
  def test_a_reference_that_is_no_number_cannot_be_graded(self, reference):
    assert grade(gsm8k(reference), "<answer>18</answer>") is None

  def test_grades_every_reference_of_gsm8k_as_right(self, shared_data):
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text().splitlines()
    for line in lines:
      record = json.loads(line)
      problem = gsm8k(record["answer"])
      final = record["answer"].rpartition("####")[2].strip()
      assert grade(problem, record["answer"]) == 1.0
      assert grade(problem, f"<think>.</think><answer>{final}</answer>") == 1.0
      assert grade(problem, f"<answer>{final}1</answer>") == 0.0


class TestMath:
  @pytest.mark.parametrize(
    "completion",
    [
      r"<think>a</think><answer>\frac12</answer>",
      r"<think>a</think><answer>It is $\boxed{ \frac{1}{2} }$.</answer>",
      r"<think>\boxed{7}</think> So \boxed{\frac{1}{2}} it is.",
      r"\boxed{7}, no: \boxed {\frac {1} {2}}",
      "#### 7\n#### 1/2",
      "The answer is 7. No! The answer is **0.5**. Check: 2 * 0.5 = 1",
      r"Answer: $\frac{1}{2}$ of it",
      r"the final answer is: \(1/2\)",
      "so x = 1/2",
      "it is 50%",
    ],
  )
  def test_is_read_from_tags_then_a_box_then_marks_then_the_end(
    self, completion
  ):
    assert grade(math(), completion) == 1.0

  @pytest.mark.parametrize(
    "completion, outcome",
    [
      ("", "no_answer"),
      ("I do not know", "no_answer"),
      ("<think>1/2", "no_answer"),
      ("<think>1/2</think>", "no_answer"),
      ("<answer></answer> 1/2", "no_answer"),
      ("<answer>1/2</answer><answer>1/2</answer>", "no_answer"),
      ("<answer>1/2</answer><think>so it was</think>", "no_answer"),
      ("<answer>1/2</answer> or 3", "no_answer"),
      ("<answer><think>1/2</think></answer>", "no_answer"),
      (r"<think>so <answer>\boxed{1/2}</answer></think>", "no_answer"),
      (r"1/2 \boxed{1/2", "no_answer"),
      (r"\boxed{1/2} \boxed{", "no_answer"),
      (r"\boxed{}", "no_answer"),
      (r"\boxed{1/2} or \boxed{1/3}", "wrong"),
      (r"\boxed{1/2 or 1/3}", "wrong"),
      (r"<answer>\boxed{1/2}, \boxed{1/3}</answer>", "wrong"),
      ("<answer>1/2 or 1/3</answer>", "wrong"),
      (r"\boxed{1-1/2}", "wrong"),
      ("The answer is 1/2 or so", "wrong"),
      ("1/2 then 7", "wrong"),
    ],
  )
  def test_nothing_else_counts(self, completion, outcome):
    assert answer.grades([math()], [completion])[0].outcome == outcome

  def test_says_what_was_extracted(self):
    right = answer.grade("5", r"\boxed{5 \text{ cm}}")
    assert right == ("correct", 1.0, r"5 \text{ cm}")
    assert answer.grade("5", "6 apples") == ("wrong", 0.0, "6")
    assert answer.grade("5", "none") == ("no_answer", 0.0, None)

  def test_thinking_that_the_prompt_opened_must_be_closed(self):
    given = dict(answer="5", prompt="Think. <think>\n")
    assert answer.grade(completion="5", **given).outcome == "no_answer"
    assert answer.grade(completion="a</think>5", **given).score == 1.0

  @pytest.mark.parametrize(
    "reference, text",
    [
      (r"so it is $\boxed{\frac{3}{4}}$.", "3/4"),
      ("3 + 4 = 7\n#### 7", "7"),
      (r"\text{(C)}", "I choose (C)."),
      (r"\text{Evelyn}", "it is\nEvelyn"),
      ("x+1", "hence $1+x$ as above"),
    ],
  )
  def test_a_reference_may_be_a_solution_and_any_kind_of_answer(
    self, reference, text
  ):
    assert grade(math(reference), text) == 1.0

  @pytest.mark.parametrize("reference", ["", " ", "#### ", "x" * 1001])
  def test_without_a_reference_nothing_can_be_graded(self, reference):
    (graded,) = answer.grades([math(reference)], [r"\boxed{1}"])
    assert graded == ("ungradable", None, None)

  def test_what_hangs_the_grader_earns_what_a_wrong_answer_earns(self):
    texts = [r"\boxed{9^{9^{9^9}}}", r"\boxed{\sqrt{3}}", r"\boxed{2^{1/2}}"]
    graded = answer.grades([math(r"\sqrt{2}")] * 3, texts, deadline=1.0)
    assert [g.outcome for g in graded] == ["timed_out", "wrong", "correct"]
    assert [g.score for g in graded] == [0.0, 0.0, 1.0]

  @pytest.mark.parametrize("deadline", [0, -1, float("nan"), float("inf")])
  def test_a_deadline_is_a_positive_number(self, deadline):
    with pytest.raises(ValueError, match="positive number of seconds"):
      answer.grade("5", "5", deadline=deadline)


def test_every_outcome_is_a_share_of_all_completions():
  problems = [math(r"\sqrt{2}")] * 3 + [math(""), gsm8k()]
  texts = [r"\boxed{\sqrt2}", "no", r"$\sqrt{3}$", "5", "18"]
  result = answer.accuracy(problems, texts)
  assert result.scores == [1.0, 0.0, 0.0, None, 1.0]
  assert {name: sum(rows) for name, rows in result.metrics.items()} == {
    "correct": 2,
    "wrong": 2,
    "no_answer": 0,
    "timed_out": 0,
    "crashed": 0,
    "ungradable": 1,
  }


def test_a_verifier_may_return_a_bare_score(monkeypatch):
  rule = {"mine": lambda problem, completion: len(completion) / 4}
  monkeypatch.setattr(answer, "VERIFIERS", rule)
  problem = types.Problem("q", "a", "mine", "q")
  graded = answer.grades([problem] * 2, ["abcd", "a"])
  assert [g[:2] for g in graded] == [("correct", 1.0), ("wrong", 0.25)]


def sample(references, size):
  return random.Random(0).sample(references, size)


def test_answers_of_math_are_right_in_all_forms(shared_data):
  for reference in sample(surface.math_references(shared_data), 60):
    forms = surface.math_forms(reference)
    assert len(forms) >= 10
    for name, graded in zip(
      forms,
      answer.grades([math(reference)] * len(forms), list(forms.values())),
      strict=True,
    ):
      assert graded.outcome == "correct", (reference, name, graded)


def test_answers_near_those_of_math_are_wrong(shared_data):
  for reference in sample(surface.math_references(shared_data), 60):
    for name, near in surface.math_perturbed(reference):
      text = f"<answer>{near}</answer>"
      assert grade(math(reference), text) == 0.0, (reference, name)


def test_answers_of_gsm8k_are_right_in_all_forms_and_near_ones_wrong(
  shared_data,
):
  for reference in sample(surface.gsm8k_references(shared_data), 500):
    forms = surface.gsm8k_forms(reference)
    assert len(forms) >= 10
    for name, completion in forms.items():
      assert grade(gsm8k(reference), completion) == 1.0, (reference, name)
    for name, near in surface.gsm8k_perturbed(reference):
      text = f"<answer>{near}</answer>"
      assert grade(gsm8k(reference), text) == 0.0, (reference, name)


def check_ways(source, references, of):
  """Every way of writing each reference is graded as what it is."""
  cases = [(r, *way) for r in references for way in of(r)]
  graded = answer.grades(
    [types.Problem("", case[0], source, "") for case in cases],
    [case[2] for case in cases],
  )
  passed = [g.outcome == "correct" for g in graded]
  bad = [c for c, p in zip(cases, passed, strict=True) if p != c[3]]
  assert not bad, (len(bad), bad[:5])
  assert len({case[1] for case in cases}) >= 45


def final(solution):
  return solution.rpartition("####")[2].strip().replace(",", "")


@pytest.mark.parametrize(
  "size", [10, pytest.param(200, marks=pytest.mark.slow)]
)
class TestWaysOfWriting:
  def test_of_answers_to_gsm8k(self, shared_data, size):
    chosen = sample(surface.gsm8k_references(shared_data), size)
    check_ways("gsm8k", map(final, chosen), ways.of)

  def test_of_answers_to_math(self, shared_data, size):
    chosen = sample(surface.math_references(shared_data), size)
    check_ways("math", chosen, ways.of)

  def test_digits_in_a_formula_are_no_answer(self, shared_data, size):
    chosen = sample(surface.gsm8k_references(shared_data), size)
    for source in ("gsm8k", "math"):
      check_ways(source, map(final, chosen), ways.formulas)


def check_hostile(count, seed):
  """Grades hostile text; returns how often each outcome occurred."""
  hostile.SENTINEL.unlink(missing_ok=True)
  cases = hostile.corpus(count, seed)
  start = time.monotonic()
  outcomes = [
    answer.grade(reference, completion, deadline=1.0)
    for reference, completion in cases
  ]
  hung = sum(o.outcome == "timed_out" for o in outcomes)
  # Nothing takes longer than its deadline, and the rest is fast.
  assert time.monotonic() - start < 30 + 2 * hung + 0.2 * count
  assert not hostile.SENTINEL.exists()
  assert all(o.outcome in answer.OUTCOMES[:5] for o in outcomes)
  return collections.Counter(o.outcome for o in outcomes)


def test_hostile_text_neither_hangs_nor_crashes_nor_runs():
  counts = check_hostile(300, seed=1)
  assert counts["wrong"] > 100
  assert answer.grade(r"\sqrt{2}", r"\boxed{2^{1/2}}").score == 1.0


@pytest.mark.slow
def test_ten_thousand_hostile_texts_neither_hang_nor_crash_nor_run():
  counts = check_hostile(10_000, seed=0)
  assert sum(counts.values()) == 10_000
  assert answer.grade(r"\sqrt{2}", r"\boxed{2^{1/2}}").score == 1.0


@pytest.mark.parametrize("reference", hostile.REFERENCES)
def test_python_in_any_place_of_an_answer_is_not_run(reference):
  """It never even gets to where the guard of the process would end it."""
  hostile.SENTINEL.unlink(missing_ok=True)
  texts = [
    reference[:i] + code + reference[i:]
    for code in hostile.PYTHON[:3]
    for i in range(len(reference) + 1)
  ]
  outcomes = workers.shared().map(
    "grpo_jax.rewards.equality:equal",
    [(reference, text) for text in texts],
    deadline=3.0,
  )
  assert not hostile.SENTINEL.exists()
  assert not any(o.value for o in outcomes)
  assert not any("refused" in o.detail for o in outcomes)


@pytest.mark.parametrize(
  "problem", [pair_sum(), addition(), gsm8k(), math(), math(r"\sqrt{2}")]
)
@pytest.mark.parametrize(
  "text",
  [
    "9" * 3 * 10**5,
    "9," * 3 * 10**5,
    "999," * 3 * 10**5,
    "9." * 3 * 10**5,
    "-$" * 3 * 10**5,
    "<answer>" * 10**5,
    "<think></think>" * 10**5,
    "#### " * 10**5,
    " " * 3 * 10**5,
    "22+" * 3 * 10**5,
    "\\boxed{" * 10**5,
    "\\boxed{x}" * 10**5,
    "\\boxed" + " " * 3 * 10**5,
    "{" * 3 * 10**5,
    "\\(" * 3 * 10**5,
    "\\[" * 3 * 10**5,
    "$" * 3 * 10**5,
    "\\$" * 3 * 10**5,
    "answer is " * 10**5,
    "answer: 1. " * 10**5,
    "A" * 3 * 10**5,
    "1/" * 3 * 10**5,
  ],
  ids=lambda text: text[:7],
)
def test_a_flood_of_text_is_graded_at_once(problem, text):
  start = time.monotonic()
  for completion in (text, f"<answer>{text}</answer>", f"#### {text}"):
    assert grade(problem, completion) == 0.0
  assert time.monotonic() - start < 20  # Seconds: finds a hang.
