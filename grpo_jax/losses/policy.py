"""Policy objectives: GRPO and its relatives, all called the same way.

The loss is the sum over tokens of

  weight * (kl_coef * KL - correction * surrogate - entropy_coef * entropy
            + drift_coef * (log pi / mu)^2)

and the objectives differ in the surrogate alone (`surrogates.py`). The weights
carry every mean (`weighting.py`): Dr. GRPO is `constant_length` weights with
centered advantages, DAPO is `token_mean` weights with clip_high > clip_low. So
losses and gradients of microbatches and of shards add up to those of the whole.

`OBJECTIVES` has the surrogate of each name. `LOSSES` has a function of each,
`policy_loss` with the objective filled in, whose keyword-only parameters are
the options of the objective and those that all share: the fields of a config.
`grpo_loss`, `gspo_loss` and their like are these functions by name.

The metrics are sum(weights * x) of some x per token. Their denominator is
therefore that of the weights, and for weights that sum to 1 (`sequence_mean`,
`token_mean`, `prompt_mean`) they are means; otherwise divide by the metric
"weight". They are:

  weight              sum(weights)
  ratio/mean          pi / pi_old; ratio/square its square, so that
                      mean^2 / square is the effective sample size, at most 1
  old_kl              k3 estimate of KL(pi_old || pi), in nats
  kl                  KL(pi || pi_ref) by the chosen estimator, with a reference
  entropy             in nats, when given
  drift               (log pi / mu)^2, with a `drift_coef`
  stale               dropped for a `stale_threshold`, when that is set
  clip_ratio/low_mean     rho under its lower bound while A < 0
  clip_ratio/high_mean    rho over its upper bound while A > 0
  clip_ratio/region_mean  either; these three where the objective clips
  clip_ratio/cov_mean     chosen for their covariance, in clip_cov and kl_cov

Where weights are 0 nothing is read: NaN in padding reaches neither loss nor
gradient. Log-ratios are clamped to +-20 before exp, without a gradient beyond.
Inputs of any float type are computed in float32.

Dimension key: T positions; `*rows` is any number of leading axes, [B] or
[P, G], each row one completion.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax.losses import correction as correction_lib
from grpo_jax.losses import covariance, surrogates
from grpo_jax.losses import kl as kl_lib
from grpo_jax.losses import weighting as weighting_lib

Metrics = dict[str, Float[Array, ""]]
Loss = Callable[..., tuple[Float[Array, ""], Metrics]]

OBJECTIVES: dict[str, Callable[..., surrogates.Result]] = {
  "grpo": surrogates.grpo,
  "ppo": surrogates.grpo,
  "gspo": surrogates.gspo,
  "gspo_token": surrogates.gspo_token,
  "gmpo": surrogates.gmpo,
  "cispo": surrogates.cispo,
  "sapo": surrogates.sapo,
  "reinforce": surrogates.reinforce,
  "luspo": surrogates.luspo,
  "dppo_tv": surrogates.dppo_tv,
  "dppo_kl": surrogates.dppo_kl,
  "vespo": surrogates.vespo,
  "dro": surrogates.dro,
  "clip_cov": covariance.clip_cov,
  "kl_cov": covariance.kl_cov,
}

# Objectives whose ratio belongs to a whole completion.
_SEQUENCE_RATIOS = ("gspo", "gspo_token", "gmpo", "luspo")
# Objectives that choose some of all tokens of an update.
_OVER_ALL_TOKENS = ("clip_cov", "kl_cov")
# Objectives whose ratio is to the sampler, which a correction would square.
_TO_SAMPLER = ("dppo_tv", "dppo_kl", "vespo")


def policy_loss(
  surrogate: Callable[..., surrogates.Result],
  logprobs: Float[Array, "*rows T"],
  old_logprobs: Float[Array, "*rows T"],
  ref_logprobs: Float[Array, "*rows T"] | None,
  advantages: Float[Array, "*rows T"],
  weights: Float[Array, "*rows T"],
  entropy: Float[Array, "*rows T"] | None = None,
  correction: Float[Array, "*rows T"] | None = None,
  sampler_logprobs: Float[Array, "*rows T"] | None = None,
  *,
  kl_coef: Float[Array, ""] | float = 0.0,
  kl_estimator: str = "k3",
  kl_off_policy: bool = False,
  entropy_coef: Float[Array, ""] | float = 0.0,
  drift_coef: float = 0.0,
  stale_threshold: float | None = None,
  **options: Any,
) -> tuple[Float[Array, ""], Metrics]:
  """The loss of any objective, and its metrics.

  Args:
    surrogate: a value of `OBJECTIVES`, or a function like them.
    logprobs: of the policy, in nats; carries the gradient.
    old_logprobs: of the policy that drew the tokens, as the trainer scores it.
    ref_logprobs: of the reference; None if there is none.
    advantages: of each token.
    weights: each token's share of the update, at least 0 (`weighting.py`).
    entropy: of the policy at each token, in nats; carries its own gradient.
    correction: a factor of each token's surrogate, from `correction.py`; a
      constant. KL and entropy are not multiplied. Default 1.
    sampler_logprobs: of the tokens as the sampler (mu) computed them, where
      they are known: drift and staleness are measured from there, and so are
      the ratios of `dppo_tv`, `dppo_kl` and `vespo`. Else from `old_logprobs`.
    kl_coef: of the KL to the reference, at least 0.
    kl_estimator: a key of `kl.ESTIMATORS`; "k3" is the paper's.
    kl_off_policy: weigh the KL by pi / pi_old (see `kl.py`).
    entropy_coef: of the entropy bonus, at least 0.
    drift_coef: of the squared log-ratio to the sampler, at least 0: Kimi K2.5,
      https://arxiv.org/abs/2602.02276.
    stale_threshold: rows whose tokens became less likely by more than this on
      average, in nats per token, have no surrogate where A < 0
      (`correction.drop_stale_negatives`); None keeps all.
    **options: of the surrogate.

  Raises:
    ValueError: an option is out of its range, a coefficient lacks the array it
      multiplies, or the KL is an unweighted k1, whose gradient is 0 on average.
  """
  weights = weights.astype(jnp.float32)
  inside = weights > 0

  def keep(x):
    return jnp.where(inside, x.astype(jnp.float32), 0.0)

  def total(x):
    return jnp.sum(weights * x)

  tokens = _read(
    inside, keep, logprobs, old_logprobs, sampler_logprobs, advantages
  )
  summands, marks = surrogate(tokens, **options)
  if stale_threshold is not None:
    kept = _keep_fresh(tokens, stale_threshold)
    summands, marks = kept * summands, marks | {"stale": inside & (kept == 0)}
  if correction is not None:
    summands *= jax.lax.stop_gradient(keep(correction))
  loss = -total(summands)
  metrics = {name: total(mark) for name, mark in marks.items()} | {
    "weight": jnp.sum(weights),
    "ratio/mean": total(tokens.ratio),
    "ratio/square": total(tokens.ratio**2),
    "old_kl": total(tokens.ratio - 1.0 - kl_lib.clamp(tokens.log_ratio)),
  }
  if ref_logprobs is not None:
    settings = (kl_estimator, kl_off_policy)
    metrics["kl"] = total(_kl(tokens, keep(ref_logprobs), *settings))
  if _is_set(kl_coef):
    _check_kl(kl_coef, kl_estimator, kl_off_policy, ref_logprobs)
    loss += kl_coef * metrics["kl"]
  if drift_coef != 0:
    drift = tokens.logprobs - tokens.sampler_logprobs
    metrics["drift"] = total(drift**2)
    loss += drift_coef * metrics["drift"]
  if entropy is not None:
    metrics["entropy"] = total(keep(entropy))
    loss -= entropy_coef * metrics["entropy"]
  elif _is_set(entropy_coef):
    raise ValueError(f"{entropy_coef=} needs the entropy.")
  return loss, jax.lax.stop_gradient(metrics)


def check(
  objective: str,
  weighting: str,
  *,
  num_microbatches: int = 1,
  correction: str = "none",
  top_p: float = 1.0,
  top_k: int | None = None,
  min_p: float = 0.0,
  renormalized: bool = False,
) -> None:
  """Refuses combinations that contradict each other; call it with the config.

  Args:
    objective: a key of `OBJECTIVES`.
    weighting: a key of `weighting.WEIGHTINGS`.
    num_microbatches: the pieces whose losses add up to that of an update.
    correction: a key of `correction.CORRECTIONS`.
    top_p: as the sampler draws; 1 keeps the whole vocabulary.
    top_k: as the sampler draws; None or 0 keeps the whole vocabulary.
    min_p: as the sampler draws; 0 keeps the whole vocabulary.
    renormalized: the log-probs of policy, old policy and reference are
      renormalized over the support that the sampler drew from.

  Raises:
    ValueError: a name is unknown; a sequence ratio has a weighting by tokens;
      an objective that chooses among all tokens is given them in pieces; one
      whose ratio is to the sampler is corrected for it again; the sampler
      truncates a support that the log-probs do not.
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
  if objective in _OVER_ALL_TOKENS and num_microbatches > 1:
    raise ValueError(
      f"{objective=} chooses among all tokens of an update and needs"
      f" num_microbatches = 1, not {num_microbatches}."
    )
  if objective in _TO_SAMPLER and correction != "none":
    raise ValueError(
      f"{objective=} has its ratio to the sampler and needs"
      f' correction="none", not {correction=}, which corrects for it again.'
    )
  if (top_p < 1.0 or top_k or min_p > 0.0) and not renormalized:
    raise ValueError(
      f"Training on samples of {top_p=}, {top_k=}, {min_p=} needs log-probs"
      " renormalized over the same support."
    )


def _read(inside, keep, logprobs, old_logprobs, sampler_logprobs, advantages):
  logprobs = keep(logprobs)
  old_logprobs = jax.lax.stop_gradient(keep(old_logprobs))
  if sampler_logprobs is None:
    sampler_logprobs = old_logprobs
  log_ratio = logprobs - old_logprobs
  return surrogates.Tokens(
    inside=inside,
    logprobs=logprobs,
    old_logprobs=old_logprobs,
    sampler_logprobs=jax.lax.stop_gradient(keep(sampler_logprobs)),
    advantages=jax.lax.stop_gradient(keep(advantages)),
    log_ratio=log_ratio,
    ratio=jnp.exp(kl_lib.clamp(log_ratio)),
  )


def _keep_fresh(tokens, threshold):
  return correction_lib.drop_stale_negatives(
    tokens.logprobs,
    tokens.sampler_logprobs,
    tokens.advantages,
    tokens.inside,
    threshold=threshold,
  )


def _kl(tokens, ref_logprobs, estimator, off_policy):
  return kl_lib.estimate(
    tokens.logprobs,
    ref_logprobs,
    tokens.inside,
    estimator=estimator,
    old_logprobs=tokens.old_logprobs if off_policy else None,
  )


def _check_kl(kl_coef, kl_estimator, kl_off_policy, ref_logprobs):
  if ref_logprobs is None:
    raise ValueError(f"{kl_coef=} needs ref_logprobs.")
  if kl_estimator == "k1" and not kl_off_policy:
    raise ValueError(
      'kl_estimator="k1" has no expected gradient in the loss: put it in the'
      " reward, or set kl_off_policy."
    )


def _is_set(coef):
  # A coefficient may be an array, as an adaptive one is: then it is used.
  return not isinstance(coef, (int, float)) or coef != 0


def _make_loss(name: str) -> Loss:
  """`policy_loss` with the surrogate of a name, and a signature to match."""
  surrogate = OBJECTIVES[name]

  def loss(*args, **options):
    return policy_loss(surrogate, *args, **options)

  _, *shared = inspect.signature(policy_loss).parameters.values()
  _, *own = inspect.signature(surrogate).parameters.values()
  data = [p for p in shared if p.kind is p.POSITIONAL_OR_KEYWORD]
  terms = [p for p in shared if p.kind is p.KEYWORD_ONLY]
  loss.__name__ = loss.__qualname__ = f"{name}_loss"
  loss.__doc__ = surrogate.__doc__
  vars(loss)["__signature__"] = inspect.Signature([*data, *own, *terms])
  return loss


LOSSES: dict[str, Loss] = {name: _make_loss(name) for name in OBJECTIVES}

grpo_loss = LOSSES["grpo"]
gspo_loss = LOSSES["gspo"]
gspo_token_loss = LOSSES["gspo_token"]
gmpo_loss = LOSSES["gmpo"]
cispo_loss = LOSSES["cispo"]
sapo_loss = LOSSES["sapo"]
reinforce_loss = LOSSES["reinforce"]
