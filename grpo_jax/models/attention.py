"""Grouped-query attention over a row's own keys and its group's prompt.

P prompts, G completions each, T query positions, S prompt slots, C slots of the
rows' own keys; K key/value heads, R query heads per key/value head, H width.

The prompt's keys and values are stored once per group, [P, K, S, H]; the G rows
of a group attend to them beside their own [P, G, K, C, H], with one softmax
over both. Plain text is the case G = 1 without a prompt. Latent attention
(`models.mla`) comes down to the same `attend`.
"""

from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax import sharding
from grpo_jax.models import layers
from grpo_jax.models.config import ModelConfig

KV = TypeVar("KV")
_MASKED = -1e30  # Finite, so that a row that sees nothing stays finite.


@flax.struct.dataclass
class LayerKV:
  """Keys and values of one layer; stacked, they have a leading axis L."""

  keys: Float[Array, "..."]
  values: Float[Array, "..."]


def attention(
  params: dict,
  cfg: ModelConfig,
  x: Float[Array, "P G T D"],
  angles: tuple[Float[Array, "P G T H2"], Float[Array, "P G T H2"]],
  visible: Bool[Array, "P G T C"] | Bool[Array, " C"],
  *,
  prompt: tuple[LayerKV, Bool[Array, "P #G #T S"]] | None = None,
  cache: tuple[LayerKV, Int[Array, ""]] | None = None,
) -> tuple[Float[Array, "P G T D"], LayerKV]:
  """Returns the attention's output and the rows' own keys and values.

  Args:
    params: of this layer, without the leading axis L.
    cfg: the model.
    x: normalized input.
    angles: cosines and sines of the rows' positions.
    visible: which of the rows' own keys each query may read.
    prompt: keys and values of the groups' prompts, with the slots that each
      query may read.
    cache: the rows' earlier keys and values, with the slot that x writes; the
      result holds the cache with x written.
  """
  q, k, v = (_project(params, cfg, name, x) for name in "qkv")
  q = _rotate(cfg, q, angles) * jnp.asarray(cfg.head_dim**-0.5, q.dtype)
  own = LayerKV(_rotate(cfg, k, angles)[:, :, :, :, 0], v[:, :, :, :, 0])
  if cache is not None:
    own = written(*cache, own)
  y = attend(q, own, visible, prompt).astype(x.dtype)
  axes = "kv_heads", None, None, "embed"
  y = layers.linear(jnp.moveaxis(y, 2, 3), params["o"], axes, contract=3)
  return y, own


def empty(cfg: ModelConfig, tokens: Int[Array, "P G"], slots: int) -> LayerKV:
  """Returns one layer's cache with `slots` empty slots for rows of tokens."""
  shape = (*tokens.shape, cfg.num_kv_heads, slots, cfg.head_dim)
  where = sharding.out(sharding.row_spec(tokens, 2), "kv_heads", None, None)
  return LayerKV(
    jnp.zeros(shape, cfg.dtype, out_sharding=where),
    jnp.zeros(shape, cfg.dtype, out_sharding=where),
  )


def written(cache: KV, slot: Int[Array, ""], new: KV) -> KV:
  """Returns a cache [P, G, K, C, ...] with `new` written from `slot` on."""
  return jax.tree.map(
    lambda old, new: jax.lax.dynamic_update_slice_in_dim(
      old, new, slot, axis=3
    ),
    cache,
    new,
  )


def attend(
  q: Float[Array, "P G K T R H"],
  own: LayerKV,
  visible: Bool[Array, "P G T C"] | Bool[Array, " C"],
  prompt: tuple[LayerKV, Bool[Array, "P #G #T S"]] | None = None,
) -> Float[Array, "P G K T R W"]:
  """Returns softmax(q . keys) values, in float32.

  Args:
    q: queries, scaled.
    own: keys [P, G, K, C, H] and values [P, G, K, C, W] of each row.
    visible: which of them each query may read.
    prompt: keys [P, K, S, H] and values [P, K, S, W] of each group, and which
      of them each query may read.
  """
  if visible.ndim == 4:
    visible = visible[:, :, None, :, None, :]
  scores = jnp.where(visible, _scores("PGKTRH,PGKCH->PGKTRC", q, own), _MASKED)
  top = jnp.max(scores, axis=-1)
  if prompt is not None:
    kv, mask = prompt
    q = q.swapaxes(1, 2)
    before = _scores("PKGTRH,PKSH->PKGTRS", q, kv)
    before = jnp.where(mask[:, None, :, :, None, :], before, _MASKED)
    top = jnp.maximum(top, jnp.max(before, axis=-1).swapaxes(1, 2))
  # Dividing after the product with the values costs less, by C / H.
  top = jax.lax.stop_gradient(top)
  shares = jnp.exp(scores - top[..., None])
  total = jnp.sum(shares, axis=-1)
  y = _mix("PGKTRC,PGKCH->PGKTRH", shares, own)
  if prompt is not None:
    shares = jnp.exp(before - top.swapaxes(1, 2)[..., None])
    total = total + jnp.sum(shares, axis=-1).swapaxes(1, 2)
    y = y + _mix("PKGTRS,PKSH->PKGTRH", shares, kv).swapaxes(1, 2)
  return y / total[..., None]


def _project(params, cfg, name, x):
  """Returns q [P, G, K, T, R, H], or k or v with R = 1: heads before slots."""
  heads = ("kv_heads", None) if name == "q" else ("kv_heads",)
  y = layers.linear(x, params[name], ("embed", *heads, None))
  if cfg.qkv_bias:
    y = y + sharding.to_use(params[f"{name}_bias"], (*heads, None), x.dtype)
  if cfg.qk_norm and name != "v":
    y = layers.rms_norm(y, params[f"{name}_norm"], cfg.norm_eps)
  if name != "q":
    y = y[..., None, :]
  return jnp.moveaxis(y, 3, 2)


def _rotate(cfg, x, angles):
  """Rotates [P, G, K, T, R, H] by the angles [P, G, T, H / 2] of its slots."""
  angles = tuple(a[:, :, None, :, None] for a in angles)
  return layers.rotate(x, angles, cfg.rope_interleaved)


def _scores(equation, q, kv):
  return jnp.einsum(equation, q, kv.keys, preferred_element_type=jnp.float32)


def _mix(equation, shares, kv):
  return jnp.einsum(
    equation,
    shares.astype(kv.values.dtype),
    kv.values,
    preferred_element_type=jnp.float32,
  )
