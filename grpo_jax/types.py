"""The records that travel through the house.

P prompts, G completions each, S prompt slots, N completion slots; B rows of
text, T positions. A prompt is stored once per group, so arrays of completions
are [P, G, N], and `x[..., n]` belongs to `tokens[..., n]` in each of them.

Shapes of fields stand in comments and are not checked when a record is made:
records are trees, which are also stacked, cut, and filled with shardings.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import numpy as np

Array = jax.Array | np.ndarray


class Problem(NamedTuple):
  """A question with its reference answer; host text, never on a device.

  Attributes:
    question: the bare question, as the dataset has it.
    answer: the reference answer, as the dataset has it.
    source: the dataset's name; chooses the verifier.
    prompt: the text that the policy completes: the question in its template.
    details: what else the verifier needs, in a form of its own.
  """

  question: str
  answer: str
  source: str
  prompt: str
  details: str = ""


class Example(NamedTuple):
  """A conversation to learn from; host text, never on a device.

  Attributes:
    messages: each a mapping with `role` and `content`, and what else a chat
      template reads; one at least is the assistant's.
    source: the dataset's name.
  """

  messages: tuple[Mapping[str, Any], ...]
  source: str


@flax.struct.dataclass
class PromptBatch:
  """Prompts padded on the left to S slots."""

  tokens: Array  # int [P, S]
  mask: Array  # bool [P, S]


@flax.struct.dataclass
class Rollout:
  """Completions as they were drawn.

  Attributes:
    tokens: drawn ids; what lies outside `completion_mask` means nothing.
    completion_mask: what the policy chose, the stop token included.
    logprobs: natural log-probabilities under the distribution drawn from
      (temperature and truncated support included); 0 outside the mask.
    truncated: ran out of room before a stop token.
  """

  prompts: PromptBatch
  tokens: Array  # int [P, G, N]
  completion_mask: Array  # bool [P, G, N]
  logprobs: Array  # float [P, G, N]
  truncated: Array  # bool [P, G]


@flax.struct.dataclass
class Experience:
  """A rollout and all that the loss reads beside it.

  Attributes:
    old_logprobs: under the policy that drew, as the trainer scores it.
    ref_logprobs: under the reference policy; None where there is none.
    sampler_logprobs: as the sampler computed them; for the gap between both.
    advantages: zero outside completions.
    weights: each token's share of one optimizer update's loss.
    values: the returns that the value model predicted; None where there is
      none.
    returns: what it is to predict; NaN where that is not known.
  """

  prompts: PromptBatch
  tokens: Array  # int [P, G, N]
  completion_mask: Array  # bool [P, G, N]
  old_logprobs: Array  # float [P, G, N]
  ref_logprobs: Array | None  # float [P, G, N]
  sampler_logprobs: Array  # float [P, G, N]
  advantages: Array  # float [P, G, N]
  weights: Array  # float [P, G, N]
  values: Array | None = None  # float [P, G, N]
  returns: Array | None = None  # float [P, G, N]


@flax.struct.dataclass
class TextBatch:
  """Documents packed into rows.

  Attributes:
    segments: 1, 2, ... number the documents of a row; 0 is padding.
    positions: count from 0 within each document.
    weights: each token's share of one update's loss; 0 at a document's first
      token and on padding.
  """

  tokens: Array  # int [B, T]
  segments: Array  # int [B, T]
  positions: Array  # int [B, T]
  weights: Array  # float [B, T]


@flax.struct.dataclass
class PairBatch:
  """Texts that were compared, padded on the right; the preferred one first.

  Attributes:
    segments: 1 inside a text, 0 for padding.
    ends: where the score of each text is read.
    margins: by how much the preferred text was better; what unit, the data say.
    weights: each pair's share of one update's loss.
  """

  tokens: Array  # int [B, 2, T]
  segments: Array  # int [B, 2, T]
  ends: Array  # int [B, 2]
  margins: Array  # float [B]
  weights: Array  # float [B]


@flax.struct.dataclass
class PairedCompletions:
  """Two completions of each prompt, padded on the right; the preferred first.

  Attributes:
    segments: 1 inside a text, 0 for padding.
    mask: the tokens that a policy would choose, the stop token included.
    weights: each pair's share of one update's loss.
    ref_logprobs: of the completions under the reference policy, summed over
      tokens; None where there is none.
    reference_point: of KTO, in nats, the same in all rows; None for others.
  """

  tokens: Array  # int [B, 2, T]
  segments: Array  # int [B, 2, T]
  mask: Array  # bool [B, 2, T]
  weights: Array  # float [B]
  ref_logprobs: Array | None = None  # float [B, 2]
  reference_point: Array | None = None  # float [B]


@flax.struct.dataclass
class LabelledBatch:
  """Texts with labels of their steps, padded on the right.

  Attributes:
    segments: 1 inside a text, 0 for padding.
    labels: in [0, 1], where the weight is positive.
    weights: each label's share of one update's loss, where its step ends.
  """

  tokens: Array  # int [B, T]
  segments: Array  # int [B, T]
  labels: Array  # float [B, T]
  weights: Array  # float [B, T]
