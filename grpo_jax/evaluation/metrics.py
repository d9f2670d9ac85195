"""Scalars to log: what rewards and completions were like.

P prompts, G completions each, N completion slots; B = P * G rows.
"""

import math
from collections.abc import Sequence

import numpy as np

from grpo_jax import types
from grpo_jax.rewards import format as reward_format


def reward_metrics(
  scores: types.Rewards, group_size: int, *, tolerance: float = 1e-6
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
  rewards = np.where(scores.valid, scores.total.astype(np.float64), np.nan)
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
  scores: types.Rewards, problems: Sequence[types.Problem]
) -> dict[str, float]:
  """`reward/<source>`: mean over the valid rows of each source of problems.

  Empty where all B rows are of one source.
  """
  rewards = np.where(scores.valid, scores.total.astype(np.float64), np.nan)
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


def completion_metrics(completions: types.Completions) -> dict[str, float]:
  """Lengths in tokens, stop token included, and words of reflection.

  `completions/{mean,min,max}_length` and `completions/reflection_words` (the
  mean number in a completion) are over all B completions;
  `completions/clipped_ratio` is the share of those that ran out of room.
  """
  lengths = completions.lengths
  return {
    "completions/mean_length": float(lengths.mean()),
    "completions/min_length": float(lengths.min()),
    "completions/max_length": float(lengths.max()),
    "completions/clipped_ratio": float(completions.truncated.mean()),
    "completions/reflection_words": mean_reflection_words(completions.texts),
  }
