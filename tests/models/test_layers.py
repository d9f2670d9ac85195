"""RMSNorm, rotary embedding, the matrix product and the gated MLP."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import layers
from grpo_jax.models.config import RopeScaling


def random(seed, *shape):
  return jnp.asarray(
    np.random.default_rng(seed).standard_normal(shape, np.float32)
  )


def test_rms_norm_is_the_formula():
  x, scale = random(0, 3, 5, 16), random(1, 16)
  want = np.stack(
    [
      [row / np.sqrt(np.mean(row**2) + 1e-3) * scale for row in rows]
      for rows in np.asarray(x, np.float64)
    ]
  )
  np.testing.assert_allclose(layers.rms_norm(x, scale, 1e-3), want, rtol=1e-5)


def test_rms_norm_of_bfloat16_is_computed_in_float32():
  x = (random(0, 4, 512) * 30).astype(jnp.bfloat16)
  scale = random(1, 512)
  want = layers.rms_norm(x.astype(jnp.float32), scale, 1e-6)
  got = layers.rms_norm(x, scale, 1e-6)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))


def test_rotation_is_by_position_times_frequency():
  head_dim, theta, positions = 6, 100.0, np.array([0, 1, 7, 300])
  x = random(0, 4, head_dim)
  half = head_dim // 2
  want = np.zeros(x.shape)
  for t, position in enumerate(positions):
    for i in range(half):
      turn = np.exp(1j * position * theta ** (-2 * i / head_dim))
      turned = (x[t, i] + 1j * x[t, i + half]) * turn
      want[t, i], want[t, i + half] = turned.real, turned.imag
  angles = layers.rotary_angles(jnp.asarray(positions), head_dim, theta)
  np.testing.assert_allclose(layers.rotate(x, angles), want, atol=1e-5)


@pytest.mark.parametrize(
  "scaling, theirs",
  [
    (RopeScaling("linear", 4.0), dict()),
    (RopeScaling("llama3", 8.0, 8192), dict()),
    (
      RopeScaling("llama3", 32.0, 1024, low_freq_factor=2.0),
      dict(low_freq_factor=2.0),
    ),
    (RopeScaling("yarn", 4.0, 32_768), dict()),
    (
      RopeScaling("yarn", 40.0, 4096, mscale=1.0, mscale_all_dim=0.7),
      dict(mscale=1.0, mscale_all_dim=0.7),
    ),
    (
      RopeScaling("yarn", 8.0, 64, beta_fast=16.0, attention_factor=1.5),
      dict(beta_fast=16.0, attention_factor=1.5),
    ),
  ],
)
@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_stretched_frequencies_are_those_of_transformers(
  scaling, theirs, theta
):
  transformers = pytest.importorskip("transformers")
  rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
  config = transformers.LlamaConfig(
    hidden_size=64,
    num_attention_heads=1,
    max_position_embeddings=131_072,
    rope_parameters=dict(
      rope_type=scaling.kind,
      rope_theta=theta,
      factor=scaling.factor,
      original_max_position_embeddings=scaling.original_length,
      **dict(low_freq_factor=1.0, high_freq_factor=4.0) | theirs,
    ),
  )
  init = rope_utils.ROPE_INIT_FUNCTIONS[scaling.kind]
  frequencies, factor = init(config, "cpu")
  positions = np.array([0, 1, 17, 200])
  angles = positions[:, None] * frequencies.numpy().astype(np.float64)
  cos, sin = layers.rotary_angles(jnp.asarray(positions), 64, theta, scaling)
  np.testing.assert_allclose(cos, factor * np.cos(angles), atol=1e-4)
  np.testing.assert_allclose(sin, factor * np.sin(angles), atol=1e-4)


def test_interleaved_pairs_are_the_same_rotation_of_another_order():
  x, order = random(0, 4, 6), np.array([0, 2, 4, 1, 3, 5])
  angles = layers.rotary_angles(jnp.arange(4), 6, 100.0)
  np.testing.assert_array_equal(
    layers.rotate(x, angles, interleaved=True),
    layers.rotate(x[:, order], angles),
  )


def test_rotated_products_depend_on_the_distance_alone():
  q, k = random(0, 1, 8), random(1, 1, 8)

  def product(query_position, key_position):
    def turned(x, position):
      angles = layers.rotary_angles(jnp.array([position]), 8, 1e4)
      return layers.rotate(x, angles)

    return float(jnp.sum(turned(q, query_position) * turned(k, key_position)))

  assert product(9, 4) == pytest.approx(product(5, 0), abs=1e-5)
  assert product(905, 900) == pytest.approx(product(5, 0), abs=1e-4)
  assert product(6, 0) != pytest.approx(product(5, 0), abs=1e-2)


@pytest.mark.parametrize("mesh", [None, helpers.EIGHT], ids=["plain", "mesh"])
def test_a_matrix_product_is_the_einsum_over_all_axes(mesh):
  def products(x, y, into, out):
    return layers.dense(x, into), layers.dense(y, out, contract=3)

  x, y = random(0, 4, 2, 3, 8), random(1, 4, 2, 3, 2, 3, 4)
  into, out = random(2, 8, 2, 3, 4), random(3, 2, 3, 4, 8)
  want = (
    np.einsum("pgtd,dkrh->pgtkrh", x, into),
    np.einsum("pgtkrh,krhd->pgtd", y, out),
  )
  if mesh is None:
    got = products(x, y, into, out)
  else:
    mesh = helpers.make_mesh(**mesh)
    with jax.set_mesh(mesh):
      rows = ("data", "fsdp", None)
      heads = ("tensor", None, None)
      specs = ((*rows, None), (*rows, *heads), (None, *heads), (*heads, None))
      got = jax.jit(products)(
        *(
          jax.device_put(a, jax.sharding.PartitionSpec(*spec))
          for a, spec in zip((x, y, into, out), specs, strict=True)
        )
      )
      assert tuple(jax.typeof(got[0]).sharding.spec) == (*rows, *heads)
  helpers.assert_trees_close(got, want)


def test_the_mlp_is_swiglu():
  cfg = helpers.tiny()
  params = {
    "gate": random(0, 16, 24),
    "up": random(1, 16, 24),
    "down": random(2, 24, 16),
  }
  x = random(3, 2, 3, 16)
  gate = np.asarray(x @ params["gate"], np.float64)
  want = (gate / (1 + np.exp(-gate)) * (x @ params["up"])) @ params["down"]
  got = layers.mlp(params, cfg, x)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
