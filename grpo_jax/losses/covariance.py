"""Surrogates that single out the few tokens which lower the entropy most.

The entropy falls as log pi and the advantage covary, and a few tokens carry
most of that: Cui et al., https://arxiv.org/abs/2505.22617. A token's share is

  c = (A - mean A) (log pi - mean log pi)

with means over all tokens given, and the cut between few and many is over them
too. So the pieces of an update do not add up to the whole: give it in one, as
`policy.check` demands.

Dimension key: T positions; `*rows` is any number of leading axes.
"""

import jax
import jax.numpy as jnp

from grpo_jax.losses import correction, surrogates


def clip_cov(
  tokens: surrogates.Tokens,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  fraction: float = 2e-4,
  cov_low: float = 1.0,
  cov_high: float = 5.0,
) -> surrogates.Result:
  """Clip-Cov: GRPO without the few tokens that lower the entropy most.

  That of `surrogates.grpo`, or 0 at the `fraction` of all tokens that have the
  largest c between `cov_low` and `cov_high` and are not clipped. The paper
  draws them at random between the bounds; the defaults are those of its code.

  Args:
    tokens: of completions.
    clip_low: at least 0.
    clip_high: at least 0.
    fraction: of all tokens, in (0, 1].
    cov_low: in nats of advantage.
    cov_high: in nats of advantage.

  Raises:
    ValueError: as in `surrogates.grpo`, or `fraction` is not in (0, 1].
  """
  surrogate, marks = surrogates.grpo(
    tokens, clip_low=clip_low, clip_high=clip_high
  )
  cov, count = _covariance(tokens, fraction)
  fit = tokens.inside & (cov > cov_low) & (cov < cov_high)
  fit &= ~marks["clip_ratio/region_mean"]
  drop = correction.highest(cov, fit, count)
  marks = marks | {"clip_ratio/cov_mean": drop}
  return jnp.where(drop, 0.0, surrogate), marks


def kl_cov(
  tokens: surrogates.Tokens, *, fraction: float = 2e-4, cov_kl_coef: float = 1.0
) -> surrogates.Result:
  """KL-Cov: a pull to the old policy at the few tokens of largest covariance.

  rho A, less cov_kl_coef |log rho| at the `fraction` of all tokens with the
  largest c; nothing is clipped. The defaults are those of the paper's code.

  Args:
    tokens: of completions.
    fraction: of all tokens, in (0, 1].
    cov_kl_coef: at least 0.

  Raises:
    ValueError: `fraction` is not in (0, 1].
  """
  cov, count = _covariance(tokens, fraction)
  pulled = correction.highest(cov, tokens.inside, count)
  pull = jnp.where(pulled, cov_kl_coef * jnp.abs(tokens.log_ratio), 0.0)
  marks = {"clip_ratio/cov_mean": pulled}
  return tokens.ratio * tokens.advantages - pull, marks


def _covariance(tokens, fraction):
  """Each token's share of the covariance, and how many tokens to choose."""
  if not 0 < fraction <= 1:
    raise ValueError(f"{fraction=} must be in (0, 1].")
  count = jnp.sum(tokens.inside, dtype=jnp.float32)

  def center(x):
    return x - jnp.sum(x) / jnp.maximum(count, 1.0)

  cov = center(tokens.advantages) * center(tokens.logprobs)
  return jax.lax.stop_gradient(cov), jnp.ceil(fraction * count)
