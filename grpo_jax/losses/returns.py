"""Returns and advantages of tokens, discounted backwards over a sequence.

`gae` and `discounted_returns` are of one sequence, for `jax.vmap`; tokens that
the policy did not choose take no step of time. Everything is float32.

Dimension key: P prompts, G completions per prompt, N completion slots, T
positions of one sequence.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.losses import kl


def gae(
  rewards: Float[Array, " T"],
  values: Float[Array, " T"],
  mask: Bool[Array, " T"],
  *,
  discount: float = 1.0,
  lambda_: float = 0.95,
  final_value: Float[Array, ""] | float = 0.0,
  parallel: bool = False,
) -> Float[Array, " T"]:
  """Generalized advantage estimates of one sequence; `jax.vmap` for a batch.

  A_t = d_t + discount * lambda A_t' and d_t = r_t + discount * v_t' - v_t,
  where t' is the next token that the policy chose:
  https://arxiv.org/abs/1506.02438, section 3. Tokens outside the mask (a
  tool's output, padding) take no step of time. The regression target of the
  values is A_t + v_t.

  Args:
    rewards: for choosing token t; those outside the mask are never read.
    values: the return predicted from before token t on.
    mask: the tokens that the policy chose.
    discount: per chosen token, in [0, 1].
    lambda_: in [0, 1]; 0 trusts the values, 1 the rewards. DeepSeek-R1 found
      0.95 poor and 1.0 close to GRPO (its appendix on PPO).
    final_value: the return predicted behind the last chosen token; 0 where the
      sequence ended by itself.
    parallel: use `associative_scan`, of depth log T, for long sequences.

  Returns:
    float32; 0 outside the mask.
  """
  rewards = jnp.where(mask, rewards.astype(jnp.float32), 0.0)
  values = jnp.where(mask, values.astype(jnp.float32), 0.0)
  final_value = jnp.float32(final_value)
  # v_t at a chosen token, and what comes behind it elsewhere.
  ahead = _recurrence(jnp.where(mask, 0.0, 1.0), values, final_value, parallel)
  next_values = jnp.append(ahead[1:], final_value)
  deltas = jnp.where(mask, rewards + discount * next_values - values, 0.0)
  decay = jnp.where(mask, discount * lambda_, 1.0)
  advantages = _recurrence(decay, deltas, jnp.float32(0.0), parallel)
  return jnp.where(mask, advantages, 0.0)


def discounted_returns(
  rewards: Float[Array, " T"],
  mask: Bool[Array, " T"],
  *,
  discount: float = 1.0,
  final_value: Float[Array, ""] | float = 0.0,
  parallel: bool = False,
) -> Float[Array, " T"]:
  """Returns R_t = r_t + discount * R_t' of one sequence; `vmap` for a batch.

  t' is the next token that the policy chose, as in `gae`.

  Args:
    rewards: as in `gae`.
    mask: as in `gae`.
    discount: as in `gae`.
    final_value: the return behind the last chosen token.
    parallel: as in `gae`.

  Returns:
    float32; 0 outside the mask.
  """
  rewards = jnp.where(mask, rewards.astype(jnp.float32), 0.0)
  decay = jnp.where(mask, discount, 1.0)
  returns = _recurrence(decay, rewards, jnp.float32(final_value), parallel)
  return jnp.where(mask, returns, 0.0)


def batch_normalize(
  advantages: Float[Array, "*axes"],
  valid: Bool[Array, "*axes"],
  *,
  ddof: int = 1,
  eps: float = 1e-6,
  tolerance: float = 1e-6,
) -> Float[Array, "*axes"]:
  """Brings all valid entries of the batch to mean 0 and standard deviation 1.

  (A - mean) / (std + eps) over every axis at once, with 0 for invalid entries,
  and 0 everywhere when std <= tolerance. The batch is that of one optimizer
  update or of one rollout, never a microbatch.

  Args:
    advantages: one per completion ([P, G]) or per token ([*rows, T]).
    valid: the entries that count.
    ddof: taken from the count under the variance; 0 or 1.
    eps: added to the standard deviation.
    tolerance: a standard deviation of at most this gives 0.
  """
  count = jnp.sum(valid, dtype=jnp.float32)
  advantages = jnp.where(valid, advantages.astype(jnp.float32), 0.0)
  mean = jnp.sum(advantages) / jnp.maximum(count, 1.0)
  centered = jnp.where(valid, advantages - mean, 0.0)
  std = jnp.sqrt(jnp.sum(centered**2) / jnp.maximum(count - ddof, 1.0))
  return jnp.where(std > tolerance, centered / (std + eps), 0.0)


def token_advantages(
  rewards: Float[Array, "P G"],
  valid: Bool[Array, "P G"],
  mask: Bool[Array, "P G N"],
  old_logprobs: Float[Array, "P G N"] | None,
  ref_logprobs: Float[Array, "P G N"] | None,
  values: Float[Array, "P G N"],
  *,
  discount: float = 1.0,
  lambda_: float = 1.0,
  kl_coef: float = 0.0,
  normalize: bool = True,
) -> tuple[Float[Array, "P G N"], Float[Array, "P G N"]]:
  """Advantages of PPO, and the returns that its values are to predict.

  A completion's reward is that of its last token, and a KL term that of each:
  InstructGPT, https://arxiv.org/abs/2203.02155, section 3.5. Then `gae`; behind
  the last token the value is 0, in a truncated completion too, whose reward is
  for what there is of it.

  Args:
    rewards: of completions.
    valid: False where there is none: advantages are 0 and returns NaN.
    mask: the tokens that the policy chose.
    old_logprobs: of the policy that drew the tokens.
    ref_logprobs: of the reference; read where `kl_coef` is not 0.
    values: as predicted before each token.
    discount: as in `gae`.
    lambda_: as in `gae`.
    kl_coef: reward that a nat of `log pi_old - log pi_ref` costs, at least 0.
    normalize: advantages have mean 0 and standard deviation 1 over all tokens
      of the rollout.

  Returns:
    The advantages, 0 outside the mask, and the returns, NaN outside.

  Raises:
    ValueError: `kl_coef` has no reference.
  """
  lengths = jnp.sum(mask, axis=-1, keepdims=True)
  is_last = mask & (jnp.cumsum(mask, axis=-1) == lengths)
  known = mask & valid[..., None]
  per_token = jnp.where(is_last & known, rewards[..., None], 0.0)
  if kl_coef:
    if old_logprobs is None or ref_logprobs is None:
      raise ValueError(f"{kl_coef=} needs old_logprobs and ref_logprobs.")
    per_token += kl.reward_penalty(
      old_logprobs, ref_logprobs, mask, kl_coef=kl_coef
    )
  estimate = functools.partial(gae, discount=discount, lambda_=lambda_)
  estimates = jax.vmap(jax.vmap(estimate))(per_token, values, mask)
  returns = jnp.where(known, estimates + values, jnp.nan)
  estimates = jnp.where(known, estimates, 0.0)
  if normalize:
    estimates = batch_normalize(estimates, known)
  return estimates, returns


def _recurrence(decay, inputs, last, parallel):
  """y_t = inputs_t + decay_t * y_{t+1} with y_T = last."""
  if parallel:

    def join(later, earlier):
      return earlier[0] * later[0], earlier[1] + earlier[0] * later[1]

    products, sums = jax.lax.associative_scan(
      join, (decay, inputs), reverse=True
    )
    return sums + products * last

  def backward(y, step):
    y = step[1] + step[0] * y
    return y, y

  return jax.lax.scan(backward, last, (decay, inputs), reverse=True)[1]
