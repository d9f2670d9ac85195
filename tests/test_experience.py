"""From a rollout and its rewards to what the loss reads."""

import helpers
import jax
import numpy as np
import pytest

from grpo_jax import experience, masking, types
from grpo_jax.models import scoring
from grpo_jax.rewards import combine

LENGTHS = [[4, 1], [2, 6], [6, 3], [1, 1]]


def make_rollout():
  tokens, mask = helpers.make_completions(LENGTHS, 12)
  rng = np.random.default_rng(1)
  return types.Rollout(
    prompts=helpers.make_prompts([3, 5, 1, 2], 5),
    tokens=tokens,
    completion_mask=mask,
    logprobs=np.where(mask, -rng.random(mask.shape, np.float32), 0.0).astype(
      np.float32
    ),
    truncated=np.zeros(mask.shape[:2], bool),
  )


def make_scores(rewards, valid=None):
  rewards = np.asarray(rewards, np.float32)
  valid = np.ones(len(rewards), bool) if valid is None else np.asarray(valid)
  return combine.Scores(rewards, valid, {})


def make_experience(scores, **changes):
  rollout = make_rollout()
  old = rollout.logprobs - 0.1
  return experience.make_experience(rollout, scores, old, None, **changes)


def test_advantages_are_the_groups_on_its_tokens_and_zero_elsewhere():
  rewards = [1, 0, 1, 1, 0.5, 0, 0, 3]
  data = make_experience(make_scores(rewards), eps=0.0)
  mask = data.completion_mask
  want = np.array([[1, -1], [0, 0], [1, -1], [-1, 1]]) / np.sqrt(2)
  np.testing.assert_allclose(data.advantages, want[..., None] * mask, atol=1e-6)
  np.testing.assert_array_equal(data.advantages[1], 0.0)


def test_an_invalid_row_leaves_its_group_and_gets_nothing():
  valid = [True, False] + [True] * 6
  data = make_experience(make_scores([1, 9, 1, 0, 1, 0, 1, 0], valid))
  np.testing.assert_array_equal(data.advantages[0], 0.0)


def test_what_was_drawn_is_what_is_trained_on():
  rollout = make_rollout()
  data = make_experience(make_scores(range(8)))
  np.testing.assert_array_equal(data.tokens, rollout.tokens)
  np.testing.assert_array_equal(data.completion_mask, rollout.completion_mask)
  np.testing.assert_array_equal(data.sampler_logprobs, rollout.logprobs)
  assert data.ref_logprobs is None


@pytest.mark.parametrize("multiple, slots", [(4, 8), (6, 6), (7, 7), (32, 12)])
def test_trim_drops_only_slots_that_no_row_uses(multiple, slots):
  rollout = make_rollout()
  short = experience.trim(rollout, multiple)
  assert short.tokens.shape == (4, 2, slots)
  for name in ("tokens", "completion_mask", "logprobs"):
    np.testing.assert_array_equal(
      getattr(short, name), getattr(rollout, name)[..., :slots]
    )


@pytest.mark.parametrize("weighting", masking.WEIGHTINGS)
def test_each_minibatch_has_the_weights_of_its_own_update(weighting):
  data = make_experience(make_scores(range(8)))
  parts = list(experience.minibatches(data, 2, weighting, 10))
  assert len(parts) == 2
  for i, part in enumerate(parts):
    mask = data.completion_mask[2 * i : 2 * i + 2]
    np.testing.assert_array_equal(part.tokens, data.tokens[2 * i : 2 * i + 2])
    np.testing.assert_array_equal(
      part.prompts.tokens, data.prompts.tokens[2 * i : 2 * i + 2]
    )
    want = {
      "sequence_mean": lambda m: masking.sequence_mean(m),
      "token_mean": lambda m: masking.token_mean(m),
      "constant_length": lambda m: masking.constant_length(m, 10),
    }[weighting](jax.numpy.asarray(mask))
    np.testing.assert_allclose(part.weights, want, rtol=1e-6)


@pytest.mark.parametrize("num_pieces", [2, 4])
def test_scoring_in_pieces_gives_the_same_log_probs(num_pieces):
  cfg = helpers.tiny()
  params = helpers.make_params(cfg)
  rollout = make_rollout()
  given = jax.tree.map(
    jax.numpy.asarray,
    (rollout.prompts, rollout.tokens, rollout.completion_mask),
  )
  got = experience.make_score(cfg, 0.7, num_pieces)(params, *given)
  prompts, tokens, mask = given
  want = jax.jit(
    lambda p: scoring.score_completions(
      p, cfg, prompts.tokens, prompts.mask, tokens, mask, temperature=0.7
    )
  )(params)
  inside = rollout.completion_mask
  for name in ("logprobs", "entropy"):
    np.testing.assert_allclose(
      np.asarray(getattr(got, name))[inside],
      np.asarray(getattr(want, name))[inside],
      atol=1e-5,
    )


def test_rows_are_split_so_that_microbatches_are_too():
  mesh = helpers.make_mesh(**helpers.EIGHT)
  data = next(
    experience.minibatches(
      make_experience(make_scores(range(8))), 1, "token_mean", 10
    )
  )
  whole = experience.place(data, mesh)
  assert whole.tokens.sharding.spec[:2] == (("data", "fsdp"), None)
  halves = experience.place(data, mesh, 2)
  assert halves.tokens.sharding.spec[:2] == ("data", "fsdp")
  assert halves.prompts.mask.sharding.spec[0] == "data"
