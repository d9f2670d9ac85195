"""Grouped-query attention over a row's own keys and its group's prompt.

P prompts, G completions each, T query positions, S prompt slots, C slots of the
rows' own keys; K key/value heads, R query heads per key/value head, H width.

The prompt's keys and values are stored once per group, [P, S, K, H]; the G rows
of a group attend to them beside their own [P, G, C, K, H], with one softmax
over both. Plain text is the case G = 1 without a prompt.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax import sharding
from grpo_jax.models import layers
from grpo_jax.models.config import ModelConfig

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
  prompt: tuple[LayerKV, Bool[Array, "P S"]] | None = None,
  cache: tuple[LayerKV, Int[Array, ""]] | None = None,
) -> tuple[Float[Array, "P G T D"], LayerKV]:
  """Returns the attention's output and the rows' own keys and values.

  Args:
    params: of this layer, without the leading axis L.
    cfg: the model.
    x: normalized input.
    angles: cosines and sines of the rows' positions.
    visible: which of the rows' own keys each query may read.
    prompt: keys and values of the groups' prompts, with the mask of real slots.
    cache: the rows' earlier keys and values, with the slot that x writes; the
      result holds the cache with x written.
  """
  rows = sharding.row_spec(x, 3)
  q = _project(params, cfg, "q", x)
  k = _project(params, cfg, "k", x)
  v = _project(params, cfg, "v", x)
  q = layers.rotate(q.reshape(*q.shape[:3], -1, cfg.head_dim), angles).reshape(
    q.shape
  )
  k = layers.rotate(k, angles)
  own = LayerKV(k, v)
  if cache is not None:
    earlier, slot = cache
    own = jax.tree.map(
      lambda old, new: jax.lax.dynamic_update_slice_in_dim(
        old, new, slot, axis=2
      ),
      earlier,
      own,
    )
  q = q * jnp.asarray(cfg.head_dim**-0.5, q.dtype)
  if visible.ndim == 4:
    visible = visible[:, :, None, :, None, :]
  scores = jnp.where(visible, _scores("PGTKRH,PGCKH->PGKTRC", q, own), _MASKED)
  top = jnp.max(scores, axis=-1)
  if prompt is not None:
    kv, mask = prompt
    before = _scores("PGTKRH,PSKH->PKGTRS", q, kv)
    before = jnp.where(mask[:, None, None, None, None, :], before, _MASKED)
    top = jnp.maximum(top, jnp.max(before, axis=-1).swapaxes(1, 2))
  # Dividing after the product with the values costs less, by C / H.
  top = jax.lax.stop_gradient(top)
  shares = jnp.exp(scores - top[..., None])
  total = jnp.sum(shares, axis=-1)
  y = _mix("PGKTRC,PGCKH->PGTKRH", shares, own)
  if prompt is not None:
    shares = jnp.exp(before - top.swapaxes(1, 2)[..., None])
    total = total + jnp.sum(shares, axis=-1).swapaxes(1, 2)
    y = y + _mix("PKGTRS,PSKH->PGTKRH", shares, kv)
  y = (y / jnp.moveaxis(total, 2, 3)[..., None]).astype(x.dtype)
  axes = ("kv_heads", None, None, "embed")
  y = jnp.einsum(
    "PGTKRH,KRHD->PGTD",
    y,
    sharding.to_use(params["o"], axes, x.dtype),
    out_sharding=sharding.out(rows, None),
  )
  return y, own


def _project(params, cfg, name, x):
  """Returns q [P, G, T, K, R, H], or k or v [P, G, T, K, H]."""
  heads = ("kv_heads", None) if name == "q" else ("kv_heads",)
  letters = "KRH" if name == "q" else "KH"
  weight = sharding.to_use(params[name], ("embed", *heads, None), x.dtype)
  y = jnp.einsum(f"PGTD,D{letters}->PGT{letters}", x, weight)
  if cfg.qkv_bias:
    y = y + sharding.to_use(params[f"{name}_bias"], (*heads, None), x.dtype)
  if cfg.qk_norm and name != "v":
    y = layers.rms_norm(y, params[f"{name}_norm"], cfg.norm_eps)
  return y


def _scores(equation, q, kv):
  return jnp.einsum(equation, q, kv.keys, preferred_element_type=jnp.float32)


def _mix(equation, shares, kv):
  return jnp.einsum(
    equation,
    shares.astype(kv.values.dtype),
    kv.values,
    preferred_element_type=jnp.float32,
  )
