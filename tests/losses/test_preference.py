import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import preference

B = 7


def _batch(num, seed=0):
  """`num` arrays of B numbers below 0, and weights of which two are 0."""
  rng = np.random.default_rng(seed)
  arrays = -rng.exponential(size=(num, B)) * 2
  weights = rng.random(B)
  weights[:2] = 0.0
  return arrays, weights


def _log_sigmoid(x):
  return -math.log1p(math.exp(-x))


def _bradley_terry(chosen, rejected, margin=0.0, center=0.0):
  return (
    -_log_sigmoid(chosen - rejected - margin)
    + center * (chosen + rejected) ** 2
  )


def _dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.1, smoothing=0.0):
  h = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
  return -(1 - smoothing) * _log_sigmoid(h) - smoothing * _log_sigmoid(-h)


def _ipo(chosen, rejected, ref_chosen, ref_rejected, beta=0.1):
  h = (chosen - ref_chosen) - (rejected - ref_rejected)
  return (h - 1 / (2 * beta)) ** 2


def _orpo(chosen, rejected, chosen_length, rejected_length, coef=0.1):
  chosen, rejected = chosen / chosen_length, rejected / rejected_length

  def odds(logprob):
    return math.exp(logprob) / (1 - math.exp(logprob))

  ratio = math.log(odds(chosen) / odds(rejected))
  return -chosen - coef * _log_sigmoid(ratio)


def _process(logit, label):
  p = 1 / (1 + math.exp(-logit))
  return -label * math.log(p) - (1 - label) * math.log(1 - p)


def _check(loss, per_row, arrays, weights, num_grads, h=1e-6, numbered=False):
  """Value, gradient in the first arrays, padding, bfloat16 and sharding."""
  arrays = [np.asarray(x, np.float32).astype(np.float64) for x in arrays]
  value, gradients = 0.0, np.zeros((num_grads, B))
  of_row = per_row
  for b in np.nonzero(weights)[0]:
    row = [x[b] for x in arrays]
    per_row = functools.partial(of_row, b) if numbered else of_row
    value += weights[b] * per_row(*row)
    for i in range(num_grads):
      up, down = list(row), list(row)
      up[i], down[i] = row[i] + h, row[i] - h
      slope = (per_row(*up) - per_row(*down)) / (2 * h)
      gradients[i, b] = weights[b] * slope
  padded = [
    jnp.asarray(np.where(weights > 0, x, np.nan), jnp.float32) for x in arrays
  ]
  weights = jnp.asarray(weights, jnp.float32)
  call = jax.jit(
    jax.value_and_grad(loss, tuple(range(num_grads)), has_aux=True)
  )
  (result, metrics), grads = call(*padded, weights)
  np.testing.assert_allclose(result, value, rtol=1e-5)
  np.testing.assert_allclose(jnp.stack(grads), gradients, rtol=1e-3, atol=1e-5)
  assert all(np.isfinite(x) for x in metrics.values())
  (low, _), _ = call(*(x.astype(jnp.bfloat16) for x in padded), weights)
  assert low.dtype == jnp.float32
  np.testing.assert_allclose(low, value, rtol=3e-2)
  return metrics


@pytest.mark.parametrize("center", [0.0, 0.01])
def test_bradley_terry_matches_the_paper(center):
  arrays, weights = _batch(3)

  def loss(chosen, rejected, margins, weights):
    return preference.bradley_terry_loss(
      chosen, rejected, weights, margins=margins, center_coef=center
    )

  _check(
    loss,
    lambda c, r, m: _bradley_terry(c, r, m, center),
    arrays,
    weights,
    num_grads=2,
  )


def test_bradley_terry_without_a_margin_counts_what_it_says():
  chosen, rejected = jnp.array([1.0, 0.0, 9.0]), jnp.array([0.0, 2.0, 0.0])
  weights = jnp.array([0.5, 0.5, 0.0])
  loss, metrics = preference.bradley_terry_loss(chosen, rejected, weights)
  expected = 0.5 * (_bradley_terry(1.0, 0.0) + _bradley_terry(0.0, 2.0))
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert metrics["accuracy"] == 0.5
  assert metrics["margin"] == 0.5 * (1 - 2)
  assert metrics["reward"] == 0.5 * (0.5 + 1)
  assert metrics["weight"] == 1.0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_matches_the_paper(smoothing):
  arrays, weights = _batch(4)

  def loss(*args):
    return preference.dpo_loss(*args, beta=0.3, label_smoothing=smoothing)

  _check(
    loss, lambda *x: _dpo(*x, 0.3, smoothing), arrays, weights, num_grads=2
  )


def test_ipo_matches_the_paper():
  arrays, weights = _batch(4)
  _check(preference.ipo_loss, _ipo, arrays, weights, num_grads=2)


def _simpo(chosen, rejected, chosen_length, rejected_length, beta, margin):
  chosen, rejected = chosen / chosen_length, rejected / rejected_length
  return -_log_sigmoid(beta * (chosen - rejected) - margin)


@pytest.mark.parametrize(
  ("name", "loop", "options"),
  [
    ("orpo", _orpo, {"odds_coef": 0.3}),
    ("simpo", _simpo, {"beta": 2.5, "margin": 1.4}),
  ],
)
def test_losses_without_a_reference_match_the_paper(name, loop, options):
  arrays, weights = _batch(2)
  lengths = np.random.default_rng(1).integers(1, 9, (2, B))

  def loss(chosen, rejected, weights):
    return preference.PREFERENCES[name](
      chosen, rejected, *jnp.asarray(lengths), weights, **options
    )

  def per_row(row, chosen, rejected):
    return loop(chosen, rejected, *lengths[:, row], *options.values())

  _check(loss, per_row, arrays, weights, num_grads=2, numbered=True)


def test_orpo_of_a_certain_completion_stays_finite():
  x, weights = jnp.array([0.0, -1e-9, -90.0]), jnp.ones(3)
  lengths = jnp.array([1, 0, 3])
  value, grads = jax.value_and_grad(
    lambda c, r: preference.orpo_loss(c, r, lengths, lengths, weights)[0],
    (0, 1),
  )(x, x[::-1])
  assert jnp.isfinite(value) and jnp.all(jnp.isfinite(jnp.stack(grads)))


def test_kto_matches_the_paper():
  arrays, weights = _batch(2)
  desirable = jnp.arange(B) % 2 == 0
  beta, good, bad, z = 0.3, 1.5, 0.7, 0.4

  def per_row(logprob, ref, label):
    r = logprob - ref
    if label:
      return good - good / (1 + math.exp(-beta * (r - z)))
    return bad - bad / (1 + math.exp(-beta * (z - r)))

  def loss(logprobs, ref_logprobs, labels, weights):
    return preference.kto_loss(
      logprobs,
      ref_logprobs,
      labels > 0,
      jnp.float32(z),
      weights,
      beta=beta,
      desirable_coef=good,
      undesirable_coef=bad,
    )

  metrics = _check(
    loss, per_row, [*arrays, np.asarray(desirable)], weights, num_grads=1
  )
  r = beta * (arrays[0] - arrays[1])
  for name, kind in (("desirable", desirable), ("undesirable", ~desirable)):
    np.testing.assert_allclose(
      metrics["reward/" + name], np.sum(weights * r * kind), rtol=1e-4
    )


def test_the_reference_point_is_a_mean_that_is_never_negative():
  a, b = jnp.array([-1.0, -2.0, jnp.nan]), jnp.array([-2.0, -2.0, jnp.nan])
  weights = jnp.array([0.25, 0.25, 0.0])
  assert preference.kto_reference_point(a, b, weights) == 0.5
  assert preference.kto_reference_point(b, a, weights) == 0.0
  assert preference.kto_reference_point(a, b, 0.0 * weights) == 0.0


@pytest.mark.parametrize("hard", [True, False])
def test_process_rewards_match_the_paper(hard):
  arrays, weights = _batch(1)
  labels = np.random.default_rng(1).random(B)
  labels = (labels > 0.5).astype(float) if hard else labels
  logits = arrays[0] + 2
  metrics = _check(
    preference.process_reward_loss,
    _process,
    [logits, labels],
    weights,
    num_grads=1,
  )
  right = (logits > 0) == (labels > 0.5)
  np.testing.assert_allclose(
    metrics["accuracy"], np.sum(weights * right), rtol=1e-5
  )


def test_completion_logprobs_sum_their_tokens():
  mask = jnp.array([[True, True, False], [False, False, False]])
  logprobs = jnp.where(mask, -1.5, jnp.nan)
  np.testing.assert_array_equal(
    preference.completion_logprobs(logprobs, mask), [-3.0, 0.0]
  )


def test_pairs_are_the_same_on_eight_devices():
  rng = np.random.default_rng(0)
  arrays = [jnp.asarray(x, jnp.float32) for x in -rng.random((4, 8))]
  weights = jnp.full(8, 1 / 8)

  def everything(*arrays):
    return [
      jax.value_and_grad(f, has_aux=True)(*arrays, weights)
      for f in (preference.dpo_loss, preference.ipo_loss)
    ]

  expected = jax.device_get(everything(*arrays))
  with jax.set_mesh(jax.make_mesh((8,), ("data",))):
    arrays = jax.device_put(arrays, jax.P("data"))
    result = jax.device_get(jax.jit(everything)(*arrays))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), result, expected
  )


def test_impossible_coefficients_are_refused():
  x, label = jnp.zeros(2), jnp.ones(2, bool)
  for function in (preference.dpo_loss, preference.ipo_loss):
    with pytest.raises(ValueError, match="beta="):
      function(x, x, x, x, x, beta=0.0)
  with pytest.raises(ValueError, match="beta="):
    preference.kto_loss(x, x, label, jnp.float32(0), x, beta=-1.0)
  with pytest.raises(ValueError, match="label_smoothing="):
    preference.dpo_loss(x, x, x, x, x, label_smoothing=0.5)


def test_every_row_takes_its_data_by_name_and_has_defaults():
  data = {
    "chosen_logprobs", "rejected_logprobs", "ref_chosen_logprobs",
    "ref_rejected_logprobs", "chosen_lengths", "rejected_lengths", "weights",
    "logprobs", "ref_logprobs", "desirable", "reference_point",
  }  # fmt: skip
  for name, row in preference.PREFERENCES.items():
    for p in inspect.signature(row).parameters.values():
      if p.kind is p.KEYWORD_ONLY:
        assert p.default is not p.empty, name
      else:
        assert p.name in data, name


def test_simpo_does_not_see_the_length_of_completions_alike_per_token():
  weights, lengths = jnp.ones(2) / 2, jnp.array([3, 5])
  per_token = jnp.array([-0.5, -1.0]), jnp.array([-0.7, -0.8])

  def loss(factor):
    chosen, rejected = (x * lengths * factor for x in per_token)
    return preference.simpo_loss(
      chosen, rejected, factor * lengths, factor * lengths, weights
    )[0]

  np.testing.assert_allclose(loss(1), loss(4), rtol=1e-6)
  with pytest.raises(ValueError, match="margin="):
    x = jnp.zeros(2)
    preference.simpo_loss(x, x, lengths, lengths, weights, margin=-1.0)
