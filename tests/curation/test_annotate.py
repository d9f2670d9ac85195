"""What judged completions come to, against all pairs one by one."""

import itertools
import math

import numpy as np
import pytest

from grpo_jax import types
from grpo_jax.curation import annotate
from grpo_jax.types import Completions

PROBLEMS, GROUP = 12, 6


@pytest.fixture
def drawn():
  """A batch with rewards in tenths, equal texts, cut and unscored rows."""
  rng = np.random.default_rng(0)
  rows = PROBLEMS * GROUP
  problems = [
    types.Problem(f"q{row // GROUP}", "a", "chat", "p") for row in range(rows)
  ]
  texts = [f"text {number}" for number in rng.integers(0, 5, rows)]
  # Equal texts of a problem earn alike, as a rule's do.
  earned = {
    key: rng.integers(0, 11) / 10
    for key in sorted({(row // GROUP, texts[row]) for row in range(rows)})
  }
  rewards = np.array([earned[row // GROUP, texts[row]] for row in range(rows)])
  rewards[rng.random(rows) < 0.1] = math.nan
  batch = Completions(
    problems, texts, rng.integers(1, 9, rows), rng.random(rows) < 0.1, GROUP
  )
  return annotate.ScoredBatch(
    0, [np.zeros(1, np.int32)] * PROBLEMS, batch, rewards
  )


def usable(drawn, problem):
  """Text and reward of what ended and was scored, equal texts once."""
  rows = range(problem * GROUP, (problem + 1) * GROUP)
  return {
    drawn.completions.texts[row]: drawn.rewards[row]
    for row in rows
    if not (drawn.completions.truncated[row] or math.isnan(drawn.rewards[row]))
  }


def test_all_pairs_that_differ_enough_are_found(drawn):
  rows, counts = annotate.pairs_of(drawn, margin=0.25, per_problem=99, seed=0)
  want = [
    (f"q{problem}", chosen, rejected)
    for problem in range(PROBLEMS)
    for (chosen, high), (rejected, low) in itertools.permutations(
      usable(drawn, problem).items(), 2
    )
    if high - low > 0.25
  ]
  found = [(row["question"], row["chosen"], row["rejected"]) for row in rows]
  assert sorted(found) == sorted(want)
  assert len(want) > PROBLEMS
  assert all(row["margin"] > 0.25 for row in rows)
  with_one = len({question for question, *_ in want})
  assert counts["problems_without_a_pair"] == PROBLEMS - with_one
  assert counts["unscored"] == np.isnan(drawn.rewards).sum() > 0
  assert counts["truncated"] == drawn.completions.truncated.sum() > 0


def test_the_pairs_of_a_problem_do_not_depend_on_its_batch(drawn):
  options = dict(margin=0.0, per_problem=2, seed=3)
  whole, _ = annotate.pairs_of(drawn, **options)
  apart = []
  for problem in range(PROBLEMS):
    rows = slice(problem * GROUP, (problem + 1) * GROUP)
    batch = drawn.completions[np.array([problem])]
    part = annotate.ScoredBatch(
      7, drawn.prompts[:1], batch, drawn.rewards[rows]
    )
    apart += annotate.pairs_of(part, **options)[0]
  assert whole == apart
  other, _ = annotate.pairs_of(drawn, **options | dict(seed=4))
  assert other != whole
  assert len(other) == len(whole) <= 2 * PROBLEMS


def test_each_completion_that_ended_has_its_label_once(drawn):
  rows, _ = annotate.labels_of(drawn)
  found = [(row["question"], row["completion"], row["label"]) for row in rows]
  want = [
    (f"q{problem}", text, reward)
    for problem in range(PROBLEMS)
    for text, reward in usable(drawn, problem).items()
  ]
  assert sorted(found) == sorted(want)


def test_a_reward_outside_of_0_to_1_is_no_label(drawn):
  with pytest.raises(ValueError, match="earns 1.5, which is no label"):
    annotate.labels_of(drawn._replace(rewards=drawn.rewards * 0 + 1.5))
