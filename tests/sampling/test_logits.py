"""Filters of the distribution that is drawn from, against slow loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.sampling import logits as logits_lib

LOGITS = 2 * np.random.default_rng(0).standard_normal((3, 4, 17), np.float32)


def slow(logits, temperature=1.0, k=0, p=1.0, least=0.0):
  """Log-probs of one row in float64: temperature, top-k, top-p, min-p."""
  x = logits.astype(np.float64) / temperature
  kept = sorted(range(len(x)), key=lambda i: -x[i])
  if k:
    kept = kept[:k]
  probs = np.exp(x) / sum(np.exp(x[i]) for i in kept)
  nucleus = []
  for i in kept:
    if sum(probs[j] for j in nucleus) < p:
      nucleus.append(i)
  top = max(probs[i] for i in nucleus)
  kept = [i for i in nucleus if probs[i] >= least * top]
  result = np.full(len(x), -np.inf)
  for i in kept:
    result[i] = x[i] - np.log(sum(np.exp(x[j]) for j in kept))
  return result


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])
@pytest.mark.parametrize(
  "k, p, least",
  [
    (0, 1.0, 0.0),
    (3, 1.0, 0.0),
    (100, 1.0, 0.0),
    (0, 0.7, 0.0),
    (0, 1e-6, 0.0),
    (0, 1.0, 0.2),
    (6, 0.8, 0.1),
  ],
)
def test_matches_a_slow_loop(temperature, k, p, least):
  got = logits_lib.process(
    jnp.asarray(LOGITS),
    temperature=temperature,
    top_k_=k,
    top_p_=p,
    min_p_=least,
  )
  want = np.apply_along_axis(slow, -1, LOGITS, temperature, k, p, least)
  np.testing.assert_array_equal(np.isneginf(got), np.isneginf(want))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(np.exp(got).sum(axis=-1), 1.0, rtol=1e-5)


def test_temperature_zero_takes_the_largest_logit():
  got = logits_lib.process(jnp.asarray(LOGITS), temperature=0.0)
  np.testing.assert_array_equal(np.argmax(got, -1), np.argmax(LOGITS, -1))
  np.testing.assert_array_equal(np.exp(got).sum(axis=-1), 1.0)
  np.testing.assert_array_equal(np.max(got, axis=-1), 0.0)


def test_of_equal_largest_logits_temperature_zero_takes_one():
  got = logits_lib.process(jnp.array([[1.0, 3.0, 3.0]]), temperature=0.0)
  assert np.exp(got).sum() == 1.0


@pytest.mark.parametrize("change", [-1e4, 1e4])
def test_a_constant_added_to_the_logits_changes_nothing(change):
  logits = jnp.round(LOGITS * 4) / 4  # Exact beside the constant.
  filters = dict(top_k_=6, top_p_=0.8, min_p_=0.1)
  np.testing.assert_allclose(
    logits_lib.process(logits + change, **filters),
    logits_lib.process(logits, **filters),
    atol=1e-3,
  )


def test_filters_of_bfloat16_logits_are_float32():
  got = logits_lib.process(jnp.asarray(LOGITS, jnp.bfloat16), top_p_=0.9)
  assert got.dtype == jnp.float32


def test_what_is_equal_to_the_last_one_kept_is_kept():
  logits = jnp.log(jnp.array([0.4, 0.2, 0.2, 0.2]))
  assert np.isfinite(logits_lib.top_k(logits, 2)).sum() == 4
  assert np.isfinite(logits_lib.top_p(logits, 0.5)).sum() == 4
  assert np.isfinite(logits_lib.top_p(logits, 0.4 - 1e-3)).sum() == 1


@pytest.mark.parametrize(
  "filters",
  [dict(top_p_=0.0), dict(min_p_=1.0), dict(top_p_=1e-9), dict(top_k_=1)],
)
def test_the_most_probable_token_is_always_kept(filters):
  got = logits_lib.process(jnp.asarray(LOGITS), **filters)
  np.testing.assert_array_equal(np.isfinite(got).sum(axis=-1), 1)
  np.testing.assert_array_equal(np.argmax(got, -1), np.argmax(LOGITS, -1))


@pytest.mark.parametrize(
  "probs, p, kept",
  [
    # The test of transformers' TopPLogitsWarper.
    ([0.3, 0.1, 0.1, 0.5], 0.8, [True, False, False, True]),
    ([0.15, 0.3, 0.3, 0.25], 0.6, [False, True, True, False]),
    ([0.7, 0.2, 0.1], 0.9, [True, True, False]),
    ([0.4, 0.35, 0.25], 0.75, [True, True, False]),
    ([0.4, 0.35, 0.25], 0.76, [True, True, True]),
  ],
)
def test_a_sum_that_reaches_p_but_for_rounding_reaches_it(probs, p, kept):
  got = logits_lib.process(jnp.log(jnp.array(probs)), top_p_=p)
  np.testing.assert_array_equal(np.isfinite(got), kept)


def test_filters_run_jitted_on_rows_of_any_rank():
  for shape in ((17,), (2, 17), (1, 2, 3, 17)):
    row = jnp.broadcast_to(LOGITS[0, 0], shape)
    got = jax.jit(lambda x: logits_lib.process(x, top_k_=3, top_p_=0.9))(row)
    want = slow(LOGITS[0, 0], k=3, p=0.9)
    np.testing.assert_allclose(
      got, np.broadcast_to(want, shape), rtol=1e-5, atol=1e-5
    )
