"""The whole network: one `forward` for prefill, decoding, scoring, training.

B rows of text, or P prompts x G completions; T positions, D width, L layers,
C slots of a cache. Parameters under `layers` are stacked [L, ...] and scanned;
`unstack` makes them a tuple, and `forward` then goes through it layer by layer,
which is what decoding wants: each layer's cache is updated in place.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax import masking, sharding
from grpo_jax.models import attention, layers
from grpo_jax.models.attention import LayerKV
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params, param_specs

_REMAT = {
  "none": None,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


@flax.struct.dataclass
class Prompt:
  """Keys and values of P prompts, for the rows of their groups to attend to.

  Attributes:
    layers: one stacked LayerKV of [L, P, K, S, H], or a tuple of L of them.
    mask: which slots hold a token.
  """

  layers: Any
  mask: Bool[Array, "P S"]


@flax.struct.dataclass
class Cache:
  """Keys and values of what rows have decoded so far.

  Attributes:
    layers: a tuple of L LayerKV of [P, G, K, C, H].
    length: slots filled, the same for all rows.
  """

  layers: Any
  length: Int[Array, ""]


def forward(
  params: Params,
  cfg: ModelConfig,
  tokens: Int[Array, "*rows T"],
  positions: Int[Array, "*rows T"],
  segments: Int[Array, "*rows T"] | Bool[Array, "*rows T"],
  *,
  prompt: Prompt | None = None,
  cache: Cache | None = None,
) -> tuple[Float[Array, "*rows T D"], Any]:
  """Returns the normalized last hidden states, and keys and values by layer.

  Args:
    params: parameters, stacked or unstacked.
    cfg: the model.
    tokens: [B, T] text, or [P, G, T] completions. Ids at padding are never
      read by a real position.
    positions: rotary positions, from 0 in each sequence.
    segments: a position sees those before it that have its own segment; 0, or
      False, is padding. A mask is one segment. Not read with a cache.
    prompt: what the G rows of each group also see, whatever their segment.
    cache: earlier keys and values; x is written at slot `cache.length`, and
      what is returned in their place is the cache with x in it (T = 1).
  """
  flat = tokens.ndim == 2
  if flat:
    tokens, positions, segments = (
      x[:, None] for x in (tokens, positions, segments)
    )
  rows = sharding.row_spec(tokens, 3)
  table = sharding.to_use(params["embed"], ("vocab", "embed"), cfg.dtype)
  x = table.at[tokens].get(out_sharding=sharding.out(rows, None))
  angles = layers.rotary_angles(positions, cfg.head_dim, cfg.rope_theta)
  if cache is None:
    visible = _causal(segments)
  else:
    slots = jax.tree.leaves(cache.layers)[0].shape[3]
    visible = jnp.arange(slots) <= cache.length

  def block(x, layer):
    layer_params, layer_prompt, layer_cache = layer
    y, kv = attention.attention(
      layer_params["attention"],
      cfg,
      layers.rms_norm(x, layer_params["attention"]["norm"], cfg.norm_eps),
      angles,
      visible,
      prompt=None if prompt is None else (layer_prompt, prompt.mask),
      cache=None if cache is None else (layer_cache, cache.length),
    )
    x = x + y
    y = layers.rms_norm(x, layer_params["mlp"]["norm"], cfg.norm_eps)
    return x + layers.mlp(layer_params["mlp"], cfg, y), kv

  if cfg.remat != "none":
    block = jax.checkpoint(block, policy=_REMAT[cfg.remat])
  per_layer = (
    params["layers"],
    None if prompt is None else prompt.layers,
    None if cache is None else cache.layers,
  )
  if isinstance(params["layers"], tuple):
    kvs = []
    for i in range(cfg.num_layers):
      x, kv = block(x, tuple(p if p is None else p[i] for p in per_layer))
      kvs.append(kv)
    kvs = tuple(kvs)
  else:
    x, kvs = jax.lax.scan(block, x, per_layer)
  x = layers.rms_norm(x, params["norm"], cfg.norm_eps)
  return (x[:, 0] if flat else x), kvs


def prefill(
  params: Params,
  cfg: ModelConfig,
  tokens: Int[Array, "P S"],
  mask: Bool[Array, "P S"],
) -> tuple[Float[Array, "P D"], Prompt]:
  """Returns the hidden state after each prompt, and what completions attend to.

  Prompts are padded on the left: the last slot is each prompt's last token.
  """
  hidden, kvs = forward(params, cfg, tokens, masking.positions(mask), mask)
  without_group = jax.tree.map(functools.partial(jnp.squeeze, axis=-4), kvs)
  return hidden[:, -1], Prompt(without_group, mask)


def completion_positions(
  prompt_mask: Bool[Array, "P S"], group_size: int, length: int
) -> Int[Array, "P G N"]:
  """Returns the positions of completions: they go on where the prompt ends."""
  starts = jnp.sum(prompt_mask, axis=-1, dtype=jnp.int32)
  slots = jnp.arange(length)
  positions = starts[:, None, None] + slots
  return jnp.broadcast_to(positions, (starts.shape[0], group_size, length))


def unstack(params: Params, cfg: ModelConfig) -> Params:
  """Returns parameters whose `layers` are a tuple, cast and gathered for use.

  The tree that decoding reads at every token: in the compute dtype, and
  sharded by the SAMPLE table.
  """

  def use(spec, x):
    # What no axis shards (the norms) stays float32, as in training.
    matrix = any(axis not in (None, "layers") for axis in spec.axes)
    return sharding.to_use(x, spec.axes, cfg.dtype if matrix else None)

  used = jax.tree.map(use, param_specs(cfg), params)
  stacked = used["layers"]
  each = tuple(
    jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(cfg.num_layers)
  )
  return used | {"layers": each}


def empty_cache(
  cfg: ModelConfig, tokens: Int[Array, "P G"], slots: int
) -> Cache:
  """Returns a cache with `slots` empty slots for the rows of `tokens`."""
  shape = (*tokens.shape, cfg.num_kv_heads, slots, cfg.head_dim)
  where = sharding.out(sharding.row_spec(tokens, 2), "kv_heads", None, None)

  def empty():
    return jnp.zeros(shape, cfg.dtype, out_sharding=where)

  return Cache(
    tuple(LayerKV(empty(), empty()) for _ in range(cfg.num_layers)),
    jnp.zeros((), jnp.int32),
  )


def grow(cache: Cache, slots: int) -> Cache:
  """Returns the cache with room for `slots` slots in all."""

  def pad(x: Array) -> Array:
    more = slots - x.shape[3]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more), (0, 0)))

  return cache.replace(layers=jax.tree.map(pad, cache.layers))


def _causal(segments: Array) -> Bool[Array, "P G T T"]:
  """Returns which positions see which: same segment, not later, not padding."""
  segments = segments.astype(jnp.int32)
  same = segments[..., :, None] == segments[..., None, :]
  real = segments[..., None, :] != 0
  order = jnp.arange(segments.shape[-1])
  return same & real & (order[:, None] >= order[None, :])
