"""Judged completions as records: labels, pairs, steps with labels.

What a batch of completions came to, for a reward model to learn from; see
`stages.preferences`. P problems a batch, K completions each, `rows` = P * K;
S prompt slots, T tokens.
"""

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from grpo_jax import errors
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.evaluation import metrics
from grpo_jax.reward_models import learned
from grpo_jax.rewards import combine
from grpo_jax.sampling import decode, generate
from grpo_jax.types import Completions, Problem

# Records to write, and how often what happened.
Found = tuple[list[dict[str, Any]], dict[str, int]]


class Annotator(NamedTuple):
  """A policy and how it is asked.

  Attributes:
    model: its parameters.
    prompts_per_batch: P; also how many beginnings are continued at a time.
    prompt_slots: S of the problems.
    sampling: of completions; K is its group size.
  """

  model: generate.Policy
  prompts_per_batch: int
  prompt_slots: int
  sampling: decode.SamplingParams


class ScoredBatch(NamedTuple):
  """Completions of one batch of problems, and what they earned.

  Attributes:
    number: of the batch, from 0.
    prompts: of each problem, in tokens.
    completions: of P problems, K each.
    rewards: of each; NaN where there is none.
  """

  number: int
  prompts: Sequence[Int[np.ndarray, " S"]]
  completions: Completions
  rewards: Float[np.ndarray, " rows"]


def score(
  rewards: errors.Section, batch: Completions
) -> Float[np.ndarray, " rows"]:
  """What each completion earns; NaN where there is no telling."""
  scores = combine.score(
    rewards,
    batch.problems,
    batch.texts,
    lengths=batch.lengths,
    truncated=batch.truncated,
  )
  return np.where(scores.valid, scores.total.astype(np.float64), np.nan)


def labels_of(drawn: ScoredBatch) -> Found:
  """Completions with what they earn as their label; see `_usable`.

  Raises:
    ValueError: a reward is not in [0, 1].
  """
  rows = [
    _asked(drawn.completions.problems[row])
    | dict(
      completion=drawn.completions.texts[row],
      label=_label(drawn.rewards[row]),
    )
    for row in _usable(drawn)
  ]
  return rows, _counts(drawn)


def pairs_of(
  drawn: ScoredBatch, *, margin: float, per_problem: int, seed: int
) -> Found:
  """Pairs of completions of one problem whose rewards differ enough.

  Each problem gives up to `per_problem` of its pairs, drawn at random.

  Args:
    drawn: completions.
    margin: rewards of a pair differ by more than this; at least 0.
    per_problem: at least 1.
    seed: of the choice.
  """
  batch, rewards = drawn.completions, drawn.rewards.tolist()
  group_size = _group_size(drawn)
  rows, alike = [], 0
  for place, group in itertools.groupby(
    range(len(rewards)), lambda row: row // group_size
  ):
    inside = _usable(drawn, group)
    found = [
      (better, worse)
      for better, worse in itertools.permutations(inside, 2)
      if rewards[better] - rewards[worse] > margin
    ]
    problem = batch.problems[place * group_size]
    rng = random.Random(f"{seed} {problem.question}")
    alike += not found
    rows += [
      _asked(problem)
      | dict(
        chosen=batch.texts[better],
        rejected=batch.texts[worse],
        chosen_reward=rewards[better],
        rejected_reward=rewards[worse],
        margin=rewards[better] - rewards[worse],
      )
      for better, worse in rng.sample(found, min(per_problem, len(found)))
    ]
  return rows, _counts(drawn) | {"problems_without_a_pair": alike}


def steps_of(
  drawn: ScoredBatch,
  *,
  annotator: Annotator,
  rewards: errors.Section,
  key: Key[Array, ""],
  separators: Sequence[str],
  continuations: int,
) -> Found:
  """Completions with labels of their steps, from continuations of each step.

  The last step of a completion ends it: its label is what the whole earns.

  Args:
    drawn: completions.
    annotator: what continues them.
    rewards: of continued completions; in [0, 1].
    key: of the draws.
    separators: each ends a step; see `learned.step_offsets`.
    continuations: of each step.

  Raises:
    ValueError: a reward is not in [0, 1].
  """
  texts = drawn.completions.texts
  ends = {
    row: learned.step_offsets(texts[row], separators) for row in _usable(drawn)
  }
  begun = [
    beginning
    for row in ends
    for beginning in _beginnings(drawn, row, ends[row], annotator.model.tok)
  ]
  key = jax.random.fold_in(key, drawn.number)
  earned = _continued(drawn, begun, annotator, rewards, key, continuations)
  labels: dict[int, list[float | None]] = {row: [] for row in ends}
  for beginning, mean in zip(begun, earned, strict=True):
    labels[beginning.row].append(_label(mean))
  rows = [
    _asked(drawn.completions.problems[row])
    | dict(
      completion=texts[row],
      labels=json.dumps([*found, _label(drawn.rewards[row])]),
    )
    for row, found in labels.items()
  ]
  return rows, _counts(drawn) | {"continued_steps": len(begun)}


class _Beginning(NamedTuple):
  """A completion up to the end of a step: its row, characters, all tokens."""

  row: int
  end: int
  ids: Int[np.ndarray, " T"]


def _beginnings(
  drawn: ScoredBatch, row: int, ends: Sequence[int], tok: tokenizer.Tokenizer
) -> Iterator[_Beginning]:
  """Prompt and completion up to the end of each step but the last.

  Steps are tokenized apart, as a process reward model reads them.
  """
  text = drawn.completions.texts[row]
  ids = drawn.prompts[row // _group_size(drawn)].tolist()
  for start, end in zip([0, *ends], ends[:-1], strict=False):
    ids = ids + tok.encode(text[start:end])
    yield _Beginning(row, end, np.asarray(ids, np.int32))


def _continued(
  drawn: ScoredBatch,
  begun: Sequence[_Beginning],
  annotator: Annotator,
  rewards: errors.Section,
  key: Key[Array, ""],
  continuations: int,
) -> list[float]:
  """The mean of what continuations of each beginning earn; NaN for none."""
  slots = annotator.prompt_slots + annotator.sampling.max_new_tokens
  # What is no valid text may have more tokens than were drawn.
  fits = [i for i, beginning in enumerate(begun) if len(beginning.ids) <= slots]
  found, place = [math.nan] * len(begun), 0
  for batch in generate.generate(
    annotator.model,
    [drawn.completions.problems[begun[i].row] for i in fits],
    [begun[i].ids for i in fits],
    key,
    prompt_slots=slots,
    prompts_per_batch=annotator.prompts_per_batch,
    sampling=dataclasses.replace(annotator.sampling, group_size=continuations),
  ):
    owners = fits[place : place + len(batch.texts) // continuations]
    place += len(owners)
    begins = [
      drawn.completions.texts[begun[i].row][: begun[i].end]
      for i in owners
      for _ in range(continuations)
    ]
    texts = [a + b for a, b in zip(begins, batch.texts, strict=True)]
    earned = score(rewards, batch.replace(texts=texts))
    for i, row in zip(owners, earned.reshape(len(owners), -1), strict=True):
      found[i] = metrics.mean(row)
  return found


def _group_size(drawn: ScoredBatch) -> int:
  return len(drawn.completions.texts) // len(drawn.prompts)


def _usable(drawn: ScoredBatch, rows: Iterable[int] | None = None) -> list[int]:
  """Rows that ended and have a reward; of equal texts of a problem the first.

  Args:
    drawn: completions.
    rows: to choose from; all by default.
  """
  batch, seen = drawn.completions, {}
  for row in range(len(batch.texts)) if rows is None else rows:
    if not (batch.truncated[row] or np.isnan(drawn.rewards[row])):
      same = row // _group_size(drawn), batch.texts[row]
      seen.setdefault(same, row)
  return list(seen.values())


def _label(reward: float) -> float | None:
  """A reward as a label; None where there is none."""
  if np.isnan(reward):
    return None
  if not 0 <= reward <= 1:
    raise ValueError(
      f"A completion earns {reward:g}, which is no label: config.rewards must"
      " be in [0, 1], such as dict(accuracy=1.0)."
    )
  return round(float(reward), 6)


def _asked(problem: Problem) -> dict[str, Any]:
  return dict(
    question=problem.question, answer=problem.answer, source=problem.source
  )


def _counts(drawn: ScoredBatch) -> dict[str, int]:
  return {
    "completions": len(drawn.rewards),
    "truncated": int(np.count_nonzero(drawn.completions.truncated)),
    "unscored": int(np.count_nonzero(np.isnan(drawn.rewards))),
  }
