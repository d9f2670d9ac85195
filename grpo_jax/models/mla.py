"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

P prompts, G completions each, T query positions, S prompt slots; N heads, H
width of queries and keys, U their rotary part, C width of the latent, W width
of the values, A rank of an adapter.

What is kept of a position is one vector [C + U] for all heads: a normalized
latent, from which `kv_up` makes each head's keys and values, and a rotated key
that the heads share. Two paths give the same numbers:

- Expanded, over many positions at once (training, scoring, prefill): keys
  [N, H] and values [N, W] are made, and attention is that of N heads.
- Absorbed, in decoding with a cache: q . (k_up c) = (k_up^T q) . c, so queries
  go to the latent's space and read the latents themselves, as if they were one
  key/value head of width C + U; what comes back goes through `v_up`. A step
  never makes keys and values of the positions before it.
"""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax import sharding
from grpo_jax.models import layers
from grpo_jax.models.attention import LayerKV, attend, written
from grpo_jax.models.config import ModelConfig

# DeepSeek's code has this in the norms of latents, whatever the config says.
_LATENT_NORM_EPS = 1e-6


@flax.struct.dataclass
class LatentKV:
  """Latents of one layer, [P, G, 1, C slots, C + U], or [P, 1, S, C + U]."""

  latents: Float[Array, "..."]


def attention(
  params: dict,
  cfg: ModelConfig,
  x: Float[Array, "P G T D"],
  angles: tuple[Float[Array, "P G T U2"], Float[Array, "P G T U2"]],
  visible: Bool[Array, "P G T C"] | Bool[Array, " C"],
  *,
  prompt: tuple[LatentKV, Bool[Array, "P #G #T S"]] | None = None,
  cache: tuple[LatentKV, Int[Array, ""]] | None = None,
) -> tuple[Float[Array, "P G T D"], LatentKV]:
  """Returns the attention's output and the rows' own latents.

  The arguments are those of `models.attention.attention`. With a cache the
  absorbed path is taken, without one the expanded path.
  """
  q = _queries(params, cfg, x, angles)
  own = _latents(params, cfg, x, angles)
  kv_up = layers.to_use(params["kv_up"], ("embed", "heads", None), x.dtype)
  if cache is None:
    if prompt is not None:
      prompt = _expanded(cfg, kv_up, prompt[0]), prompt[1]
    y = attend(q[:, :, :, :, None], _expanded(cfg, kv_up, own), visible, prompt)
    y = jnp.moveaxis(y[:, :, :, :, 0].astype(x.dtype), 2, 3)
  else:
    own = written(*cache, own)
    if prompt is not None:
      prompt = _as_one_head(cfg, prompt[0]), prompt[1]
    k_up, v_up = _split_heads(kv_up, cfg.head_dim - cfg.rope_dim)
    q_nope, q_rope = _split(q, cfg.head_dim - cfg.rope_dim)
    q_latent = _absorb_keys(q_nope, k_up)
    q = jnp.concatenate([q_latent, q_rope], axis=-1)
    q = jnp.moveaxis(q, 2, 3)[:, :, None]
    y = attend(q, _as_one_head(cfg, own), visible, prompt).astype(x.dtype)
    y = _absorb_values(y[:, :, 0], v_up)
  axes = "heads", None, "embed"
  return layers.linear(y, params["o"], axes, contract=2), own


def empty(cfg: ModelConfig, tokens: Int[Array, "P G"], slots: int) -> LatentKV:
  """Returns one layer's cache with `slots` empty slots for rows of tokens."""
  shape = (*tokens.shape, 1, slots, cfg.latent_dim + cfg.rope_dim)
  where = sharding.out(sharding.row_spec(tokens, 2), None, None, None)
  return LatentKV(jnp.zeros(shape, cfg.dtype, out_sharding=where))


def _queries(params, cfg, x, angles):
  """Returns scaled queries [P, G, N, T, H], their last U rotated."""
  if cfg.query_latent_dim:
    x = layers.linear(x, params["q_down"], ("embed", None))
    x = layers.rms_norm(x, params["q_norm"], _LATENT_NORM_EPS)
  name = "q_up" if cfg.query_latent_dim else "q"
  q = layers.linear(x, params[name], ("embed", "heads", None))
  q = jnp.moveaxis(q, 3, 2)
  nope, rope = _split(q, cfg.head_dim - cfg.rope_dim)
  angles = tuple(a[:, :, None] for a in angles)
  rope = layers.rotate(rope, angles, cfg.rope_interleaved)
  q = jnp.concatenate([nope, rope], axis=-1)
  return q * jnp.asarray(layers.latent_score_scale(cfg), q.dtype)


def _latents(params, cfg, x, angles):
  latent = layers.linear(x, params["kv_down"], ("embed", None))
  latent, rope = _split(latent, cfg.latent_dim)
  latent = layers.rms_norm(latent, params["kv_norm"], _LATENT_NORM_EPS)
  rope = layers.rotate(rope, angles, cfg.rope_interleaved)
  return LatentKV(jnp.concatenate([latent, rope], axis=-1)[:, :, None])


def _expanded(cfg, kv_up, kv):
  """Returns keys [..., N, S, H] and values [..., N, S, W] of latents."""
  latent, rope = _split(kv.latents[..., 0, :, :], cfg.latent_dim)
  nope, values = _split(
    layers.dense(latent, kv_up), cfg.head_dim - cfg.rope_dim
  )
  rope = jnp.broadcast_to(rope[..., None, :], (*nope.shape[:-1], cfg.rope_dim))
  keys = jnp.concatenate([nope, sharding.reshard_like(rope, nope)], axis=-1)
  return LayerKV(jnp.moveaxis(keys, -2, -3), jnp.moveaxis(values, -2, -3))


def _as_one_head(cfg, kv):
  return LayerKV(kv.latents, kv.latents[..., : cfg.latent_dim])


def _absorb_keys(q, k_up):
  """Returns queries [P, G, N, T, H] in the space of the latents."""
  if isinstance(k_up, layers.Adapted):
    # Not merged: in bf16 a sum would lose what small adapters say.
    change = jnp.einsum("PGNTH,ANH->PGNTA", q, k_up.up)
    change = jnp.einsum("PGNTA,CA->PGNTC", change, k_up.down)
    return _absorb_keys(q, k_up.weight) + change * k_up.scale
  return jnp.einsum("PGNTH,CNH->PGNTC", q, k_up)


def _absorb_values(y, v_up):
  """Returns values [P, G, T, N, W] of mixed latents [P, G, T, N, C]."""
  if isinstance(v_up, layers.Adapted):
    change = jnp.einsum("PGTNC,CA->PGTNA", y, v_up.down)
    change = jnp.einsum("PGTNA,ANW->PGTNW", change, v_up.up)
    return _absorb_values(y, v_up.weight) + change * v_up.scale
  return jnp.einsum("PGTNC,CNW->PGTNW", y, v_up)


def _split_heads(kv_up, at):
  """Returns the parts of `kv_up` that make keys, and values."""
  if not isinstance(kv_up, layers.Adapted):
    return _split(kv_up, at)
  weights, ups = _split(kv_up.weight, at), _split(kv_up.up, at)
  return tuple(
    kv_up.replace(weight=weight, up=up)
    for weight, up in zip(weights, ups, strict=True)
  )


def _split(x, at):
  return x[..., :at], x[..., at:]
