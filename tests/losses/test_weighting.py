import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import weighting


def _random_mask(seed, shape=(3, 4, 7)):
  rng = np.random.default_rng(seed)
  mask = rng.random(shape) < 0.5
  mask[0, 0] = False
  return mask


@pytest.mark.parametrize("seed", range(3))
def test_weights_match_loops_over_rows(seed):
  mask = _random_mask(seed)
  rows = mask.reshape(-1, mask.shape[-1])
  used = [row for row in rows if row.any()]
  tokens = sum(row.sum() for row in rows)
  expected = {
    "sequence_mean": [row / max(row.sum(), 1) / len(used) for row in rows],
    "token_mean": [row / tokens for row in rows],
    "constant_length": [row / (11 * len(used)) for row in rows],
    "prompt_mean": [
      group / max(group.sum(), 1) / sum(other.any() for other in mask)
      for group in mask
    ],
  }
  for name, weigh in weighting.WEIGHTINGS.items():
    args = (11,) if name == "constant_length" else ()
    weights = weigh(jnp.asarray(mask), *args)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(
      weights, np.reshape(expected[name], mask.shape), rtol=1e-6, err_msg=name
    )


def test_means_sum_to_one():
  mask = jnp.asarray(_random_mask(0))
  assert jnp.sum(weighting.sequence_mean(mask)) == pytest.approx(1.0, rel=1e-6)
  assert jnp.sum(weighting.token_mean(mask)) == pytest.approx(1.0, rel=1e-6)
  assert jnp.sum(weighting.prompt_mean(mask)) == pytest.approx(1.0, rel=1e-6)


def test_a_prompt_without_tokens_leaves_the_denominator_of_prompts():
  mask = jnp.ones((3, 2, 2), bool).at[1].set(False).at[2, 1].set(False)
  weights = weighting.prompt_mean(mask)
  np.testing.assert_array_equal(jnp.sum(weights, axis=(1, 2)), [0.5, 0.0, 0.5])


def test_an_empty_mask_weighs_nothing():
  mask = jnp.zeros((2, 3), bool)
  for weights in (
    weighting.sequence_mean(mask),
    weighting.token_mean(mask),
    weighting.constant_length(mask, 5),
    weighting.prompt_mean(mask[None])[0],
  ):
    np.testing.assert_array_equal(weights, 0.0)


def test_padding_a_batch_wider_changes_no_weight():
  mask = jnp.asarray(_random_mask(1))
  wider = jnp.pad(mask, ((0, 0), (0, 0), (0, 9)))
  for name, weigh in weighting.WEIGHTINGS.items():
    args = (11,) if name == "constant_length" else ()
    np.testing.assert_array_equal(
      weigh(mask, *args), weigh(wider, *args)[..., :7], err_msg=name
    )


def test_a_row_that_is_masked_out_leaves_the_denominator():
  mask = jnp.array([[True, True], [False, False]])
  np.testing.assert_allclose(weighting.sequence_mean(mask)[0], 0.5)
  np.testing.assert_allclose(weighting.constant_length(mask, 4)[0], 0.25)


def test_a_length_below_one_token_is_refused():
  with pytest.raises(ValueError, match="length=0"):
    weighting.constant_length(jnp.ones((1, 2), bool), 0)


def test_positions_count_tokens_whichever_side_is_padded():
  mask = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
  positions = weighting.positions(mask)
  np.testing.assert_array_equal(positions[0], [0, 0, 0, 1, 2])
  np.testing.assert_array_equal(positions[1][:3], [0, 1, 2])


def test_weights_are_the_same_on_eight_devices():
  mask = jnp.asarray(_random_mask(2, (4, 4, 6)))
  weightings = [
    weighting.sequence_mean,
    weighting.token_mean,
    lambda m: weighting.constant_length(m, 9),
    weighting.prompt_mean,
    weighting.positions,
  ]
  expected = [weigh(mask) for weigh in weightings]
  mesh = jax.make_mesh((2, 4), ("data", "fsdp"))
  with jax.set_mesh(mesh):
    sharded = jax.device_put(mask, jax.P("data", "fsdp", None))
    for weigh, weights in zip(weightings, expected, strict=True):
      result = jax.jit(weigh)(sharded)
      assert jax.typeof(result).sharding.spec[:2] == ("data", "fsdp")
      np.testing.assert_array_equal(result, weights)
