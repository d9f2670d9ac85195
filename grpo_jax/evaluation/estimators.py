"""What k samples of each problem say about a policy, and how surely.

Estimates are expectations over all subsets of k of the n samples that were
drawn, computed exactly, so they depend neither on the order of the samples nor
on a seed. Intervals come from resampling problems.

P problems, N samples of each, M metrics.
"""

import collections
import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# Resamples at a time; bounds memory.
_AT_ONCE = 500


def pass_at_k(correct: int, samples: int, k: int) -> float:
  """Returns the chance that one of k samples at least is right.

  1 - C(n-c, k) / C(n, k), without bias (Chen et al., arXiv 2107.03374, eq. 1).
  NaN where fewer than k samples were drawn.

  Args:
    correct: c, how many are right.
    samples: n.
    k: at least 1.
  """
  _check(correct, samples, k)
  if samples < k:
    return math.nan
  return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def cons_at_k(
  correct: int, wrong: Sequence[int], samples: int, k: int
) -> float:
  """Returns the chance that the majority of k samples is right.

  Each sample with an answer votes for it, and the answer with most votes is
  given (cons@k, DeepSeek-R1, arXiv 2501.12948, section 3; self-consistency,
  arXiv 2203.11171). Among answers with equally many votes a fair draw decides,
  so a tie counts with the share of the right answer in it, and k = 1 gives
  pass@1. No vote at all is wrong.

  NaN where fewer than k samples were drawn.

  Args:
    correct: how many samples are right; they agree with one another.
    wrong: how many samples gave each of the wrong answers.
    samples: n; those that are neither gave no answer.
    k: at least 1.
  """
  _check(correct + sum(wrong), samples, k)
  if samples < k:
    return math.nan
  return _consensus(correct, tuple(sorted(wrong)), samples, k)


@functools.lru_cache(maxsize=65_536)
def _consensus(
  correct: int, wrong: tuple[int, ...], samples: int, k: int
) -> float:
  left_out = samples - k
  silent = samples - correct - sum(wrong)
  won = 0.0
  for votes in range(max(1, correct - left_out), min(correct, k) + 1):
    # Ways to choose wrong answers of at most `votes` each, by how many samples
    # they take and how many of them tie.
    ways = {(0, 0): 1}
    for count in wrong:
      longer = collections.defaultdict(int)
      for (taken, tied), number in ways.items():
        most = min(count, votes, k - votes - taken)
        for i in range(max(0, count - left_out), most + 1):
          key = taken + i, tied + (i == votes)
          longer[key] += number * math.comb(count, i)
      ways = longer
    for (taken, tied), number in ways.items():
      number *= math.comb(silent, k - votes - taken)
      number *= math.comb(correct, votes)
      won += number / math.comb(samples, k) / (1 + tied)
  return won


def _check(counted: int, samples: int, k: int) -> None:
  if k < 1 or not 0 <= counted <= samples:
    raise ValueError(f"{k=} must be at least 1, and {counted=} of {samples=}.")


def win_share(
  rewards: Float[np.ndarray, "P N"], others: Float[np.ndarray, "P K"]
) -> Float[np.ndarray, " P"]:
  """Returns how often a sample earns more than another policy's, per problem.

  The share over all N x K pairs of samples of one problem; equal rewards count
  one half. Pairs with a reward that is NaN do not count; NaN where none does.
  """
  mine, theirs = rewards[:, :, None], others[:, None, :]
  counted = ~(np.isnan(mine) | np.isnan(theirs))
  won = np.where(counted, (mine > theirs) + 0.5 * (mine == theirs), 0.0)
  pairs = counted.sum(axis=(1, 2))
  return np.where(pairs, won.sum(axis=(1, 2)) / np.maximum(pairs, 1), np.nan)


def bootstrap(
  values: Float[np.ndarray, "P M"],
  *,
  weights: Float[np.ndarray, "P M"] | None = None,
  level: float = 0.95,
  resamples: int = 2_000,
  seed: int = 0,
) -> Float[np.ndarray, "M 2"]:
  """Returns an interval for each column's mean, from resampled problems.

  The percentile bootstrap (Efron and Tibshirani, An Introduction to the
  Bootstrap, 1993, section 13.3): P problems are drawn with replacement, always
  whole, and the mean is taken anew. All columns share the draws. Where all
  problems have the same value both ends are that value: it says that no
  problem differed, not that none ever will.

  Args:
    values: one number per problem, the mean over its samples; NaN where a
      problem has none, and then it counts neither way.
    weights: of each value in the mean; by default equal.
    level: the share of intervals that hold the true mean; in (0, 1).
    resamples: how many; at least 1.
    seed: of the draws.

  Returns:
    Low and high ends; NaN where a column has no number.
  """
  if not (0 < level < 1 and resamples >= 1):
    raise ValueError(f"{level=} must be in (0, 1), {resamples=} at least 1.")
  values = np.asarray(values, np.float64)
  known = ~np.isnan(values)
  mass = known * (1.0 if weights is None else np.asarray(weights, np.float64))
  numbers = np.where(known, values, 0.0) * mass
  problems, columns = values.shape
  rng = np.random.default_rng(seed)
  means = []
  for start in range(0, resamples if problems else 0, _AT_ONCE):
    drawn = rng.multinomial(
      problems,
      np.full(problems, 1 / problems),
      size=min(_AT_ONCE, resamples - start),
    ).astype(np.float64)
    total = drawn @ mass
    mean = np.divide(
      drawn @ numbers, total, out=np.full_like(total, np.nan), where=total > 0
    )
    means.append(mean)
  ends = np.full((columns, 2), np.nan)
  for column in range(columns):
    if known[:, column].any():
      # A resample may hold problems without a value only.
      found = np.concatenate(means)[:, column]
      tail = (1 - level) / 2
      ends[column] = np.nanquantile(found, [tail, 1 - tail])
  return ends
