"""The accuracy rules: what counts as right, and what cannot be passed off."""

import json
import random
import time

import pytest

from grpo_jax import types
from grpo_jax.rewards import answer


def pair_sum(question="35,22,13,19=35?"):
  return types.Problem(question, "22+13", "pair_sum", f"User: {question}\n")


def addition(question="17+25=?"):
  return types.Problem(question, "42", "addition", f"User: {question}\n")


def gsm8k(reference="She has 6 * 3 = <<6*3=18>>18 eggs.\n#### 18"):
  return types.Problem("How many?", reference, "gsm8k", "User: How many?\n")


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
    "reference", ["", "#### ", "a lot", "1/2", "9" * 101]
  )
  def test_a_reference_that_is_no_number_cannot_be_graded(self, reference):
    assert grade(gsm8k(reference), "<answer>18</answer>") is None

  def test_grades_sources_that_have_no_rule_of_their_own(self):
    problem = types.Problem("q", "7", "their_own.jsonl", "q")
    assert answer.accuracy([problem] * 2, ["it is 7", "8"]).scores == [1.0, 0.0]

  def test_grades_every_reference_of_gsm8k_as_right(self, shared_data):
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text().splitlines()
    for line in lines:
      record = json.loads(line)
      problem = gsm8k(record["answer"])
      final = record["answer"].rpartition("####")[2].strip()
      assert grade(problem, record["answer"]) == 1.0
      assert grade(problem, f"<think>.</think><answer>{final}</answer>") == 1.0
      assert grade(problem, f"<answer>{final}1</answer>") == 0.0


@pytest.mark.parametrize("problem", [pair_sum(), addition(), gsm8k()])
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
  ],
  ids=lambda text: text[:7],
)
def test_a_flood_of_text_is_graded_at_once(problem, text):
  start = time.monotonic()
  for completion in (text, f"<answer>{text}</answer>", f"#### {text}"):
    assert grade(problem, completion) == 0.0
  assert time.monotonic() - start < 20  # Seconds: finds a hang.
