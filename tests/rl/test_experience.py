"""From a rollout and its rewards to what the loss reads."""

import helpers
import jax
import numpy as np
import pytest

from grpo_jax import types
from grpo_jax.losses import weighting as weighting_lib
from grpo_jax.models import scoring
from grpo_jax.rl import experience, programs

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
  return types.Rewards(rewards, valid, {})


def make_experience(scores, **changes):
  rollout = make_rollout()
  old = rollout.logprobs - 0.1
  scored = experience.Scored(old, np.zeros_like(old))
  return experience.make_experience(
    helpers.earning(rollout, scores),
    scored,
    advantages={"kind": "group"} | changes,
  )


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


@pytest.mark.parametrize("weighting", weighting_lib.WEIGHTINGS)
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
      "sequence_mean": lambda m: weighting_lib.sequence_mean(m),
      "token_mean": lambda m: weighting_lib.token_mean(m),
      "constant_length": lambda m: weighting_lib.constant_length(m, 10),
      "prompt_mean": lambda m: weighting_lib.prompt_mean(m),
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
  got = programs.make_score(cfg, 0.7, num_pieces)(params, *given)
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


# With a value model.


def slow_token_advantages(
  rewards, mask, old, reference, values, discount, lambda_, kl_coef
):
  """The sums of InstructGPT and of GAE as they are written, in float64."""
  advantages = np.zeros(mask.shape)
  for p, g in np.ndindex(mask.shape[:2]):
    at = np.flatnonzero(mask[p, g])
    r = np.zeros(len(at))
    v = np.append(values[p, g, at].astype(float), 0.0)
    for i, t in enumerate(at):
      r[i] = -kl_coef * (float(old[p, g, t]) - float(reference[p, g, t]))
    r[-1] += rewards[p, g]
    delta = [r[i] + discount * v[i + 1] - v[i] for i in range(len(at))]
    for i, t in enumerate(at):
      advantages[p, g, t] = sum(
        (discount * lambda_) ** (j - i) * delta[j] for j in range(i, len(at))
      )
  return advantages, np.where(mask, advantages + values, np.nan)


VALUES = np.random.default_rng(5).standard_normal((4, 2, 12), np.float32)
REFERENCE = np.random.default_rng(6).standard_normal((4, 2, 12), np.float32)


def make_token_experience(scores, **changes):
  rollout = make_rollout()
  old = rollout.logprobs - 0.1
  scored = experience.Scored(old, np.zeros_like(old), REFERENCE, VALUES)
  return experience.make_experience(
    helpers.earning(rollout, scores),
    scored,
    advantages={"kind": "gae"} | changes,
  )


@pytest.mark.parametrize("discount, lambda_", [(1.0, 1.0), (0.9, 0.5)])
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_advantages_of_tokens_match_a_slow_loop(discount, lambda_, kl_coef):
  rewards = [1, 0, 0.5, 2, -1, 0, 0, 3]
  options = dict(discount=discount, lambda_=lambda_, kl_coef=kl_coef)
  data = make_token_experience(make_scores(rewards), normalize=False, **options)
  want, returns = slow_token_advantages(
    np.reshape(rewards, (4, 2)),
    data.completion_mask,
    data.old_logprobs,
    REFERENCE,
    VALUES,
    **options,
  )
  np.testing.assert_allclose(data.advantages, want, atol=1e-5)
  np.testing.assert_allclose(data.returns, returns, atol=1e-5)
  np.testing.assert_array_equal(data.values, VALUES)


def test_normalized_they_have_mean_0_and_deviation_1_over_all_tokens():
  scores = make_scores(range(8), [True] * 7 + [False])
  data = make_token_experience(scores)
  inside = data.completion_mask.copy()
  inside[3, 1] = False
  assert abs(data.advantages[inside].mean()) < 1e-6
  assert data.advantages[inside].std(ddof=1) == pytest.approx(1, abs=1e-5)


def test_a_completion_without_a_reward_teaches_no_values():
  data = make_token_experience(make_scores(range(8), [False] + [True] * 7))
  np.testing.assert_array_equal(data.advantages[0, 0], 0.0)
  assert np.isnan(data.returns[0, 0]).all()
  known = ~np.isnan(data.returns)
  np.testing.assert_array_equal(known[0, 1], data.completion_mask[0, 1])


def test_a_group_may_be_one_completion():
  rollout = make_rollout()
  rows = {
    name: x.reshape(8, 1, *x.shape[2:])
    for name, x in vars(rollout).items()
    if name != "prompts"
  }
  one = rollout.replace(**rows)
  scores = make_scores(range(8))
  values, reference = (x.reshape(8, 1, 12) for x in (VALUES, REFERENCE))
  data, want = (
    experience.make_experience(
      helpers.earning(x, scores),
      experience.Scored(x.logprobs, x.logprobs, ref, value),
      advantages={"kind": "gae"},
    )
    for x, ref, value in (
      (one, reference, values),
      (rollout, REFERENCE, VALUES),
    )
  )
  np.testing.assert_allclose(
    data.advantages.ravel(), want.advantages.ravel(), atol=1e-6
  )
