"""Pairs as a policy would write them: prompt, completion, end of sequence.

The tokens are those of fine-tuning (`conversations.encode`), so that a policy
that was fine-tuned under a template is asked under it. B pairs, T positions.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from grpo_jax.data import conversations, prompts, rows
from grpo_jax.data.preferences import Pair
from grpo_jax.data.tokenizers import tokenizer as tokenizers
from grpo_jax.types import Example, PairedCompletions


class EncodedPair(NamedTuple):
  """The ids of both texts, and which of them a policy chose."""

  chosen: tuple[np.ndarray, np.ndarray]
  rejected: tuple[np.ndarray, np.ndarray]

  @property
  def length(self) -> int:
    """Tokens of the longer text."""
    return max(len(self.chosen[0]), len(self.rejected[0]))


def encode(
  pairs: Sequence[Pair],
  tokenizer: tokenizers.Tokenizer,
  template: prompts.Template,
  max_length: int,
) -> list[EncodedPair]:
  """The pairs of which both texts have at most `max_length` tokens.

  Args:
    pairs: of one split.
    tokenizer: of the policy.
    template: what `prompts.read_template` returned.
    max_length: tokens of prompt and completion.

  Raises:
    ValueError: as `conversations.encode`.
  """
  examples = [
    _example(pair, completion)
    for pair in pairs
    for completion in (pair.chosen, pair.rejected)
  ]
  texts = conversations.encode(examples, tokenizer, template)
  encoded = map(EncodedPair, texts[::2], texts[1::2])
  return [pair for pair in encoded if pair.length <= max_length]


def collate(
  pairs: Sequence[EncodedPair], num_rows: int, max_length: int, pad_id: int
) -> PairedCompletions:
  """The batch of up to B pairs, each of equal weight; weights sum to 1."""
  width = rows.padded_width(max(pair.length for pair in pairs), max_length)
  real = len(pairs)
  pairs = rows.filled(pairs, num_rows)
  texts = [text for pair in pairs for text in pair]
  tokens, segments = rows.pad([ids for ids, _ in texts], width, pad_id)
  mask = np.zeros(tokens.shape, bool)
  for row, (_, written) in enumerate(texts):
    mask[row, : len(written)] = written
  shape = num_rows, 2, width
  return PairedCompletions(
    tokens=tokens.reshape(shape),
    segments=segments.reshape(shape),
    mask=mask.reshape(shape),
    weights=(np.arange(num_rows) < real).astype(np.float32) / real,
  )


def mismatched(batch: PairedCompletions) -> PairedCompletions:
  """The batch with the completions of other prompts: what KTO compares with.

  Behind each prompt stand both completions of the next row that has another
  prompt, as far as there is room. Where all rows have the same prompt the
  weights are 0.
  """
  tokens, segments = np.copy(batch.tokens), np.copy(batch.segments)
  mask, weights = np.copy(batch.mask), np.copy(batch.weights)
  count = int(np.count_nonzero(weights))
  asked = [_split(batch, row, 0)[0] for row in range(count)]
  for row, prompt in enumerate(asked):
    others = ((row + step) % count for step in range(1, count))
    other = next((i for i in others if asked[i] != prompt), None)
    if other is None:
      weights[row] = 0.0
      continue
    for side in range(2):
      completion = _split(batch, other, side)[1]
      ids = (prompt + completion)[: tokens.shape[-1]]
      place = row, side
      tokens[place][: len(ids)] = ids
      segments[place] = np.arange(tokens.shape[-1]) < len(ids)
      mask[place] = segments[place] > 0
      mask[place][: len(prompt)] = False
  return dataclasses.replace(
    batch, tokens=tokens, segments=segments, mask=mask, weights=weights
  )


def _example(pair: Pair, completion: str) -> Example:
  messages = (
    {"role": "user", "content": pair.problem.question},
    {"role": "assistant", "content": completion},
  )
  return Example(messages, pair.problem.source)


def _split(
  batch: PairedCompletions, row: int, side: int
) -> tuple[list[int], list[int]]:
  """The ids of one text: its prompt, and the completion up to its end."""
  ids, mask = batch.tokens[row, side], batch.mask[row, side]
  begin = int(mask.argmax())
  return ids[:begin].tolist(), ids[mask].tolist()
