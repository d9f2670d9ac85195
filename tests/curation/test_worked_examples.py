"""Worked examples: what is built in, and records."""

import pytest

from grpo_jax import types
from grpo_jax.curation import worked_examples
from grpo_jax.data import records
from grpo_jax.data.sources import tasks
from grpo_jax.rewards import format


@pytest.mark.parametrize("name", worked_examples.EXAMPLES)
def test_each_example_is_well_formed_and_reflects(name):
  for shot in worked_examples.EXAMPLES[name]:
    problem = types.Problem(shot.question, "", "", "")
    assert format.well_formed([problem], [shot.completion]) == [1.0]
    assert format.reflection_words(shot.completion) >= 2


def test_examples_of_the_built_in_task_are_right_and_for_training():
  for shot in worked_examples.EXAMPLES["pair_sum"]:
    numbers, target = shot.question.rstrip("?").split("=")
    numbers = sorted(map(int, numbers.split(",")))
    assert tasks.split_of((*numbers, int(target))) == "train"
    answer = shot.completion.partition("<answer>")[2].removesuffix("</answer>")
    a, b = map(int, answer.split("+"))
    assert a + b == int(target) and {a, b} <= set(numbers)


def test_the_first_records_of_a_dataset_will_do(tmp_path):
  rows = [{"question": f"q{i}", "completion": f"c{i}"} for i in range(3)]
  records.write(tmp_path / "d", rows, {})
  assert worked_examples.load(str(tmp_path / "d"), 2) == (
    ("q0", "c0"),
    ("q1", "c1"),
  )
  records.write(tmp_path / "e", [{"text": "x"}], {})
  with pytest.raises(ValueError, match="no question and completion"):
    worked_examples.load(str(tmp_path / "e"), 1)


def test_too_many_or_unknown_examples_are_an_error(tmp_path):
  with pytest.raises(ValueError, match="has 2 worked examples, and num_shots"):
    worked_examples.load("pair_sum", 3)
  with pytest.raises(ValueError, match="nor one of word_problems, pair_sum"):
    worked_examples.load(str(tmp_path), 1)
