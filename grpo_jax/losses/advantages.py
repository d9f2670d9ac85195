"""Advantages: how much better a completion, or its token, did than expected.

`ADVANTAGES` names what a config may choose. A row's positional parameters are
data, given by name; its keyword-only ones are options. The data are:

  rewards [P, G]         of completions; what is not valid is never read
  valid [P, G]           bool: could be scored
  terms [K, P, G]        each reward term by itself, NaN where not scored
  term_weights [K]       the coefficients that sum the terms to the reward
  correct [P, G]         bool: the problem was solved
  lengths [P, G]         of completions, in tokens
  greedy_rewards [P]     of the most likely completion of each prompt
  mask [P, G, N]         bool: the tokens that the policy chose
  old_logprobs, ref_logprobs, values [P, G, N]

A row returns one number per completion ([P, G], for `spread`), one per token
([P, G, N], made in `returns.py`), or those and the returns that values are to
predict. All are float32 and constants of the loss: no gradient is worth taking.

Dimension key: P prompts, G completions per prompt (a group), K reward terms,
N completion slots, T positions; `*rows` is any number of leading axes.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.losses import kl, returns
from grpo_jax.losses.returns import batch_normalize, discounted_returns
from grpo_jax.losses.returns import gae as gae


def group_advantages(
  rewards: Float[Array, "P G"],
  valid: Bool[Array, "P G"] | None = None,
  *,
  scale: Literal["std", "batch", "none"] = "std",
  ddof: int = 1,
  eps: float = 1e-6,
  tolerance: float = 1e-6,
) -> Float[Array, "P G"]:
  """Group-relative advantages of GRPO, A_i = (r_i - mean) / (std + eps).

  DeepSeekMath, https://arxiv.org/abs/2402.03300, section 4.1.2; DeepSeek-R1,
  https://arxiv.org/abs/2501.12948, equation 3. The papers give neither ddof nor
  eps; the defaults reproduce rollouts that were published with their
  advantages. `scale="none"` centers only, as in Dr. GRPO,
  https://arxiv.org/abs/2503.20783, section 3.2. `scale="batch"` divides by the
  standard deviation of all rewards of the batch: Lite PPO,
  https://arxiv.org/abs/2508.08221; ScaleRL, https://arxiv.org/abs/2510.13786.

  Args:
    rewards: any finite numbers.
    valid: False for a completion that could not be scored: it leaves its
      group's mean and std, its reward is never read, and it gets 0.
    scale: which standard deviation to divide by: "std" is that of the group,
      "batch" that of all valid rewards, "none" is 1.
    ddof: taken from the count under the variance; 0 or 1.
    eps: added to the standard deviation, in units of the reward.
    tolerance: a group whose std is at most this gets exactly 0.

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


def reinforce_plus_plus(
  rewards: Float[Array, "P G"],
  valid: Bool[Array, "P G"] | None = None,
  mask: Bool[Array, "P G N"] | None = None,
  old_logprobs: Float[Array, "P G N"] | None = None,
  ref_logprobs: Float[Array, "P G N"] | None = None,
  *,
  baseline: bool = True,
  kl_coef: float = 0.0,
  ddof: int = 1,
  eps: float = 1e-6,
  tolerance: float = 1e-6,
) -> Float[Array, "P G"] | Float[Array, "P G N"]:
  """Advantages of REINFORCE++: normalized over the batch, not over the group.

  A = (A' - mean_batch) / (std_batch + eps), with A' = r, or with a baseline
  A' = r - mean_group. https://arxiv.org/abs/2501.03262, section 3 (version 9).
  With a `kl_coef`, A'_t = r - kl_coef sum_{i >= t} KL(i) at token t, of the k1
  estimate, and the batch is that of all tokens.

  Args:
    rewards: any finite numbers.
    valid: as in `group_advantages`.
    mask: read, as the log-probs are, where `kl_coef` is not 0.
    old_logprobs: of the policy that drew the tokens, in nats.
    ref_logprobs: of the reference.
    baseline: whether to center each group first (the paper's "w/ Baseline");
      without it G may be 1.
    kl_coef: reward that a nat of `log pi_old - log pi_ref` costs, at least 0.
    ddof: as in `group_advantages`.
    eps: as in `group_advantages`.
    tolerance: as in `group_advantages`, for the batch.

  Returns:
    One per completion, with a `kl_coef` one per token.

  Raises:
    ValueError: G is 1 and `baseline` is set, or `kl_coef` has no reference.
  """
  if baseline:
    rewards, valid, count = _groups(rewards, valid)
    rewards = _center(rewards, valid, count)
  elif valid is None:
    valid = jnp.ones_like(rewards, dtype=bool)
  settings = {"ddof": ddof, "eps": eps, "tolerance": tolerance}
  if kl_coef == 0:
    return batch_normalize(rewards, valid, **settings)
  if mask is None or old_logprobs is None or ref_logprobs is None:
    raise ValueError(f"{kl_coef=} needs mask, old_logprobs and ref_logprobs.")
  penalty = kl.reward_penalty(old_logprobs, ref_logprobs, mask, kl_coef=kl_coef)
  ahead = jax.vmap(jax.vmap(discounted_returns))(penalty, mask)
  per_token = spread(rewards, mask) + ahead
  return batch_normalize(per_token, mask & valid[..., None], **settings)


def reward_decoupled(
  terms: Float[Array, "K P G"],
  valid: Bool[Array, "P G"] | None = None,
  term_weights: Float[Array, " K"] | None = None,
  *,
  ddof: int = 1,
  eps: float = 1e-6,
  tolerance: float = 1e-6,
) -> Float[Array, "P G"]:
  """Advantages of GDPO: each reward term is normalized before they are summed.

  A_k = (r_k - mean_group) / (std_group + eps), A' = sum_k w_k A_k, and
  A = (A' - mean_batch) / (std_batch + eps). https://arxiv.org/abs/2601.05242,
  section 3. Two completions with equal sums of different terms then differ.

  Args:
    terms: not yet weighted or summed; a term that is NaN could not be scored
      and adds 0. A completion without any term leaves the batch's mean and std.
    valid: as in `group_advantages`; False leaves every term.
    term_weights: K coefficients; None is 1 for all.
    ddof: as in `group_advantages`, in the group and in the batch.
    eps: as in `group_advantages`, in the group and in the batch.
    tolerance: as in `group_advantages`, in the group and in the batch.

  Raises:
    ValueError: G is 1, or `term_weights` are not K numbers.
  """
  if term_weights is None:
    term_weights = jnp.ones(len(terms))
  if len(term_weights) != len(terms):
    raise ValueError(f"{term_weights=} must be {len(terms)} numbers.")
  scored = jnp.isfinite(terms)
  if valid is not None:
    scored &= valid
  settings = {"ddof": ddof, "eps": eps, "tolerance": tolerance}
  normalized = jax.vmap(functools.partial(group_advantages, **settings))(
    terms, scored
  )
  summed = jnp.tensordot(term_weights, normalized, axes=1)
  return batch_normalize(summed, jnp.any(scored, axis=0), **settings)


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


def max_rl(
  rewards: Float[Array, "P G"],
  valid: Bool[Array, "P G"] | None = None,
  *,
  tolerance: float = 1e-6,
) -> Float[Array, "P G"]:
  """Advantages of MaxRL, A_i = (r_i - mean) / mean: rare successes weigh more.

  The gradient is one of log p(correct) instead of p(correct), as far as G draws
  can tell: Tajwar et al., https://arxiv.org/abs/2602.02710.

  Args:
    rewards: at least 0; the paper has 0 or 1.
    valid: as in `group_advantages`.
    tolerance: a group whose mean or range is at most this gets exactly 0.

  Raises:
    ValueError: G is 1.
  """
  rewards, valid, count = _groups(rewards, valid)
  mean = _mean(rewards, valid, count)
  solved = _differ(rewards, valid, tolerance) & (mean > tolerance)
  scale = jnp.where(solved, mean, 1.0)
  return jnp.where(solved, _center(rewards, valid, count) / scale, 0.0)


def opo(
  rewards: Float[Array, "P G"],
  lengths: Int[Array, "P G"],
  valid: Bool[Array, "P G"] | None = None,
  *,
  tolerance: float = 1e-6,
) -> Float[Array, "P G"]:
  """Advantages of OPO: the reward less the group's mean weighed by length.

  A_i = r_i - sum_j l_j r_j / sum_j l_j, the baseline of least variance where
  the squared gradient of a completion grows with its length: Hao et al.,
  https://arxiv.org/abs/2505.23585.

  Args:
    rewards: any finite numbers.
    lengths: of the completions, in tokens.
    valid: as in `group_advantages`.
    tolerance: as in `max_rl`, for the range.

  Raises:
    ValueError: G is 1.
  """
  rewards, valid, count = _groups(rewards, valid)
  weights = jnp.where(valid, lengths.astype(jnp.float32), 0.0)
  # About the mean, so that large rewards do not cancel.
  centered = _center(rewards, valid, count)
  baseline = jnp.sum(weights * centered, axis=-1, keepdims=True)
  baseline /= jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1.0)
  differ = _differ(rewards, valid, tolerance)
  return jnp.where(differ & valid, centered - baseline, 0.0)


def gpg(
  rewards: Float[Array, "P G"],
  valid: Bool[Array, "P G"] | None = None,
  *,
  tolerance: float = 1e-6,
) -> Float[Array, "P G"]:
  """Advantages of GPG: centered, and scaled up for groups that teach nothing.

  A_i = alpha (r_i - mean), alpha = B / (B - M), where M of the B completions of
  the batch are in groups whose rewards are all equal: Chu et al.,
  https://arxiv.org/abs/2504.02546. Its objective is `reinforce`.

  Args:
    rewards: any finite numbers.
    valid: as in `group_advantages`; counts in neither B nor M.
    tolerance: as in `max_rl`, for the range.

  Raises:
    ValueError: G is 1.
  """
  rewards, valid, count = _groups(rewards, valid)
  centered = _center(rewards, valid, count)
  differ = _differ(rewards, valid, tolerance)
  teaching = jnp.sum(jnp.where(differ, count, 0.0))
  alpha = jnp.sum(count) / jnp.maximum(teaching, 1.0)
  return jnp.where(differ, alpha * centered, 0.0)


def remax(
  rewards: Float[Array, "P G"],
  greedy_rewards: Float[Array, " P"],
  valid: Bool[Array, "P G"] | None = None,
) -> Float[Array, "P G"]:
  """Advantages of ReMax: the reward less that of the greedy completion.

  A_i = r_i - r(argmax completion): Li et al., https://arxiv.org/abs/2310.10505.
  G may be 1.

  Args:
    rewards: any finite numbers.
    greedy_rewards: of the completion that is drawn at temperature 0; a prompt
      where it is NaN, which could not be scored, gets 0.
    valid: as in `group_advantages`.
  """
  baseline = greedy_rewards.astype(jnp.float32)[:, None]
  known = jnp.isfinite(baseline)
  if valid is not None:
    known &= valid
  return jnp.where(known, rewards.astype(jnp.float32) - baseline, 0.0)


def spread(
  advantages: Float[Array, "*rows"], mask: Bool[Array, "*rows T"]
) -> Float[Array, "*rows T"]:
  """Gives each token of the mask its completion's advantage, and others 0."""
  return jnp.where(mask, advantages[..., None], 0.0)


ADVANTAGES: dict[str, Callable[..., Any]] = {
  "group": group_advantages,
  "leave_one_out": leave_one_out,
  "reinforce_plus_plus": reinforce_plus_plus,
  "reward_decoupled": reward_decoupled,
  "pass_at_k": pass_at_k,
  "best_of_group": best_of_group,
  "max_rl": max_rl,
  "opo": opo,
  "gpg": gpg,
  "remax": remax,
  "gae": returns.token_advantages,
}


def _groups(rewards, valid):
  if rewards.shape[-1] < 2:
    raise ValueError("A group needs at least 2 completions, not 1.")
  if valid is None:
    valid = jnp.ones_like(rewards, dtype=bool)
  count = jnp.sum(valid, axis=-1, keepdims=True, dtype=jnp.float32)
  return rewards.astype(jnp.float32), valid, count


def _mean(rewards, valid, count):
  total = jnp.sum(jnp.where(valid, rewards, 0.0), axis=-1, keepdims=True)
  return total / jnp.maximum(count, 1.0)


def _center(rewards, valid, count):
  return jnp.where(valid, rewards - _mean(rewards, valid, count), 0.0)


def _std(centered, count, ddof):
  square = jnp.sum(centered**2, axis=-1, keepdims=True)
  return jnp.sqrt(square / jnp.maximum(count - ddof, 1.0))


def _differ(rewards, valid, tolerance, std=None):
  """The groups that have an advantage at all, [P, 1]."""
  largest = jnp.max(jnp.where(valid, rewards, -jnp.inf), axis=-1, keepdims=True)
  smallest = jnp.min(jnp.where(valid, rewards, jnp.inf), axis=-1, keepdims=True)
  # Equal rewards: their mean may be off by a rounding, their order is not.
  spread_out = largest - smallest if std is None else std
  return (spread_out > tolerance) & (largest > smallest)


def _scale(centered, rewards, valid, count, scale, ddof, eps, tolerance):
  if scale not in ("std", "batch", "none"):
    raise ValueError(f'{scale=} must be "std", "batch" or "none".')
  std = _std(_center(rewards, valid, count), count, ddof)
  differ = _differ(rewards, valid, tolerance, std)
  if scale == "none":
    return jnp.where(differ, centered, 0.0)
  if scale == "batch":
    everyone = jnp.sum(count)
    mean = jnp.sum(jnp.where(valid, rewards, 0.0)) / jnp.maximum(everyone, 1.0)
    square = jnp.sum(jnp.where(valid, rewards - mean, 0.0) ** 2)
    std = jnp.sqrt(square / jnp.maximum(everyone - ddof, 1.0))
  return jnp.where(differ, centered / (std + eps), 0.0)
