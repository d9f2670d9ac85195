"""What each policy objective makes larger: a surrogate of every token.

A row of `policy.OBJECTIVES` takes `Tokens` and, as keyword-only parameters, its
own options, and gives the surrogate and marks. A mark is a bool per token under
the name of a metric, which is its weighted count: which tokens were clipped, in
most. Whatever else a loss has is added in `policy.policy_loss`, the sign and
the weights too. `gspo`, `gmpo`, `luspo` and `vespo` take a row for one
completion, which has one advantage; rows are not packed.

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
    tokens: of completions, a row each.
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
    tokens: of completions, a row each.
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


def luspo(
  tokens: Tokens, *, clip_low: float = 3e-4, clip_high: float = 4e-4
) -> Result:
  """LUSPO: GSPO's term times the length of its row.

  |o| min(s A, clip(s, 1 - clip_low, 1 + clip_high) A), so that a token weighs
  the same in long rows as in short ones: https://arxiv.org/abs/2602.05261. The
  default bounds are GSPO's. `sequence_mean` weights divide by the length once:
  see `policy.check`.

  Args:
    tokens: of completions.
    clip_low: at least 0.
    clip_high: at least 0.

  Raises:
    ValueError: as in `grpo`.
  """
  surrogate, marks = gspo(tokens, clip_low=clip_low, clip_high=clip_high)
  length = jnp.sum(tokens.inside, axis=-1, keepdims=True, dtype=jnp.float32)
  return length * surrogate, marks


def dppo_tv(
  tokens: Tokens, *, max_low: float = 0.15, max_high: float = 0.15
) -> Result:
  """DPPO by total variation: a token is dropped for its probability's change.

  w A, w = pi / mu, or 0 where A > 0 and pi - mu > max_high, or A < 0 and
  mu - pi > max_low. A rare token may then double while a likely one may not
  fall by a fifth, as a bound of w has it the other way. Here mu is the sampler,
  where its log-probs are known: leave `config.correction` out, which corrects
  for it again. https://arxiv.org/abs/2602.04879; the defaults are those of its
  runs.

  Args:
    tokens: of completions.
    max_low: largest fall of a probability, in [0, 1].
    max_high: largest rise of a probability, in [0, 1].

  Raises:
    ValueError: as in `grpo`.
  """
  change = jnp.exp(tokens.logprobs) - jnp.exp(tokens.sampler_logprobs)
  return _drop_far(tokens, -change > max_low, change > max_high)


def dppo_kl(
  tokens: Tokens, *, max_low: float = 0.05, max_high: float = 0.05
) -> Result:
  """DPPO by binary KL: as `dppo_tv` with the divergence of one token or not.

  w A, w = pi / mu, or 0 where A > 0, pi > mu and D > max_high, or A < 0,
  pi < mu and D > max_low, with
  D = mu log(mu / pi) + (1 - mu) log((1 - mu) / (1 - pi)).
  https://arxiv.org/abs/2602.04879; the defaults are those of its runs.

  Args:
    tokens: of completions.
    max_low: largest divergence of a fall, in nats, at least 0.
    max_high: largest divergence of a rise, in nats, at least 0.

  Raises:
    ValueError: as in `grpo`.
  """
  log_pi, log_mu = tokens.logprobs, tokens.sampler_logprobs
  mu, not_mu, not_pi = jnp.exp(log_mu), -jnp.expm1(log_mu), -jnp.expm1(log_pi)
  # Off 0, where a certain token leaves nothing to the others.
  odds = jnp.log(jnp.maximum(not_mu, 1e-8) / jnp.maximum(not_pi, 1e-8))
  divergence = mu * (log_mu - log_pi) + not_mu * odds
  low = (log_pi < log_mu) & (divergence > max_low)
  return _drop_far(tokens, low, (log_pi > log_mu) & (divergence > max_high))


def vespo(
  tokens: Tokens,
  *,
  power_positive: float = 2.0,
  decay_positive: float = 3.0,
  power_negative: float = 3.0,
  decay_negative: float = 2.0,
) -> Result:
  """VESPO: a smooth weight of whole sequences, the same at all of their tokens.

  sg[W^k exp(l (1 - W))] A log pi, with W = prod_t pi / mu the ratio of the row
  to the sampler, where that is known, and k, l by the sign of A. The weight is
  1 at W = 1 and falls to 0 on either side. https://arxiv.org/abs/2602.10693,
  whose defaults these are. W is not normalized by the length.

  Args:
    tokens: of completions, a row each.
    power_positive: k where A is at least 0; at least 0.
    decay_positive: l where A is at least 0; at least 0.
    power_negative: k where A < 0; at least 0.
    decay_negative: l where A < 0; at least 0.

  Raises:
    ValueError: an option is below 0.
  """
  if min(power_positive, decay_positive, power_negative, decay_negative) < 0:
    raise ValueError("The powers and decays of vespo must be at least 0.")
  log_ratio = tokens.logprobs - tokens.sampler_logprobs
  log_w = kl.clamp(jnp.sum(log_ratio, axis=-1, keepdims=True))
  rises = tokens.advantages >= 0
  power = jnp.where(rises, power_positive, power_negative)
  decay = jnp.where(rises, decay_positive, decay_negative)
  weight = jnp.exp(kl.clamp(power * log_w + decay * (1.0 - jnp.exp(log_w))))
  surrogate = jax.lax.stop_gradient(weight) * tokens.advantages
  return surrogate * tokens.logprobs, {}


def dro(tokens: Tokens, *, beta: float = 0.05) -> Result:
  """DRO: the log-prob, held to the old one by a square and not by a clip.

  A log pi - beta / 2 (log rho)^2, whose optimum in log rho is A / beta:
  https://arxiv.org/abs/2405.19107, with the old policy as its reference.

  Args:
    tokens: of completions.
    beta: strength of the pull to the old policy, above 0.

  Raises:
    ValueError: `beta` is not positive.
  """
  if beta <= 0:
    raise ValueError(f"{beta=} must be positive.")
  pull = 0.5 * beta * tokens.log_ratio**2
  return tokens.advantages * tokens.logprobs - pull, {}


def _drop_far(tokens, low, high):
  """The ratio to the sampler times A, without falls and rises too far."""
  low &= tokens.advantages < 0
  high &= tokens.advantages > 0
  log_ratio = kl.clamp(tokens.logprobs - tokens.sampler_logprobs)
  surrogate = jnp.exp(log_ratio) * tokens.advantages
  return jnp.where(low | high, 0.0, surrogate), _marks(low, high)


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
