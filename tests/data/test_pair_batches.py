"""Pairs as rows of tokens that a policy would write."""

import numpy as np
import pytest

from grpo_jax.data import pair_batches
from grpo_jax.data.preferences import Pair
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.types import Problem

TOKENIZER = tokenizer.ByteTokenizer()
TEMPLATE = "Q {question} A"


def make_pair(question, chosen, rejected):
  return Pair(Problem(question, "", "", ""), chosen, rejected, 0.0)


PAIRS = [
  make_pair("a", "yes", "no"),
  make_pair("a", "sure", "never"),
  make_pair("b", "indeed", "no way"),
]


def collated(pairs, num_rows, max_length=64):
  encoded = pair_batches.encode(pairs, TOKENIZER, TEMPLATE, max_length)
  return pair_batches.collate(encoded, num_rows, max_length, 0)


def texts(batch, row, side):
  """Prompt and completion of a row, from its tokens and mask."""
  ids, mask = batch.tokens[row, side], batch.mask[row, side]
  inside = batch.segments[row, side] > 0
  prompt, completion = ids[inside & ~mask], ids[inside & mask]
  assert completion[-1] == TOKENIZER.eos_ids[0]
  return tuple(
    TOKENIZER.decode(part.tolist()) for part in (prompt, completion[:-1])
  )


def test_a_row_is_a_prompt_and_what_a_policy_would_write():
  batch = collated(PAIRS, num_rows=4)
  assert texts(batch, 0, 0) == ("Q a A", "yes")
  assert texts(batch, 2, 1) == ("Q b A", "no way")
  np.testing.assert_allclose(batch.weights, [1 / 3, 1 / 3, 1 / 3, 0])
  assert not batch.mask[batch.segments == 0].any()


def test_a_pair_with_a_text_that_is_too_long_is_left_out():
  long = make_pair("c", "x" * 60, "short")
  encoded = pair_batches.encode([*PAIRS, long], TOKENIZER, TEMPLATE, 40)
  assert len(encoded) == 3


def test_behind_each_prompt_stand_the_completions_of_another_one():
  batch = collated(PAIRS, num_rows=4)
  other = pair_batches.mismatched(batch)
  assert texts(other, 0, 0) == ("Q a A", "indeed")
  assert texts(other, 1, 1) == ("Q a A", "no way")
  assert texts(other, 2, 0) == ("Q b A", "yes")
  np.testing.assert_array_equal(other.weights, batch.weights)
  assert texts(batch, 0, 0) == ("Q a A", "yes"), "the batch is left alone"


def test_one_prompt_has_nothing_to_be_mismatched_with():
  assert not pair_batches.mismatched(collated(PAIRS[:2], 2)).weights.any()


def test_a_character_that_the_tokenizer_lacks_is_refused(tmp_path):
  tok = tokenizer.train_sentencepiece(
    ["Q a A yes no"] * 9, tmp_path, vocab_size=14
  )
  with pytest.raises(ValueError, match="cannot write: '二'"):
    pair_batches.encode([make_pair("a", "二", "no")], tok, TEMPLATE, 64)
