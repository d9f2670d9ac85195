"""Latent attention against a slow loop, and its two paths' costs."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import layers, mla

T = 6


def slow_attention(params, cfg, x):
  """MLA of one sequence in float64, from arXiv 2405.04434, eq. 9 to 19."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  nope = cfg.head_dim - cfg.rope_dim
  scaling = cfg.rope_scaling
  # Frequencies are another test's; here they are those of the layers.
  cos, sin = layers.rotary_angles(
    jnp.arange(len(x)), cfg.rope_dim, cfg.rope_theta, scaling
  )
  turns = np.asarray(cos, np.float64) + 1j * np.asarray(sin, np.float64)
  scale = cfg.head_dim**-0.5
  if scaling is not None:
    scale *= (0.1 * scaling.mscale_all_dim * np.log(scaling.factor) + 1) ** 2

  def norm(x, scale):
    return x / np.sqrt(np.mean(x**2) + 1e-6) * scale

  def rotate(x, position):
    half = cfg.rope_dim // 2
    if cfg.rope_interleaved:
      return (x[0::2] + 1j * x[1::2]) * turns[position]
    return (x[:half] + 1j * x[half:]) * turns[position]

  latents, rotary_keys, queries = [], [], []
  for t, row in enumerate(np.asarray(x, np.float64)):
    down = row @ params["kv_down"]
    latents.append(norm(down[: cfg.latent_dim], params["kv_norm"]))
    rotary_keys.append(rotate(down[cfg.latent_dim :], t))
    if cfg.query_latent_dim:
      row = norm(row @ params["q_down"], params["q_norm"])
      queries.append(np.einsum("d,dnh->nh", row, params["q_up"]))
    else:
      queries.append(np.einsum("d,dnh->nh", row, params["q"]))
  y = np.zeros(x.shape)
  for t in range(len(x)):
    for n in range(cfg.num_heads):
      shares, values = [], []
      for s in range(t + 1):
        up = latents[s] @ params["kv_up"][:, n]
        query = queries[t][n]
        score = query[:nope] @ up[:nope]
        score += (rotate(query[nope:], t) * rotary_keys[s].conj()).real.sum()
        shares.append(np.exp(score * scale))
        values.append(up[nope:])
      mixed = np.average(values, axis=0, weights=shares)
      y[t] += mixed @ params["o"][n]
  return y


@pytest.mark.parametrize("family", ["deepseek_v3", "deepseek_v3_direct"])
def test_both_paths_are_the_formula(family):
  cfg = helpers.FAMILIES[family]
  params = helpers.make_params(cfg)["layers"]["attention"]
  params = jax.tree.map(lambda x: x[0], params)
  x = np.random.default_rng(0).standard_normal((T, cfg.d_model), np.float32)
  want = slow_attention(params, cfg, x)
  angles = layers.rotary_angles(
    jnp.arange(T)[None, None], cfg.rope_dim, cfg.rope_theta, cfg.rope_scaling
  )
  rows = jnp.asarray(x)[None, None]
  causal = jnp.tril(jnp.ones((T, T), bool))[None, None]
  got, kept = mla.attention(params, cfg, rows, angles, causal)
  np.testing.assert_allclose(got[0, 0], want, atol=2e-5)
  cache = mla.empty(cfg, jnp.zeros((1, 1), jnp.int32), T)
  absorbed, written = mla.attention(
    params, cfg, rows, angles, causal, cache=(cache, jnp.int32(0))
  )
  np.testing.assert_allclose(absorbed[0, 0], want, atol=2e-5)
  np.testing.assert_array_equal(kept.latents, written.latents)


def test_a_decode_step_makes_no_keys_of_earlier_positions():
  """Its FLOPs grow with the cache by the latent's width alone."""
  cfg = helpers.FAMILIES["deepseek_v3"]
  params = helpers.make_params(cfg)["layers"]["attention"]
  params = jax.tree.map(lambda x: x[0], params)
  x = jnp.ones((1, 1, 1, cfg.d_model))
  angles = (jnp.ones((1, 1, 1, 2)), jnp.zeros((1, 1, 1, 2)))

  def flops(slots):
    def step(latents):
      cache = mla.LatentKV(latents), jnp.int32(slots - 1)
      visible = jnp.ones(slots, bool)
      return mla.attention(params, cfg, x, angles, visible, cache=cache)

    latents = mla.empty(cfg, jnp.zeros((1, 1), jnp.int32), slots).latents
    return jax.jit(step).lower(latents).compile().cost_analysis()["flops"]

  per_slot = (flops(512) - flops(256)) / 256
  c, u, n = cfg.latent_dim, cfg.rope_dim, cfg.num_heads
  products = 2 * n * (c + u + c)
  assert products <= per_slot < 1.5 * products
  expanded = 2 * c * n * (cfg.head_dim - u + cfg.value_dim)
  assert per_slot < expanded
