"""Conversations packed into rows, with loss on what the assistant wrote.

B rows, T positions. Conversations share rows but not attention: segments tell
them apart and positions restart. An epoch has every one of them exactly once.
All ids are held in the host's memory, at five bytes a token.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grpo_jax.data import prompts
from grpo_jax.data.tokenizers import templates
from grpo_jax.data.tokenizers import tokenizer as tokenizers
from grpo_jax.types import Example, TextBatch

# Rows that are open for what comes next; more of them leave fewer gaps.
_OPEN_ROWS = 1024
_ENCODED_TOGETHER = 1000
_SECONDS_BETWEEN_LINES = 10.0


class ConversationSource:
  """Batches of packed conversations by step: a function of the step alone.

  Every epoch is shuffled anew and fills whole batches, the last one with empty
  rows. What is longer than a row is left out of all epochs: a conversation
  without its end would teach a policy not to stop.

  Attributes:
    num_steps: of all epochs.
    num_kept: conversations per epoch.
    num_too_long: conversations that are longer than a row, and left out.
    num_tokens: per epoch.
    num_learned: tokens per epoch with loss on them.
  """

  def __init__(
    self,
    examples: Sequence[Example],
    tokenizer: tokenizers.Tokenizer,
    template: prompts.Template,
    *,
    num_rows: int,
    row_length: int,
    num_epochs: int,
    seed: int,
    tell: Callable[[str], Any] = lambda line: None,
  ):
    """Encodes all conversations and packs all epochs.

    Args:
      examples: at random access.
      tokenizer: of the model.
      template: what `prompts.read_template` returned.
      num_rows: B.
      row_length: T.
      num_epochs: how often each conversation is seen.
      seed: of the order.
      tell: takes a line on how far it is, every ten seconds.

    Raises:
      ValueError: there are no conversations, or all are longer than a row; or
        as `encode`.
    """
    if min(num_rows, row_length, num_epochs) < 1:
      raise ValueError(
        f"{num_rows=}, {row_length=} and {num_epochs=} must be at least 1."
      )
    if not len(examples):
      raise ValueError("There are no conversations to learn from.")
    encoded = encode(examples, tokenizer, template, tell)
    self._encoded = [each for each in encoded if len(each[0]) <= row_length]
    self.num_kept = len(self._encoded)
    self.num_too_long = len(encoded) - self.num_kept
    if not self._encoded:
      shortest = min(len(ids) for ids, _ in encoded)
      raise ValueError(
        f"All {len(encoded):,} conversations are longer than {row_length=}; the"
        f" shortest has {shortest:,} tokens."
      )
    lengths = [len(ids) for ids, _ in self._encoded]
    self.num_tokens = sum(lengths)
    self.num_learned = sum(int(learned.sum()) for _, learned in self._encoded)
    self._pad_id = tokenizer.pad_id
    self._shape = num_rows, row_length
    # Of each step, the conversations of each of its rows.
    self._steps: list[list[list[int]]] = []
    for epoch in range(num_epochs):
      order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
      rows = first_fit(order.tolist(), lengths, row_length)
      starts = range(0, len(rows), num_rows)
      self._steps += [rows[i : i + num_rows] for i in starts]
    self.num_steps = len(self._steps)

  def __call__(self, step: int) -> TextBatch:
    """The batch of a step in NumPy, [B, T].

    Weights are 1 / (tokens with loss on them) and sum to 1.
    """
    tokens = np.full(self._shape, self._pad_id, np.int32)
    segments, positions = np.zeros((2, *self._shape), np.int32)
    learned = np.zeros(self._shape, bool)
    for row, members in enumerate(self._steps[step]):
      begin = 0
      for segment, index in enumerate(members, start=1):
        ids, written = self._encoded[index]
        place = row, slice(begin, begin + len(ids))
        tokens[place], learned[place] = ids, written
        segments[place], positions[place] = segment, np.arange(len(ids))
        begin += len(ids)
    weights = (learned / max(int(learned.sum()), 1)).astype(np.float32)
    return TextBatch(tokens, segments, positions, weights)


def encode(
  examples: Sequence[Example],
  tokenizer: tokenizers.Tokenizer,
  template: prompts.Template,
  tell: Callable[[str], Any] = lambda line: None,
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Ids of each conversation, and which of them are learned.

  Under `prompts.CHAT` they are what the tokenizer's chat template writes, and
  the assistant's tokens are learned. Under another template a conversation is a
  question and its answer: the prompt as `prompts.ask` encodes it, then the
  answer and the end of sequence, which are learned.

  Args:
    examples: conversations.
    tokenizer: of the model.
    template: what `prompts.read_template` returned.
    tell: takes a line on how far it is, every ten seconds.

  Raises:
    ValueError: the tokenizer has no chat template, or the template refuses a
      conversation; a plain template, and not one question and its answer; a
      character that the tokenizer cannot write; nothing to learn; or none of
      what is learned is a stop token of the tokenizer.
  """
  chat = prompts.as_chat(template)
  encode_some = _encode_plain if chat is None else _encode_chats
  encoded, told = [], time.monotonic()
  stops = np.asarray(tokenizer.eos_ids)
  for first in range(0, len(examples), _ENCODED_TOGETHER):
    last = min(first + _ENCODED_TOGETHER, len(examples))
    some = [examples[i] for i in range(first, last)]
    for number, (ids, learned) in enumerate(
      encode_some(some, tokenizer, chat or template, first), start=first
    ):
      # The first token follows nothing that could predict it.
      learned = np.asarray(learned) & (np.arange(len(ids)) > 0)
      if tokenizer.unknown_id in ids:
        raise ValueError(
          f"Conversation {number} has a character that the tokenizer cannot"
          f" write: {_unknown(examples[number], tokenizer)!r}; train a model"
          " whose tokenizer knows such text, or take it out of the data."
        )
      if not learned.any():
        raise ValueError(f"Conversation {number} has nothing to learn.")
      ids = np.asarray(ids, np.int32)
      if not np.isin(ids[learned], stops).any():
        raise ValueError(_without_end(number, ids[learned], tokenizer))
      encoded.append((ids, learned))
    if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
      told = time.monotonic()
      tell(f"{last:,} of {len(examples):,} conversations are encoded.")
  return encoded


def _without_end(
  number: int, learned: np.ndarray, tokenizer: tokenizers.Tokenizer
) -> str:
  """Says that a policy which learns from a conversation would never stop."""
  last = "".join(map(tokenizer.piece, learned[-3:]))
  stops = ", ".join(repr(tokenizer.piece(i)) for i in tokenizer.eos_ids)
  return (
    f"Conversation {number} teaches no token that ends a completion: what is"
    f" learned of it ends in {last!r}, and sampling stops at {stops} alone. Let"
    " the chat template end what the assistant says with a token of its own,"
    " inside {% generation %} if it has that, or name the token that it writes"
    ' as "eos_token" in tokenizer_config.json.'
  )


def _encode_chats(examples, tokenizer, chat, first):
  begin = chat.beginning(tokenizer)
  for number, example in enumerate(examples, start=first):
    try:
      yield templates.encode(tokenizer, begin(example.messages), **chat.given)
    except ValueError as error:
      raise ValueError(f"Conversation {number}: {error}") from error


def _encode_plain(examples, tokenizer, template, first):
  asked, answers = [], []
  for number, example in enumerate(examples, start=first):
    roles = [message["role"] for message in example.messages]
    if roles != ["user", "assistant"]:
      raise ValueError(
        f"Conversation {number} has messages of {', '.join(roles)}, and a plain"
        " template takes one of the user and one of the assistant; set"
        ' config.prompts.template="chat".'
      )
    question, answer = (m.get("content") for m in example.messages)
    if not isinstance(question, str) or not isinstance(answer, str):
      raise ValueError(
        f"Conversation {number} has a content that is no text, which a plain"
        " template cannot take."
      )
    asked.append(template.replace("{question}", question))
    answers.append(answer)
  begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
  whole = tokenizer.encode_batch(
    [prompt + answer for prompt, answer in zip(asked, answers, strict=True)]
  )
  encoded = tokenizer.encode_batch(asked)
  for prompt, both, answer in zip(encoded, whole, answers, strict=True):
    # A policy is given its prompt by itself. What follows is as it stands after
    # the prompt, unless that would take another prompt.
    rest = both[len(prompt) :]
    if both[: len(prompt)] != prompt:
      rest = tokenizer.encode(answer)
    prompt = begin + prompt
    rest = [*rest, tokenizer.eos_ids[0]]
    yield prompt + rest, [False] * len(prompt) + [True] * len(rest)


def _unknown(example: Example, tokenizer: tokenizers.Tokenizer) -> str:
  """The first character of an example that the tokenizer cannot write."""
  text = "".join(str(m.get("content")) for m in example.messages)
  for character in text:
    if tokenizer.unknown_id in tokenizer.encode(character):
      return character
  return text


def first_fit(
  order: Sequence[int], lengths: Sequence[int], row_length: int
) -> list[list[int]]:
  """Packs numbered things into rows, in order, each into the first that fits.

  Of the open rows, of which there are at most a thousand or so, the fullest is
  closed where a new one is needed.

  Args:
    order: the numbers.
    lengths: by number, at most `row_length` each.
    row_length: of a row.
  """
  rows, members = [], []
  room = np.zeros(_OPEN_ROWS, np.int64)
  for number in order:
    length = lengths[number]
    fits = room[: len(members)] >= length
    place = int(fits.argmax()) if members else 0
    if not members or not fits[place]:
      place = len(members)
      if place < _OPEN_ROWS:
        members.append([])
      else:
        place = int(room.argmin())
        rows.append(members[place])
        members[place] = []
      room[place] = row_length
    members[place].append(number)
    room[place] -= length
  return rows + members
