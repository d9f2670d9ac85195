"""Weighing rewards, and rewards that misbehave."""

import math
import re

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import types
from grpo_jax.rewards import combine

GOOD = "<think>22+13=35 ok</think><answer>22+13</answer>"
PROBLEM = types.Problem("35,22,13,19=35?", "22+13", "pair_sum", "")
UNGRADABLE = types.Problem("?", "", "pair_sum", "")


MINE = dict(weight=1.0, function=f"{__name__}:mine")
RETURNED = []


def mine(problems, completions):
  return RETURNED[0]


def returns(monkeypatch, value):
  monkeypatch.setattr(f"{__name__}.RETURNED", [value])


def test_rewards_are_the_weighted_sum_of_their_terms():
  scores = combine.score(
    {"accuracy": 1.0, "format": 0.25},
    [PROBLEM] * 4,
    [GOOD, GOOD.replace("13<", "19<"), "<answer>13+22</answer>", "no"],
  )
  np.testing.assert_array_equal(scores.rewards, [1.25, 0.25, 1.0, 0.0])
  np.testing.assert_array_equal(scores.terms["accuracy"], [1, 0, 1, 0])
  np.testing.assert_array_equal(scores.terms["format"], [1, 1, 0, 0])
  assert scores.valid.all()
  assert scores.rewards.dtype == np.float32
  assert scores.terms["format"].dtype == np.float32


def test_fractions_are_not_truncated(monkeypatch):
  returns(monkeypatch, [0.9, np.float32(0.5), jnp.float32(0.25), True, 2])
  scores = combine.score({"mine": MINE}, [PROBLEM] * 5, [GOOD] * 5)
  np.testing.assert_allclose(scores.rewards, [0.9, 0.5, 0.25, 1.0, 2.0])


def test_a_row_without_a_score_is_not_valid_and_earns_nothing():
  scores = combine.score(
    {"format": 1.0, "accuracy": 1.0}, [PROBLEM, UNGRADABLE], [GOOD, GOOD]
  )
  np.testing.assert_array_equal(scores.valid, [True, False])
  np.testing.assert_array_equal(scores.rewards, [2.0, 0.0])
  np.testing.assert_array_equal(scores.terms["accuracy"], [1.0, np.nan])
  np.testing.assert_array_equal(scores.terms["format"], [1.0, 1.0])


def test_a_term_of_weight_zero_is_logged_and_changes_nothing():
  scores = combine.score(
    {"format": 0.5, "accuracy": 0}, [PROBLEM, UNGRADABLE], [GOOD, GOOD]
  )
  assert scores.valid.all()
  np.testing.assert_array_equal(scores.rewards, [0.5, 0.5])
  np.testing.assert_array_equal(scores.terms["accuracy"], [1.0, np.nan])


def test_negative_weights_subtract():
  scores = combine.score({"accuracy": 1.0, "format": -2.0}, [PROBLEM], [GOOD])
  assert scores.rewards[0] == -1.0


@pytest.mark.parametrize(
  "value",
  [
    [1.0],
    [1.0, 2.0, 3.0],
    None,
    1.0,
    [math.nan, 1.0],
    [1.0, math.inf],
    [1.0, 1e300],
    [1.0, "0.5"],
    [1.0, [0.5]],
    [1.0, 1j],
    [1.0, object()],
    iter([1.0, 2.0]),
    np.array(2.0),
  ],
  ids=str,
)
def test_a_reward_that_misbehaves_is_named_in_one_sentence(monkeypatch, value):
  returns(monkeypatch, value)
  with pytest.raises(ValueError, match="'mine'") as error:
    combine.score({"accuracy": 1, "mine": MINE}, [PROBLEM] * 2, [GOOD] * 2)
  assert re.fullmatch(r"Reward .*[^.]\.", str(error.value))


def test_an_unknown_reward_is_answered_with_the_nearest_name():
  with pytest.raises(ValueError, match="'acuracy'; did you mean 'accuracy'"):
    combine.score({"acuracy": 1.0}, [PROBLEM], [GOOD])
  with pytest.raises(ValueError, match="there are 'accuracy', 'format'"):
    combine.check({"zzz": 1.0})


@pytest.mark.parametrize("weight", [math.nan, math.inf, "1", None, [1.0]])
def test_a_weight_must_be_a_finite_number(weight):
  with pytest.raises(ValueError, match="'format' must be a finite number"):
    combine.check({"format": weight})


def test_there_must_be_rewards_and_a_problem_for_each_completion():
  with pytest.raises(ValueError, match="No rewards"):
    combine.check({})
  with pytest.raises(ValueError, match="2 completions .* 1 problems"):
    combine.score({"format": 1.0}, [PROBLEM], [GOOD, GOOD])
