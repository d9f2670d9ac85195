"""Scalars to log, against plain loops."""

import math
import statistics

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import types
from grpo_jax.evaluation import metrics
from grpo_jax.rl import metrics as rl_metrics
from grpo_jax.runs import process
from grpo_jax.train import loop

PROBLEM = types.Problem("How many?", "three\n#### 3", "gsm8k", "How many?")


def test_the_peak_of_memory_is_in_gib():
  ballast = np.ones(2**22)
  assert ballast.nbytes / 2**30 < process.memory()["memory/host_peak_gib"] < 64


def test_a_loss_that_is_not_finite_ends_the_run():
  loop.require_finite(3, {"loss": jnp.float32(1.0), "grad_norm": 0.0})
  with pytest.raises(FloatingPointError, match="loss is nan at step 3"):
    loop.require_finite(3, {"loss": math.nan, "grad_norm": 0.0})
  with pytest.raises(FloatingPointError, match="grad_norm is inf"):
    loop.require_finite(3, {"loss": 0.0, "grad_norm": jnp.float32(jnp.inf)})


def test_a_step_shows_the_mean_of_its_updates():
  updates = [{"loss": jnp.float32(1.0), "kl": 0.0}, {"loss": 2.0, "kl": 0.5}]
  assert rl_metrics.mean_over_updates(updates) == {"loss": 1.5, "kl": 0.25}


def scores_of(rewards, valid=None, **terms):
  rewards = np.float32(rewards)
  valid = np.ones(rewards.shape, bool) if valid is None else np.array(valid)
  return types.Rewards(
    rewards, valid, {k: np.float32(v) for k, v in terms.items()}
  )


class TestRewardMetrics:
  def test_matches_a_loop_over_groups(self):
    rng = np.random.default_rng(0)
    rewards = rng.integers(0, 3, 24) / 4
    rewards[4:8] = 0.5
    valid = rng.random(24) > 0.3
    stds, flat = [], 0
    for start in range(0, 24, 4):
      group = [rewards[i] for i in range(start, start + 4) if valid[i]]
      if len(group) > 1:
        stds.append(statistics.stdev(group))
      flat += len(group) < 2 or len(set(group)) == 1
    got = metrics.reward_metrics(scores_of(rewards, valid), 4)
    assert got == pytest.approx(
      {
        "reward": statistics.mean(rewards[valid]),
        "reward_std": statistics.mean(stds),
        "frac_reward_zero_std": flat / 6,
        "frac_reward_invalid": 1 - valid.mean(),
      }
    )

  def test_one_completion_is_no_group(self):
    got = metrics.reward_metrics(scores_of([0.5, 1.0]), 1)
    assert got == {"reward": 0.75, "frac_reward_invalid": 0.0}

  def test_rounding_is_no_variance(self):
    rewards = [0.1, 0.1 + 1e-8, 0.1, 0.1, 0.0, 0.1, 0.1, 0.1]
    got = metrics.reward_metrics(scores_of(rewards), 4)
    assert got["frac_reward_zero_std"] == 0.5

  def test_of_several_sources_each_has_its_own_mean(self):
    scores = scores_of([1, 3, 5, 9], [True, True, True, False])
    chat = PROBLEM._replace(source="chat")
    rows = [PROBLEM, chat, chat, chat]
    got = metrics.source_metrics(scores, rows)
    assert got == {"reward/gsm8k": 1.0, "reward/chat": 4.0}
    assert metrics.source_metrics(scores, [chat] * 4) == {}

  def test_terms_are_over_the_rows_that_they_scored(self):
    scores = scores_of(
      [1, 1, 0, 0],
      [True, True, False, True],
      accuracy=[1, 0, np.nan, 0],
      format=[1, 1, 1, 0],
    )
    got = metrics.reward_metrics(scores, 2)
    assert got["rewards/accuracy/mean"] == pytest.approx(1 / 3)
    assert got["rewards/accuracy/std"] == pytest.approx(
      statistics.stdev([1, 0, 0])
    )
    assert got["rewards/format/mean"] == 0.75
    assert got["reward"] == pytest.approx(2 / 3)

  def test_outcomes_of_grading_are_shares_of_the_rows(self):
    scores = scores_of([1, 0, 0, 0])._replace(
      metrics={"accuracy/timed_out": np.float32([0, 1, 0, 0])}
    )
    got = metrics.reward_metrics(scores, 2)
    assert got["rewards/accuracy/timed_out"] == 0.25

  def test_no_valid_row_gives_nan_and_no_warning(self, recwarn):
    got = metrics.reward_metrics(scores_of([0, 0], [False, False]), 2)
    assert math.isnan(got["reward"]) and math.isnan(got["reward_std"])
    assert got["frac_reward_zero_std"] == 1.0
    assert not recwarn.list


def test_lengths_and_truncation_are_those_of_the_completions():
  completions = types.Completions(
    [PROBLEM] * 4,
    ["", "wait, but", "no", "wait"],
    np.array([1, 5, 2, 4]),
    np.array([False, True, False, False]),
  )
  assert metrics.completion_metrics(completions) == {
    "completions/mean_length": 3.0,
    "completions/min_length": 1,
    "completions/max_length": 5,
    "completions/clipped_ratio": 0.25,
    "completions/reflection_words": 0.75,
  }
