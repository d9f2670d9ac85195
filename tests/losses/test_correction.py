import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import correction


def _batch(seed=0, shape=(12, 8)):
  rng = np.random.default_rng(seed)
  old = -rng.exponential(size=shape)
  sampler = old + rng.normal(size=shape)
  advantages = np.broadcast_to(rng.normal(size=shape[:-1] + (1,)), shape)
  mask = rng.random(shape) < 0.7
  mask[0] = False
  return old, sampler, advantages, mask


def _jax(x, mask):
  return jnp.asarray(np.where(mask, x, np.nan), jnp.float32)


@pytest.mark.parametrize("seed", range(2))
def test_factors_match_loops_over_tokens(seed):
  old, sampler, advantages, mask = _batch(seed)
  expected = {
    name: np.zeros(mask.shape) for name in ("tis", "band", "seq", "neg")
  }
  for b, t in zip(*np.nonzero(mask), strict=True):
    ratio = np.exp(old[b, t] - sampler[b, t])
    mean = np.mean((old[b] - sampler[b])[mask[b]])
    expected["tis"][b, t] = min(ratio, 2.0)
    expected["band"][b, t] = ratio if 0.5 <= ratio <= 5.0 else 0.0
    expected["seq"][b, t] = 0.7 <= np.exp(mean) <= 1.2
    stale = np.mean((sampler[b] - old[b])[mask[b]]) > 0.1
    expected["neg"][b, t] = not (stale and advantages[b, t] < 0)
  args = (_jax(old, mask), _jax(sampler, mask))
  inside = jnp.asarray(mask)
  result = {
    "tis": correction.truncate_tokens(*args, inside),
    "band": correction.keep_band(*args, inside),
    "seq": correction.keep_sequences(
      *args, inside, ratio_min=0.7, ratio_max=1.2
    ),
    "neg": correction.drop_stale_negatives(
      *args, _jax(advantages, mask), inside, threshold=0.1
    ),
  }
  for name, factor in result.items():
    assert factor.dtype == jnp.float32
    np.testing.assert_allclose(factor, expected[name], rtol=1e-5, err_msg=name)
  assert 0 < expected["neg"].sum() < mask.sum()
  assert 0 < expected["seq"].sum() < mask.sum()


def test_a_sequence_mask_does_not_punish_length():
  def kept(length):
    old = jnp.full((1, length), -1.0)
    return correction.keep_sequences(
      old, old - 0.01, jnp.ones((1, length), bool), ratio_min=0.9, ratio_max=1.1
    )

  assert jnp.all(kept(4) == 1) and jnp.all(kept(400) == 1)


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_highest_entropies_are_kept(seed, fraction):
  rng = np.random.default_rng(seed)
  entropy = rng.exponential(size=(6, 9)).astype(np.float32)
  mask = rng.random((6, 9)) < 0.7
  inside = np.sort(entropy[mask])[::-1]
  cut = inside[int(np.ceil(fraction * len(inside))) - 1]
  result = correction.keep_high_entropy(
    _jax(entropy, mask), jnp.asarray(mask), fraction=fraction
  )
  np.testing.assert_array_equal(result, mask & (entropy >= cut))


def test_equal_entropies_are_all_kept():
  mask = jnp.array([[True, True, False]])
  for value in (0.0, 0.7):
    result = correction.keep_high_entropy(
      jnp.full((1, 3), value), mask, fraction=0.2
    )
    np.testing.assert_array_equal(result, mask)


def test_the_gap_matches_a_loop():
  old, sampler, _, mask = _batch()
  delta = (old - sampler)[mask]
  w = np.exp(delta)
  expected = {
    "sampling_logp_difference/mean": np.abs(delta).mean(),
    "sampling_logp_difference/max": np.abs(delta).max(),
    "importance_sampling_ratio/min": w.min(),
    "importance_sampling_ratio/mean": w.mean(),
    "importance_sampling_ratio/max": w.max(),
    "kl": np.mean(w - 1 - delta),
    "effective_sample_size": w.sum() ** 2 / (len(w) * np.sum(w**2)),
  }
  result = correction.sampler_gap(
    _jax(old, mask), _jax(sampler, mask), jnp.asarray(mask)
  )
  assert result.keys() == expected.keys()
  for name, x in expected.items():
    np.testing.assert_allclose(result[name], x, rtol=1e-5, err_msg=name)


def test_an_empty_gap_is_that_of_equal_samplers():
  x, mask = jnp.full((2, 3), -1.0), jnp.ones((2, 3), bool)
  empty = correction.sampler_gap(x * jnp.nan, x, jnp.zeros_like(mask))
  equal = correction.sampler_gap(x, x, mask)
  for name in equal:
    np.testing.assert_array_equal(empty[name], equal[name], err_msg=name)


def test_factors_are_the_same_on_eight_devices():
  old, sampler, advantages, mask = _batch(1, (8, 4, 6))
  batch = (*(_jax(x, mask) for x in (old, sampler, advantages)), mask)
  batch = tuple(jnp.asarray(x) for x in batch)

  def everything(old, sampler, advantages, mask):
    return (
      correction.truncate_tokens(old, sampler, mask),
      correction.keep_band(old, sampler, mask),
      correction.keep_sequences(
        old, sampler, mask, ratio_min=0.7, ratio_max=1.2
      ),
      correction.drop_stale_negatives(
        old, sampler, advantages, mask, threshold=0.1
      ),
      correction.keep_high_entropy(-old, mask),
      correction.sampler_gap(old, sampler, mask),
    )

  expected = jax.device_get(jax.jit(everything)(*batch))
  with jax.set_mesh(jax.make_mesh((2, 4), ("data", "fsdp"))):
    batch = jax.device_put(batch, jax.P("data", "fsdp", None))
    result = jax.device_get(jax.jit(everything)(*batch))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), result, expected
  )


def test_empty_bands_and_fractions_are_refused():
  x, mask = jnp.zeros((1, 2)), jnp.ones((1, 2), bool)
  with pytest.raises(ValueError, match="ratio_max"):
    correction.truncate_tokens(x, x, mask, ratio_max=0.0)
  for function in (correction.keep_band, correction.keep_sequences):
    with pytest.raises(ValueError, match="must hold"):
      function(x, x, mask, ratio_min=2.0, ratio_max=1.0)
  with pytest.raises(ValueError, match="fraction"):
    correction.keep_high_entropy(x, mask, fraction=0.0)


def test_every_row_takes_its_data_by_name():
  data = {"old_logprobs", "sampler_logprobs", "mask", "entropy"}
  old, sampler, _, mask = _batch()
  given = {
    "old_logprobs": _jax(old, mask),
    "sampler_logprobs": _jax(sampler, mask),
    "mask": jnp.asarray(mask),
    "entropy": _jax(-old, mask),
  }
  for kind, row in correction.CORRECTIONS.items():
    parameters = inspect.signature(row).parameters.values()
    names = {p.name for p in parameters if p.kind is not p.KEYWORD_ONLY}
    assert names <= data, kind
    band = {"ratio_min": 0.5, "ratio_max": 2.0}
    options = band if kind == "keep_sequences" else {}
    factor = row(**{name: given[name] for name in names}, **options)
    assert jnp.all(jnp.isfinite(factor)), kind
    assert not jnp.any(jnp.where(mask, 0.0, factor)), kind
  np.testing.assert_array_equal(
    correction.CORRECTIONS["none"](mask=given["mask"]), mask
  )


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_highest_is_a_sort_among_the_mask_whatever_the_sign(count):
  x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32) - 9
  mask = np.random.default_rng(1).random((4, 6)) < 0.6
  result = correction.highest(
    _jax(x, mask), jnp.asarray(mask), jnp.float32(count)
  )
  cut = np.sort(x[mask])[-min(count, mask.sum())]
  np.testing.assert_array_equal(result, mask & (x >= cut))
