"""Countdown problems: solvable, different, and never in both splits."""

import re

import pytest

from grpo_jax.data import datasets
from grpo_jax.data.sources import countdown

NUMBER = re.compile(r"\d+")


def canonical(problem):
  target, *numbers = map(int, NUMBER.findall(problem.question))
  return (*sorted(numbers), target)


def test_splits_of_different_seeds_have_no_problem_in_common():
  seen = {"train": set(), "test": set()}
  for split, found in seen.items():
    for seed in range(3):
      # A small world, in which different seeds often draw the same problem.
      found |= {
        canonical(p)
        for p in countdown.problems(
          split, size=300, seed=seed, num_numbers=3, largest_number=12
        )
      }
  assert seen["train"] and not seen["train"] & seen["test"]


def test_problems_differ_follow_their_seed_and_are_as_asked():
  kind = dict(num_numbers=3, largest_number=20, largest_target=50)
  problems = countdown.problems("train", size=500, seed=1, **kind)
  assert problems == countdown.problems("train", size=500, seed=1, **kind)
  assert problems != countdown.problems("train", size=500, seed=2, **kind)
  assert len(set(map(canonical, problems))) == 500
  for problem in problems:
    *numbers, target = canonical(problem)
    assert len(numbers) == 3 and max(numbers) <= 20
    assert 1 <= target <= 50
    used = sorted(map(int, NUMBER.findall(problem.answer)))
    assert used == numbers
    assert eval(problem.answer) == target
    assert problem.source == "countdown" and problem.prompt == ""


@pytest.mark.parametrize(
  ("options", "says"),
  [
    (dict(size=10**6, num_numbers=2, largest_number=3), "hardly more than"),
    (dict(size=0), "size=0"),
    (dict(size=1, num_numbers=1), "num_numbers=1"),
  ],
)
def test_what_cannot_be_drawn_is_one_sentence(options, says):
  with pytest.raises(ValueError, match=says):
    countdown.problems("train", seed=0, **options)
  with pytest.raises(ValueError, match="'dev'"):
    countdown.problems("dev", size=1, seed=0)


def test_kept_problems_are_those_that_were_made(tmp_path):
  options = dict(train_size=30, test_size=10, seed=3, num_numbers=3)
  for split, size in (("train", 30), ("test", 10)):
    made = countdown.problems(split, size=size, seed=3, num_numbers=3)
    for _ in range(2):
      kept = datasets.load("countdown", split, data_dir=tmp_path, **options)
      assert kept == made
