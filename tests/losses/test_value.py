import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import value


def _batch(seed, shape=(4, 6)):
  rng = np.random.default_rng(seed)
  values, noise, returns = rng.normal(size=(3, *shape))
  weights = rng.random(shape) * (rng.random(shape) < 0.7)
  weights[0] = 0.0
  return values, values + noise, returns, weights


def _cast(batch, dtype=jnp.float32):
  *arrays, weights = batch
  arrays = [np.where(weights > 0, x, np.nan) for x in arrays]
  return [jnp.asarray(x, dtype) for x in arrays] + [
    jnp.asarray(weights, jnp.float32)
  ]


@pytest.mark.parametrize("clip", [None, 0.2, 5.0])
@pytest.mark.parametrize("seed", range(2))
def test_value_and_gradient_match_a_loop(seed, clip):
  batch = values, old, returns, weights = _batch(seed)
  loss, gradient, clips = 0.0, np.zeros(values.shape), 0.0
  for i in zip(*np.nonzero(weights), strict=True):
    error, slope = (values[i] - returns[i]) ** 2, values[i] - returns[i]
    if clip is not None and abs(values[i] - old[i]) > clip:
      near = old[i] + min(max(values[i] - old[i], -clip), clip)
      if (near - returns[i]) ** 2 > error:
        error, slope = (near - returns[i]) ** 2, 0.0
        clips += weights[i]
    loss += weights[i] * error / 2
    gradient[i] = weights[i] * slope
  arrays = _cast(batch)
  (result, metrics), grad = jax.value_and_grad(
    lambda v: value.value_loss(v, *arrays[1:], clip=clip), has_aux=True
  )(arrays[0])
  np.testing.assert_allclose(result, loss, rtol=1e-5)
  np.testing.assert_allclose(grad, gradient, rtol=1e-4, atol=1e-6)
  if clip is not None:
    np.testing.assert_allclose(metrics["value/clip_ratio"], clips, rtol=1e-5)
  low = _cast(batch, jnp.bfloat16)
  assert value.value_loss(*low, clip=clip)[0].dtype == jnp.float32


def test_explained_variance_matches_numpy():
  values, _, returns, weights = _batch(0)
  mask = weights > 0
  expected = 1 - np.var((returns - values)[mask]) / np.var(returns[mask])
  arrays = _cast((values, values, returns, weights))
  result = value.explained_variance(arrays[0], arrays[2], jnp.asarray(mask))
  np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_explained_variance_of_perfect_and_of_constant_values():
  returns, mask = jnp.arange(4.0), jnp.ones(4, bool)
  assert value.explained_variance(returns, returns, mask) == 1
  assert value.explained_variance(jnp.ones(4), returns, mask) == 0
  assert value.explained_variance(returns, jnp.ones(4), mask) == 0


def test_a_clip_of_nothing_is_refused():
  x = jnp.zeros((1, 2))
  with pytest.raises(ValueError, match="clip="):
    value.value_loss(x, x, x, x, clip=0.0)
