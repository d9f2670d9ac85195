"""Weights and positions from masks.

A loss here is `sum(weights * per_token)`: the weights carry the whole reduction
and are computed once, from the mask of *all* rows of one optimizer update.
Microbatches and shards then add up to the same loss and gradient, and no width
of padding can enter it.

A row counts in a denominator if it holds at least one token of the mask. A row
whose advantage is zero therefore counts, and a row that was masked out whole
(a truncated completion, say) does not.

`WEIGHTINGS` names what a config may choose; each takes some of `mask` and
`length`, by name.

Dimension key: P prompts, G completions per prompt, T positions; `*rows` is any
number of leading axes, such as [B] or [P, G].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def sequence_mean(mask: Bool[Array, "*rows T"]) -> Float[Array, "*rows T"]:
  """Weights of the mean over rows of each row's mean over its own tokens.

  w[i, t] = mask[i, t] / (R * |o_i|), with |o_i| = sum_t mask[i, t] and R the
  number of rows that hold a token. The inner sums of GRPO: DeepSeekMath,
  https://arxiv.org/abs/2402.03300, equation 3.

  Args:
    mask: the tokens in the loss, of every row of one optimizer update.

  Returns:
    float32, zero outside the mask; they sum to 1 unless the mask is empty.
  """
  lengths = jnp.sum(mask, axis=-1, dtype=jnp.float32, keepdims=True)
  return mask / (jnp.maximum(lengths, 1.0) * _num_rows(mask))


def token_mean(mask: Bool[Array, "*rows T"]) -> Float[Array, "*rows T"]:
  """Weights of the mean over all tokens, so that long rows weigh more.

  w[i, t] = mask[i, t] / sum_j |o_j|: DAPO, https://arxiv.org/abs/2503.14476,
  equation 12 (section 3.3).

  Args:
    mask: the tokens in the loss, of every row of one optimizer update.

  Returns:
    float32, zero outside the mask; they sum to 1 unless the mask is empty.
  """
  return mask / jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)


def constant_length(
  mask: Bool[Array, "*rows T"], length: int
) -> Float[Array, "*rows T"]:
  """Weights that divide every row's sum by the same constant.

  w[i, t] = mask[i, t] / (R * length), with R the number of rows that hold a
  token: Dr. GRPO, https://arxiv.org/abs/2503.20783, section 3.2 and its
  listing 1 (`masked_mean` with a constant). They do not sum to 1.

  Args:
    mask: the tokens in the loss, of every row of one optimizer update.
    length: in tokens, at least 1; the configured limit of a completion, never
      the width that a batch was padded to.

  Returns:
    float32, zero outside the mask.

  Raises:
    ValueError: `length` is below 1.
  """
  if length < 1:
    raise ValueError(f"{length=} must be at least 1 token.")
  return mask / (length * _num_rows(mask))


def prompt_mean(mask: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
  """Weights of the mean over prompts of the mean over each one's tokens.

  w[p, g, t] = mask[p, g, t] / (Q * sum_j |o_pj|), with Q the number of prompts
  that hold a token: `token_mean` within a group, so that long rows weigh more
  there, while every problem has the same share.

  Args:
    mask: the tokens in the loss, of every group of one optimizer update.

  Returns:
    float32, zero outside the mask; they sum to 1 unless the mask is empty.
  """
  tokens = jnp.sum(mask, axis=(1, 2), dtype=jnp.float32, keepdims=True)
  prompts = jnp.maximum(jnp.sum(tokens > 0, dtype=jnp.float32), 1.0)
  return mask / (jnp.maximum(tokens, 1.0) * prompts)


WEIGHTINGS: dict[str, Callable[..., Array]] = {
  "sequence_mean": sequence_mean,
  "token_mean": token_mean,
  "constant_length": constant_length,
  "prompt_mean": prompt_mean,
}


def positions(mask: Bool[Array, "*rows T"]) -> Int[Array, "*rows T"]:
  """Counts real tokens from 0 within each row, whichever side is padded.

  Padding before the first token gets 0, padding behind a token repeats that
  token's position.
  """
  return jnp.maximum(jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)


def _num_rows(mask: Bool[Array, "*rows T"]) -> jax.Array:
  rows = jnp.sum(jnp.any(mask, axis=-1), dtype=jnp.float32)
  return jnp.maximum(rows, 1.0)
