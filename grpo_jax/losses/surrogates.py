"""What each policy objective makes larger: a surrogate of every token.

A row of `policy.OBJECTIVES` takes `Tokens` and, as keyword-only parameters, its
own options, and gives the surrogate and marks. A mark is a bool per token under
the name of a metric, which is its weighted count: which tokens were clipped, in
most. Whatever else a loss has is added in `policy.policy_loss`, the sign and
the weights too.

In the equations rho = pi / pi_old of a token, A is its advantage, sg stops the
gradient, and means over t are over the tokens of a row.

Dimension key: T positions; `*rows` is any number of leading axes, [B] or
[P, G], each row one completion.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.losses import kl

Marks = dict[str, Bool[Array, "*rows T"]]
Result = tuple[Float[Array, "*rows T"], Marks]


class Tokens(NamedTuple):
  """What a surrogate reads, in float32 and 0 where nothing is to be read.

  Attributes:
    inside: the tokens of positive weight.
    logprobs: of the policy, in nats; carries the gradient.
    old_logprobs: of the policy that drew the tokens, as the trainer scores it.
    sampler_logprobs: the same as the sampler computed them, where they are
      known, and old_logprobs where they are not.
    advantages: constants.
    log_ratio: logprobs - old_logprobs.
    ratio: its exp, after a clamp to +-20.
  """

  inside: Bool[Array, "*rows T"]
  logprobs: Float[Array, "*rows T"]
  old_logprobs: Float[Array, "*rows T"]
  sampler_logprobs: Float[Array, "*rows T"]
  advantages: Float[Array, "*rows T"]
  log_ratio: Float[Array, "*rows T"]
  ratio: Float[Array, "*rows T"]


def grpo(
  tokens: Tokens,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  dual_clip: float | None = None,
) -> Result:
  """The clipped ratio times the advantage: GRPO, and PPO with a value head.

  min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A). DeepSeekMath,
  https://arxiv.org/abs/2402.03300, equations 3 and 4; DeepSeek-R1,
  https://arxiv.org/abs/2501.12948, equations 1 to 3; PPO,
  https://arxiv.org/abs/1707.06347, equation 7; two different bounds are DAPO's,
  https://arxiv.org/abs/2503.14476, section 3.1. With a `dual_clip` of c it is
  at least c A where A < 0: https://arxiv.org/abs/1912.09729, section "Dual-clip
  PPO".

  Args:
    tokens: of completions.
    clip_low: at least 0; from 1 on nothing is clipped below.
    clip_high: at least 0, of any size: DeepSeek-R1's first stage has 10.
    dual_clip: above 1, or None.

  Raises:
    ValueError: an option is out of its range.
  """
  if dual_clip is not None and dual_clip <= 1:
    raise ValueError(f"{dual_clip=} must be above 1.")
  surrogate, marks = _clip(tokens.ratio, tokens, clip_low, clip_high)
  if dual_clip is not None:
    floor = jnp.maximum(surrogate, dual_clip * tokens.advantages)
    surrogate = jnp.where(tokens.advantages < 0, floor, surrogate)
  return surrogate, marks


def gspo(
  tokens: Tokens, *, clip_low: float = 3e-4, clip_high: float = 4e-4
) -> Result:
  """GSPO: one length-normalized ratio per completion.

  min(s A, clip(s, 1 - clip_low, 1 + clip_high) A) with s = exp(mean_t log rho).
  https://arxiv.org/abs/2507.18071, section 4.1, equations 5 and 7; the default
  bounds are its section 5.1's. The marks are of completions. Only
  `sequence_mean` weights give each completion one share: see `policy.check`.

  Args:
    tokens: of completions, a row each; the advantage is that of the row.
    clip_low: at least 0.
    clip_high: at least 0.

  Raises:
    ValueError: as in `grpo`.
  """
  return _clip(
    _row_ratio(tokens.log_ratio, tokens), tokens, clip_low, clip_high
  )


def gspo_token(
  tokens: Tokens, *, clip_low: float = 3e-4, clip_high: float = 4e-4
) -> Result:
  """GSPO-token: the completion's ratio, the token's gradient.

  As `gspo`, with s_t = sg[s] pi_t / sg[pi_t] in the place of s. Value and
  gradient are those of GSPO when all tokens of a row have the same advantage,
  and here they need not. https://arxiv.org/abs/2507.18071, section 4.3.

  Args:
    tokens: of completions, a row each.
    clip_low: at least 0.
    clip_high: at least 0.

  Raises:
    ValueError: as in `grpo`.
  """
  ratio = jax.lax.stop_gradient(_row_ratio(tokens.log_ratio, tokens))
  own = tokens.logprobs - jax.lax.stop_gradient(tokens.logprobs)
  return _clip(ratio * jnp.exp(own), tokens, clip_low, clip_high)


def gmpo(
  tokens: Tokens, *, log_clip_low: float = 0.4, log_clip_high: float = 0.4
) -> Result:
  """GMPO: the geometric mean of a completion's clipped ratios.

  A exp(mean_t l_t), where l_t = min(log rho_t, log_clip_high) if A > 0 and
  max(log rho_t, -log_clip_low) if A < 0. https://arxiv.org/abs/2507.20673,
  section 3 and its pseudocode; the default bounds (e^-0.4, e^0.4) are its too.
  Only `sequence_mean` weights give each completion one share: see
  `policy.check`.

  Args:
    tokens: of completions, a row each; the advantage is that of the row.
    log_clip_low: bound of -log rho, in nats, at least 0.
    log_clip_high: bound of log rho, in nats, at least 0.

  Raises:
    ValueError: as in `grpo`.
  """
  _check_clip(log_clip_low, log_clip_high)
  low = (tokens.log_ratio < -log_clip_low) & (tokens.advantages < 0)
  high = (tokens.log_ratio > log_clip_high) & (tokens.advantages > 0)
  clipped = jnp.where(low, -log_clip_low, tokens.log_ratio)
  clipped = jnp.where(high, log_clip_high, clipped)
  return _row_ratio(clipped, tokens) * tokens.advantages, _marks(low, high)


def cispo(
  tokens: Tokens, *, ratio_min: float = 0.0, ratio_max: float = 5.0
) -> Result:
  """CISPO: a bounded, constant ratio weighs log pi, so no token loses gradient.

  sg[clip(rho, ratio_min, ratio_max)] A log pi: MiniMax-M1,
  https://arxiv.org/abs/2506.13585, equations 4 and 5. The bounds are those of
  rho itself, the paper's 1 - eps_low and 1 + eps_high. The paper sets no lower
  bound and does not print its upper one; the default is of the size that
  ScaleRL, https://arxiv.org/abs/2510.13786, uses. The paper divides by all
  tokens: `token_mean` weights. The marks are of rho outside the bounds,
  whatever A is.

  Args:
    tokens: of completions.
    ratio_min: the smallest weight, at least 0.
    ratio_max: the largest weight, at least `ratio_min`.

  Raises:
    ValueError: the bounds are in the wrong order.
  """
  if not 0 <= ratio_min <= ratio_max:
    raise ValueError(f"0 <= {ratio_min=} <= {ratio_max=} must hold.")
  low, high = tokens.ratio < ratio_min, tokens.ratio > ratio_max
  ratio = jax.lax.stop_gradient(jnp.clip(tokens.ratio, ratio_min, ratio_max))
  return ratio * tokens.advantages * tokens.logprobs, _marks(low, high)


def sapo(
  tokens: Tokens, *, tau_positive: float = 1.0, tau_negative: float = 1.05
) -> Result:
  """SAPO: a sigmoid in the place of the clip.

  (4 / tau) sigmoid(tau (rho - 1)) A, with tau_positive where A > 0 and
  tau_negative elsewhere. Its gradient at rho = 1 is that of rho A.
  https://arxiv.org/abs/2511.20347, section 3, which gives the defaults and
  `sequence_mean` weights.

  Args:
    tokens: of completions.
    tau_positive: above 0; larger closes faster.
    tau_negative: above 0; larger closes faster.

  Raises:
    ValueError: an option is not positive.
  """
  if min(tau_positive, tau_negative) <= 0:
    raise ValueError(f"{tau_positive=} and {tau_negative=} must be positive.")
  tau = jnp.where(tokens.advantages > 0, tau_positive, tau_negative)
  gate = 4.0 / tau * jax.nn.sigmoid(tau * (tokens.ratio - 1.0))
  return gate * tokens.advantages, {}


def reinforce(tokens: Tokens) -> Result:
  """REINFORCE: A log pi, for the first update of a rollout only.

  Williams, https://doi.org/10.1007/BF00992696. The old policy enters the
  metrics alone.
  """
  return tokens.advantages * tokens.logprobs, {}


def _row_ratio(log_ratio, tokens):
  """Returns exp of the mean over each row's tokens, at each of them."""
  length = jnp.sum(tokens.inside, axis=-1, keepdims=True, dtype=jnp.float32)
  total = jnp.sum(log_ratio, axis=-1, keepdims=True)
  mean = jnp.where(tokens.inside, total / jnp.maximum(length, 1.0), 0.0)
  return jnp.exp(kl.clamp(mean))


def _clip(ratio, tokens, clip_low, clip_high):
  _check_clip(clip_low, clip_high)
  advantages = tokens.advantages
  low = (ratio < 1.0 - clip_low) & (advantages < 0)
  high = (ratio > 1.0 + clip_high) & (advantages > 0)
  clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
  surrogate = jnp.minimum(ratio * advantages, clipped * advantages)
  return surrogate, _marks(low, high)


def _check_clip(low, high):
  if low < 0 or high < 0:
    raise ValueError(f"Clip bounds {low} and {high} must be at least 0.")


def _marks(low, high):
  return {
    "clip_ratio/low_mean": low,
    "clip_ratio/high_mean": high,
    "clip_ratio/region_mean": low | high,
  }
