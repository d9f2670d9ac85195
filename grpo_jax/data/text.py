"""Documents packed into rows: what a language model is trained on.

B rows, T positions. A document begins with bos, if the tokenizer has one, and
ends with its end of sequence. Documents share rows (Grain's first-fit packing)
but not attention: segments tell them apart and positions restart. A document
longer than a row becomes several pieces, each a segment of its own.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from grpo_jax.data.tokenizers import tokenizer as tokenizers
from grpo_jax.types import TextBatch

_ROWS_AHEAD = 64  # Packed together at least; more rows leave fewer gaps.


class TextSource:
  """An endless iterator of `TextBatch` in NumPy that can be resumed to the bit.

  Documents are shuffled anew every epoch.
  """

  def __init__(
    self,
    documents: Sequence[str],
    tokenizer: tokenizers.Tokenizer,
    *,
    num_rows: int,
    row_length: int,
    seed: int,
  ):
    """Nothing is read yet.

    Args:
      documents: texts at random access.
      tokenizer: of the model.
      num_rows: B.
      row_length: T; at least 2, for the first token of a document is not
        predicted.
      seed: of the order.

    Raises:
      ValueError: there are no documents, or the rows are too short.
    """
    if not len(documents):
      raise ValueError("There are no documents to train on.")
    if row_length < 2 or num_rows < 1:
      raise ValueError(f"{num_rows=} must be at least 1, {row_length=} 2.")
    pieces = grain.experimental.FlatMapIterDataset(
      grain.MapDataset.source(documents)
      .shuffle(seed)
      .repeat()
      .to_iter_dataset(grain.ReadOptions(num_threads=0)),
      _Pieces(tokenizer, row_length),
    )
    bins = num_rows * -(-_ROWS_AHEAD // num_rows)
    rows = grain.experimental.FirstFitPackIterDataset(
      pieces,
      length_struct={"tokens": row_length},
      num_packing_bins=bins,
      seed=seed,
    )
    self._batches = iter(rows.batch(num_rows))
    self._pad_id = tokenizer.pad_id

  def __iter__(self) -> "TextSource":
    return self

  def __next__(self) -> TextBatch:
    """The next batch; weights are 1 / (predicted tokens) and sum to 1."""
    rows = next(self._batches)
    segments, positions = rows["tokens_segment_ids"], rows["tokens_positions"]
    predicted = (segments > 0) & (positions > 0)
    count = max(int(predicted.sum()), 1)
    return TextBatch(
      tokens=np.where(segments > 0, rows["tokens"], self._pad_id),
      segments=segments,
      positions=positions,
      weights=(predicted / count).astype(np.float32),
    )

  def get_state(self) -> dict[str, Any]:
    """What `set_state` needs to go on from here: plain numbers, for JSON."""
    return self._batches.get_state()

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on where `get_state` was called, to the bit."""
    self._batches.set_state(state)


@dataclasses.dataclass(frozen=True)
class _Pieces(grain.experimental.FlatMapTransform):
  """A text to pieces of at most T tokens."""

  tokenizer: tokenizers.Tokenizer
  length: int

  def flat_map(self, text: str) -> list[dict[str, np.ndarray]]:
    found = pieces(self.tokenizer, text, self.length)
    return [{"tokens": piece} for piece in found]


def pieces(
  tokenizer: tokenizers.Tokenizer, text: str, length: int
) -> list[np.ndarray]:
  """Ids of a document, with bos and end of sequence, in pieces of a length."""
  bos, eos = tokenizer.bos_id, tokenizer.eos_ids[0]
  ids = [] if bos is None else [bos]
  ids = np.asarray([*ids, *tokenizer.encode(text), eos], np.int32)
  return [ids[i : i + length] for i in range(0, len(ids), length)]
