"""Packed text: nothing mixed, nothing lost, resumed to the bit."""

import json
import random

import numpy as np
import pytest

from grpo_jax.data import text
from grpo_jax.data.tokenizers import tokenizer

TOKENIZER = tokenizer.ByteTokenizer()


def documents(count=60, longest=30, seed=0):
  rng = random.Random(seed)
  lengths = [rng.randint(1, longest) for _ in range(count)]
  return [f"{i}:" + chr(97 + i % 26) * n for i, n in enumerate(lengths)]


def packed(docs=None, *, num_rows=3, row_length=40, seed=0):
  return text.TextSource(
    documents() if docs is None else docs,
    TOKENIZER,
    num_rows=num_rows,
    row_length=row_length,
    seed=seed,
  )


def segments_of(batch):
  """Token ids and positions of every segment of a batch."""
  for row in range(batch.tokens.shape[0]):
    for segment in range(1, batch.segments[row].max() + 1):
      inside = batch.segments[row] == segment
      yield batch.tokens[row, inside], batch.positions[row, inside]


def assert_equal_batches(first, second):
  for name in ("tokens", "segments", "positions", "weights"):
    np.testing.assert_array_equal(
      getattr(first, name), getattr(second, name), err_msg=name
    )


def test_each_segment_is_one_whole_document():
  known = {
    (TOKENIZER.bos_id, *TOKENIZER.encode(d), *TOKENIZER.eos_ids)
    for d in documents()
  }
  batches = packed()
  for _ in range(30):
    for tokens, positions in segments_of(next(batches)):
      assert tuple(tokens.tolist()) in known
      assert positions.tolist() == list(range(len(tokens)))


def test_segments_are_contiguous_and_padding_comes_last():
  batches = packed()
  for _ in range(10):
    for segments in next(batches).segments:
      real = segments[segments > 0]
      assert (segments[len(real) :] == 0).all()
      assert set(np.diff(real)) <= {0, 1} and real[0] == 1


def test_an_epoch_holds_every_document_once():
  docs = documents(count=40)
  batches, seen = packed(docs), []
  while len(seen) < 40 * 20:
    seen += [TOKENIZER.decode(t) for t, _ in segments_of(next(batches))]
  # Packing holds back or brings forward what is packed together, no more.
  counts = [seen.count(d) for d in docs]
  assert min(counts) >= 14 and max(counts) <= 26


def test_weights_are_equal_shares_of_what_is_predicted():
  batches = packed()
  for _ in range(10):
    batch = next(batches)
    predicted = (batch.segments > 0) & (batch.positions > 0)
    assert batch.weights.dtype == np.float32
    assert ((batch.weights > 0) == predicted).all()
    np.testing.assert_allclose(
      batch.weights[predicted], 1 / predicted.sum(), rtol=1e-6
    )
    np.testing.assert_allclose(batch.weights.sum(), 1, rtol=1e-5)


def test_padding_holds_the_pad_token():
  batch = next(packed())
  assert (batch.tokens[batch.segments == 0] == TOKENIZER.pad_id).all()
  assert (batch.positions[batch.segments == 0] == 0).all()


def test_a_long_document_is_split_and_every_piece_kept():
  letters = "".join(chr(97 + i % 26) for i in range(100))
  whole = [TOKENIZER.bos_id, *TOKENIZER.encode(letters), *TOKENIZER.eos_ids]
  pieces = {tuple(whole[i : i + 40]) for i in range(0, len(whole), 40)}
  batches, seen = packed([letters]), set()
  for _ in range(10):
    seen |= {tuple(t.tolist()) for t, _ in segments_of(next(batches))}
  assert seen == pieces


@pytest.mark.parametrize("stop", [0, 1, 5, 21, 22, 23, 64])
def test_a_restored_iterator_goes_on_to_the_bit(stop):
  # Some documents exceed a row, so that a stop may fall between two pieces.
  docs = documents(longest=90)
  whole = packed(docs)
  for _ in range(stop):
    next(whole)
  state = json.loads(json.dumps(whole.get_state()))
  ahead = [next(whole) for _ in range(30)]

  fresh = packed(docs)
  fresh.set_state(state)
  for expected in ahead:
    assert_equal_batches(next(fresh), expected)

  # The iterator that went on can be taken back as well.
  whole.set_state(state)
  assert_equal_batches(next(whole), ahead[0])


def test_a_state_saved_after_restoring_is_as_good():
  whole, other = packed(), packed()
  for _ in range(7):
    next(whole)
  other.set_state(whole.get_state())
  for _ in range(4):
    next(whole)
    next(other)
  assert other.get_state() == whole.get_state()


def test_another_seed_is_another_order():
  first, second = next(packed(seed=0)), next(packed(seed=1))
  assert (first.tokens != second.tokens).any()


def test_few_documents_fill_many_rows():
  batch = next(packed(["ab"], num_rows=5, row_length=16))
  assert (batch.segments.max(axis=1) == 4).all()


def test_rows_are_well_filled():
  batches = packed(documents(count=500), num_rows=8, row_length=64)
  fill = np.mean([next(batches).segments > 0 for _ in range(40)])
  assert fill > 0.85


def test_no_documents_and_short_rows_are_errors():
  with pytest.raises(ValueError, match="no documents"):
    packed([])
  with pytest.raises(ValueError, match="row_length=1"):
    packed(row_length=1)
