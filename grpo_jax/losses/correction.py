"""Factors of each token's surrogate, for the sampler's error and stale data.

The sampler and the trainer never agree to the last bit, and what the sampler
computed (mu) is the distribution that the tokens came from. Each function gives
a factor per token, 0 outside the mask, to pass as `correction` to any objective
of `policy.py`. The denominator of the loss stays that of the weights, so a
dropped token is a zero and not a smaller mean.

`CORRECTIONS` names what a config may choose. Each row takes some of
`old_logprobs`, `sampler_logprobs`, `mask` and `entropy`, by name, and has its
options as keyword-only parameters.

A product of ratios over a sequence would punish long answers, and is not here.

Dimension key: T positions; `*rows` is any number of leading axes, each row one
completion.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.losses import kl as kl_lib


def keep_all(mask: Bool[Array, "*rows T"]) -> Float[Array, "*rows T"]:
  """1 at every token of the mask: no correction.

  Args:
    mask: the tokens that the policy chose.
  """
  return mask.astype(jnp.float32)


def truncate_tokens(
  old_logprobs: Float[Array, "*rows T"],
  sampler_logprobs: Float[Array, "*rows T"],
  mask: Bool[Array, "*rows T"],
  *,
  ratio_max: float = 2.0,
) -> Float[Array, "*rows T"]:
  """min(pi_old / mu, ratio_max): truncated importance sampling per token.

  Yao et al., https://fengyao.notion.site/off-policy-rl.

  Args:
    old_logprobs: of the drawing policy, as the trainer scores it, in nats.
    sampler_logprobs: of the same tokens as the sampler computed them.
    mask: the tokens that the policy chose.
    ratio_max: the paper's C, above 0.

  Raises:
    ValueError: `ratio_max` is not positive.
  """
  if ratio_max <= 0:
    raise ValueError(f"{ratio_max=} must be positive.")
  ratio = _ratio(old_logprobs, sampler_logprobs, mask)
  return jnp.where(mask, jnp.minimum(ratio, ratio_max), 0.0)


def keep_band(
  old_logprobs: Float[Array, "*rows T"],
  sampler_logprobs: Float[Array, "*rows T"],
  mask: Bool[Array, "*rows T"],
  *,
  ratio_min: float = 0.5,
  ratio_max: float = 5.0,
) -> Float[Array, "*rows T"]:
  """pi_old / mu within [ratio_min, ratio_max] and 0 outside: IcePop.

  https://ringtech.notion.site/icepop, whose defaults these are.

  Args:
    old_logprobs: as in `truncate_tokens`.
    sampler_logprobs: as in `truncate_tokens`.
    mask: as in `truncate_tokens`.
    ratio_min: the lower end of the band, at least 0.
    ratio_max: the upper end of the band, at least `ratio_min`.

  Raises:
    ValueError: the band is empty.
  """
  _check_band(ratio_min, ratio_max)
  ratio = _ratio(old_logprobs, sampler_logprobs, mask)
  inside = mask & (ratio >= ratio_min) & (ratio <= ratio_max)
  return jnp.where(inside, ratio, 0.0)


def keep_sequences(
  old_logprobs: Float[Array, "*rows T"],
  sampler_logprobs: Float[Array, "*rows T"],
  mask: Bool[Array, "*rows T"],
  *,
  ratio_min: float,
  ratio_max: float,
) -> Float[Array, "*rows T"]:
  """1 in rows whose geometric mean of pi_old / mu is in the band, 0 in others.

  exp(mean_t log(pi_old / mu)) does not grow with the length, so that long rows
  are not dropped for being long. Liu et al., "When Speed Kills Stability",
  https://richardli.xyz/rl-collapse.

  Args:
    old_logprobs: as in `truncate_tokens`.
    sampler_logprobs: as in `truncate_tokens`.
    mask: as in `truncate_tokens`.
    ratio_min: the lower end of the band, at least 0; near 1, as means are.
    ratio_max: the upper end of the band, at least `ratio_min`.

  Raises:
    ValueError: the band is empty.
  """
  _check_band(ratio_min, ratio_max)
  mean = _row_mean(old_logprobs, sampler_logprobs, mask)
  ratio = jnp.exp(kl_lib.clamp(mean))
  keep = mask & (ratio >= ratio_min) & (ratio <= ratio_max)
  return keep.astype(jnp.float32)


def drop_stale_negatives(
  logprobs: Float[Array, "*rows T"],
  old_logprobs: Float[Array, "*rows T"],
  advantages: Float[Array, "*rows T"],
  mask: Bool[Array, "*rows T"],
  *,
  threshold: float,
) -> Float[Array, "*rows T"]:
  """0 where A < 0 in rows that the policy has moved away from, else 1.

  A row is dropped if mean_t log(pi_old / pi) > threshold: off-policy sequence
  masking of DeepSeek-V3.2, https://arxiv.org/abs/2512.02556, section 3.1. It
  reads the present policy, so it belongs inside the loss function; there
  pi_old is what the sampler computed, so that both sources of staleness count.

  Args:
    logprobs: of the policy; no gradient flows through the mask.
    old_logprobs: of the policy that drew, or as the sampler computed them.
    advantages: of each token.
    mask: as in `truncate_tokens`.
    threshold: the paper's delta, in nats per token.
  """
  mean = _row_mean(old_logprobs, jax.lax.stop_gradient(logprobs), mask)
  stale = (mean > threshold) & (jnp.where(mask, advantages, 0.0) < 0)
  return (mask & ~stale).astype(jnp.float32)


def keep_high_entropy(
  entropy: Float[Array, "*rows T"],
  mask: Bool[Array, "*rows T"],
  *,
  fraction: float = 0.2,
) -> Float[Array, "*rows T"]:
  """1 at the `fraction` of all tokens with the highest entropy, 0 at others.

  The indicator in Wang et al., https://arxiv.org/abs/2506.01939, section 5; the
  paper divides by all tokens, as weights do that know nothing of this mask.
  The cut is over all rows given, so give those of one optimizer update. Tokens
  that tie with the last one kept are kept too.

  Args:
    entropy: in nats; no gradient flows through the mask.
    mask: the tokens to choose from.
    fraction: in (0, 1].

  Raises:
    ValueError: `fraction` is not in (0, 1].
  """
  if not 0 < fraction <= 1:
    raise ValueError(f"{fraction=} must be in (0, 1].")
  wanted = jnp.ceil(fraction * jnp.sum(mask, dtype=jnp.float32))
  return highest(entropy, mask, wanted).astype(jnp.float32)


def highest(
  x: Float[Array, "*rows T"],
  mask: Bool[Array, "*rows T"],
  count: Float[Array, ""],
) -> Bool[Array, "*rows T"]:
  """The tokens of the mask with the `count` largest x, of all rows given.

  Tokens that tie with the last one are there too, and all are if there are
  fewer than `count`.

  Args:
    x: finite inside the mask; no gradient flows through the choice.
    mask: the tokens to choose from.
    count: a whole number; at least 1 is chosen.
  """
  x = jax.lax.stop_gradient(jnp.where(mask, x.astype(jnp.float32), 0.0))

  def enough(cut):
    return jnp.sum(mask & (x >= cut), dtype=jnp.float32) >= count

  # Bisection instead of a sort, which a sharded axis does not have: `low` keeps
  # at least the wanted tokens, `high` fewer, until they are neighbors.
  def halve(_, bounds):
    low, high = bounds
    middle = 0.5 * (low + high)
    keeps = enough(middle)
    return jnp.where(keeps, middle, low), jnp.where(keeps, high, middle)

  low, high = jnp.min(x), jnp.max(jnp.where(mask, x, -jnp.inf))
  low, _ = jax.lax.fori_loop(0, 48, halve, (low, high))
  # The largest x itself is never a middle.
  return mask & (x >= jnp.where(enough(high), high, low))


def sampler_gap(
  old_logprobs: Float[Array, "*rows T"],
  sampler_logprobs: Float[Array, "*rows T"],
  mask: Bool[Array, "*rows T"],
) -> dict[str, Float[Array, ""]]:
  """How far the sampler's log-probs are from the trainer's.

  With w = pi_old / mu over the tokens of the mask. These are means and extremes
  over all rows given and do not add up over microbatches: call it once per
  rollout.

  Args:
    old_logprobs: as in `truncate_tokens`.
    sampler_logprobs: as in `truncate_tokens`.
    mask: as in `truncate_tokens`.

  Returns:
    sampling_logp_difference/mean and /max of |log w|, in nats;
    importance_sampling_ratio/min, /mean and /max of w; kl, the k3 estimate of
    KL(mu || pi_old) in nats; effective_sample_size,
    (sum w)^2 / (n sum w^2), at most 1. An empty mask gives a gap of 0.
  """
  log_ratio = kl_lib.clamp(
    kl_lib.masked_difference(old_logprobs, sampler_logprobs, mask)
  )
  ratio = jnp.exp(log_ratio)
  count = jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)
  some = jnp.any(mask)

  def mean(x):
    return jnp.sum(jnp.where(mask, x, 0.0)) / count

  gap = jnp.abs(log_ratio)
  square = mean(ratio**2)
  smallest = jnp.min(jnp.where(mask, ratio, jnp.inf))
  largest = jnp.max(jnp.where(mask, ratio, 0.0))
  return {
    "sampling_logp_difference/mean": mean(gap),
    "sampling_logp_difference/max": jnp.max(gap),
    "importance_sampling_ratio/min": jnp.where(some, smallest, 1.0),
    "importance_sampling_ratio/mean": jnp.where(some, mean(ratio), 1.0),
    "importance_sampling_ratio/max": jnp.where(some, largest, 1.0),
    "kl": mean(jnp.expm1(log_ratio) - log_ratio),
    "effective_sample_size": jnp.where(some, mean(ratio) ** 2 / square, 1.0),
  }


CORRECTIONS: dict[str, Callable[..., Array]] = {
  "none": keep_all,
  "truncate_tokens": truncate_tokens,
  "keep_band": keep_band,
  "keep_sequences": keep_sequences,
  "keep_high_entropy": keep_high_entropy,
}


def _ratio(old_logprobs, sampler_logprobs, mask):
  log_ratio = kl_lib.masked_difference(old_logprobs, sampler_logprobs, mask)
  return jnp.exp(kl_lib.clamp(log_ratio))


def _row_mean(logprobs, other_logprobs, mask):
  log_ratio = kl_lib.masked_difference(logprobs, other_logprobs, mask)
  length = jnp.sum(mask, axis=-1, keepdims=True, dtype=jnp.float32)
  return jnp.sum(log_ratio, axis=-1, keepdims=True) / jnp.maximum(length, 1.0)


def _check_band(ratio_min, ratio_max):
  if not 0 <= ratio_min <= ratio_max:
    raise ValueError(f"0 <= {ratio_min=} <= {ratio_max=} must hold.")
