"""Regression of the value head, for PPO.

Dimension key: T positions; `*rows` is any number of leading axes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Metrics = dict[str, Float[Array, ""]]


def value_loss(
  values: Float[Array, "*rows T"],
  old_values: Float[Array, "*rows T"],
  returns: Float[Array, "*rows T"],
  weights: Float[Array, "*rows T"],
  *,
  clip: float | None = 0.2,
) -> tuple[Float[Array, ""], Metrics]:
  """Half the squared error of predicted returns, clipped as the policy is.

  sum of weight * max((v - R)^2, (v_old + clamp(v - v_old, +-clip) - R)^2) / 2:
  https://arxiv.org/abs/2005.12729, section 3 ("value function clipping");
  without a clip, https://arxiv.org/abs/1707.06347, equation 9. The half is a
  convention: the gradient is weight * (v - R).

  Metrics are sums with the same weights, as in `policy.py`: "value/mean",
  "value/error" (squared, not halved) and, with a clip, "value/clip_ratio", the
  share of tokens whose clipped error is the larger one.

  Args:
    values: predicted before each token; carries the gradient.
    old_values: as predicted when the rollout was scored.
    returns: the target, `gae` plus old values.
    weights: each token's share of the update; where 0 nothing is read.
    clip: largest step of a value, in units of the return, above 0; None for
      no clip.

  Raises:
    ValueError: `clip` is not positive.
  """
  if clip is not None and clip <= 0:
    raise ValueError(f"{clip=} must be positive, or None.")
  weights = weights.astype(jnp.float32)

  def keep(x):
    return jnp.where(weights > 0, x.astype(jnp.float32), 0.0)

  values, returns = keep(values), jax.lax.stop_gradient(keep(returns))
  error = (values - returns) ** 2
  metrics = {
    "value/mean": jnp.sum(weights * values),
    "value/error": jnp.sum(weights * error),
  }
  if clip is not None:
    old_values = jax.lax.stop_gradient(keep(old_values))
    step = values - old_values
    # Elsewhere the two errors are equal, up to a rounding that counts nothing.
    clipped = jnp.where(
      jnp.abs(step) > clip,
      (old_values + jnp.clip(step, -clip, clip) - returns) ** 2,
      error,
    )
    metrics["value/clip_ratio"] = jnp.sum(weights * (clipped > error))
    error = jnp.maximum(error, clipped)
  loss = 0.5 * jnp.sum(weights * error)
  return loss, jax.lax.stop_gradient(metrics)


def explained_variance(
  values: Float[Array, "*rows T"],
  returns: Float[Array, "*rows T"],
  mask: Bool[Array, "*rows T"],
) -> Float[Array, ""]:
  """1 - Var(returns - values) / Var(returns), over the tokens of the mask.

  1 for perfect values, 0 for constant ones, below 0 for worse; 0 where the
  returns do not vary. It does not add up over microbatches: call it once per
  rollout.
  """
  count = jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)

  def variance(x):
    mean = jnp.sum(jnp.where(mask, x, 0.0)) / count
    return jnp.sum(jnp.where(mask, x - mean, 0.0) ** 2) / count

  returns = returns.astype(jnp.float32)
  total = variance(returns)
  left = variance(returns - values.astype(jnp.float32))
  return jnp.where(
    total > 0, 1.0 - left / jnp.where(total > 0, total, 1.0), 0.0
  )
