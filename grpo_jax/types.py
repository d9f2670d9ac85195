"""The records that travel through the house.

P prompts, G completions each, S prompt slots, N completion slots; B rows of
text, T positions. A prompt is stored once per group, so arrays of completions
are [P, G, N], and `x[..., n]` belongs to `tokens[..., n]` in each of them.

Shapes of fields stand in comments and are not checked when a record is made:
records are trees, which are also stacked, cut, and filled with shardings.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import numpy as np
from jaxtyping import Bool, Float, Int

Array = jax.Array | np.ndarray


class Problem(NamedTuple):
  """A question with its reference answer; host text, never on a device.

  Attributes:
    question: the bare question, as the dataset has it.
    answer: the reference answer, as the dataset has it.
    source: the dataset's name; chooses the verifier.
    prompt: the text that the policy completes: the question in its template.
    details: what else the verifier needs, in a form of its own.
    columns: by name, what a user's file has besides; for reward functions.
    form: what a completion should look like after this prompt: a name in
      `rewards.format.Style`, which `data.prompts.ask` sets; "" if not known.
  """

  question: str
  answer: str
  source: str
  prompt: str
  details: str = ""
  columns: Mapping[str, Any] = {}
  form: str = ""

  def __hash__(self) -> int:
    """Of all but the columns, whose values may have none."""
    return hash(tuple(self)[:5])


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
  """Prompts padded on the left to S slots.

  Attributes:
    parts: how often each prompt stands here, once for each part of its group
      (see `cut_groups`).
  """

  tokens: Array  # int [P, S]
  mask: Array  # bool [P, S]
  parts: int = flax.struct.field(pytree_node=False, default=1)

  def repeated(self, parts: int) -> "PromptBatch":
    """Each prompt `parts` times, one after the other; on the host."""
    tokens, mask = (np.repeat(x, parts, 0) for x in (self.tokens, self.mask))
    return PromptBatch(tokens, mask, self.parts * parts)


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


class Rewards(NamedTuple):
  """What B completions earned.

  Attributes:
    total: the weighted sum of the terms; finite, and 0 where not valid.
    valid: False where a term of nonzero weight that applies gave no score
      (None), or one that decides whether it counts. Such a row leaves its
      group's mean and standard deviation.
    terms: each term before its weight; NaN where it gave no score, and where it
      does not apply.
    metrics: what terms have to log beside their scores, by `<term>/<name>`;
      NaN where there is none.
  """

  total: Float[np.ndarray, " B"]
  valid: Bool[np.ndarray, " B"]
  terms: dict[str, Float[np.ndarray, " B"]]
  metrics: Mapping[str, Float[np.ndarray, " B"]] = {}

  def select(self, rows: Sequence[int] | np.ndarray) -> "Rewards":
    """Those of some rows, by their numbers."""
    return Rewards(
      self.total[rows],
      self.valid[rows],
      {name: x[rows] for name, x in self.terms.items()},
      {name: x[rows] for name, x in self.metrics.items()},
    )


@dataclasses.dataclass(frozen=True)
class Completions:
  """Completions as text on the host: row p * G + i answers problem p.

  Attributes:
    problems: of each of the B = P * G rows.
    texts: without prompt and stop token.
    lengths: in tokens, the stop token included.
    truncated: ran out of room before a stop token.
    group_size: G.
    rewards: what they earned; None until they are scored.
    rollout: their tokens, on the host; None where only the text is needed.
  """

  problems: list[Problem]
  texts: list[str]
  lengths: Int[np.ndarray, " B"]
  truncated: Bool[np.ndarray, " B"]
  group_size: int = 1
  rewards: Rewards | None = None
  rollout: Rollout | None = None

  def __len__(self) -> int:
    """B."""
    return len(self.texts)

  def __getitem__(self, groups: np.ndarray) -> "Completions":
    """Some groups, by their numbers, with all of their completions."""
    size = self.group_size
    rows = (np.asarray(groups)[:, None] * size + np.arange(size)).ravel()
    cut = jax.tree.map(lambda x: x[groups], self.rollout)
    return Completions(
      [self.problems[row] for row in rows],
      [self.texts[row] for row in rows],
      self.lengths[rows],
      self.truncated[rows],
      size,
      None if self.rewards is None else self.rewards.select(rows),
      cut,
    )

  def groups(self, values: Any) -> Float[np.ndarray, "P G"]:
    """B values as float64, a group in each row; NaN for None."""
    return np.asarray(values, np.float64).reshape(-1, self.group_size)

  def replace(self, **changes: Any) -> "Completions":
    """These completions with other fields."""
    return dataclasses.replace(self, **changes)


def join(parts: Sequence[Completions]) -> Completions:
  """Several sets of completions as one, with the terms that any of them has.

  A term that a part lacks is NaN in its rows.
  """
  first, rewards = parts[0], [part.rewards for part in parts]
  rollout = first.rollout
  if rollout is not None:
    rollout = jax.tree.map(
      lambda *x: np.concatenate(x), *(part.rollout for part in parts)
    )
  return Completions(
    [problem for part in parts for problem in part.problems],
    [text for part in parts for text in part.texts],
    np.concatenate([part.lengths for part in parts]),
    np.concatenate([part.truncated for part in parts]),
    first.group_size,
    None if first.rewards is None else join_rewards(rewards),
    rollout,
  )


def join_rewards(parts: Sequence[Rewards]) -> Rewards:
  """The rewards of several sets of completions, as `join` has them."""
  missing = [np.full(len(part.total), np.nan, np.float32) for part in parts]

  def joined(fields: Sequence[Mapping[str, np.ndarray]]) -> dict:
    names = dict.fromkeys(name for field in fields for name in field)
    return {
      name: np.concatenate(
        [f.get(name, m) for f, m in zip(fields, missing, strict=True)]
      )
      for name in names
    }

  return Rewards(
    np.concatenate([part.total for part in parts]),
    np.concatenate([part.valid for part in parts]),
    joined([part.terms for part in parts]),
    joined([part.metrics for part in parts]),
  )


@flax.struct.dataclass
class Experience:
  """A rollout and all that the loss reads beside it.

  Attributes:
    old_logprobs: under the policy that drew, as the trainer scores it.
    ref_logprobs: under the reference policy; None where there is none.
    sampler_logprobs: as the sampler computed them; for the gap between both.
    advantages: zero outside completions.
    weights: each token's share of one optimizer update's loss.
    correction: a factor of each token's surrogate; None where it is 1.
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
  correction: Array | None = None  # float [P, G, N]
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


def cut_groups(tree: Rollout | Experience, parts: int) -> Rollout | Experience:
  """Returns rows [P * parts, G / parts, ...], each part with its prompt.

  Args:
    tree: on the host.
    parts: of each group; see `sharding.group_parts`. Row p * G + g stays the
      row of this number.
  """
  if parts == 1:
    return tree
  prompts, group = tree.tokens.shape[:2]
  shape = prompts * parts, group // parts
  return _reshaped(tree, shape).replace(prompts=tree.prompts.repeated(parts))


def join_groups(rollout: Rollout) -> Rollout:
  """Returns a rollout whose groups were cut with whole ones; on the host."""
  parts = rollout.prompts.parts
  if parts == 1:
    return rollout
  prompts = jax.tree.map(lambda x: x[::parts], rollout.prompts)
  shape = len(prompts.tokens), rollout.tokens.shape[1] * parts
  return _reshaped(rollout, shape).replace(prompts=prompts.replace(parts=1))


def _reshaped(tree: Any, shape: tuple[int, int]) -> Any:
  """Returns rows [P, G, ...] of another P and G; prompts as they are."""
  rows = {name: x for name, x in vars(tree).items() if name != "prompts"}
  return tree.replace(
    **jax.tree.map(lambda x: x.reshape(*shape, *x.shape[2:]), rows)
  )
