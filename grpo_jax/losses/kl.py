"""Estimators of KL(policy || reference) from the tokens that were drawn.

With d = log pi - log pi_ref at a token drawn from pi: k1 = d, k2 = d^2 / 2,
k3 = exp(-d) - 1 + d. Schulman, http://joschu.net/blog/kl-approx.html. As
*values* k1 and k3 are unbiased and k2 is not; k1 alone can be negative.

As a *loss* only the gradient counts, and the gradient of a sample's value is
not that of the expectation. On policy, the expected gradient of k1 is zero,
that of k2 is the gradient of the reverse KL, and that of k3, the paper's, is
the gradient of KL(pi_ref || pi), close to it near d = 0. "k3_k2" has the value
of k3 and the gradient of k2.

Off policy every estimate is weighed by pi / pi_old. For k1 and k3 the weight
carries gradient, which completes theirs to the exact one (DeepSeek-V3.2,
https://arxiv.org/abs/2512.02556, section 3.1, "unbiased KL estimate"); for k2
and k3_k2, whose gradient is complete already, it is a constant.

Dimension key: T positions; `*rows` is any number of leading axes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Largest log-ratio that is put into exp: e^20 is 4.9e8.
MAX_LOG_RATIO = 20.0


def clamp(log_ratio: Array) -> Array:
  """Log-ratios within +-20, which are safe to put into exp."""
  return jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def _k1(d):
  return d


def _k2(d):
  return 0.5 * d**2


def _k3(d):
  return jnp.exp(clamp(-d)) - 1.0 + d


def _k3_k2(d):
  k2 = _k2(d)
  return jax.lax.stop_gradient(_k3(d)) + k2 - jax.lax.stop_gradient(k2)


ESTIMATORS = {"k1": _k1, "k2": _k2, "k3": _k3, "k3_k2": _k3_k2}


def estimate(
  logprobs: Float[Array, "*rows T"],
  ref_logprobs: Float[Array, "*rows T"],
  mask: Bool[Array, "*rows T"],
  *,
  estimator: str = "k3",
  old_logprobs: Float[Array, "*rows T"] | None = None,
) -> Float[Array, "*rows T"]:
  """The estimate at every token, in nats, and 0 outside the mask.

  Args:
    logprobs: of the policy.
    ref_logprobs: of the reference; a constant.
    mask: what lies outside is never read.
    estimator: a key of `ESTIMATORS`, described above.
    old_logprobs: of the policy that drew the tokens; weighs the estimate by
      pi / pi_old. None where that is the policy itself.

  Raises:
    ValueError: `estimator` is unknown.
  """
  if estimator not in ESTIMATORS:
    raise ValueError(f"{estimator=} must be one of {sorted(ESTIMATORS)}.")
  d = masked_difference(logprobs, jax.lax.stop_gradient(ref_logprobs), mask)
  value = ESTIMATORS[estimator](d)
  if old_logprobs is None:
    return value
  log_ratio = masked_difference(
    logprobs, jax.lax.stop_gradient(old_logprobs), mask
  )
  ratio = jnp.exp(clamp(log_ratio))
  if estimator in ("k2", "k3_k2"):
    ratio = jax.lax.stop_gradient(ratio)
  return ratio * value


def reward_penalty(
  old_logprobs: Float[Array, "*rows T"],
  ref_logprobs: Float[Array, "*rows T"],
  mask: Bool[Array, "*rows T"],
  *,
  kl_coef: Float[Array, ""] | float,
) -> Float[Array, "*rows T"]:
  """The KL term as a reward of each token, -kl_coef (log pi_old - log pi_ref).

  k1, whose expected return has exactly the gradient of the reverse KL: Ziegler
  et al., https://arxiv.org/abs/1909.08593, equation 2.

  Args:
    old_logprobs: of the policy that drew the tokens.
    ref_logprobs: of the reference.
    mask: the tokens that the policy chose; 0 outside.
    kl_coef: at least 0, in reward per nat.
  """
  return -kl_coef * masked_difference(old_logprobs, ref_logprobs, mask)


def adapt_coef(
  kl_coef: Float[Array, ""] | float,
  kl: Float[Array, ""] | float,
  *,
  target: float,
  rate: float = 0.1,
  max_error: float = 0.2,
) -> Float[Array, ""]:
  """The coefficient of the next step, from the KL of this one.

  e = clip((kl - target) / target, -max_error, max_error) and
  coef' = coef (1 + rate e): Ziegler et al., https://arxiv.org/abs/1909.08593,
  section 2.2. A coefficient of 0 stays 0.

  Args:
    kl_coef: of this step.
    kl: measured over all tokens of this step, in the units of `target`.
    target: above 0, in nats.
    rate: the paper's K_beta, per step.
    max_error: bound of the relative error.

  Raises:
    ValueError: `target` is not positive.
  """
  if target <= 0:
    raise ValueError(f"{target=} must be positive.")
  error = jnp.clip((kl - target) / target, -max_error, max_error)
  return jnp.asarray(kl_coef * (1.0 + rate * error), jnp.float32)


def adapt_entropy_coef(
  entropy_coef: float,
  entropy: float,
  *,
  target: float,
  delta: float = 0.005,
  max_coef: float = 1.0,
) -> tuple[float, float]:
  """The coefficient of the entropy bonus, held so that entropy stays up.

  Of c_k and the entropy e_k of a step: the step uses c_k where e_k <= target
  and 0 elsewhere, and c_{k+1} is c_k + delta or c_k - delta respectively, kept
  in [0, max_coef]. Skywork-OR1, https://arxiv.org/abs/2505.22312, "adaptive
  entropy control".

  Args:
    entropy_coef: c_k, kept from step to step.
    entropy: e_k, the mean over all tokens of the rollout, in nats.
    target: in nats per token, above 0.
    delta: step of the coefficient, above 0.
    max_coef: the largest coefficient, above 0.

  Returns:
    The coefficient to use in this step, and c_{k+1}.

  Raises:
    ValueError: an option is not positive.
  """
  if min(target, delta, max_coef) <= 0:
    raise ValueError(f"{target=}, {delta=} and {max_coef=} must be positive.")
  if entropy <= target:
    return entropy_coef, min(entropy_coef + delta, max_coef)
  return 0.0, max(entropy_coef - delta, 0.0)


def masked_difference(
  a: Float[Array, "*rows T"],
  b: Float[Array, "*rows T"],
  mask: Bool[Array, "*rows T"],
) -> Float[Array, "*rows T"]:
  """Difference in float32; 0 outside the mask, in value and gradient."""
  return jnp.where(mask, a.astype(jnp.float32) - b.astype(jnp.float32), 0.0)
