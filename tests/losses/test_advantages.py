import functools
import inspect
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import advantages
from grpo_jax.losses import returns as returns_lib


def _rewards(seed, shape=(5, 4)):
  rng = np.random.default_rng(seed)
  rewards = rng.normal(size=shape).round(1)
  valid = rng.random(shape) < 0.8
  rewards[0], valid[0] = 0.1, True  # No variance.
  valid[1], valid[1, 0] = False, True  # One scored completion.
  valid[2] = False  # None.
  return rewards, valid


def _jax(rewards, valid):
  rewards = np.where(valid, rewards, np.nan).astype(np.float32)
  return jnp.asarray(rewards), jnp.asarray(valid)


def _loop(rewards, valid, per_group):
  result = np.zeros_like(rewards)
  for p, (group, scored) in enumerate(zip(rewards, valid, strict=True)):
    members = [g for g in range(len(group)) if scored[g]]
    if len(members) > 1 and np.std(group[members]) > 1e-6:
      result[p, members] = per_group(group[members])
  return result


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ddof", [0, 1])
def test_group_advantages_match_the_paper(seed, ddof):
  rewards, valid = _rewards(seed)
  expected = _loop(
    rewards,
    valid,
    lambda r: (r - np.mean(r)) / (np.std(r, ddof=ddof) + 1e-4),
  )
  result = advantages.group_advantages(
    *_jax(rewards, valid), ddof=ddof, eps=1e-4
  )
  np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_centered_advantages_match_the_paper(seed):
  rewards, valid = _rewards(seed)
  expected = _loop(rewards, valid, lambda r: r - np.mean(r))
  result = advantages.group_advantages(*_jax(rewards, valid), scale="none")
  np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", ["std", "none"])
def test_leave_one_out_matches_the_paper(seed, scale):
  rewards, valid = _rewards(seed)

  def per_group(r):
    result = [r[i] - np.mean(np.delete(r, i)) for i in range(len(r))]
    std = np.std(r, ddof=1) + 1e-6 if scale == "std" else 1.0
    return np.array(result) / std

  expected = _loop(rewards, valid, per_group)
  result = advantages.leave_one_out(*_jax(rewards, valid), scale=scale)
  np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_batch_scaled_advantages_match_the_paper(seed):
  rewards, valid = _rewards(seed)
  std = np.std(rewards[valid], ddof=1) + 1e-6
  expected = _loop(rewards, valid, lambda r: (r - np.mean(r)) / std)
  result = advantages.group_advantages(*_jax(rewards, valid), scale="batch")
  np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_max_rl_divides_by_the_mean(seed):
  rewards, valid = _rewards(seed)
  rewards = np.maximum(rewards, 0.0)
  rewards[3], valid[3] = 0.0, True  # Solved by none.
  expected = _loop(rewards, valid, lambda r: (r - np.mean(r)) / np.mean(r))
  result = advantages.max_rl(*_jax(rewards, valid))
  np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-5)


def test_max_rl_gives_every_group_with_a_success_the_same_push():
  # The positive advantages of a group sum to G (1 - p), whatever p is times p.
  correct = jnp.arange(8) < jnp.arange(1, 8)[:, None]
  result = advantages.max_rl(correct.astype(jnp.float32))
  mean = jnp.mean(correct, axis=-1)
  pushed = jnp.sum(jnp.where(correct, result, 0.0), axis=-1)
  np.testing.assert_allclose(pushed, 8 * (1 - mean), rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_opo_subtracts_the_mean_weighed_by_length(seed):
  rewards, valid = _rewards(seed)
  lengths = np.random.default_rng(seed).integers(1, 50, rewards.shape)
  expected = np.zeros_like(rewards)
  for p in range(len(rewards)):
    r, length = rewards[p][valid[p]], lengths[p][valid[p]]
    if len(r) > 1 and np.ptp(r) > 0:
      expected[p][valid[p]] = r - np.sum(length * r) / np.sum(length)
  rewards, valid = _jax(rewards, valid)
  result = advantages.opo(rewards, jnp.asarray(lengths), valid)
  np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-5)


def test_opo_of_equal_lengths_only_centers():
  rewards = jnp.asarray(np.random.default_rng(0).random((4, 8)), jnp.float32)
  np.testing.assert_allclose(
    advantages.opo(rewards, jnp.full((4, 8), 7)),
    advantages.group_advantages(rewards, scale="none"),
    atol=1e-6,
  )


@pytest.mark.parametrize("seed", range(3))
def test_gpg_scales_up_for_groups_without_variance(seed):
  rewards, valid = _rewards(seed)
  teaching = sum(
    v.sum()
    for r, v in zip(rewards, valid, strict=True)
    if v.sum() > 1 and np.ptp(r[v]) > 0
  )
  alpha = valid.sum() / teaching
  expected = _loop(rewards, valid, lambda r: alpha * (r - np.mean(r)))
  result = advantages.gpg(*_jax(rewards, valid))
  np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-6)


def test_gpg_of_groups_that_all_teach_only_centers():
  rewards = jnp.asarray(np.random.default_rng(0).random((4, 8)), jnp.float32)
  np.testing.assert_allclose(
    advantages.gpg(rewards),
    advantages.group_advantages(rewards, scale="none"),
    atol=1e-6,
  )
  np.testing.assert_array_equal(advantages.gpg(jnp.ones((2, 3))), 0.0)


def test_remax_subtracts_the_greedy_reward_of_the_prompt():
  rewards = jnp.array([[1.0, 0.0], [1.0, jnp.nan], [0.5, 0.5]])
  valid = jnp.array([[True, True], [True, False], [True, True]])
  result = advantages.remax(rewards, jnp.array([0.25, 1.0, jnp.nan]), valid)
  np.testing.assert_array_equal(result, [[0.75, -0.25], [0, 0], [0, 0]])


def test_every_row_takes_its_data_by_name_and_has_defaults_but_for_k():
  data = {
    "rewards", "valid", "terms", "term_weights", "correct", "lengths",
    "greedy_rewards", "mask", "old_logprobs", "ref_logprobs", "values",
  }  # fmt: skip
  for kind, row in advantages.ADVANTAGES.items():
    for p in inspect.signature(row).parameters.values():
      if p.kind is p.KEYWORD_ONLY:
        assert p.default is not p.empty or p.name == "k", kind
      else:
        assert p.name in data, kind


def test_advantages_of_a_real_system_are_reproduced(shared_data):
  lines = (shared_data / "rollouts" / "graded_groups.jsonl").read_text()
  groups = {}
  for line in lines.splitlines():
    record = json.loads(line)
    groups.setdefault(record["request_idx"], []).append(record)
  rewards = [[r["reward"] for r in group] for group in groups.values()]
  expected = [[r["advantage"] for r in group] for group in groups.values()]
  result = advantages.group_advantages(jnp.asarray(rewards, jnp.float32))
  np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("function", ["group_advantages", "leave_one_out"])
def test_a_constant_added_to_the_rewards_changes_nothing(function):
  rewards = jnp.asarray(np.random.default_rng(0).integers(0, 5, (4, 8)) / 4)
  function = getattr(advantages, function)
  np.testing.assert_array_equal(function(rewards), function(rewards + 8.0))


def test_scaling_the_rewards_changes_nothing():
  rewards = jnp.asarray(np.random.default_rng(0).random((4, 8)), jnp.float32)
  np.testing.assert_allclose(
    advantages.group_advantages(rewards),
    advantages.group_advantages(rewards * 100.0),
    rtol=1e-4,
  )


def test_the_order_within_a_group_changes_nothing():
  rewards = jnp.asarray(np.random.default_rng(0).random((4, 8)), jnp.float32)
  order = np.random.default_rng(1).permutation(8)
  np.testing.assert_allclose(
    advantages.group_advantages(rewards)[:, order],
    advantages.group_advantages(rewards[:, order]),
    rtol=1e-5,
  )


@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, 1e3 + 0.1])
def test_a_group_without_variance_is_exactly_zero(reward):
  rewards = jnp.full((1, 7), reward, jnp.float32)
  lengths = jnp.arange(1, 8)[None]
  for function in (
    advantages.group_advantages,
    functools.partial(advantages.group_advantages, scale="batch"),
    advantages.leave_one_out,
    advantages.best_of_group,
    advantages.max_rl,
    advantages.gpg,
    lambda rewards: advantages.opo(rewards, lengths),
  ):
    np.testing.assert_array_equal(function(rewards), 0.0)


def test_a_group_of_one_is_refused():
  rewards = jnp.ones((3, 1))
  for function in (
    advantages.group_advantages,
    advantages.leave_one_out,
    advantages.best_of_group,
    advantages.reinforce_plus_plus,
    advantages.max_rl,
    advantages.gpg,
  ):
    with pytest.raises(ValueError, match="at least 2"):
      function(rewards)


def test_an_unknown_scale_is_refused():
  with pytest.raises(Exception, match="scale"):
    advantages.group_advantages(jnp.ones((1, 2)), scale="mad")


@pytest.mark.parametrize("baseline", [True, False])
def test_reinforce_plus_plus_matches_the_paper(baseline):
  rewards, valid = _rewards(0)
  shifted = np.where(valid, rewards, 0.0)
  if baseline:
    for p in range(len(rewards)):
      if valid[p].any():
        shifted[p] -= rewards[p][valid[p]].mean()
  members = shifted[valid]
  expected = np.where(
    valid, (shifted - members.mean()) / (members.std(ddof=1) + 1e-6), 0.0
  )
  result = advantages.reinforce_plus_plus(
    *_jax(rewards, valid), baseline=baseline
  )
  np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-6)


def test_reinforce_plus_plus_charges_each_token_for_the_kl_ahead():
  rng = np.random.default_rng(0)
  rewards, valid = _rewards(0, (4, 3))
  mask = rng.random((4, 3, 5)) < 0.7
  old, ref = -rng.exponential(size=(2, 4, 3, 5))
  shifted = np.zeros(mask.shape)
  for p, g, t in zip(*np.nonzero(mask), strict=True):
    ahead = mask[p, g] & (np.arange(5) >= t)
    shifted[p, g, t] = rewards[p, g] - 0.3 * np.sum((old - ref)[p, g][ahead])
  known = mask & valid[..., None]
  members = shifted[known]
  expected = (shifted - members.mean()) / (members.std(ddof=1) + 1e-6)
  data = [
    jnp.asarray(np.where(known, x, np.nan), jnp.float32) for x in (old, ref)
  ]
  result = advantages.reinforce_plus_plus(
    *_jax(rewards, valid), jnp.asarray(mask), *data, baseline=False, kl_coef=0.3
  )
  np.testing.assert_allclose(
    result, np.where(known, expected, 0.0), rtol=1e-4, atol=1e-5
  )
  with pytest.raises(ValueError, match="ref_logprobs"):
    advantages.reinforce_plus_plus(*_jax(rewards, valid), kl_coef=0.3)


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_token_advantages_match_a_loop_over_chosen_tokens(kl_coef):
  rng = np.random.default_rng(0)
  rewards, valid = _rewards(0, (4, 3))
  mask = rng.random((4, 3, 5)) < 0.7
  old, ref, values = rng.normal(size=(3, 4, 3, 5))
  settings = {"discount": 0.9, "lambda_": 0.8}
  expected = np.zeros(mask.shape)
  for p, g in zip(*np.nonzero(valid), strict=True):
    given = -kl_coef * (old - ref)[p, g]
    chosen = np.nonzero(mask[p, g])[0]
    if len(chosen):
      given[chosen[-1]] += rewards[p, g]
    expected[p, g] = _gae_loop(
      given, values[p, g], mask[p, g], **settings, final_value=0.0
    )
  known = mask & valid[..., None]
  data = [
    jnp.asarray(np.where(mask, x, np.nan), jnp.float32)
    for x in (old, ref, values)
  ]
  result, returns = advantages.ADVANTAGES["gae"](
    *_jax(rewards, valid),
    jnp.asarray(mask),
    *data,
    **settings,
    kl_coef=kl_coef,
    normalize=False,
  )
  np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    returns, np.where(known, expected + values, np.nan), rtol=1e-4, atol=1e-5
  )


def test_reward_decoupled_matches_the_paper():
  rng = np.random.default_rng(0)
  rewards, valid = rng.random((3, 4, 5)), rng.random((3, 4, 5)) < 0.8
  valid[:, 0, 0] = False
  term_weights = [1.0, 0.5, 2.0]
  summed = sum(
    weight * _loop(r, v, lambda r: (r - r.mean()) / (r.std(ddof=1) + 1e-6))
    for weight, r, v in zip(term_weights, rewards, valid, strict=True)
  )
  scored = valid.any(axis=0)
  members = summed[scored]
  expected = np.where(
    scored, (summed - members.mean()) / (members.std(ddof=1) + 1e-6), 0.0
  )
  terms, _ = _jax(rewards, valid)
  result = advantages.reward_decoupled(
    terms, term_weights=jnp.asarray(term_weights)
  )
  np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
  with pytest.raises(Exception, match="term_weights"):
    advantages.reward_decoupled(terms, term_weights=jnp.ones(1))


def test_a_completion_that_is_not_valid_leaves_every_term():
  terms = jnp.asarray(np.random.default_rng(0).random((2, 3, 4)), jnp.float32)
  valid = jnp.ones((3, 4), bool).at[1, 2].set(False)
  np.testing.assert_array_equal(
    advantages.reward_decoupled(terms, valid),
    advantages.reward_decoupled(jnp.where(valid, terms, jnp.nan)),
  )


def test_reward_decoupled_tells_apart_what_a_sum_confuses():
  # Both second completions sum to 1, once as the rarer of two rewards.
  rewards = jnp.array([[[1.0, 0.0, 1.0, 1.0]], [[0.0, 1.0, 0.0, 1.0]]])
  summed = advantages.group_advantages(jnp.sum(rewards, axis=0))
  decoupled = advantages.reward_decoupled(rewards)
  assert summed[0, 0] == summed[0, 1]
  assert abs(decoupled[0, 0] - decoupled[0, 1]) > 0.1


def _pass_at_k(correct, k):
  """By enumeration: mean and std over all sets of k, as in full sampling."""
  from itertools import combinations

  n = len(correct)
  sets = list(combinations(range(n), k))
  rewards = {s: float(any(correct[i] for i in s)) for s in sets}
  mean = np.mean(list(rewards.values()))
  std = math.sqrt(mean * (1 - mean))
  return [
    np.mean([(rewards[s] - mean) / (std + 1e-6) for s in sets if i in s])
    for i in range(n)
  ]


@pytest.mark.parametrize("k", [1, 2, 4, 6])
@pytest.mark.parametrize("wins", range(7))
def test_pass_at_k_is_the_mean_over_all_sets_of_k(k, wins):
  correct = np.arange(6) < wins
  result = advantages.pass_at_k(jnp.asarray(correct)[None], k=k)
  np.testing.assert_allclose(
    result[0], _pass_at_k(correct, k), rtol=1e-4, atol=1e-6
  )


def test_pass_at_1_is_grpo():
  correct = jnp.asarray(np.random.default_rng(0).random((6, 8)) < 0.4)
  np.testing.assert_allclose(
    advantages.pass_at_k(correct, k=1),
    advantages.group_advantages(correct.astype(jnp.float32), ddof=0),
    rtol=1e-4,
    atol=1e-6,
  )


def test_pass_at_k_skips_unscored_completions():
  correct = jnp.array([[True, False, False, True, True]])
  valid = jnp.array([[True, True, True, True, False]])
  result = advantages.pass_at_k(correct, valid, k=2)
  np.testing.assert_allclose(
    result[0, :4], advantages.pass_at_k(correct[:, :4], k=2)[0], rtol=1e-6
  )
  assert result[0, 4] == 0
  np.testing.assert_array_equal(advantages.pass_at_k(correct, valid, k=5), 0.0)
  with pytest.raises(ValueError, match="k=6"):
    advantages.pass_at_k(correct, k=6)


@pytest.mark.parametrize("seed", range(3))
def test_best_of_group_is_the_loss_of_leaving_one_out(seed):
  rewards, valid = _rewards(seed)
  expected = np.zeros_like(rewards)
  for p in range(len(rewards)):
    members = [g for g in range(rewards.shape[1]) if valid[p, g]]
    for g in members:
      others = [rewards[p, j] for j in members if j != g]
      if others:
        best = max(rewards[p, j] for j in members)
        expected[p, g] = best - max(others)
  result = advantages.best_of_group(*_jax(rewards, valid))
  np.testing.assert_allclose(result, expected, atol=1e-6)


def test_spread_gives_tokens_their_completions_advantage():
  mask = jnp.array([[[True, False], [False, True]]])
  result = advantages.spread(jnp.array([[2.0, 3.0]]), mask)
  np.testing.assert_array_equal(result, [[[2.0, 0.0], [0.0, 3.0]]])


def _gae_loop(rewards, values, mask, discount, lambda_, final_value):
  chosen = [t for t in range(len(mask)) if mask[t]]
  result = np.zeros(len(mask))
  following, ahead = 0.0, final_value
  for t in reversed(chosen):
    delta = rewards[t] + discount * ahead - values[t]
    following = result[t] = delta + discount * lambda_ * following
    ahead = values[t]
  return result


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_gae_matches_a_loop_over_chosen_tokens(seed, parallel):
  rng = np.random.default_rng(seed)
  rewards, values = rng.normal(size=(2, 4, 13))
  mask = rng.random((4, 13)) < 0.6
  mask[3] = False
  final_values = rng.normal(size=4)
  settings = {"discount": 0.9, "lambda_": 0.8}
  expected = [
    _gae_loop(*row, **settings, final_value=final)
    for *row, final in zip(rewards, values, mask, final_values, strict=True)
  ]

  def estimate(rewards, values, mask, final_value):
    return returns_lib.gae(
      rewards,
      values,
      mask,
      final_value=final_value,
      parallel=parallel,
      **settings,
    )

  result = jax.jit(jax.vmap(estimate))(
    jnp.asarray(np.where(mask, rewards, np.nan), jnp.float32),
    jnp.asarray(np.where(mask, values, np.nan), jnp.float32),
    jnp.asarray(mask),
    jnp.asarray(final_values, jnp.float32),
  )
  np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parallel", [False, True])
def test_gae_of_lambda_one_is_the_return_less_the_value(parallel):
  rng = np.random.default_rng(0)
  rewards, values = jnp.asarray(rng.normal(size=(2, 9)), jnp.float32)
  mask = jnp.asarray(rng.random(9) < 0.7)
  returns = returns_lib.discounted_returns(
    rewards, mask, discount=0.9, final_value=2.0, parallel=parallel
  )
  result = returns_lib.gae(
    rewards, values, mask, discount=0.9, lambda_=1.0, final_value=2.0
  )
  np.testing.assert_allclose(
    result, jnp.where(mask, returns - values, 0.0), rtol=1e-5, atol=1e-5
  )


def test_returns_skip_tokens_that_the_policy_did_not_choose():
  rewards = jnp.array([1.0, 100.0, 2.0, 4.0])
  mask = jnp.array([True, False, True, True])
  result = returns_lib.discounted_returns(rewards, mask, discount=0.5)
  np.testing.assert_array_equal(result, [3.0, 0.0, 4.0, 4.0])


def test_group_functions_are_the_same_on_eight_devices():
  rewards, valid = (jnp.asarray(x) for x in _jax(*_rewards(0, (8, 4))))
  functions = [
    advantages.group_advantages,
    advantages.leave_one_out,
    advantages.best_of_group,
    advantages.reinforce_plus_plus,
    lambda r, v: advantages.pass_at_k(r > 0, v, k=2),
  ]
  expected = [function(rewards, valid) for function in functions]
  with jax.set_mesh(jax.make_mesh((2, 4), ("data", "fsdp"))):
    put = jax.device_put((rewards, valid), jax.P("data", "fsdp"))
    for function, value in zip(functions, expected, strict=True):
      np.testing.assert_allclose(
        jax.jit(function)(*put), value, rtol=1e-5, atol=1e-6
      )
