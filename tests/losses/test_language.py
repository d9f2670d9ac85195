import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import language, vocabulary, weighting


def _batch(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(3, 7, 8)), dtype)
  head = jnp.asarray(rng.normal(size=(8, 19)), dtype)
  tokens = jnp.asarray(rng.integers(0, 19, (3, 7)))
  mask = jnp.asarray(rng.random((3, 7)) < 0.7).at[0].set(False)
  return hidden, head, tokens, weighting.token_mean(mask)


def _loss(hidden, head, tokens, weights, **options):
  stats = vocabulary.token_stats(hidden, head, tokens, chunk_size=5)
  return language.cross_entropy(
    stats.logprobs,
    weights,
    log_normalizer=stats.log_normalizer,
    mean_logprobs=vocabulary.mean_logprobs(hidden, head, stats.log_normalizer),
    **options,
  )


def _naive(hidden, head, tokens, weights, z_coef, label_smoothing):
  """From the distribution that smoothing makes, over the whole vocabulary."""
  logits = jnp.einsum("btd,dv->btv", hidden, head)
  goal = (1 - label_smoothing) * jax.nn.one_hot(tokens, 19) + (
    label_smoothing / 19
  )
  nll = -jnp.sum(goal * jax.nn.log_softmax(logits), axis=-1)
  z = jax.nn.logsumexp(logits, axis=-1) ** 2
  return jnp.sum(weights * (nll + z_coef * z))


@pytest.mark.parametrize("z_coef", [0.0, 1e-2])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_value_and_gradient_match_the_whole_vocabulary(z_coef, label_smoothing):
  hidden, head, tokens, weights = _batch()
  options = {"z_coef": z_coef, "label_smoothing": label_smoothing}

  @jax.jit
  def both(hidden, head):
    args = (hidden, head, tokens, weights)
    return (
      jax.value_and_grad(_naive, (0, 1))(*args, **options),
      jax.value_and_grad(_loss, (0, 1), has_aux=True)(*args, **options),
    )

  (expected, gradients), ((loss, metrics), result) = both(hidden, head)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  for a, b in zip(result, gradients, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  plain = _naive(hidden, head, tokens, weights, 0.0, 0.0)
  np.testing.assert_allclose(metrics["nll"], plain, rtol=1e-5)
  np.testing.assert_allclose(metrics["weight"], 1.0, rtol=1e-6)


def test_padding_is_never_read():
  hidden, head, tokens, weights = _batch()
  padded = jnp.where(weights[..., None] > 0, hidden, jnp.nan)
  options = {"z_coef": 1e-2, "label_smoothing": 0.1}
  call = functools.partial(_loss, **options)
  call = jax.jit(jax.grad(call, (0, 1), has_aux=True))
  expected, _ = call(hidden, head, tokens, weights)
  gradients, _ = call(padded, head, tokens, weights)
  for a, b in zip(gradients, expected, strict=True):
    np.testing.assert_array_equal(a, b)


def test_microbatches_add_up():
  hidden, head, tokens, weights = _batch()
  call = jax.jit(_loss)
  loss, _ = call(hidden, head, tokens, weights)
  parts = [
    call(hidden[b : b + 1], head, tokens[b : b + 1], weights[b : b + 1])[0]
    for b in range(3)
  ]
  np.testing.assert_allclose(sum(parts), loss, rtol=1e-6)


def test_a_coefficient_without_its_array_is_refused():
  x = jnp.zeros((1, 2))
  with pytest.raises(ValueError, match="log_normalizer"):
    language.cross_entropy(x, x, z_coef=1e-4)
  with pytest.raises(ValueError, match="mean_logprobs"):
    language.cross_entropy(x, x, label_smoothing=0.1)
  with pytest.raises(ValueError, match="label_smoothing"):
    language.cross_entropy(x, x, label_smoothing=1.0, mean_logprobs=x)
