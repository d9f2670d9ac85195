"""RMSNorm, rotary embedding, gated MLP.

Rows are any leading axes; T positions, D width, F feed-forward width, H head
width. Norms and angles are computed in float32 whatever the dtype of x.
"""

import jax
import jax.numpy as jnp
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
  x: Float[Array, "*rows T K H"],
  angles: tuple[Float[Array, "*rows T H2"], Float[Array, "*rows T H2"]],
) -> Float[Array, "*rows T K H"]:
  """Rotates pairs (i, i + H/2) of each head, the layout of Hugging Face."""
  cos, sin = (a[..., None, :] for a in angles)
  left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = (left * cos - right * sin, right * cos + left * sin)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def mlp(
  params: dict, cfg: ModelConfig, x: Float[Array, "*rows D"]
) -> Float[Array, "*rows D"]:
  """Returns (silu(x gate) * x up) down (SwiGLU, arXiv 2002.05202, eq. 6)."""
  rows = sharding.row_spec(x, x.ndim - 1)
  gate, up = (
    sharding.to_use(params[name], ("embed", "ffn"), x.dtype)
    for name in ("gate", "up")
  )
  down = sharding.to_use(params["down"], ("ffn", "embed"), x.dtype)
  inner = jax.nn.silu(x @ gate) * (x @ up)
  return jnp.einsum(
    "...F,FD->...D", inner, down, out_sharding=sharding.out(rows, None)
  )
