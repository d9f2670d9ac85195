"""Judged completions as rows of tokens: what a reward model is trained on.

Every text is tokenized by `rewards.learned.encode`, as it is where the finished
model scores it. B rows of a batch, T positions.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import grain
import numpy as np

from grpo_jax import types
from grpo_jax.data.preferences import Labelled, Pair
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.reward_models import learned

# Batches whose rows are sorted by length together, so that a batch has rows of
# like lengths and little padding.
_WINDOW = 16


class EncodedPair(NamedTuple):
  """A pair in tokens; see `Pair`."""

  chosen: learned.Encoded
  rejected: learned.Encoded
  margin: float

  @property
  def length(self) -> int:
    """Tokens of the longer text."""
    return max(len(self.chosen.ids), len(self.rejected.ids))


class EncodedSteps(NamedTuple):
  """A labelled completion in tokens; see `Labelled`."""

  text: learned.Encoded
  labels: tuple[float | None, ...]

  @property
  def length(self) -> int:
    """Tokens of the text."""
    return len(self.text.ids)


_Row = TypeVar("_Row", EncodedPair, EncodedSteps)


def encode_pairs(
  reading: learned.Reading,
  tok: tokenizer.Tokenizer,
  pairs: Sequence[Pair],
  max_length: int,
) -> list[EncodedPair]:
  """The pairs of which both texts have at most `max_length` tokens."""
  rows = [
    EncodedPair(
      learned.encode(reading, tok, pair.problem, pair.chosen),
      learned.encode(reading, tok, pair.problem, pair.rejected),
      pair.margin,
    )
    for pair in pairs
  ]
  return [row for row in rows if row.length <= max_length]


def encode_steps(
  reading: learned.Reading,
  tok: tokenizer.Tokenizer,
  completions: Sequence[Labelled],
  max_length: int,
) -> list[EncodedSteps]:
  """The completions of at most `max_length` tokens.

  Raises:
    ValueError: a completion has another number of labels than of scores.
  """
  rows = []
  for completion in completions:
    row = learned.encode(
      reading, tok, completion.problem, completion.completion
    )
    check_labels(completion, len(row.ends), reading)
    rows.append(EncodedSteps(row, completion.labels))
  return [row for row in rows if row.length <= max_length]


def check_labels(
  completion: Labelled, scores: int, reading: learned.Reading
) -> None:
  """Raises ValueError unless a completion has a label for each score."""
  if len(completion.labels) != scores:
    question = completion.problem.question[:60]
    raise ValueError(
      f"The completion of {question!r} has {len(completion.labels)} labels for"
      f" {scores} scores of a model of kind {reading.kind!r}; do the separators"
      f" {reading.separators} fit?"
    )


class Batches:
  """Batches by step: `batches(step)` is a function of the step alone.

  In `len(batches)` steps every row comes exactly `epochs` times, in an order
  that is new in each epoch. The last batch may be filled up with rows of
  weight 0.
  """

  def __init__(
    self,
    rows: Sequence[_Row],
    collate: Callable[[Sequence[_Row], int, int, int], Any],
    *,
    num_rows: int,
    max_length: int,
    pad_id: int,
    epochs: int,
    seed: int,
  ):
    """Settles the order; tokens are padded when they are asked for.

    Args:
      rows: of all batches.
      collate: `collate_pairs` or `collate_steps`.
      num_rows: B.
      max_length: T at most.
      pad_id: of the tokenizer.
      epochs: how often each row comes; at least 1.
      seed: of the order.

    Raises:
      ValueError: there are no rows, or no epochs.
    """
    if not rows or epochs < 1 or num_rows < 1:
      raise ValueError(
        f"There is nothing to train on: {len(rows)} rows, {epochs=}, batches of"
        f" {num_rows}."
      )
    self._rows = rows
    self._collate = collate
    self._options = num_rows, max_length, pad_id
    order = list(grain.MapDataset.range(len(rows)).shuffle(seed).repeat(epochs))
    self._batches = []
    for start in range(0, len(order), num_rows * _WINDOW):
      window = order[start : start + num_rows * _WINDOW]
      window.sort(key=lambda i: rows[i].length)
      batches = [
        window[i : i + num_rows] for i in range(0, len(window), num_rows)
      ]
      random.Random(f"{seed} {start}").shuffle(batches)
      self._batches += batches

  def __len__(self) -> int:
    return len(self._batches)

  def __call__(self, step: int) -> types.PairBatch | types.LabelledBatch:
    """The batch of a step, in NumPy."""
    rows = [self._rows[i] for i in self._batches[step]]
    return self._collate(rows, *self._options)


def collate_pairs(
  rows: Sequence[EncodedPair], num_rows: int, max_length: int, pad_id: int
) -> types.PairBatch:
  """The batch of up to B pairs, each of equal weight; weights sum to 1."""
  width = learned.padded_width(max(row.length for row in rows), max_length)
  real = len(rows)
  rows = _filled(rows, num_rows)
  tokens, segments = learned.pad(
    [text.ids for row in rows for text in (row.chosen, row.rejected)],
    width,
    pad_id,
  )
  ends = [(row.chosen.ends[0], row.rejected.ends[0]) for row in rows]
  return types.PairBatch(
    tokens=tokens.reshape(num_rows, 2, width),
    segments=segments.reshape(num_rows, 2, width),
    ends=np.asarray(ends, np.int32),
    margins=np.asarray([row.margin for row in rows], np.float32),
    weights=(np.arange(num_rows) < real).astype(np.float32) / real,
  )


def collate_steps(
  rows: Sequence[EncodedSteps], num_rows: int, max_length: int, pad_id: int
) -> types.LabelledBatch:
  """The batch of up to B texts, each label of equal weight; they sum to 1."""
  width = learned.padded_width(max(row.length for row in rows), max_length)
  real = len(rows)
  rows = _filled(rows, num_rows)
  tokens, segments = learned.pad([row.text.ids for row in rows], width, pad_id)
  labels = np.zeros((num_rows, width), np.float32)
  weights = np.zeros((num_rows, width), np.float32)
  for index, row in enumerate(rows[:real]):
    for end, label in zip(row.text.ends, row.labels, strict=True):
      if label is not None:
        labels[index, end] = label
        weights[index, end] = 1.0
  return types.LabelledBatch(tokens, segments, labels, weights / weights.sum())


def _filled(rows: Sequence[_Row], num_rows: int) -> list[_Row]:
  """The rows, and the last one again until there are as many as asked for."""
  return [*rows, *[rows[-1]] * (num_rows - len(rows))]
