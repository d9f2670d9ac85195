"""Texts as padded rows of tokens, and batches of what has such rows.

B rows of a batch, T positions.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int

# Batches whose rows are sorted by length together, so that a batch has rows of
# like lengths and little padding.
_WINDOW = 16
# The narrowest text that a program is compiled for; each wider one is twice as
# wide, so that there are few.
_LEAST_WIDTH = 64

_T = TypeVar("_T")


@runtime_checkable
class Row(Protocol):
  """What a batch is made of: one text, or several that belong together."""

  @property
  def length(self) -> int:
    """Tokens of the longest text."""


class Batches:
  """Batches by step: `batches(step)` is a function of the step alone.

  In `len(batches)` steps every row comes exactly `epochs` times, in an order
  that is new in each epoch. The last batch may be filled up with rows of
  weight 0.
  """

  def __init__(
    self,
    rows: Sequence[Row],
    collate: Callable[[Sequence[Any], int, int, int], Any],
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
      collate: `(rows, num_rows, max_length, pad_id)` to a batch.
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

  def __call__(self, step: int) -> Any:
    """The batch of a step, in NumPy."""
    rows = [self._rows[i] for i in self._batches[step]]
    return self._collate(rows, *self._options)


def pad(
  texts: Sequence[Sequence[int] | np.ndarray], width: int, pad_id: int
) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B T"]]:
  """Returns tokens and segments (1 inside, 0 for padding) of B texts."""
  tokens = np.full((len(texts), width), pad_id, np.int32)
  segments = np.zeros((len(texts), width), np.int32)
  for row, ids in enumerate(texts):
    tokens[row, : len(ids)] = ids
    segments[row, : len(ids)] = 1
  return tokens, segments


def padded_width(length: int, most: int) -> int:
  """The width of a program for texts of up to `length` tokens; few widths."""
  width = _LEAST_WIDTH
  while width < length:
    width *= 2
  return min(width, most)


def filled(rows: Sequence[_T], num_rows: int) -> list[_T]:
  """The rows, and the last one again until there are as many as asked for."""
  return [*rows, *[rows[-1]] * (num_rows - len(rows))]
