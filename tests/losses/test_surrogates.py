import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import correction, policy


def _batch(seed, shape=(6, 40)):
  """Arrays in float32, padding full of NaN, and weights that sum to 1."""
  rng = np.random.default_rng(seed)
  mask = rng.random(shape) < 0.8
  logprobs = -rng.exponential(size=shape) * 2
  old = np.minimum(logprobs + rng.normal(scale=0.3, size=shape), -1e-3)
  advantages = np.broadcast_to(rng.normal(size=(shape[0], 1)), shape)
  arrays = [
    np.where(mask, x, np.nan).astype(np.float32)
    for x in (logprobs, old, advantages)
  ]
  return *arrays, (mask / mask.sum()).astype(np.float32)


def _loss(name, batch, **options):
  logprobs, old, advantages, weights = (jnp.asarray(x) for x in batch)

  def loss(logprobs):
    return policy.LOSSES[name](
      logprobs, old, None, advantages, weights, **options
    )

  (value, metrics), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    logprobs
  )
  return value, metrics, grad


def _chosen(batch, fraction, fits):
  """Indices of the tokens of largest covariance, by a sort."""
  logprobs, _, advantages, weights = batch
  inside = list(zip(*np.nonzero(weights), strict=True))
  mean_a = np.mean([advantages[i] for i in inside], dtype=float)
  mean_l = np.mean([logprobs[i] for i in inside], dtype=float)
  cov = {i: (advantages[i] - mean_a) * (logprobs[i] - mean_l) for i in inside}
  fit = sorted((i for i in inside if fits(i, cov[i])), key=cov.get)
  count = int(np.ceil(fraction * len(inside)))
  return fit[-count:]


@pytest.mark.parametrize(
  ("fraction", "bounds"), [(0.05, (0.3, 2.0)), (1.0, (0.0, 9.0))]
)
def test_clip_cov_is_grpo_without_the_tokens_of_largest_covariance(
  fraction, bounds
):
  batch = _batch(0)
  logprobs, old, advantages, weights = batch
  ratio = np.exp(logprobs - old)

  def fits(i, cov):
    clipped = ratio[i] > 1.2 if advantages[i] > 0 else ratio[i] < 0.8
    return bounds[0] < cov < bounds[1] and not clipped

  chosen = _chosen(batch, fraction, fits)
  assert len(chosen) > 5
  settings = {"fraction": fraction, "cov_low": bounds[0], "cov_high": bounds[1]}
  loss, metrics, grad = _loss("clip_cov", batch, **settings)
  _, _, of_grpo = _loss("grpo", batch)
  expected = np.array(of_grpo)
  dropped = 0.0
  for i in chosen:
    expected[i] = 0.0
    dropped += min(ratio[i], 1.2) * advantages[i] * weights[i] * (
      advantages[i] > 0
    ) + max(ratio[i], 0.8) * advantages[i] * weights[i] * (advantages[i] < 0)
  np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-8)
  np.testing.assert_allclose(
    loss, _loss("grpo", batch)[0] + dropped, rtol=1e-4, atol=1e-6
  )
  np.testing.assert_allclose(
    metrics["clip_ratio/cov_mean"], len(chosen) / (weights > 0).sum(), rtol=1e-5
  )


def test_kl_cov_pulls_at_the_tokens_of_largest_covariance():
  batch = _batch(1)
  logprobs, old, advantages, weights = batch
  chosen = _chosen(batch, 0.1, lambda *_: True)
  inside = weights > 0
  ratio = np.exp(np.where(inside, logprobs - old, 0.0))
  value = -np.sum(np.where(inside, weights * ratio * advantages, 0.0))
  gradient = -np.where(inside, weights * ratio * advantages, 0.0)
  for i in chosen:
    value += weights[i] * 0.5 * abs(logprobs[i] - old[i])
    gradient[i] += weights[i] * 0.5 * np.sign(logprobs[i] - old[i])
  loss, metrics, grad = _loss("kl_cov", batch, fraction=0.1, cov_kl_coef=0.5)
  np.testing.assert_allclose(loss, value, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(grad, gradient, rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(
    metrics["clip_ratio/cov_mean"], len(chosen) / inside.sum(), rtol=1e-5
  )


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
def test_a_choice_among_all_tokens_is_the_same_on_eight_devices(name):
  batch = [jnp.asarray(x) for x in _batch(2, (8, 16))]
  options = {"fraction": 0.1}
  expected = jax.device_get(_loss(name, batch, **options))
  with jax.set_mesh(jax.make_mesh((2, 4), ("data", "fsdp"))):
    batch = jax.device_put(batch, jax.P(("data", "fsdp")))
    result = jax.device_get(_loss(name, batch, **options))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    result,
    expected,
  )


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
def test_a_choice_among_all_tokens_refuses_pieces(name):
  policy.check(name, "token_mean")
  with pytest.raises(ValueError, match="num_microbatches"):
    policy.check(name, "token_mean", num_microbatches=2)


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
def test_an_empty_batch_chooses_nothing(name):
  batch = [jnp.full((2, 3), jnp.nan)] * 3 + [jnp.zeros((2, 3))]
  loss, metrics, grad = _loss(name, batch)
  assert loss == 0 and metrics["clip_ratio/cov_mean"] == 0
  np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize("name", ["dppo_tv", "dppo_kl", "vespo"])
def test_a_known_sampler_takes_the_place_of_the_old_policy(name):
  logprobs, sampler, advantages, weights = _batch(3, (3, 8))
  moved = (logprobs, logprobs - 0.1, advantages, weights)
  loss, _, grad = _loss(name, moved, sampler_logprobs=jnp.asarray(sampler))
  of_old, _, of_old_grad = _loss(name, (logprobs, sampler, advantages, weights))
  np.testing.assert_array_equal(loss, of_old)
  np.testing.assert_array_equal(grad, of_old_grad)
  assert (
    _loss("grpo", moved)[0]
    == _loss("grpo", moved, sampler_logprobs=jnp.asarray(sampler))[0]
  )


def test_dppo_drops_a_likely_token_before_a_rare_one():
  # Both ratios are 1.25; the bound of the ratio would clip both or none.
  old = jnp.log(jnp.array([[0.01, 0.72]]))
  batch = (old + np.log(1.25), old, jnp.ones((1, 2)), jnp.full((1, 2), 0.5))
  for name in ("dppo_tv", "dppo_kl"):
    _, metrics, grad = _loss(name, batch)
    assert grad[0, 0] != 0 and grad[0, 1] == 0
    assert metrics["clip_ratio/high_mean"] == 0.5
    # Where the advantage pulls it back, nothing is dropped.
    back = (*batch[:2], -batch[2], batch[3])
    assert jnp.all(_loss(name, back)[2] != 0)


def test_dppo_of_a_certain_token_stays_finite():
  zero = jnp.zeros((1, 2))
  for old in (zero, zero - 50.0, zero - 1e-9):
    for name in ("dppo_tv", "dppo_kl"):
      loss, _, grad = _loss(name, (zero, old, zero + 1.0, zero + 0.5))
      assert jnp.isfinite(loss) and jnp.all(jnp.isfinite(grad))


def test_luspo_with_row_means_is_gspo_with_a_constant_length():
  logprobs, old, advantages, weights = _batch(4, (4, 6))
  inside = weights > 0
  by_row = inside / np.maximum(inside.sum(-1, keepdims=True), 1) / 4
  np.testing.assert_allclose(
    _loss("luspo", (logprobs, old, advantages, by_row.astype("f")))[0],
    _loss("gspo", (logprobs, old, advantages, (inside / 4).astype("f")))[0],
    rtol=1e-5,
  )


def test_dro_rests_where_the_log_ratio_is_the_advantage_over_beta():
  old = -jnp.ones((1, 3))
  advantages = jnp.array([[0.1, -0.2, 0.3]])
  batch = (old + advantages / 0.5, old, advantages, jnp.full((1, 3), 1 / 3))
  grad = _loss("dro", batch, beta=0.5)[2]
  np.testing.assert_allclose(grad, 0.0, atol=1e-7)


def test_stale_rows_lose_their_negative_tokens():
  logprobs, old, advantages, weights = _batch(5, (8, 10))
  sampler = old + np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
  inside = jnp.asarray(weights > 0)
  kept = correction.drop_stale_negatives(
    *(jnp.asarray(x) for x in (logprobs, sampler, advantages)),
    inside,
    threshold=0.2,
  )
  given = _batch(5, (8, 10))
  loss, metrics, grad = _loss(
    "grpo", given, sampler_logprobs=jnp.asarray(sampler), stale_threshold=0.2
  )
  expected, _, expected_grad = _loss("grpo", given, correction=kept)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  np.testing.assert_allclose(grad, expected_grad, rtol=1e-6)
  share = np.sum(weights * np.asarray(inside & (kept == 0)))
  assert 0 < share < 1
  np.testing.assert_allclose(metrics["stale"], share, rtol=1e-6)


def test_drift_is_a_square_around_the_sampler():
  logprobs, old, advantages, weights = _batch(7, (3, 8))
  sampler = np.where(weights > 0, old - 0.5, np.nan)
  batch = (logprobs, old, 0.0 * advantages, weights)
  loss, metrics, grad = _loss(
    "grpo", batch, sampler_logprobs=jnp.asarray(sampler), drift_coef=0.25
  )
  apart = np.where(weights > 0, logprobs - sampler, 0.0)
  np.testing.assert_allclose(loss, 0.25 * np.sum(weights * apart**2), rtol=1e-5)
  np.testing.assert_allclose(grad, 0.5 * weights * apart, rtol=1e-5)
  np.testing.assert_allclose(metrics["drift"], 4 * loss, rtol=1e-6)
  assert "drift" not in _loss("grpo", batch)[1]


@pytest.mark.parametrize("name", policy.OBJECTIVES)
def test_the_signature_of_a_loss_lists_its_options(name):
  parameters = inspect.signature(policy.LOSSES[name]).parameters.values()
  options = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
  own = inspect.signature(policy.OBJECTIVES[name]).parameters
  shared = {
    "kl_coef", "kl_estimator", "kl_off_policy", "entropy_coef",
    "drift_coef", "stale_threshold",
  }  # fmt: skip
  assert options == (set(own) - {"tokens"}) | shared
  assert all(
    p.default is not p.empty for p in parameters if p.kind is p.KEYWORD_ONLY
  )
  data = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
  assert data == [
    "logprobs", "old_logprobs", "ref_logprobs", "advantages", "weights",
    "entropy", "correction", "sampler_logprobs",
  ]  # fmt: skip
  x = jnp.zeros((1, 2))
  with pytest.raises(TypeError, match="clip_lo"):
    policy.LOSSES[name](x, x, None, x, x, clip_lo=0.1)


def test_the_losses_by_name_are_those_of_the_table():
  for name in ("grpo", "gspo", "gspo_token", "gmpo", "cispo", "sapo"):
    assert getattr(policy, f"{name}_loss") is policy.LOSSES[name]
  assert policy.reinforce_loss is policy.LOSSES["reinforce"]
  assert policy.grpo_loss.__name__ == "grpo_loss"
  assert "DeepSeek" in policy.grpo_loss.__doc__


def test_a_function_of_tokens_is_an_objective():
  logprobs, old, advantages, weights = (
    jnp.asarray(x) for x in _batch(6, (3, 4))
  )

  def doubled(tokens, *, factor=2.0):
    return factor * tokens.advantages * tokens.logprobs, {}

  loss, _ = policy.policy_loss(
    doubled, logprobs, old, None, advantages, weights, factor=4.0
  )
  plain, _ = policy.reinforce_loss(logprobs, old, None, advantages, weights)
  np.testing.assert_allclose(loss, 4.0 * plain, rtol=1e-6)
