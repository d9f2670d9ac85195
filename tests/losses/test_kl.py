import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import kl

_LOOPS = {
  "k1": lambda d: d,
  "k2": lambda d: d * d / 2,
  "k3": lambda d: np.exp(-d) - 1 + d,
  "k3_k2": lambda d: np.exp(-d) - 1 + d,
}
# d/d log pi of each.
_SLOPES = {
  "k1": lambda d: 1.0,
  "k2": lambda d: d,
  "k3": lambda d: 1 - np.exp(-d),
  "k3_k2": lambda d: d,
}


def _batch(seed=0):
  rng = np.random.default_rng(seed)
  logprobs, ref, old = -rng.exponential(size=(3, 4, 6))
  mask = rng.random((4, 6)) < 0.7
  return logprobs, ref, old, mask


def _jax(x, mask):
  return jnp.asarray(np.where(mask, x, np.nan), jnp.float32)


@pytest.mark.parametrize("estimator", kl.ESTIMATORS)
def test_value_and_gradient_match_the_formula(estimator):
  logprobs, ref, _, mask = _batch()
  value = np.where(mask, _LOOPS[estimator](logprobs - ref), 0.0)
  slope = np.where(mask, _SLOPES[estimator](logprobs - ref), 0.0)

  def total(x):
    return jnp.sum(
      kl.estimate(x, _jax(ref, mask), jnp.asarray(mask), estimator=estimator)
    )

  result = kl.estimate(
    _jax(logprobs, mask),
    _jax(ref, mask),
    jnp.asarray(mask),
    estimator=estimator,
  )
  np.testing.assert_allclose(result, value, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    jax.grad(total)(_jax(logprobs, mask)), slope, rtol=1e-4, atol=1e-5
  )


def _exact(logits, ref_logits, old_logits, estimator, off_policy):
  """Expectations over all tokens of the value and of its gradient."""
  drawn = jax.nn.log_softmax(old_logits if off_policy else logits)
  probabilities = jax.lax.stop_gradient(jnp.exp(drawn))

  def expectation(logits):
    estimates = kl.estimate(
      jax.nn.log_softmax(logits),
      jax.nn.log_softmax(ref_logits),
      jnp.ones_like(logits, bool),
      estimator=estimator,
      old_logprobs=drawn if off_policy else None,
    )
    return jnp.sum(probabilities * estimates)

  return jax.value_and_grad(expectation)(logits)


def _divergences(logits, ref_logits):
  def reverse(logits):
    p, q = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
    return jnp.sum(jnp.exp(p) * (p - q))

  def forward(logits):
    p, q = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
    return jnp.sum(jnp.exp(q) * (q - p))

  return jax.value_and_grad(reverse)(logits), jax.grad(forward)(logits)


@pytest.fixture(scope="module")
def categorical():
  return jnp.asarray(np.random.default_rng(0).normal(size=(3, 9)), jnp.float32)


def test_on_policy_values_and_gradients_are_those_the_module_names(categorical):
  (value, reverse), forward = _divergences(*categorical[:2])
  expected = {
    "k1": jnp.zeros(9),
    "k2": reverse,
    "k3": forward,
    "k3_k2": reverse,
  }
  for estimator, gradient in expected.items():
    mean, mean_grad = _exact(*categorical, estimator, off_policy=False)
    np.testing.assert_allclose(mean_grad, gradient, atol=1e-6)
    if estimator != "k2":
      np.testing.assert_allclose(mean, value, rtol=1e-5)


@pytest.mark.parametrize("estimator", kl.ESTIMATORS)
def test_off_policy_the_weighed_gradient_is_that_of_the_reverse_kl(
  categorical, estimator
):
  (value, reverse), _ = _divergences(*categorical[:2])
  mean, gradient = _exact(*categorical, estimator, off_policy=True)
  np.testing.assert_allclose(gradient, reverse, atol=2e-6)
  if estimator != "k2":
    np.testing.assert_allclose(mean, value, rtol=1e-5)


def test_kl_in_the_reward_has_the_gradient_of_the_reverse_kl(categorical):
  logits, ref_logits, _ = categorical
  (_, reverse), _ = _divergences(logits, ref_logits)
  logprobs = jax.nn.log_softmax(logits)
  rewards = kl.reward_penalty(
    logprobs, jax.nn.log_softmax(ref_logits), jnp.ones(9, bool), kl_coef=0.5
  )

  def expected_return(logits):
    return jnp.sum(jax.nn.softmax(logits) * jax.lax.stop_gradient(rewards))

  np.testing.assert_allclose(
    jax.grad(expected_return)(logits), -0.5 * reverse, atol=1e-6
  )


def test_the_kl_to_itself_is_zero():
  logprobs, _, _, mask = _batch()
  x = _jax(logprobs, mask)
  for estimator in kl.ESTIMATORS:
    result = kl.estimate(x, x, jnp.asarray(mask), estimator=estimator)
    np.testing.assert_array_equal(result, 0.0)


def test_extreme_differences_stay_finite():
  d = jnp.array([-500.0, -25.0, 25.0, 500.0])
  for estimator in kl.ESTIMATORS:

    def total(d, estimator=estimator):
      mask = jnp.ones(4, bool)
      return jnp.sum(
        kl.estimate(d, jnp.zeros(4), mask, estimator=estimator, old_logprobs=-d)
      )

    value, gradient = jax.value_and_grad(total)(d)
    assert jnp.isfinite(value) and jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize(
  ("measured", "expected"),
  [(6.0, 0.2 * 1.0), (6.6, 0.2 * 1.01), (60.0, 0.2 * 1.02), (0.0, 0.2 * 0.98)],
)
def test_the_coefficient_follows_the_target(measured, expected):
  result = kl.adapt_coef(0.2, measured, target=6.0)
  np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_unknown_names_and_targets_are_refused():
  x = jnp.zeros(3)
  with pytest.raises(ValueError, match="estimator="):
    kl.estimate(x, x, jnp.ones(3, bool), estimator="k4")
  with pytest.raises(ValueError, match="target="):
    kl.adapt_coef(0.1, 1.0, target=0.0)


def test_the_entropy_coefficient_acts_below_its_target_alone():
  state, used = 0.0, []
  for entropy in (0.1, 0.1, 0.2, 0.5, 0.5, 0.5, 0.5, 0.1):
    coef, state = kl.adapt_entropy_coef(state, entropy, target=0.2, delta=0.25)
    used.append(coef)
  assert used == [0.0, 0.25, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0]
  assert state == 0.25
  assert kl.adapt_entropy_coef(1.0, 0.1, target=0.2)[1] == 1.0
  with pytest.raises(ValueError, match="target="):
    kl.adapt_entropy_coef(0.1, 1.0, target=0.0)
