"""Whether probabilities mean what they say: bins of them beside what happened.

B events, K bins.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Reliability(NamedTuple):
  """A reliability diagram.

  Attributes:
    edges: of the bins, K + 1 probabilities.
    counts: events of each bin.
    predicted: their mean probability; NaN for an empty bin.
    observed: the share of them that happened; NaN for an empty bin.
    error: the expected calibration error; see `reliability`.
  """

  edges: Float[np.ndarray, " K+1"]
  counts: Int[np.ndarray, " K"]
  predicted: Float[np.ndarray, " K"]
  observed: Float[np.ndarray, " K"]
  error: float


def reliability(
  probabilities: Float[np.ndarray, " B"],
  outcomes: Float[np.ndarray, " B"],
  *,
  num_bins: int = 10,
  lowest: float = 0.0,
) -> Reliability:
  """Bins of equal width, and the expected calibration error over them.

  ECE = sum_k n_k / B |observed_k - predicted_k|: Guo et al.,
  https://arxiv.org/abs/1706.04599, equation 3.

  Args:
    probabilities: that each event happens, from `lowest` to 1.
    outcomes: 1 where it did and 0 where not, or the share of times it did.
    num_bins: K.
    lowest: where the first bin begins; 0.5 where the probability is that of the
      more likely of two outcomes.

  Raises:
    ValueError: there are no events.
  """
  if not len(probabilities):
    raise ValueError("There are no events whose probabilities could be judged.")
  edges = np.linspace(lowest, 1.0, num_bins + 1)
  places = np.searchsorted(edges[1:-1], probabilities, side="right")
  counts = np.bincount(places, minlength=num_bins)
  totals = np.maximum(counts, 1)
  predicted, observed = (
    np.where(
      counts > 0,
      np.bincount(places, weights=values, minlength=num_bins) / totals,
      np.nan,
    )
    for values in (probabilities, outcomes)
  )
  gaps = np.nan_to_num(np.abs(observed - predicted))
  error = float(np.sum(counts * gaps) / len(probabilities))
  return Reliability(edges, counts, predicted, observed, error)


def table(found: Reliability) -> str:
  """The bins that are not empty as lines of text, under a header."""
  lines = ["probability      count  predicted  observed"]
  for low, high, count, predicted, observed in zip(
    found.edges[:-1],
    found.edges[1:],
    found.counts,
    found.predicted,
    found.observed,
    strict=True,
  ):
    if count:
      lines.append(
        f"{low:5.3f} to {high:5.3f} {count:7d} {predicted:10.3f}"
        f" {observed:9.3f}"
      )
  return "\n".join(lines)


def area_under_roc(
  scores: Float[np.ndarray, " B"], positive: np.ndarray
) -> float:
  """The chance that a positive event scores above a negative one; NaN if none.

  Equal scores count half.

  Args:
    scores: of each event.
    positive: bool, of each event.
  """
  above, below = scores[positive], np.sort(scores[~positive])
  if not (above.size and below.size):
    return float("nan")
  less = np.searchsorted(below, above, side="left")
  not_more = np.searchsorted(below, above, side="right")
  return float((less + not_more).mean() / 2 / below.size)
