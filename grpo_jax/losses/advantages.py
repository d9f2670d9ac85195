"""Advantages: how much better a completion, or its token, did than expected.

Functions of groups take rewards [P, G]; `spread` gives every token of a
completion its advantage. Functions of one sequence ([T]: `gae`,
`discounted_returns`) are for `jax.vmap`. Everything is float32, and nothing
here carries a gradient worth taking: advantages are constants of the loss.

Dimension key: P prompts, G completions per prompt (a group), K reward terms,
T positions of one sequence; `*rows` is any number of leading axes.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def group_advantages(
  rewards: Float[Array, "P G"],
  valid: Bool[Array, "P G"] | None = None,
  *,
  scale: Literal["std", "none"] = "std",
  ddof: int = 1,
  eps: float = 1e-6,
  tolerance: float = 1e-6,
) -> Float[Array, "P G"]:
  """Group-relative advantages of GRPO, A_i = (r_i - mean) / (std + eps).

  DeepSeekMath, https://arxiv.org/abs/2402.03300, section 4.1.2; DeepSeek-R1,
  https://arxiv.org/abs/2501.12948, equation 3. The papers give neither ddof nor
  eps; the defaults reproduce rollouts that were published with their
  advantages. `scale="none"` centers only, as in Dr. GRPO,
  https://arxiv.org/abs/2503.20783, section 3.2.

  Args:
    rewards: any finite numbers.
    valid: False for a completion that could not be scored: it leaves its
      group's mean and std, its reward is never read, and it gets 0.
    scale: whether to divide by the standard deviation.
    ddof: taken from the count under the variance; 0 or 1.
    eps: added to the standard deviation, in units of the reward.
    tolerance: a group whose std is at most this, or whose rewards are all
      equal, gets exactly 0.

  Raises:
    ValueError: G is 1, or `scale` is unknown.
  """
  rewards, valid, count = _groups(rewards, valid)
  centered = _center(rewards, valid, count)
  return _scale(centered, rewards, valid, count, scale, ddof, eps, tolerance)


def leave_one_out(
  rewards: Float[Array, "P G"],
  valid: Bool[Array, "P G"] | None = None,
  *,
  scale: Literal["std", "none"] = "none",
  ddof: int = 1,
  eps: float = 1e-6,
  tolerance: float = 1e-6,
) -> Float[Array, "P G"]:
  """Advantages of RLOO: the reward less the mean of the group's *others*.

  A_i = r_i - (sum_{j != i} r_j) / (G - 1): Ahmadian et al.,
  https://arxiv.org/abs/2402.14740, "RLOO". A standard deviation, if one is
  divided by (a departure from the paper), is that of the whole group.

  Args:
    rewards: any finite numbers.
    valid: as in `group_advantages`; a completion without a valid peer gets 0.
    scale: whether to divide by the standard deviation.
    ddof: as in `group_advantages`.
    eps: as in `group_advantages`.
    tolerance: as in `group_advantages`.

  Raises:
    ValueError: G is 1, or `scale` is unknown.
  """
  rewards, valid, count = _groups(rewards, valid)
  # r_i - (sum - r_i) / (n - 1) = (r_i - mean) n / (n - 1).
  centered = _center(rewards, valid, count)
  centered = centered * count / jnp.maximum(count - 1.0, 1.0)
  return _scale(centered, rewards, valid, count, scale, ddof, eps, tolerance)


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
    ddof: as in `group_advantages`.
    eps: as in `group_advantages`.
    tolerance: as in `group_advantages`.
  """
  count = jnp.sum(valid, dtype=jnp.float32)
  advantages = jnp.where(valid, advantages.astype(jnp.float32), 0.0)
  mean = jnp.sum(advantages) / jnp.maximum(count, 1.0)
  centered = jnp.where(valid, advantages - mean, 0.0)
  std = jnp.sqrt(jnp.sum(centered**2) / jnp.maximum(count - ddof, 1.0))
  return jnp.where(std > tolerance, centered / (std + eps), 0.0)


def reinforce_plus_plus(
  rewards: Float[Array, "P G"],
  valid: Bool[Array, "P G"] | None = None,
  *,
  baseline: bool = True,
  ddof: int = 1,
  eps: float = 1e-6,
  tolerance: float = 1e-6,
) -> Float[Array, "P G"]:
  """Advantages of REINFORCE++: normalized over the batch, not over the group.

  A = (A' - mean_batch) / (std_batch + eps), with A' = r, or with a baseline
  A' = r - mean_group. https://arxiv.org/abs/2501.03262, section 3 (version 9).
  Its KL penalty, r - kl_coef sum_{i >= t} KL(i) at token t, is per token:
  `discounted_returns` of `kl.reward_penalty`, added to the `spread` rewards, is
  what to give to `batch_normalize` instead.

  Args:
    rewards: any finite numbers.
    valid: as in `group_advantages`.
    baseline: whether to center each group first (the paper's "w/ Baseline");
      without it G may be 1.
    ddof: as in `group_advantages`.
    eps: as in `group_advantages`.
    tolerance: as in `group_advantages`, for the batch.

  Raises:
    ValueError: G is 1 and `baseline` is set.
  """
  if baseline:
    rewards, valid, count = _groups(rewards, valid)
    rewards = _center(rewards, valid, count)
  elif valid is None:
    valid = jnp.ones_like(rewards, dtype=bool)
  return batch_normalize(
    rewards, valid, ddof=ddof, eps=eps, tolerance=tolerance
  )


def reward_decoupled(
  rewards: Float[Array, "K P G"],
  valid: Bool[Array, "K P G"] | None = None,
  *,
  term_weights: Sequence[float] | None = None,
  ddof: int = 1,
  eps: float = 1e-6,
  tolerance: float = 1e-6,
) -> Float[Array, "P G"]:
  """Advantages of GDPO: each reward term is normalized before they are summed.

  A_k = (r_k - mean_group) / (std_group + eps), A' = sum_k w_k A_k, and
  A = (A' - mean_batch) / (std_batch + eps). https://arxiv.org/abs/2601.05242,
  section 3. Two completions with equal sums of different terms then differ.

  Args:
    rewards: the terms, not yet weighted or summed.
    valid: False where a term could not be scored; that term adds 0 there. A
      completion without any valid term leaves the batch's mean and std.
    term_weights: K coefficients; None is 1 for all.
    ddof: as in `group_advantages`, in the group and in the batch.
    eps: as in `group_advantages`, in the group and in the batch.
    tolerance: as in `group_advantages`, in the group and in the batch.

  Raises:
    ValueError: G is 1, or `term_weights` are not K numbers.
  """
  if valid is None:
    valid = jnp.ones_like(rewards, dtype=bool)
  if term_weights is None:
    term_weights = [1.0] * len(rewards)
  if len(term_weights) != len(rewards):
    raise ValueError(f"{term_weights=} must be {len(rewards)} numbers.")
  summed = sum(
    weight * group_advantages(r, v, ddof=ddof, eps=eps, tolerance=tolerance)
    for weight, r, v in zip(term_weights, rewards, valid, strict=True)
  )
  return batch_normalize(
    summed, jnp.any(valid, axis=0), ddof=ddof, eps=eps, tolerance=tolerance
  )


def pass_at_k(
  correct: Bool[Array, "P G"],
  valid: Bool[Array, "P G"] | None = None,
  *,
  k: int,
  eps: float = 1e-6,
) -> Float[Array, "P G"]:
  """Advantages that raise pass@k, the chance that one of k draws is correct.

  With n draws of which m are wrong, R = 1 - C(m, k) / C(n, k) and
  s = sqrt(R (1 - R)): a correct one gets (1 - R) / (s + eps), a wrong one
  (1 - R - C(m - 1, k - 1) / C(n - 1, k - 1)) / (s + eps).
  https://arxiv.org/abs/2508.10751, section 2, "analytical derivation". A group
  where every set of k holds a correct draw, or where none does, gets 0.

  Args:
    correct: whether the completion solved its problem; pass@k is defined for
      such rewards only.
    valid: as in `group_advantages`; a group with fewer than k gets 0.
    k: between 1 and G; 1 is GRPO with ddof 0.
    eps: added to the standard deviation.

  Raises:
    ValueError: G is 1, or k is not between 1 and G.
  """
  _, valid, n = _groups(correct, valid)
  if not 1 <= k <= correct.shape[-1]:
    raise ValueError(f"{k=} must be between 1 and G = {correct.shape[-1]}.")
  wrong = jnp.sum(valid & ~correct, axis=-1, keepdims=True, dtype=jnp.float32)

  def chance(wrong, n, k):
    """C(wrong, k) / C(n, k), the chance that k draws are all wrong."""
    draws = jnp.arange(k, dtype=jnp.float32)
    left = jnp.maximum(wrong - draws, 0.0) / jnp.maximum(n - draws, 1.0)
    return jnp.prod(left, axis=-1, keepdims=True)

  failure = chance(wrong, n, k)
  std = jnp.sqrt(failure * (1.0 - failure))
  peers = chance(wrong - 1.0, n - 1.0, k - 1)
  centered = failure - jnp.where(correct, 0.0, peers)
  mixed = (failure > 0.0) & (failure < 1.0) & (n >= k)
  return jnp.where(valid & mixed, centered / (std + eps), 0.0)


def best_of_group(
  rewards: Float[Array, "P G"], valid: Bool[Array, "P G"] | None = None
) -> Float[Array, "P G"]:
  """Advantages that raise the best reward of a group.

  A_i = max_j r_j - max_{j != i} r_j. The leave-one-out estimate for the
  objective E[max of G draws]: Tang et al., https://arxiv.org/abs/2503.19595.
  Only a completion that beats all others gets more than 0.

  Args:
    rewards: any finite numbers.
    valid: as in `group_advantages`; a completion without a valid peer gets 0.

  Raises:
    ValueError: G is 1.
  """
  rewards, valid, count = _groups(rewards, valid)
  rewards = jnp.where(valid, rewards, -jnp.inf)
  first = jnp.max(rewards, axis=-1, keepdims=True)
  winners = rewards == first
  second = jnp.max(
    jnp.where(winners, -jnp.inf, rewards), axis=-1, keepdims=True
  )
  alone = jnp.sum(winners, axis=-1, keepdims=True) == 1
  return jnp.where(winners & alone & (count > 1), first - second, 0.0)


def spread(
  advantages: Float[Array, "*rows"], mask: Bool[Array, "*rows T"]
) -> Float[Array, "*rows T"]:
  """Gives each token of the mask its completion's advantage, and others 0."""
  return jnp.where(mask, advantages[..., None], 0.0)


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


def _groups(rewards, valid):
  if rewards.shape[-1] < 2:
    raise ValueError("A group needs at least 2 completions, not 1.")
  if valid is None:
    valid = jnp.ones_like(rewards, dtype=bool)
  count = jnp.sum(valid, axis=-1, keepdims=True, dtype=jnp.float32)
  return rewards.astype(jnp.float32), valid, count


def _center(rewards, valid, count):
  total = jnp.sum(jnp.where(valid, rewards, 0.0), axis=-1, keepdims=True)
  return jnp.where(valid, rewards - total / jnp.maximum(count, 1.0), 0.0)


def _scale(centered, rewards, valid, count, scale, ddof, eps, tolerance):
  if scale not in ("std", "none"):
    raise ValueError(f'{scale=} must be "std" or "none".')
  about_mean = _center(rewards, valid, count)
  square = jnp.sum(about_mean**2, axis=-1, keepdims=True)
  std = jnp.sqrt(square / jnp.maximum(count - ddof, 1.0))
  largest = jnp.max(jnp.where(valid, rewards, -jnp.inf), axis=-1, keepdims=True)
  smallest = jnp.min(jnp.where(valid, rewards, jnp.inf), axis=-1, keepdims=True)
  # Equal rewards: their mean may be off by a rounding, their order is not.
  differ = (std > tolerance) & (largest > smallest)
  return jnp.where(
    differ, centered / (std + eps) if scale == "std" else centered, 0.0
  )


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
