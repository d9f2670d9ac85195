"""RMSNorm, rotary embedding, gated MLP.

Rows are any leading axes; T positions, D width, F feed-forward width, H head
width. Norms and angles are computed in float32 whatever the dtype of x.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from grpo_jax import sharding
from grpo_jax.models.config import ModelConfig


def rms_norm(
  x: Float[Array, "*rows D"], scale: Float[Array, " D"], eps: float
) -> Float[Array, "*rows D"]:
  """Returns x / sqrt(mean(x^2) + eps) * scale (arXiv 1910.07467, eq. 4)."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
  return (y * scale.astype(jnp.float32)).astype(x.dtype)


def rotary_angles(
  positions: Int[Array, "*rows T"], head_dim: int, theta: float
) -> tuple[Float[Array, "*rows T H2"], Float[Array, "*rows T H2"]]:
  """Returns cosines and sines, H2 = H / 2 (RoFormer, arXiv 2104.09864)."""
  exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
  angles = positions[..., None].astype(jnp.float32) * theta**-exponents
  return jnp.cos(angles), jnp.sin(angles)


def rotate(
  x: Float[Array, "*rows H"],
  angles: tuple[Float[Array, "*#rows H2"], Float[Array, "*#rows H2"]],
) -> Float[Array, "*rows H"]:
  """Rotates pairs (i, i + H/2) of each head, the layout of Hugging Face."""
  cos, sin = angles
  left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = (left * cos - right * sin, right * cos + left * sin)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def dense(
  x: Float[Array, "..."], weight: Float[Array, "..."], contract: int = 1
) -> Float[Array, "..."]:
  """Returns x @ weight with rows, inputs and outputs each as one axis.

  An einsum over all axes gives the same; a matrix product spares XLA on a CPU
  the copies of transposed arrays, a third of the time of a training step.
  Rows that two mesh axes split stay apart.

  Args:
    x: rows, then `contract` axes of inputs.
    weight: `contract` axes of inputs, then any of outputs; in use, see
      `sharding.to_use`.
    contract: how many axes are inputs.
  """
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
    sharding.to_use(params[name], ("embed", "ffn"), x.dtype)
    for name in ("gate", "up")
  )
  down = sharding.to_use(params["down"], ("ffn", "embed"), x.dtype)
  return dense(jax.nn.silu(dense(x, gate)) * dense(x, up), down)
