"""Learning from preferences: reward models, direct objectives, labelled steps.

`PREFERENCES` names the direct objectives that a config may choose. Each row
takes data as positional parameters, given by name, and has its options as
keyword-only ones. Of pairs, [B] each:

  chosen_logprobs, rejected_logprobs          of the policy, *summed* over the
                                              tokens (`completion_logprobs`)
  ref_chosen_logprobs, ref_rejected_logprobs  of the reference, likewise
  chosen_lengths, rejected_lengths            of the completions, in tokens
  weights                                     each pair's share of the update

`kto` takes single completions instead, which pairs become when the rejected
ones are laid behind the chosen ones: `logprobs`, `ref_logprobs`, `desirable`
and `weights` of each, and one `reference_point` (`kto_reference_point`).

Every loss is sum(weights * x) with one weight per pair, or per step, and so are
the metrics, as in `policy.py`. A weight of 0 reads nothing.

Dimension key: B pairs or completions, T positions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Metrics = dict[str, Float[Array, ""]]


def completion_logprobs(
  logprobs: Float[Array, "*rows T"], mask: Bool[Array, "*rows T"]
) -> Float[Array, "*rows"]:
  """The log-prob of each completion: the sum over its tokens.

  Args:
    logprobs: of each token, in nats.
    mask: the tokens of the completion; others are never read.
  """
  return jnp.sum(jnp.where(mask, logprobs.astype(jnp.float32), 0.0), axis=-1)


def bradley_terry_loss(
  chosen: Float[Array, " B"],
  rejected: Float[Array, " B"],
  weights: Float[Array, " B"],
  *,
  margins: Float[Array, " B"] | None = None,
  center_coef: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
  """Loss of a reward model on pairs: -log sigmoid(r_chosen - r_rejected - m).

  InstructGPT, https://arxiv.org/abs/2203.02155, equation 1; the margin m is
  Llama 2's, https://arxiv.org/abs/2307.09288, equation 2. With `center_coef` c,
  c (r_chosen + r_rejected)^2 is added, which pulls the rewards of a pair to
  mean 0: Eisenstein et al., https://arxiv.org/abs/2312.09244.

  Metrics: "weight", "accuracy" (chosen above rejected), "margin" (their
  difference), "reward" (their mean).

  Args:
    chosen: scores of the preferred completions; unbounded.
    rejected: scores of the others.
    weights: each pair's share of the update.
    margins: by how much chosen should win, in units of the score.
    center_coef: at least 0.
  """
  weights, (chosen, rejected) = _read(weights, chosen, rejected)
  difference = chosen - rejected
  wanted = difference
  if margins is not None:
    _, (margins,) = _read(weights, margins)
    wanted = difference - margins
  per_pair = jax.nn.softplus(-wanted) + center_coef * (chosen + rejected) ** 2
  return jnp.sum(weights * per_pair), _pair_metrics(weights, chosen, rejected)


def dpo_loss(
  chosen_logprobs: Float[Array, " B"],
  rejected_logprobs: Float[Array, " B"],
  ref_chosen_logprobs: Float[Array, " B"],
  ref_rejected_logprobs: Float[Array, " B"],
  weights: Float[Array, " B"],
  *,
  beta: float = 0.1,
  label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
  """DPO: -log sigmoid(beta h), h = log pi/ref of chosen less that of rejected.

  https://arxiv.org/abs/2305.18290, equation 7. With a smoothing of e,
  -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), for labels that are
  wrong with probability e: https://ericmitchell.ai/cdpo.pdf.

  Metrics are those of `bradley_terry_loss` for the implied rewards
  beta log(pi / ref).

  Args:
    chosen_logprobs: of the policy, summed over tokens; carries the gradient.
    rejected_logprobs: of the policy, likewise.
    ref_chosen_logprobs: of the reference; constants.
    ref_rejected_logprobs: of the reference; constants.
    weights: each pair's share of the update.
    beta: strength of the pull to the reference, above 0.
    label_smoothing: in [0, 0.5).

  Raises:
    ValueError: `beta` or `label_smoothing` is out of range.
  """
  _check_beta(beta)
  if not 0 <= label_smoothing < 0.5:
    raise ValueError(f"{label_smoothing=} must be in [0, 0.5).")
  weights, (chosen, rejected) = _implied_rewards(
    chosen_logprobs,
    rejected_logprobs,
    ref_chosen_logprobs,
    ref_rejected_logprobs,
    weights,
    beta,
  )
  h = chosen - rejected
  per_pair = (1.0 - label_smoothing) * jax.nn.softplus(
    -h
  ) + label_smoothing * jax.nn.softplus(h)
  return jnp.sum(weights * per_pair), _pair_metrics(weights, chosen, rejected)


def ipo_loss(
  chosen_logprobs: Float[Array, " B"],
  rejected_logprobs: Float[Array, " B"],
  ref_chosen_logprobs: Float[Array, " B"],
  ref_rejected_logprobs: Float[Array, " B"],
  weights: Float[Array, " B"],
  *,
  beta: float = 0.1,
) -> tuple[Float[Array, ""], Metrics]:
  """IPO: (h - 1 / (2 beta))^2, h as in `dpo_loss`.

  https://arxiv.org/abs/2310.12036, equation 17, whose tau is beta here. The
  log-probs are sums, as in the paper; some libraries average over tokens first.

  Args:
    chosen_logprobs: as in `dpo_loss`.
    rejected_logprobs: as in `dpo_loss`.
    ref_chosen_logprobs: as in `dpo_loss`.
    ref_rejected_logprobs: as in `dpo_loss`.
    weights: each pair's share of the update.
    beta: above 0.

  Raises:
    ValueError: `beta` is not positive.
  """
  _check_beta(beta)
  weights, (chosen, rejected) = _implied_rewards(
    chosen_logprobs,
    rejected_logprobs,
    ref_chosen_logprobs,
    ref_rejected_logprobs,
    weights,
    beta,
  )
  per_pair = ((chosen - rejected) / beta - 0.5 / beta) ** 2
  return jnp.sum(weights * per_pair), _pair_metrics(weights, chosen, rejected)


def orpo_loss(
  chosen_logprobs: Float[Array, " B"],
  rejected_logprobs: Float[Array, " B"],
  chosen_lengths: Int[Array, " B"],
  rejected_lengths: Int[Array, " B"],
  weights: Float[Array, " B"],
  *,
  odds_coef: float = 0.1,
) -> tuple[Float[Array, ""], Metrics]:
  """ORPO: likelihood of the chosen and the odds ratio, without a reference.

  -log P(chosen) - odds_coef log sigmoid(log odds(chosen) - log odds(rejected)),
  with odds(y) = P / (1 - P) and log P(y) the *mean* over tokens:
  https://arxiv.org/abs/2403.07691, equations 3, 4, 6 and 7.

  Metrics are those of `bradley_terry_loss` for the log odds, and "nll" of the
  chosen completions, per token.

  Args:
    chosen_logprobs: as in `dpo_loss`; below 0.
    rejected_logprobs: as in `dpo_loss`; below 0.
    chosen_lengths: in tokens.
    rejected_lengths: in tokens.
    weights: each pair's share of the update.
    odds_coef: the paper's lambda, at least 0.
  """
  weights, (chosen, rejected) = _per_token(
    weights,
    (chosen_logprobs, rejected_logprobs),
    (chosen_lengths, rejected_lengths),
  )
  chosen_odds = chosen - _log1mexp(chosen)
  rejected_odds = rejected - _log1mexp(rejected)
  ratio = jax.nn.softplus(-(chosen_odds - rejected_odds))
  metrics = _pair_metrics(weights, chosen_odds, rejected_odds)
  metrics["nll"] = jax.lax.stop_gradient(-jnp.sum(weights * chosen))
  return jnp.sum(weights * (odds_coef * ratio - chosen)), metrics


def simpo_loss(
  chosen_logprobs: Float[Array, " B"],
  rejected_logprobs: Float[Array, " B"],
  chosen_lengths: Int[Array, " B"],
  rejected_lengths: Int[Array, " B"],
  weights: Float[Array, " B"],
  *,
  beta: float = 2.0,
  margin: float = 1.0,
) -> tuple[Float[Array, ""], Metrics]:
  """SimPO: the log-prob of a token as the reward, without a reference.

  -log sigmoid(r_chosen - r_rejected - margin), with r = beta log pi / |y| the
  mean over tokens: https://arxiv.org/abs/2405.14734, equation 6, whose gamma is
  the margin; it finds a beta of 2 to 2.5 and a margin of 0.3 to 1.6 good.

  Metrics are those of `bradley_terry_loss` for the rewards r.

  Args:
    chosen_logprobs: as in `dpo_loss`.
    rejected_logprobs: as in `dpo_loss`.
    chosen_lengths: in tokens.
    rejected_lengths: in tokens.
    weights: each pair's share of the update.
    beta: above 0.
    margin: by how much chosen should win, at least 0, in units of r.

  Raises:
    ValueError: `beta` is not positive, or `margin` is below 0.
  """
  _check_beta(beta)
  if margin < 0:
    raise ValueError(f"{margin=} must be at least 0.")
  weights, (chosen, rejected) = _per_token(
    weights,
    (chosen_logprobs, rejected_logprobs),
    (chosen_lengths, rejected_lengths),
  )
  chosen, rejected = beta * chosen, beta * rejected
  per_pair = jax.nn.softplus(-(chosen - rejected - margin))
  return jnp.sum(weights * per_pair), _pair_metrics(weights, chosen, rejected)


def kto_loss(
  logprobs: Float[Array, " B"],
  ref_logprobs: Float[Array, " B"],
  desirable: Bool[Array, " B"],
  reference_point: Float[Array, ""],
  weights: Float[Array, " B"],
  *,
  beta: float = 0.1,
  desirable_coef: float = 1.0,
  undesirable_coef: float = 1.0,
) -> tuple[Float[Array, ""], Metrics]:
  """KTO: completions that are good or bad, without pairs.

  lambda_y - v(x, y), with r = log(pi / ref), z the reference point, and
  v = lambda_D sigmoid(beta (r - z)) for desirable completions,
  v = lambda_U sigmoid(beta (z - r)) for the others:
  https://arxiv.org/abs/2402.01306, equation 8.

  Metrics: "weight"; "reward/desirable" and "reward/undesirable", the sums of
  weight * beta r over either kind; "weight/desirable" to divide the first by.

  Args:
    logprobs: of the policy, summed over tokens; carries the gradient.
    ref_logprobs: of the reference; constants.
    desirable: the label of each completion.
    reference_point: z in nats, at least 0, from `kto_reference_point`; a
      constant.
    weights: each completion's share of the update.
    beta: above 0.
    desirable_coef: lambda_D, above 0.
    undesirable_coef: lambda_U, above 0.

  Raises:
    ValueError: `beta` is not positive.
  """
  _check_beta(beta)
  weights, (logprobs, ref_logprobs) = _read(weights, logprobs, ref_logprobs)
  rewards = beta * (logprobs - jax.lax.stop_gradient(ref_logprobs))
  gain = rewards - beta * jax.lax.stop_gradient(reference_point)
  per_row = jnp.where(
    desirable,
    desirable_coef * jax.nn.sigmoid(-gain),
    undesirable_coef * jax.nn.sigmoid(gain),
  )
  metrics = {
    "weight": jnp.sum(weights),
    "reward/desirable": jnp.sum(weights * desirable * rewards),
    "reward/undesirable": jnp.sum(weights * ~desirable * rewards),
    "weight/desirable": jnp.sum(weights * desirable),
  }
  return jnp.sum(weights * per_row), jax.lax.stop_gradient(metrics)


def kto_reference_point(
  logprobs: Float[Array, " B"],
  ref_logprobs: Float[Array, " B"],
  weights: Float[Array, " B"],
) -> Float[Array, ""]:
  """KTO's z = max(0, mean of log(pi / ref)) over mismatched completions.

  Each is a completion of *another* prompt of the batch, scored behind this one:
  https://arxiv.org/abs/2402.01306, section 4.1. Over all rows of one update;
  no gradient flows through it.

  Args:
    logprobs: of the policy, summed over the tokens of the other completion.
    ref_logprobs: of the reference, likewise.
    weights: of the mean, whatever they sum to; where 0 nothing is read.
  """
  weights, (logprobs, ref_logprobs) = _read(weights, logprobs, ref_logprobs)
  total = jnp.sum(weights * (logprobs - ref_logprobs))
  whole = jnp.sum(weights)
  mean = total / jnp.where(whole > 0, whole, 1.0)
  return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


def process_reward_loss(
  logits: Float[Array, "*rows T"],
  labels: Float[Array, "*rows T"],
  weights: Float[Array, "*rows T"],
) -> tuple[Float[Array, ""], Metrics]:
  """Loss of a process reward model: binary cross-entropy at the ends of steps.

  -y log p - (1 - y) log(1 - p), p = sigmoid(logit): Math-Shepherd,
  https://arxiv.org/abs/2312.08935, section 3, whose hard labels are 0 or 1
  and whose soft labels are the share of continuations that reached the answer.

  Metrics: "weight", "accuracy" (label and p on the same side of one half) and
  "probability" (mean p).

  Args:
    logits: the model's score at each token.
    labels: in [0, 1], read where the weight is positive.
    weights: each step's share of the update, at the token where the step ends;
      0 elsewhere.
  """
  weights, (logits, labels) = _read(weights, logits, labels)
  labels = jax.lax.stop_gradient(labels)
  per_step = jax.nn.softplus(logits) - labels * logits
  agree = (logits > 0) == (labels > 0.5)
  metrics = {
    "weight": jnp.sum(weights),
    "accuracy": jnp.sum(weights * agree),
    "probability": jnp.sum(weights * jax.nn.sigmoid(logits)),
  }
  return jnp.sum(weights * per_step), jax.lax.stop_gradient(metrics)


PREFERENCES: dict[str, Callable[..., tuple[Array, Metrics]]] = {
  "dpo": dpo_loss,
  "ipo": ipo_loss,
  "kto": kto_loss,
  "orpo": orpo_loss,
  "simpo": simpo_loss,
}


def _read(weights, *arrays, fill=0.0):
  weights = weights.astype(jnp.float32)
  return weights, [
    jnp.where(weights > 0, x.astype(jnp.float32), fill) for x in arrays
  ]


def _per_token(weights, logprobs, lengths):
  weights, logprobs = _read(weights, *logprobs, fill=-1.0)
  return weights, [
    total / jnp.maximum(length, 1).astype(jnp.float32)
    for total, length in zip(logprobs, lengths, strict=True)
  ]


def _implied_rewards(chosen, rejected, ref_chosen, ref_rejected, weights, beta):
  weights, (chosen, rejected, *refs) = _read(
    weights, chosen, rejected, ref_chosen, ref_rejected
  )
  ref_chosen, ref_rejected = jax.lax.stop_gradient(refs)
  return weights, (
    beta * (chosen - ref_chosen),
    beta * (rejected - ref_rejected),
  )


def _pair_metrics(weights, chosen, rejected):
  return jax.lax.stop_gradient(
    {
      "weight": jnp.sum(weights),
      "accuracy": jnp.sum(weights * (chosen > rejected)),
      "margin": jnp.sum(weights * (chosen - rejected)),
      "reward": jnp.sum(weights * 0.5 * (chosen + rejected)),
    }
  )


def _check_beta(beta):
  if beta <= 0:
    raise ValueError(f"{beta=} must be positive.")


def _log1mexp(x):
  """log(1 - exp(x)) for x < 0; x is kept off 0, where it is -inf."""
  x = jnp.minimum(x, -1e-6)
  # Either form loses its digits in the other's range.
  near = jnp.log(-jnp.expm1(jnp.maximum(x, -1.0)))
  far = jnp.log1p(-jnp.exp(jnp.minimum(x, -0.5)))
  return jnp.where(x > -0.6931472, near, far)
