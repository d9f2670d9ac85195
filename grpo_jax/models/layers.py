"""Matrix products, with adapters or without; RMSNorm, rotary embedding, MLP.

Rows are any leading axes; T positions, D width, F feed-forward width, H head
width. Norms and angles are computed in float32 whatever the dtype of x.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from grpo_jax import sharding
from grpo_jax.models.config import ModelConfig, RopeScaling


@flax.struct.dataclass
class Adapted:
  """A matrix and its low-rank adapter, in the place of the matrix alone.

  It acts as weight + scale * down up (LoRA, arXiv 2106.09685, eq. 3), without
  making that sum. Stacked or in use, as the weight is.

  Attributes:
    weight: inputs, then outputs; frozen.
    down: [*inputs, rank].
    up: [rank, *outputs].
    scale: of the product.
  """

  weight: Float[Array, "..."]
  down: Float[Array, "..."]
  up: Float[Array, "..."]
  scale: float = flax.struct.field(pytree_node=False)


Weight = Float[Array, "..."] | Adapted


def rms_norm(
  x: Float[Array, "*rows D"], scale: Float[Array, " D"], eps: float
) -> Float[Array, "*rows D"]:
  """Returns x / sqrt(mean(x^2) + eps) * scale (arXiv 1910.07467, eq. 4)."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
  return (y * scale.astype(jnp.float32)).astype(x.dtype)


def rotary_angles(
  positions: Int[Array, "*rows T"],
  head_dim: int,
  theta: float,
  scaling: RopeScaling | None = None,
) -> tuple[Float[Array, "*rows T H2"], Float[Array, "*rows T H2"]]:
  """Returns cosines and sines, H2 = H / 2 (RoFormer, arXiv 2104.09864).

  YaRN also multiplies them by its attention factor.
  """
  exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
  frequencies = theta**-exponents
  if scaling is not None:
    frequencies = _stretch(frequencies, theta, scaling)
  angles = positions[..., None].astype(jnp.float32) * frequencies
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  if scaling is None or scaling.kind != "yarn":
    return cos, sin
  factor = _yarn_factor(scaling)
  return cos * factor, sin * factor


def rotate(
  x: Float[Array, "*rows H"],
  angles: tuple[Float[Array, "*#rows H2"], Float[Array, "*#rows H2"]],
  interleaved: bool = False,
) -> Float[Array, "*rows H"]:
  """Rotates pairs (i, i + H/2) of each head, the layout of Hugging Face.

  Interleaved pairs (2i, 2i + 1) come out as (i, i + H/2), in queries and keys
  alike.
  """
  cos, sin = angles
  x32 = x.astype(jnp.float32)
  if interleaved:
    left, right = x32[..., 0::2], x32[..., 1::2]
  else:
    left, right = jnp.split(x32, 2, axis=-1)
  turned = (left * cos - right * sin, right * cos + left * sin)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def latent_score_scale(cfg: ModelConfig) -> float:
  """Returns what latent attention multiplies q . k by.

  1 / sqrt(H), times YaRN's (0.1 mscale_all_dim log(factor) + 1)^2.
  """
  scaling = cfg.rope_scaling
  if scaling is None:
    return cfg.head_dim**-0.5
  return cfg.head_dim**-0.5 * _mscale(scaling, scaling.mscale_all_dim) ** 2


def _stretch(frequencies, theta, scaling):
  """Returns frequencies, between f / factor and f, by how many turns f has."""
  if scaling.kind == "linear":
    return frequencies / scaling.factor
  if scaling.kind == "llama3":
    turns = scaling.original_length * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
  else:
    # YaRN's ramp is over the index of the frequency, its ends rounded.
    count = len(frequencies)

    def index(turns):
      ratio = scaling.original_length / (turns * 2 * math.pi)
      return count * math.log(ratio) / math.log(theta)

    first = max(math.floor(index(scaling.beta_fast)), 0)
    last = min(math.ceil(index(scaling.beta_slow)), 2 * count - 1)
    ramp = (jnp.arange(count) - first) / max(last - first, 1e-3)
    keep = 1.0 - jnp.clip(ramp, 0.0, 1.0)
  return frequencies * (keep + (1.0 - keep) / scaling.factor)


def _yarn_factor(scaling):
  if scaling.attention_factor:
    return scaling.attention_factor
  if scaling.mscale and scaling.mscale_all_dim:
    return _mscale(scaling, scaling.mscale) / _mscale(
      scaling, scaling.mscale_all_dim
    )
  return _mscale(scaling, 1.0)


def _mscale(scaling, times):
  return 0.1 * times * math.log(scaling.factor) + 1.0


def linear(
  x: Float[Array, "..."],
  weight: Weight,
  axes: Sequence[str | None],
  contract: int = 1,
) -> Float[Array, "..."]:
  """Returns x @ weight, of a weight at rest, in the dtype of x.

  Args:
    x: as for `dense`.
    weight: with its adapter, if it has one.
    axes: logical axes of the weight.
    contract: as for `dense`.
  """
  return dense(x, to_use(weight, axes, x.dtype), contract)


def to_use(weight: Weight, axes: Sequence[str | None], dtype: Any) -> Weight:
  """Returns `sharding.to_use` of a weight, and of its adapter if it has one.

  Args:
    weight: of one layer, or stacked.
    axes: logical axes of the weight, that of the stack included.
    dtype: to compute in; None to leave it.
  """
  if not isinstance(weight, Adapted):
    return sharding.to_use(weight, axes, dtype)
  # Both factors have the axis of the stack, and the rank in between.
  inputs = weight.down.ndim - 1
  outputs = weight.weight.ndim - inputs
  stacked = weight.up.ndim - 1 - outputs
  down = *axes[:inputs], None
  up = *axes[:stacked], None, *axes[inputs:]
  return weight.replace(
    weight=sharding.to_use(weight.weight, axes, dtype),
    down=sharding.to_use(weight.down, down, dtype),
    up=sharding.to_use(weight.up, up, dtype),
  )


def dense(
  x: Float[Array, "..."], weight: Weight, contract: int = 1
) -> Float[Array, "..."]:
  """Returns x @ weight with rows, inputs and outputs each as one axis.

  An einsum over all axes gives the same; a matrix product spares XLA on a CPU
  the copies of transposed arrays, a third of the time of a training step.
  Rows that two mesh axes split stay apart.

  Args:
    x: rows, then `contract` axes of inputs.
    weight: `contract` axes of inputs, then any of outputs; in use, see
      `to_use`.
    contract: how many axes are inputs.
  """
  if isinstance(weight, Adapted):
    change = dense(dense(x, weight.down, contract), weight.up)
    return dense(x, weight.weight, contract) + change * weight.scale
  rows, inputs = x.shape[:-contract], x.shape[-contract:]
  outputs = weight.shape[contract:]
  i, o = math.prod(inputs), math.prod(outputs)
  if not sharding.has_mesh():
    y = x.reshape(-1, i) @ weight.reshape(i, o)
    return y.reshape(*rows, *outputs)
  split = sharding.row_spec(x, len(rows))
  # Of several inputs or outputs, only the first (heads) is ever split.
  split_in, split_out = (
    sharding.row_spec(weight, weight.ndim)[axis] for axis in (0, contract)
  )
  flat, flat_split = rows, split
  if not any(split[1:]):
    flat, flat_split = (math.prod(rows),), split[:1]

  def reshape(x, shape, *where):
    return jax.lax.reshape(x, shape, out_sharding=PartitionSpec(*where))

  y = jnp.einsum(
    "...I,IO->...O",
    reshape(x, (*flat, i), *flat_split, split_in),
    reshape(weight, (i, o), split_in, split_out),
    out_sharding=PartitionSpec(*flat_split, split_out),
  )
  return reshape(y, (*rows, *outputs), *split, split_out)


def mlp(
  params: dict, cfg: ModelConfig, x: Float[Array, "*rows D"]
) -> Float[Array, "*rows D"]:
  """Returns (silu(x gate) * x up) down (SwiGLU, arXiv 2002.05202, eq. 6)."""
  gate, up = (
    linear(x, params[name], ("embed", "ffn")) for name in ("gate", "up")
  )
  return linear(jax.nn.silu(gate) * up, params["down"], ("ffn", "embed"))
