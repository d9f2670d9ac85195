"""The loss of text: what pre-training and fine-tuning minimize.

B rows of packed documents, T positions.
"""

import jax

from grpo_jax.losses import language, vocabulary
from grpo_jax.models import heads, transformer
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.types import TextBatch


def loss_fn(
  params: Params,
  batch: TextBatch,
  *,
  cfg: ModelConfig,
  z_coef: float = 0.0,
  label_smoothing: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the cross-entropy of a packed batch, in nats per token.

  See `language.cross_entropy`; the metric "z" is there where `z_coef` is not 0.

  Args:
    params: of the policy.
    batch: B rows.
    cfg: the model.
    z_coef: of the squared log-normalizer of each token, at least 0.
    label_smoothing: the share of the uniform distribution in what is predicted,
      in [0, 1).
  """
  hidden, trace = transformer.forward(
    params, cfg, batch.tokens, batch.positions, batch.segments
  )
  stats = heads.text_stats(params, cfg, hidden, batch.tokens)
  mean_logprobs = None
  if label_smoothing:
    mean_logprobs = vocabulary.mean_logprobs(
      heads.text_predictors(hidden),
      heads.head_matrix(params, cfg),
      stats.log_normalizer,
    )
  loss, metrics = language.cross_entropy(
    stats.logprobs,
    batch.weights,
    log_normalizer=stats.log_normalizer if z_coef else None,
    z_coef=z_coef,
    mean_logprobs=mean_logprobs,
    label_smoothing=label_smoothing,
  )
  return loss, metrics | {"expert_load": trace.load}


def check(*, z_coef: float = 0.0, label_smoothing: float = 0.0) -> None:
  """Raises ValueError unless `loss_fn` takes such options."""
  if z_coef < 0:
    raise ValueError(f"loss.z_coef={z_coef} must not be negative.")
  if not 0 <= label_smoothing < 1:
    raise ValueError(
      f"loss.label_smoothing={label_smoothing} must be in [0, 1)."
    )
