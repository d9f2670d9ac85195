"""The losses of preferences, on a policy's own log-probs of completions.

A row of `preference.PREFERENCES` names what it reads: sums of log-probs over
the tokens of a completion, lengths, those of a reference. Here these are
computed and given to it by name.

B pairs, the preferred completion first; T positions.
"""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from grpo_jax import errors, sharding
from grpo_jax.losses import preference
from grpo_jax.models import moe, scoring
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.types import PairedCompletions

Loss = tuple[Float[Array, ""], dict[str, Any]]


def loss_fn(
  params: Params,
  batch: PairedCompletions,
  *,
  cfg: ModelConfig,
  kind: str,
  **options: Any,
) -> Loss:
  """Returns the loss of a policy on pairs, additive over rows.

  Args:
    params: of the policy.
    batch: B pairs, with what the kind reads beside the policy.
    cfg: the model.
    kind: a name in `preference.PREFERENCES`.
    **options: keyword-only arguments of that loss.
  """
  logprobs, load = _score(params, cfg, batch.tokens, batch.segments, batch.mask)
  loss, metrics = compare(logprobs, batch, kind=kind, **options)
  return loss, metrics | {"expert_load": load}


def score(
  params: Params,
  tokens: Int[Array, "B 2 T"],
  segments: Int[Array, "B 2 T"],
  mask: Bool[Array, "B 2 T"],
  *,
  cfg: ModelConfig,
) -> Float[Array, "B 2"]:
  """Returns the log-prob of each completion, in nats, summed over tokens."""
  return _score(params, cfg, tokens, segments, mask)[0]


def compare(
  logprobs: Float[Array, "B 2"],
  batch: PairedCompletions,
  *,
  kind: str,
  **options: Any,
) -> Loss:
  """Returns the loss of log-probs that the policy gave to the completions.

  KTO reads single completions, which each of a pair is: the preferred one is
  desirable and the other is not, with half the pair's weight each.

  Metrics are those of the loss, sums with its weights. Every kind has
  "accuracy", the share of pairs whose preferred completion has the higher
  implied reward, and "margin", by how much.

  Args:
    logprobs: of the policy, summed over tokens.
    batch: with what the kind reads beside them.
    kind: as in `loss_fn`.
    **options: as in `loss_fn`.
  """
  weights, ref_logprobs = batch.weights, batch.ref_logprobs
  lengths = jnp.sum(batch.mask, axis=-1)
  given = {
    "chosen_logprobs": logprobs[:, 0],
    "rejected_logprobs": logprobs[:, 1],
    "chosen_lengths": lengths[:, 0],
    "rejected_lengths": lengths[:, 1],
    "weights": weights,
  }
  if ref_logprobs is not None:
    given["ref_chosen_logprobs"] = ref_logprobs[:, 0]
    given["ref_rejected_logprobs"] = ref_logprobs[:, 1]
  singles = "desirable" in reads(kind)
  if singles:
    side = jnp.zeros_like(lengths) + jnp.arange(2)
    given |= {
      "logprobs": sharding.merge_pairs(logprobs),
      "ref_logprobs": sharding.merge_pairs(ref_logprobs),
      "desirable": sharding.merge_pairs(side == 0),
      "reference_point": jnp.max(batch.reference_point),
      "weights": sharding.merge_pairs(
        0.5 * weights[:, None] + jnp.zeros_like(logprobs)
      ),
    }
  row = preference.PREFERENCES[kind]
  loss, metrics = row(**{name: given[name] for name in reads(kind)}, **options)
  if singles:
    ratios = jax.lax.stop_gradient(logprobs - ref_logprobs)
    good, bad = (metrics[f"reward/{x}desirable"] for x in ("", "un"))
    metrics |= {
      "accuracy": jnp.sum(weights * (ratios[:, 0] > ratios[:, 1])),
      "margin": 2 * (good - bad),
    }
  return loss, metrics


@functools.cache
def reads(kind: str) -> tuple[str, ...]:
  """Returns the names of the arrays that a loss of pairs reads."""
  parameters = inspect.signature(preference.PREFERENCES[kind]).parameters
  return tuple(
    p.name for p in parameters.values() if p.kind is not p.KEYWORD_ONLY
  )


def needs_reference(kind: str) -> bool:
  """Returns whether a loss compares the policy with a reference."""
  return any(name.startswith("ref_") for name in reads(kind))


def check(kind: str, **options: Any) -> None:
  """Raises ConfigError, in one sentence, where an option is out of range."""
  pair, row = np.zeros((1, 2), np.float32), np.zeros(1, np.float32)
  tokens = np.zeros((1, 2, 1), np.int32)
  batch = PairedCompletions(tokens, tokens, tokens > 0, row, pair, row)
  try:
    # Its own checks, without computing anything.
    jax.eval_shape(
      functools.partial(compare, kind=kind, **options), pair, batch
    )
  except ValueError as error:
    raise errors.ConfigError(f"config.loss: {error}") from error


def _score(
  params: Params, cfg: ModelConfig, tokens: Array, segments: Array, mask: Array
) -> tuple[Array, moe.Load]:
  tokens, segments, mask = map(sharding.merge_pairs, (tokens, segments, mask))
  positions = jnp.zeros_like(tokens) + jnp.arange(tokens.shape[-1])
  scores = scoring.score_text(params, cfg, tokens, positions, segments)
  sums = preference.completion_logprobs(scores.logprobs, mask)
  return sharding.split_pairs(sums), scores.load
