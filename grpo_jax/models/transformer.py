"""The whole network: one `forward` for prefill, decoding, scoring, training.

B rows of text, or P prompts x G completions; T positions, D width, L layers,
C slots of a cache. What belongs to layers (parameters, keys and values) is held
by the names of `cfg.stacks`: a stack is stacked [L, ...] and scanned; `unstack`
makes a tuple of it, and `forward` then goes through it layer by layer, which is
what decoding wants: each layer's cache is updated in place.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax import sharding
from grpo_jax.losses import weighting
from grpo_jax.models import attention, layers, mla, moe
from grpo_jax.models.config import ModelConfig, Stack
from grpo_jax.models.params import Params, param_specs

_REMAT = {
  "none": None,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


@flax.struct.dataclass
class Prompt:
  """What P prompts leave for the rows of their groups to attend to.

  Attributes:
    layers: by stack, one LayerKV or LatentKV of [L, P, K, S, ...], or a tuple
      of L of them.
    mask: which slots hold a token.
    load: by stack of experts, tokens per expert, [L, E].
  """

  layers: dict[str, Any]
  mask: Bool[Array, "P S"]
  load: moe.Load


@flax.struct.dataclass
class Cache:
  """Keys and values, or latents, of what rows have decoded so far.

  Attributes:
    layers: by stack, a tuple of L LayerKV or LatentKV of [P, G, K, C, ...].
    length: slots filled, the same for all rows.
  """

  layers: dict[str, Any]
  length: Int[Array, ""]


@flax.struct.dataclass
class Trace:
  """What a pass leaves behind in the layers.

  Attributes:
    layers: by stack, keys and values, or latents; see Prompt and Cache.
    load: by stack of experts, tokens per expert, [L, E], padding not counted.
  """

  layers: dict[str, Any]
  load: moe.Load


def forward(
  params: Params,
  cfg: ModelConfig,
  tokens: Int[Array, "*rows T"],
  positions: Int[Array, "*rows T"],
  segments: Int[Array, "*rows T"] | Bool[Array, "*rows T"],
  *,
  prompt: Prompt | None = None,
  cache: Cache | None = None,
) -> tuple[Float[Array, "*rows T D"], Trace]:
  """Returns the normalized last hidden states, and what the layers keep.

  Args:
    params: parameters, stacked or unstacked.
    cfg: the model.
    tokens: [B, T] text, or [P, G, T] completions. Ids at padding are never
      read by a real position.
    positions: rotary positions, from 0 in each sequence.
    segments: a position sees those before it that have its own segment; 0, or
      False, is padding. A mask is one segment. With a cache a row is one
      segment.
    prompt: what the G rows of each group also see, whatever their segment.
    cache: earlier keys and values; x is written at slot `cache.length`, and
      what is returned is the cache with x in it (T = 1).
  """
  flat = tokens.ndim == 2
  if flat:
    tokens, positions, segments = (
      x[:, None] for x in (tokens, positions, segments)
    )
  rows = sharding.row_spec(tokens, 3)
  table = sharding.to_use(params["embed"], ("vocab", "embed"), cfg.dtype)
  x = table.at[tokens].get(out_sharding=sharding.out(rows, None))
  angles = layers.rotary_angles(
    positions, cfg.rotary_dim, cfg.rope_theta, cfg.rope_scaling
  )
  if cache is None:
    visible = _causal(cfg, segments, positions)
  else:
    visible = _cached(cfg, cache)
  visible_prompt = None
  if prompt is not None:
    visible_prompt = _prompt_slots(cfg, prompt.mask, positions)
  attend = _attention(cfg).attention

  def block(stack, x, layer):
    layer_params, layer_prompt, layer_cache = layer
    y, kv = attend(
      layer_params["attention"],
      cfg,
      layers.rms_norm(x, layer_params["attention"]["norm"], cfg.norm_eps),
      angles,
      visible,
      prompt=None if prompt is None else (layer_prompt, visible_prompt),
      cache=None if cache is None else (layer_cache, cache.length),
    )
    x = x + y
    mlp_params = layer_params[stack.mlp]
    y = layers.rms_norm(x, mlp_params["norm"], cfg.norm_eps)
    y, load = _MLPS[stack.mlp](mlp_params, cfg, y, segments != 0)
    return x + y, (kv, load)

  kvs, loads = {}, {}
  for stack in cfg.stacks:
    per_layer = (
      params[stack.name],
      None if prompt is None else prompt.layers[stack.name],
      None if cache is None else cache.layers[stack.name],
    )
    x, (kvs[stack.name], load) = _run(cfg, stack, block, x, per_layer)
    if load is not None:
      loads[stack.name] = load
  x = layers.rms_norm(x, params["norm"], cfg.norm_eps)
  return (x[:, 0] if flat else x), Trace(kvs, loads)


def _run(cfg, stack: Stack, block, x, per_layer):
  """Returns x behind a stack's layers, and what each of them leaves."""
  block = functools.partial(block, stack)
  if cfg.remat != "none":
    block = jax.checkpoint(block, policy=_REMAT[cfg.remat])
  if not isinstance(per_layer[0], tuple):
    return jax.lax.scan(block, x, per_layer)
  kvs, loads = [], []
  for i in range(stack.num_layers):
    x, (kv, load) = block(x, tuple(p if p is None else p[i] for p in per_layer))
    kvs.append(kv)
    loads.append(load)
  return x, (tuple(kvs), None if loads[0] is None else jnp.stack(loads))


def _attention(cfg: ModelConfig):
  """Returns the module of the model's attention."""
  return mla if cfg.latent_dim else attention


def _dense(params, cfg, x, real):
  del real
  return layers.mlp(params, cfg, x), None


# By the name of what follows the attention in a stack.
_MLPS = {"mlp": _dense, "moe": moe.moe}


def prefill(
  params: Params,
  cfg: ModelConfig,
  tokens: Int[Array, "P S"],
  mask: Bool[Array, "P S"],
) -> tuple[Float[Array, "P D"], Prompt]:
  """Returns the hidden state after each prompt, and what completions attend to.

  Prompts are padded on the left: the last slot is each prompt's last token.
  """
  hidden, trace = forward(params, cfg, tokens, weighting.positions(mask), mask)
  without_group = jax.tree.map(
    functools.partial(jnp.squeeze, axis=-4), trace.layers
  )
  return hidden[:, -1], Prompt(without_group, mask, trace.load)


def completion_positions(
  prompt_mask: Bool[Array, "P S"], group_size: int, length: int
) -> Int[Array, "P G N"]:
  """Returns the positions of completions: they go on where the prompt ends."""
  starts = jnp.sum(prompt_mask, axis=-1, dtype=jnp.int32)
  slots = jnp.arange(length)
  positions = starts[:, None, None] + slots
  return jnp.broadcast_to(positions, (starts.shape[0], group_size, length))


def unstack(params: Params, cfg: ModelConfig) -> Params:
  """Returns parameters whose stacks are tuples, cast and gathered for use.

  The tree that decoding reads at every token: in the compute dtype, and
  sharded by the SAMPLE table.
  """

  def use(spec, x):
    return layers.to_use(x, spec.axes, cfg.dtype if spec.is_cast else None)

  used = jax.tree.map(use, param_specs(cfg), params)
  return used | {
    stack.name: tuple(
      jax.tree.map(lambda x, i=i: x[i], used[stack.name])
      for i in range(stack.num_layers)
    )
    for stack in cfg.stacks
  }


def empty_cache(
  cfg: ModelConfig, tokens: Int[Array, "P G"], slots: int
) -> Cache:
  """Returns a cache with `slots` empty slots for the rows of `tokens`."""
  empty = _attention(cfg).empty
  return Cache(
    {
      stack.name: tuple(
        empty(cfg, tokens, slots) for _ in range(stack.num_layers)
      )
      for stack in cfg.stacks
    },
    jnp.zeros((), jnp.int32),
  )


def grow(cache: Cache, slots: int) -> Cache:
  """Returns the cache with room for `slots` slots in all."""

  def pad(x: Array) -> Array:
    more = slots - x.shape[3]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more), (0, 0)))

  return cache.replace(layers=jax.tree.map(pad, cache.layers))


def _causal(
  cfg: ModelConfig, segments: Array, positions: Array
) -> Bool[Array, "P G T T"]:
  """Returns which positions see which: same segment, not later, not padding."""
  segments = segments.astype(jnp.int32)
  same = segments[..., :, None] == segments[..., None, :]
  real = segments[..., None, :] != 0
  order = jnp.arange(segments.shape[-1])
  visible = same & real & (order[:, None] >= order[None, :])
  if cfg.sliding_window:
    distance = positions[..., :, None] - positions[..., None, :]
    visible &= distance < cfg.sliding_window
  return visible


def _cached(cfg: ModelConfig, cache: Cache) -> Bool[Array, " C"]:
  """Returns which slots of a cache the position at `cache.length` sees."""
  slots = jnp.arange(jax.tree.leaves(cache.layers)[0].shape[3])
  visible = slots <= cache.length
  if cfg.sliding_window:
    # Slots of a cache are consecutive positions.
    visible &= cache.length - slots < cfg.sliding_window
  return visible


def _prompt_slots(
  cfg: ModelConfig, mask: Array, positions: Array
) -> Bool[Array, "P #G #T S"]:
  """Returns which slots of its prompt each position sees."""
  if not cfg.sliding_window:
    return mask[:, None, None]
  distance = positions[..., None] - weighting.positions(mask)[:, None, None]
  return mask[:, None, None] & (distance < cfg.sliding_window)
