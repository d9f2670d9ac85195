"""Next-token cross-entropy, for pre-training, fine-tuning and distilled text.

It starts from log-probs, so that the vocabulary is walked through once and in
chunks (`vocabulary.py`), and `logprobs[..., t]` belongs to `tokens[..., t]`:
the shift by one is behind us.

Dimension key: T positions; `*rows` is any number of leading axes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Metrics = dict[str, Float[Array, ""]]


def cross_entropy(
  logprobs: Float[Array, "*rows T"],
  weights: Float[Array, "*rows T"],
  *,
  log_normalizer: Float[Array, "*rows T"] | None = None,
  z_coef: float = 0.0,
  mean_logprobs: Float[Array, "*rows T"] | None = None,
  label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
  """The negative log-likelihood of text, with z-loss and label smoothing.

  sum of weight * (-(1 - s) logprob - s mean_v log p_v + z_coef (log Z)^2), with
  s the label smoothing (https://arxiv.org/abs/1512.00567, section 7, towards
  the uniform distribution over all V tokens) and Z the normalizer of the
  softmax (PaLM, https://arxiv.org/abs/2204.02311, section 5, with 1e-4).

  Metrics are sums with the same weights, as in `policy.py`: "weight"; "nll" of
  the text itself, without smoothing, in nats; "z", the mean squared log Z, when
  it is given.

  Args:
    logprobs: of the tokens of the text, in nats.
    weights: each token's share of the update; where 0 nothing is read.
    log_normalizer: log Z, from `vocabulary.token_stats`.
    z_coef: at least 0.
    mean_logprobs: mean_v log p_v, from `vocabulary.mean_logprobs`.
    label_smoothing: in [0, 1).

  Raises:
    ValueError: `label_smoothing` is out of range, or a coefficient is set
      without the array that it multiplies.
  """
  if not 0 <= label_smoothing < 1:
    raise ValueError(f"{label_smoothing=} must be in [0, 1).")
  if z_coef != 0 and log_normalizer is None:
    raise ValueError(f"{z_coef=} needs log_normalizer.")
  if label_smoothing != 0 and mean_logprobs is None:
    raise ValueError(f"{label_smoothing=} needs mean_logprobs.")
  weights = weights.astype(jnp.float32)

  def keep(x):
    return jnp.where(weights > 0, x.astype(jnp.float32), 0.0)

  nll = -jnp.sum(weights * keep(logprobs))
  metrics = {"weight": jnp.sum(weights), "nll": nll}
  loss = (1.0 - label_smoothing) * nll
  if label_smoothing != 0:
    loss -= label_smoothing * jnp.sum(weights * keep(mean_logprobs))
  if log_normalizer is not None:
    metrics["z"] = jnp.sum(weights * keep(log_normalizer) ** 2)
    loss += z_coef * metrics["z"]
  return loss, jax.lax.stop_gradient(metrics)
