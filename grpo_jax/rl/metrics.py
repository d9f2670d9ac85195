"""Scalars of a step: what was drawn, what it earned, what the values knew.

P prompts, G completions each, N completion slots; B = P * G rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from grpo_jax import types
from grpo_jax.evaluation.metrics import (
  completion_metrics,
  reward_metrics,
  source_metrics,
)
from grpo_jax.losses import correction, value


def rollout_metrics(
  completions: types.Completions,
  data: types.Experience,
  entropy: Float[np.ndarray, "P G N"],
) -> dict[str, float]:
  """What the completions of a step were like, what they earned, and the gap.

  `entropy`, in nats, is the mean over their tokens, `num_tokens` their number,
  `frac_advantage_zero` the share of completions that no advantage moves,
  `sampling/<name>` what `correction.sampler_gap` tells of trainer and sampler.
  """
  mask = data.completion_mask
  gap = correction.sampler_gap(
    *map(jnp.asarray, (data.old_logprobs, data.sampler_logprobs, mask))
  )
  return {
    **reward_metrics(completions.rewards, completions.group_size),
    **source_metrics(completions.rewards, completions.problems),
    **completion_metrics(completions),
    **value_metrics(data),
    **{f"sampling/{name}": x for name, x in gap.items()},
    "entropy": float(entropy[mask].mean()),
    "num_tokens": int(mask.sum()),
    "frac_advantage_zero": float(
      np.mean(~((data.advantages != 0) & mask).any(axis=-1))
    ),
  }


def value_metrics(data: types.Experience) -> dict[str, float]:
  """`value/explained_variance` of the returns, before the update.

  Over all tokens whose return is known; empty where there are no values.
  """
  if data.values is None:
    return {}
  known = data.completion_mask & ~np.isnan(data.returns)
  explained = value.explained_variance(
    *(jnp.where(known, x, 0.0) for x in (data.values, data.returns)),
    jnp.asarray(known),
  )
  return {"value/explained_variance": float(explained)}


def mean_over_updates(
  updates: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
  """The mean of each metric over the optimizer updates of one step."""
  return {
    name: float(np.mean([update[name] for update in updates]))
    for name in updates[0]
  }
