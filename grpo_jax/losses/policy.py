"""Policy objectives: GRPO and its relatives, all called the same way.

Each takes (logprobs, old_logprobs, ref_logprobs, advantages, weights) and gives
(loss, metrics). The loss is the sum over tokens of

  weight * (kl_coef * KL - correction * surrogate - entropy_coef * entropy)

and the objectives differ in the surrogate alone. The weights carry every mean
(`weighting.py`): Dr. GRPO is `constant_length` weights with centered
advantages, DAPO is `token_mean` weights with clip_high > clip_low. So losses
and gradients of microbatches and of shards add up to those of the whole.

So do the metrics: each is sum(weights * x) of some x per token. Their
denominator is therefore that of the weights, and for weights that sum to 1
(`sequence_mean`, `token_mean`) they are means; otherwise divide by the metric
"weight". They are:

  weight              sum(weights)
  ratio/mean          pi / pi_old; ratio/square its square, so that
                      mean^2 / square is the effective sample size, at most 1
  old_kl              k3 estimate of KL(pi_old || pi), in nats
  kl                  KL(pi || pi_ref) by the chosen estimator, with a reference
  entropy             in nats, when given
  clip_ratio/low_mean     rho under its lower bound while A < 0
  clip_ratio/high_mean    rho over its upper bound while A > 0
  clip_ratio/region_mean  either; these three where the objective clips

Where weights are 0 nothing is read: NaN in padding reaches neither loss nor
gradient. Log-ratios are clamped to +-20 before exp, without a gradient beyond.
Inputs of any float type are computed in float32.

Dimension key: T positions; `*rows` is any number of leading axes, [B] or
[P, G], each row one completion.
"""

from typing import NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.losses import kl as kl_lib
from grpo_jax.losses import weighting as weighting_lib

Metrics = dict[str, Float[Array, ""]]


class Terms(TypedDict, total=False):
  """Keyword arguments that every objective takes besides its own.

  Attributes:
    kl_coef: of the KL to the reference, at least 0; default 0.
    kl_estimator: a key of `kl.ESTIMATORS`; default "k3", the paper's.
    kl_off_policy: weigh the KL by pi / pi_old (see `kl.py`); default False.
    entropy: of the policy at each token, in nats; carries its own gradient.
    entropy_coef: of the entropy bonus, at least 0; default 0.
    correction: a factor of each token's surrogate, from `correction.py`; a
      constant. KL and entropy are not multiplied. Default 1.
  """

  kl_coef: Float[Array, ""] | float
  kl_estimator: str
  kl_off_policy: bool
  entropy: Float[Array, "*rows T"] | None
  entropy_coef: float
  correction: Float[Array, "*rows T"] | None


def grpo_loss(
  logprobs: Float[Array, "*rows T"],
  old_logprobs: Float[Array, "*rows T"],
  ref_logprobs: Float[Array, "*rows T"] | None,
  advantages: Float[Array, "*rows T"],
  weights: Float[Array, "*rows T"],
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  dual_clip: float | None = None,
  **terms: Unpack[Terms],
) -> tuple[Float[Array, ""], Metrics]:
  """The clipped ratio times the advantage: GRPO, and PPO with a value head.

  surrogate = min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) with
  rho = pi / pi_old. DeepSeekMath, https://arxiv.org/abs/2402.03300, equations 3
  and 4; DeepSeek-R1, https://arxiv.org/abs/2501.12948, equations 1 to 3; PPO,
  https://arxiv.org/abs/1707.06347, equation 7; two different bounds are DAPO's,
  https://arxiv.org/abs/2503.14476, section 3.1. With a `dual_clip` of c the
  surrogate where A < 0 is at least c A: https://arxiv.org/abs/1912.09729,
  section "Dual-clip PPO".

  Args:
    logprobs: of the policy, in nats; carries the gradient.
    old_logprobs: of the policy that drew the tokens, as the trainer scores it.
    ref_logprobs: of the reference; None if there is none.
    advantages: of each token.
    weights: each token's share of the update, at least 0 (`weighting.py`).
    clip_low: at least 0; from 1 on nothing is clipped below.
    clip_high: at least 0, of any size: DeepSeek-R1's first stage has 10.
    dual_clip: above 1, or None.
    **terms: see `Terms`.

  Raises:
    ValueError: an argument is out of its range, `kl_coef` has no reference,
      `entropy_coef` has no entropy, or the KL in the loss is an unweighted k1,
      whose expected gradient is zero.
  """
  _check_clip(clip_low, clip_high)
  if dual_clip is not None and dual_clip <= 1:
    raise ValueError(f"{dual_clip=} must be above 1.")
  tokens = _read(logprobs, old_logprobs, ref_logprobs, advantages, weights)
  surrogate, metrics = _clip(tokens.ratio, tokens, clip_low, clip_high)
  if dual_clip is not None:
    floor = dual_clip * tokens.advantages
    surrogate = jnp.where(
      tokens.advantages < 0, jnp.maximum(surrogate, floor), surrogate
    )
  return _total(surrogate, tokens, metrics, **terms)


def gspo_loss(
  logprobs: Float[Array, "*rows T"],
  old_logprobs: Float[Array, "*rows T"],
  ref_logprobs: Float[Array, "*rows T"] | None,
  advantages: Float[Array, "*rows T"],
  weights: Float[Array, "*rows T"],
  *,
  clip_low: float = 3e-4,
  clip_high: float = 4e-4,
  **terms: Unpack[Terms],
) -> tuple[Float[Array, ""], Metrics]:
  """GSPO: one length-normalized ratio per completion.

  surrogate = min(s A, clip(s, 1 - clip_low, 1 + clip_high) A) with
  s = exp(mean_t log(pi / pi_old)), the mean over the row's tokens of positive
  weight. https://arxiv.org/abs/2507.18071, section 4.1, equations 5 and 7; the
  default bounds are its section 5.1's. Metrics of ratios are of tokens,
  those of the clip of completions. Only `sequence_mean` weights give each
  completion one share: see `check`.

  Args:
    logprobs: as in `grpo_loss`.
    old_logprobs: as in `grpo_loss`.
    ref_logprobs: as in `grpo_loss`.
    advantages: the same at all tokens of a row.
    weights: as in `grpo_loss`; a row is one completion, rows are not packed.
    clip_low: at least 0.
    clip_high: at least 0.
    **terms: see `Terms`.

  Raises:
    ValueError: as in `grpo_loss`.
  """
  _check_clip(clip_low, clip_high)
  tokens = _read(logprobs, old_logprobs, ref_logprobs, advantages, weights)
  ratio = jnp.exp(kl_lib.clamp(_row_mean(tokens.log_ratio, tokens)))
  surrogate, metrics = _clip(ratio, tokens, clip_low, clip_high)
  return _total(surrogate, tokens, metrics, **terms)


def gspo_token_loss(
  logprobs: Float[Array, "*rows T"],
  old_logprobs: Float[Array, "*rows T"],
  ref_logprobs: Float[Array, "*rows T"] | None,
  advantages: Float[Array, "*rows T"],
  weights: Float[Array, "*rows T"],
  *,
  clip_low: float = 3e-4,
  clip_high: float = 4e-4,
  **terms: Unpack[Terms],
) -> tuple[Float[Array, ""], Metrics]:
  """GSPO-token: the completion's ratio, the token's gradient.

  As `gspo_loss`, with s_t = sg[s] pi_t / sg[pi_t] in the place of s, where sg
  stops the gradient. Value and gradient are those of GSPO when all tokens of a
  row have the same advantage, and here they need not.
  https://arxiv.org/abs/2507.18071, section 4.3.

  Args:
    logprobs: as in `grpo_loss`.
    old_logprobs: as in `grpo_loss`.
    ref_logprobs: as in `grpo_loss`.
    advantages: of each token.
    weights: as in `gspo_loss`.
    clip_low: at least 0.
    clip_high: at least 0.
    **terms: see `Terms`.

  Raises:
    ValueError: as in `grpo_loss`.
  """
  _check_clip(clip_low, clip_high)
  tokens = _read(logprobs, old_logprobs, ref_logprobs, advantages, weights)
  mean = jax.lax.stop_gradient(_row_mean(tokens.log_ratio, tokens))
  own = tokens.logprobs - jax.lax.stop_gradient(tokens.logprobs)
  ratio = jnp.exp(kl_lib.clamp(mean) + own)
  surrogate, metrics = _clip(ratio, tokens, clip_low, clip_high)
  return _total(surrogate, tokens, metrics, **terms)


def gmpo_loss(
  logprobs: Float[Array, "*rows T"],
  old_logprobs: Float[Array, "*rows T"],
  ref_logprobs: Float[Array, "*rows T"] | None,
  advantages: Float[Array, "*rows T"],
  weights: Float[Array, "*rows T"],
  *,
  log_clip_low: float = 0.4,
  log_clip_high: float = 0.4,
  **terms: Unpack[Terms],
) -> tuple[Float[Array, ""], Metrics]:
  """GMPO: the geometric mean of a completion's clipped ratios.

  surrogate = A exp(mean_t l_t), where l_t = min(log rho_t, log_clip_high) if
  A > 0 and max(log rho_t, -log_clip_low) if A < 0, the mean over the row's
  tokens of positive weight. https://arxiv.org/abs/2507.20673, section 3 and its
  pseudocode; the default bounds (e^-0.4, e^0.4) are its too. Only
  `sequence_mean` weights give each completion one share: see `check`.

  Args:
    logprobs: as in `grpo_loss`.
    old_logprobs: as in `grpo_loss`.
    ref_logprobs: as in `grpo_loss`.
    advantages: the same at all tokens of a row.
    weights: as in `gspo_loss`.
    log_clip_low: bound of -log rho, in nats, at least 0.
    log_clip_high: bound of log rho, in nats, at least 0.
    **terms: see `Terms`.

  Raises:
    ValueError: as in `grpo_loss`.
  """
  _check_clip(log_clip_low, log_clip_high)
  tokens = _read(logprobs, old_logprobs, ref_logprobs, advantages, weights)
  low = (tokens.log_ratio < -log_clip_low) & (tokens.advantages < 0)
  high = (tokens.log_ratio > log_clip_high) & (tokens.advantages > 0)
  clipped = jnp.where(low, -log_clip_low, tokens.log_ratio)
  clipped = jnp.where(high, log_clip_high, clipped)
  ratio = jnp.exp(kl_lib.clamp(_row_mean(clipped, tokens)))
  metrics = _clip_metrics(low, high, weights)
  return _total(ratio * tokens.advantages, tokens, metrics, **terms)


def cispo_loss(
  logprobs: Float[Array, "*rows T"],
  old_logprobs: Float[Array, "*rows T"],
  ref_logprobs: Float[Array, "*rows T"] | None,
  advantages: Float[Array, "*rows T"],
  weights: Float[Array, "*rows T"],
  *,
  ratio_min: float = 0.0,
  ratio_max: float = 5.0,
  **terms: Unpack[Terms],
) -> tuple[Float[Array, ""], Metrics]:
  """CISPO: a bounded, constant ratio weighs log pi, so no token loses gradient.

  surrogate = sg[clip(rho, ratio_min, ratio_max)] A log pi, where sg stops the
  gradient: MiniMax-M1, https://arxiv.org/abs/2506.13585, equations 4 and 5. The
  bounds are those of rho itself, the paper's 1 - eps_low and 1 + eps_high. The
  paper sets no lower bound and does not print its upper one; the default is of
  the size that ScaleRL, https://arxiv.org/abs/2510.13786, uses. The paper
  divides by all tokens: `token_mean` weights.

  "clip_ratio/low_mean" and "clip_ratio/high_mean" count rho outside the bounds,
  whatever A is.

  Args:
    logprobs: as in `grpo_loss`.
    old_logprobs: as in `grpo_loss`.
    ref_logprobs: as in `grpo_loss`.
    advantages: of each token.
    weights: as in `grpo_loss`.
    ratio_min: the smallest weight, at least 0.
    ratio_max: the largest weight, at least `ratio_min`.
    **terms: see `Terms`.

  Raises:
    ValueError: as in `grpo_loss`.
  """
  if not 0 <= ratio_min <= ratio_max:
    raise ValueError(f"0 <= {ratio_min=} <= {ratio_max=} must hold.")
  tokens = _read(logprobs, old_logprobs, ref_logprobs, advantages, weights)
  low, high = tokens.ratio < ratio_min, tokens.ratio > ratio_max
  ratio = jax.lax.stop_gradient(jnp.clip(tokens.ratio, ratio_min, ratio_max))
  surrogate = ratio * tokens.advantages * tokens.logprobs
  metrics = _clip_metrics(low, high, weights)
  return _total(surrogate, tokens, metrics, **terms)


def sapo_loss(
  logprobs: Float[Array, "*rows T"],
  old_logprobs: Float[Array, "*rows T"],
  ref_logprobs: Float[Array, "*rows T"] | None,
  advantages: Float[Array, "*rows T"],
  weights: Float[Array, "*rows T"],
  *,
  tau_positive: float = 1.0,
  tau_negative: float = 1.05,
  **terms: Unpack[Terms],
) -> tuple[Float[Array, ""], Metrics]:
  """SAPO: a sigmoid in the place of the clip.

  surrogate = (4 / tau) sigmoid(tau (rho - 1)) A, with tau_positive where A > 0
  and tau_negative elsewhere. Its gradient at rho = 1 is that of rho A.
  https://arxiv.org/abs/2511.20347, section 3, which gives the defaults.

  Args:
    logprobs: as in `grpo_loss`.
    old_logprobs: as in `grpo_loss`.
    ref_logprobs: as in `grpo_loss`.
    advantages: of each token.
    weights: as in `grpo_loss`; the paper has `sequence_mean`.
    tau_positive: above 0; larger closes faster.
    tau_negative: above 0; larger closes faster.
    **terms: see `Terms`.

  Raises:
    ValueError: as in `grpo_loss`.
  """
  if min(tau_positive, tau_negative) <= 0:
    raise ValueError(f"{tau_positive=} and {tau_negative=} must be positive.")
  tokens = _read(logprobs, old_logprobs, ref_logprobs, advantages, weights)
  tau = jnp.where(tokens.advantages > 0, tau_positive, tau_negative)
  gate = 4.0 / tau * jax.nn.sigmoid(tau * (tokens.ratio - 1.0))
  return _total(gate * tokens.advantages, tokens, {}, **terms)


def reinforce_loss(
  logprobs: Float[Array, "*rows T"],
  old_logprobs: Float[Array, "*rows T"],
  ref_logprobs: Float[Array, "*rows T"] | None,
  advantages: Float[Array, "*rows T"],
  weights: Float[Array, "*rows T"],
  **terms: Unpack[Terms],
) -> tuple[Float[Array, ""], Metrics]:
  """REINFORCE: surrogate = A log pi, for the first update of a rollout only.

  Williams, https://doi.org/10.1007/BF00992696. `old_logprobs` enter the metrics
  alone.

  Args:
    logprobs: as in `grpo_loss`.
    old_logprobs: as in `grpo_loss`.
    ref_logprobs: as in `grpo_loss`.
    advantages: of each token.
    weights: as in `grpo_loss`.
    **terms: see `Terms`.

  Raises:
    ValueError: as in `grpo_loss`.
  """
  tokens = _read(logprobs, old_logprobs, ref_logprobs, advantages, weights)
  return _total(tokens.advantages * tokens.logprobs, tokens, {}, **terms)


OBJECTIVES = {
  "grpo": grpo_loss,
  "ppo": grpo_loss,
  "gspo": gspo_loss,
  "gspo_token": gspo_token_loss,
  "gmpo": gmpo_loss,
  "cispo": cispo_loss,
  "sapo": sapo_loss,
  "reinforce": reinforce_loss,
}

# Objectives whose ratio belongs to a whole completion.
_SEQUENCE_RATIOS = ("gspo", "gspo_token", "gmpo")


def check(
  objective: str,
  weighting: str,
  *,
  top_p: float = 1.0,
  top_k: int | None = None,
  min_p: float = 0.0,
  renormalized: bool = False,
) -> None:
  """Refuses combinations that contradict each other; call it with the config.

  Args:
    objective: a key of `OBJECTIVES`.
    weighting: a key of `weighting.WEIGHTINGS`.
    top_p: as the sampler draws; 1 keeps the whole vocabulary.
    top_k: as the sampler draws; None or 0 keeps the whole vocabulary.
    min_p: as the sampler draws; 0 keeps the whole vocabulary.
    renormalized: the log-probs of policy, old policy and reference are
      renormalized over the support that the sampler drew from.

  Raises:
    ValueError: a name is unknown; a sequence ratio has a weighting by tokens;
      the sampler truncates a support that the log-probs do not.
  """
  if objective not in OBJECTIVES:
    raise ValueError(f"{objective=} must be one of {sorted(OBJECTIVES)}.")
  if weighting not in weighting_lib.WEIGHTINGS:
    raise ValueError(
      f"{weighting=} must be one of {sorted(weighting_lib.WEIGHTINGS)}."
    )
  if objective in _SEQUENCE_RATIOS and weighting != "sequence_mean":
    raise ValueError(
      f"{objective=} has one ratio per completion and needs"
      f' weighting="sequence_mean", not {weighting=}.'
    )
  if (top_p < 1.0 or top_k or min_p > 0.0) and not renormalized:
    raise ValueError(
      f"Training on samples of {top_p=}, {top_k=}, {min_p=} needs log-probs"
      " renormalized over the same support."
    )


class _Tokens(NamedTuple):
  """The inputs in float32, 0 where nothing is to be read."""

  inside: Bool[Array, "*rows T"]
  weights: Float[Array, "*rows T"]
  logprobs: Float[Array, "*rows T"]
  old_logprobs: Float[Array, "*rows T"]
  ref_logprobs: Float[Array, "*rows T"] | None
  advantages: Float[Array, "*rows T"]
  log_ratio: Float[Array, "*rows T"]
  ratio: Float[Array, "*rows T"]


def _read(logprobs, old_logprobs, ref_logprobs, advantages, weights):
  weights = weights.astype(jnp.float32)
  inside = weights > 0

  def keep(x):
    return jnp.where(inside, x.astype(jnp.float32), 0.0)

  logprobs = keep(logprobs)
  old_logprobs = jax.lax.stop_gradient(keep(old_logprobs))
  log_ratio = logprobs - old_logprobs
  return _Tokens(
    inside=inside,
    weights=weights,
    logprobs=logprobs,
    old_logprobs=old_logprobs,
    ref_logprobs=None if ref_logprobs is None else keep(ref_logprobs),
    advantages=jax.lax.stop_gradient(keep(advantages)),
    log_ratio=log_ratio,
    ratio=jnp.exp(kl_lib.clamp(log_ratio)),
  )


def _row_mean(x, tokens):
  """The mean over each row's tokens, at each of them."""
  length = jnp.sum(tokens.inside, axis=-1, keepdims=True, dtype=jnp.float32)
  total = jnp.sum(x, axis=-1, keepdims=True)
  return jnp.where(tokens.inside, total / jnp.maximum(length, 1.0), 0.0)


def _check_clip(low, high):
  if low < 0 or high < 0:
    raise ValueError(f"Clip bounds {low} and {high} must be at least 0.")


def _clip(ratio, tokens, clip_low, clip_high):
  advantages = tokens.advantages
  low = (ratio < 1.0 - clip_low) & (advantages < 0)
  high = (ratio > 1.0 + clip_high) & (advantages > 0)
  clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
  surrogate = jnp.minimum(ratio * advantages, clipped * advantages)
  return surrogate, _clip_metrics(low, high, tokens.weights)


def _clip_metrics(low, high, weights):
  low, high = jnp.sum(weights * low), jnp.sum(weights * high)
  return {
    "clip_ratio/low_mean": low,
    "clip_ratio/high_mean": high,
    "clip_ratio/region_mean": low + high,
  }


def _total(
  surrogate,
  tokens,
  metrics,
  *,
  kl_coef=0.0,
  kl_estimator="k3",
  kl_off_policy=False,
  entropy=None,
  entropy_coef=0.0,
  correction=None,
):
  weights = tokens.weights
  if correction is not None:
    factor = jnp.where(tokens.inside, correction.astype(jnp.float32), 0.0)
    surrogate = jax.lax.stop_gradient(factor) * surrogate
  loss = -jnp.sum(weights * surrogate)
  metrics = metrics | {
    "weight": jnp.sum(weights),
    "ratio/mean": jnp.sum(weights * tokens.ratio),
    "ratio/square": jnp.sum(weights * tokens.ratio**2),
    "old_kl": jnp.sum(
      weights * (tokens.ratio - 1.0 - kl_lib.clamp(tokens.log_ratio))
    ),
  }
  # A coefficient may be an array, as an adaptive one is: then it is used.
  use_kl = not isinstance(kl_coef, (int, float)) or kl_coef != 0
  if use_kl and tokens.ref_logprobs is None:
    raise ValueError(f"{kl_coef=} needs ref_logprobs.")
  if use_kl and kl_estimator == "k1" and not kl_off_policy:
    raise ValueError(
      'kl_estimator="k1" has no expected gradient in the loss: put it in the'
      " reward, or set kl_off_policy."
    )
  if tokens.ref_logprobs is not None:
    kl = kl_lib.estimate(
      tokens.logprobs,
      tokens.ref_logprobs,
      tokens.inside,
      estimator=kl_estimator,
      old_logprobs=tokens.old_logprobs if kl_off_policy else None,
    )
    metrics["kl"] = jnp.sum(weights * kl)
    if use_kl:
      loss += kl_coef * metrics["kl"]
  if entropy is not None:
    entropy = jnp.where(tokens.inside, entropy.astype(jnp.float32), 0.0)
    metrics["entropy"] = jnp.sum(weights * entropy)
    loss -= entropy_coef * metrics["entropy"]
  elif entropy_coef != 0:
    raise ValueError(f"{entropy_coef=} needs the entropy.")
  return loss, jax.lax.stop_gradient(metrics)
