"""Groups that all do alike are drawn anew."""

import helpers
import numpy as np
import pytest

from grpo_jax import types
from grpo_jax.rl import dynamic_sampling

NAN = np.nan


def make_rounds(*rounds, valid=None):
  """Rollouts of 2 prompts x 3 completions, by their outcomes.

  Tokens, texts and problems say round, prompt and row. Format differs always.
  """
  drawn = []

  def ask():
    number = len(drawn)
    outcomes = np.float32(rounds[number]).ravel()
    count = len(outcomes)
    usable = np.ones(count, bool) if valid is None else np.array(valid[number])
    scores = types.Rewards(
      np.arange(count, dtype=np.float32),
      usable,
      {"accuracy": outcomes, "format": np.arange(count, dtype=np.float32)},
      {"accuracy/odd": np.ones(count, np.float32)} if number % 2 else {},
    )
    tokens = np.arange(count).reshape(2, 3, 1) + 100 * number
    rollout = types.Rollout(
      prompts=types.PromptBatch(
        tokens=tokens[:, 0], mask=np.ones((2, 1), bool)
      ),
      tokens=tokens,
      completion_mask=np.ones(tokens.shape, bool),
      logprobs=tokens * -1.0,
      truncated=np.zeros((2, 3), bool),
    )
    texts = [str(t) for t in tokens.ravel()]
    problems = [types.Problem(t, "", "any", "") for t in texts]
    drawn.append(number)
    completions = helpers.earning(rollout, None).replace(
      problems=problems, texts=texts
    )
    return dynamic_sampling.Pending(completions, lambda: scores)

  return ask, drawn


def numbers(counts):
  return {name.partition("/")[2]: count for name, count in counts.items()}


def check(groups, tokens):
  """All that there is of a row moves together."""
  assert groups.rollout.tokens.ravel().tolist() == tokens
  assert groups.rollout.prompts.tokens.ravel().tolist() == tokens[::3]
  assert groups.texts == [str(t) for t in tokens]
  assert [p.question for p in groups.problems] == groups.texts
  scores = groups.rewards
  np.testing.assert_array_equal(scores.total, np.array(tokens) % 100)
  np.testing.assert_array_equal(scores.terms["format"], scores.total)
  assert groups.lengths.tolist() == [1] * 6


def test_a_full_round_is_taken_as_it_is():
  ask, drawn = make_rounds([[1, 0, 1], [0, 0, 1]])
  groups, counts = dynamic_sampling.fill(ask)
  check(groups, [0, 1, 2, 3, 4, 5])
  assert drawn == [0]
  assert numbers(counts) == dict(
    rounds=1, kept=2, dropped=0, filled=0, surplus=0
  )


def test_groups_of_one_outcome_give_way_to_further_ones():
  """Although their format, and so their rewards, differ."""
  ask, drawn = make_rounds(
    [[1, 1, 1], [0, 0, 1]],
    [[0, 0, 0], [1, 1, 1]],
    [[1, 0, 0], [0, 1, 0]],
    [[1, 0, 0], [0, 1, 0]],
  )
  groups, counts = dynamic_sampling.fill(ask, max_rounds=9)
  check(groups, [3, 4, 5, 200, 201, 202])
  assert drawn == [0, 1, 2]
  assert numbers(counts) == dict(
    rounds=3, kept=2, dropped=3, filled=0, surplus=1
  )
  odd = groups.rewards.metrics["accuracy/odd"]
  np.testing.assert_array_equal(odd, [NAN] * 6)


def test_rounds_are_capped_and_the_batch_is_filled():
  ask, drawn = make_rounds([[1, 1, 1], [0, 0, 0]], [[1, 1, 1], [0, 1, 0]])
  groups, counts = dynamic_sampling.fill(ask, max_rounds=2)
  check(groups, [103, 104, 105, 0, 1, 2])
  assert numbers(counts) == dict(
    rounds=2, kept=1, dropped=3, filled=1, surplus=0
  )


@pytest.mark.parametrize(
  "outcomes, valid, differs",
  [
    ([0, 1, NAN], [True, True, True], True),
    ([0, 1, 0], [True, False, True], False),
    ([NAN, NAN, NAN], [True, True, True], True),
    ([NAN, NAN, NAN], [True, False, False], False),
    ([0.5, 0.5 + 1e-8, 0.5], [True, True, True], False),
    ([NAN, 1, 1], [False, True, True], False),
  ],
)
def test_what_cannot_be_scored_is_left_out(outcomes, valid, differs):
  scores = types.Rewards(
    np.zeros(3, np.float32),
    np.array(valid),
    {"accuracy": np.float32(outcomes)},
  )
  completions = types.Completions(
    [types.Problem("q", "a", "any", "q")] * 3,
    [""] * 3,
    np.ones(3, int),
    np.zeros(3, bool),
    3,
    scores,
  )
  assert dynamic_sampling.differing(completions, "accuracy") == [differs]
