"""From logits to the distribution that is drawn from: logits in, logits out.

V vocabulary. Each function leaves the kept logits as they are and sets the
others to -inf, so that filters compose in any order.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Of a sum of probabilities.
_ROUNDING = 1e-6


def top_k(logits: Float[Array, "*rows V"], k: int) -> Float[Array, "*rows V"]:
  """Keeps the k largest logits, and any equal to the smallest of those."""
  smallest = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
  return jnp.where(logits < smallest, -jnp.inf, logits)


def top_p(logits: Float[Array, "*rows V"], p: float) -> Float[Array, "*rows V"]:
  """Keeps the fewest most probable tokens that together reach p.

  Nucleus sampling (arXiv 1904.09751, section 3.1). The most probable token is
  always kept, and so is any as probable as the last one kept. Sums reach p when
  they do so but for the rounding of V additions in float32.
  """
  probs = jax.nn.softmax(logits, axis=-1)
  ordered = jnp.sort(probs, axis=-1, descending=True)
  before = jnp.cumsum(ordered, axis=-1) - ordered
  # 0.5 + 0.3 is less than 0.8 in float32.
  kept = before < p - _ROUNDING
  kept |= jnp.arange(logits.shape[-1]) == 0
  least = jnp.min(jnp.where(kept, ordered, 1.0), axis=-1, keepdims=True)
  return jnp.where(probs < least, -jnp.inf, logits)


def min_p(logits: Float[Array, "*rows V"], p: float) -> Float[Array, "*rows V"]:
  """Keeps tokens at least p times as probable as the most probable one.

  arXiv 2407.01082, section 3.
  """
  top = jnp.max(logits, axis=-1, keepdims=True)
  return jnp.where(logits < top + jnp.log(p), -jnp.inf, logits)


def process(
  logits: Float[Array, "*rows V"],
  *,
  temperature: float = 1.0,
  top_k_: int = 0,
  top_p_: float = 1.0,
  min_p_: float = 0.0,
) -> Float[Array, "*rows V"]:
  """Returns log-probabilities of the distribution that is drawn from, in nats.

  Temperature first, then the filters on the scaled logits, then normalized.

  Args:
    logits: of the model.
    temperature: above 0; 0 puts all mass on the largest logit.
    top_k_: 0 keeps all.
    top_p_: 1 keeps all, 0 the most probable one.
    min_p_: 0 keeps all.
  """
  logits = logits.astype(jnp.float32)
  if temperature == 0:
    best = jnp.argmax(logits, axis=-1, keepdims=True)
    slots = jnp.arange(logits.shape[-1])
    return jnp.where(slots == best, 0.0, -jnp.inf)
  logits = logits / temperature
  if top_k_:
    logits = top_k(logits, top_k_)
  if top_p_ < 1:
    logits = top_p(logits, top_p_)
  if min_p_ > 0:
    logits = min_p(logits, min_p_)
  return jax.nn.log_softmax(logits, axis=-1)
