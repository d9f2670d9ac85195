"""Judged completions as rows of tokens: what a reward model is trained on.

Every text is tokenized by `reward_models.learned.encode`, as it is where the
finished model scores it. B rows of a batch, T positions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from grpo_jax import types
from grpo_jax.data import rows as rows_lib
from grpo_jax.data.preferences import Labelled, Pair
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.reward_models import learned


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


def collate_pairs(
  rows: Sequence[EncodedPair], num_rows: int, max_length: int, pad_id: int
) -> types.PairBatch:
  """The batch of up to B pairs, each of equal weight; weights sum to 1."""
  width = rows_lib.padded_width(max(row.length for row in rows), max_length)
  real = len(rows)
  rows = rows_lib.filled(rows, num_rows)
  tokens, segments = rows_lib.pad(
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
  width = rows_lib.padded_width(max(row.length for row in rows), max_length)
  real = len(rows)
  rows = rows_lib.filled(rows, num_rows)
  tokens, segments = rows_lib.pad([row.text.ids for row in rows], width, pad_id)
  labels = np.zeros((num_rows, width), np.float32)
  weights = np.zeros((num_rows, width), np.float32)
  for index, row in enumerate(rows[:real]):
    for end, label in zip(row.text.ends, row.labels, strict=True):
      if label is not None:
        labels[index, end] = label
        weights[index, end] = 1.0
  return types.LabelledBatch(tokens, segments, labels, weights / weights.sum())
