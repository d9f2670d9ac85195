"""Scalars to log: what rewards and completions were like, and memory.

P prompts, G completions each, N completion slots; B = P * G rows.
"""

import math
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from grpo_jax import dynamic_sampling, types
from grpo_jax.losses import correction, value
from grpo_jax.rewards import combine
from grpo_jax.rewards import format as reward_format


def memory() -> dict[str, float]:
  """Peak memory in GiB: this process, and its fullest device if known."""
  unit = 1 if sys.platform == "darwin" else 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  metrics = {"memory/host_peak_gib": peak / 2**30}
  stats = [device.memory_stats() for device in jax.local_devices()]
  peaks = [s["peak_bytes_in_use"] for s in stats if s]
  if peaks:
    metrics["memory/device_peak_gib"] = max(peaks) / 2**30
  return metrics


def rollout_metrics(
  groups: dynamic_sampling.Groups,
  scores: combine.Scores,
  data: types.Experience,
  entropy: Float[np.ndarray, "P G N"],
) -> dict[str, float]:
  """What the completions of a step were like, what they earned, and the gap.

  `entropy`, in nats, is the mean over their tokens, `num_tokens` their number,
  `sampling/<name>` what `correction.sampler_gap` tells of trainer and sampler.
  """
  mask = data.completion_mask
  gap = correction.sampler_gap(data.old_logprobs, data.sampler_logprobs, mask)
  return {
    **reward_metrics(scores, mask.shape[1]),
    **source_metrics(scores, groups.problems),
    **completion_metrics(groups.texts, mask, groups.rollout.truncated),
    **value_metrics(data),
    **{f"sampling/{name}": x for name, x in gap.items()},
    "entropy": float(entropy[mask].mean()),
    "num_tokens": int(mask.sum()),
  }


def reward_metrics(
  scores: combine.Scores, group_size: int, *, tolerance: float = 1e-6
) -> dict[str, float]:
  """What B = P * G completions earned, row b in group b // G.

  `reward`: mean over the valid rows. `reward_std`: standard deviation in a
  group (ddof 1), mean over the groups of two valid rows or more.
  `frac_reward_zero_std`: share of all P groups that teach nothing, because the
  deviation is at most `tolerance` or fewer than two rows are valid. Both are
  left out where a group is one completion.
  `rewards/<name>/mean|std`: each term before its weight, over the rows that it
  scored. `rewards/<name>/<metric>`: the mean of what a term logs besides, such
  as the share of each outcome of grading. `frac_reward_invalid`: share of rows
  without a reward.

  Where nothing is left to average, the mean is NaN.
  """
  rewards = np.where(scores.valid, scores.rewards.astype(np.float64), np.nan)
  metrics = {
    "reward": mean(rewards),
    "frac_reward_invalid": float(np.mean(~scores.valid)),
  }
  if group_size > 1:
    stds = np.array([std(group) for group in rewards.reshape(-1, group_size)])
    metrics["reward_std"] = mean(stds)
    metrics["frac_reward_zero_std"] = float(np.mean(~(stds > tolerance)))
  for name, values in scores.terms.items():
    metrics[f"rewards/{name}/mean"] = mean(values)
    metrics[f"rewards/{name}/std"] = std(values)
  for name, values in scores.metrics.items():
    metrics[f"rewards/{name}"] = mean(values)
  return metrics


def source_metrics(
  scores: combine.Scores, problems: Sequence[types.Problem]
) -> dict[str, float]:
  """`reward/<source>`: mean over the valid rows of each source of problems.

  Empty where all B rows are of one source.
  """
  rewards = np.where(scores.valid, scores.rewards.astype(np.float64), np.nan)
  sources = np.array([problem.source for problem in problems])
  several = np.unique(sources)
  if len(several) < 2:
    return {}
  return {f"reward/{each}": mean(rewards[sources == each]) for each in several}


def mean(values: np.ndarray) -> float:
  """The mean over values that are not NaN; NaN where there are none."""
  values = values[~np.isnan(values)].astype(np.float64)
  return float(values.mean()) if values.size else math.nan


def std(values: np.ndarray) -> float:
  """The standard deviation (ddof 1) over values that are not NaN.

  NaN where there are fewer than two.
  """
  values = values[~np.isnan(values)].astype(np.float64)
  return float(values.std(ddof=1)) if values.size > 1 else math.nan


def mean_reflection_words(completions: Sequence[str]) -> float:
  """Words of reflection in a completion, the mean over all of them."""
  words = [reward_format.reflection_words(text) for text in completions]
  return float(np.mean(words))


def completion_metrics(
  completions: Sequence[str],
  completion_mask: Bool[types.Array, "P G N"],
  truncated: Bool[types.Array, "P G"],
) -> dict[str, float]:
  """Lengths in tokens, stop token included, and words of reflection.

  `completions/{mean,min,max}_length` and `completions/reflection_words` (the
  mean number in a completion) are over all P * G completions;
  `completions/clipped_ratio` is the share of those that ran out of room.
  """
  lengths = np.asarray(completion_mask).sum(axis=-1)
  return {
    "completions/mean_length": float(lengths.mean()),
    "completions/min_length": float(lengths.min()),
    "completions/max_length": float(lengths.max()),
    "completions/clipped_ratio": float(np.asarray(truncated).mean()),
    "completions/reflection_words": mean_reflection_words(completions),
  }


def value_metrics(data: types.Experience) -> dict[str, float]:
  """`value/explained_variance` of the returns, before the update.

  Over all tokens whose return is known; empty where there are no values.
  """
  if data.values is None:
    return {}
  known = data.completion_mask & ~np.isnan(data.returns)
  explained = value.explained_variance(
    *(jnp.where(known, x, 0.0) for x in (data.values, data.returns)), known
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


def require_finite(step: int, metrics: Mapping[str, Any]) -> None:
  """Raises FloatingPointError where the loss or the gradient has diverged."""
  for name in ("loss", "grad_norm"):
    if not math.isfinite(metrics[name]):
      raise FloatingPointError(
        f"{name} is {metrics[name]} at step {step}: lower the learning rate, or"
        " go on from an earlier checkpoint with another seed."
      )
