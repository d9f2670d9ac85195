"""Dynamic sampling: groups whose completions all do alike are drawn anew.

A group of equal outcomes has no advantages. DAPO, https://arxiv.org/abs/
2503.14476, section 3.2, asks further prompts until the batch is full of groups
that differ. What counts is the raw outcome, such as accuracy: lengths or format
may differ where no completion, or every one, is right.

P prompts, G completions each; B = P * G rows, row b in group b // G.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from grpo_jax.rewards import combine
from grpo_jax.types import Problem, Rollout

_TOLERANCE = 1e-6


class Groups(NamedTuple):
  """Completions of P prompts, with what they earn.

  Attributes:
    problems: of each of the B rows.
    rollout: on the host.
    texts: of the completions, B of them.
    finish: waits for what they earn; called once.
  """

  problems: list[Problem]
  rollout: Rollout
  texts: list[str]
  finish: Callable[[], combine.Scores]

  @property
  def lengths(self) -> Int[np.ndarray, " B"]:
    """Tokens of each completion, stop token included."""
    return self.rollout.completion_mask.sum(axis=-1).ravel()


def fill(
  ask: Callable[[], Groups], *, term: str = "accuracy", max_rounds: int = 4
) -> tuple[Groups, dict[str, int]]:
  """Returns P groups whose outcomes differ, as far as found, and counts.

  Groups are taken in the order in which they were drawn. Where too few differ
  after the last round, the first of the others fill up the batch; they teach
  what they would without dynamic sampling.

  Counts, each as `dynamic_sampling/<name>`: `rounds`; `kept`, groups taken that
  differ; `dropped`, groups that do not differ; `filled`, those that were
  taken all the same; `surplus`, groups that differ and were not needed.

  Args:
    ask: draws the completions of further P prompts.
    term: the reward that is the outcome. A group in which it scores no row has
      none to go by and is kept, if two of its rows are valid.
    max_rounds: rollouts of a step, at least 1.
  """
  rounds, earned, differ = [], [], np.zeros(0, bool)
  while len(rounds) < max_rounds:
    rounds.append(ask())
    earned.append(rounds[-1].finish())
    size, group = rounds[0].rollout.truncated.shape
    differ = np.append(differ, differing(earned[-1], term, group))
    if differ.sum() >= size:
      break
  found = np.flatnonzero(differ)
  chosen = np.append(found, np.flatnonzero(~differ))[:size]
  kept = min(len(found), size)
  counts = {
    "dynamic_sampling/rounds": len(rounds),
    "dynamic_sampling/kept": kept,
    "dynamic_sampling/dropped": int((~differ).sum()),
    "dynamic_sampling/filled": size - kept,
    "dynamic_sampling/surplus": len(found) - kept,
  }
  rows = (chosen[:, None] * group + np.arange(group)).ravel()
  problems = [problem for each in rounds for problem in each.problems]
  texts = [text for each in rounds for text in each.texts]
  scores = _join(earned, rows)
  groups = Groups(
    [problems[row] for row in rows],
    jax.tree.map(
      lambda *x: np.concatenate(x)[chosen], *(each.rollout for each in rounds)
    ),
    [texts[row] for row in rows],
    lambda: scores,
  )
  return groups, counts


def differing(
  scores: combine.Scores, term: str, group_size: int
) -> Bool[np.ndarray, " P"]:
  """Returns which groups have two valid completions of different outcomes.

  Or two valid ones and no outcome at all.
  """
  outcomes = scores.terms[term].reshape(-1, group_size)
  valid = scores.valid.reshape(-1, group_size)
  found = []
  for group, usable in zip(outcomes, valid, strict=True):
    known = group[usable & ~np.isnan(group)]
    if known.size:
      found.append(bool(np.ptp(known) > _TOLERANCE))
    else:
      found.append(bool(usable.sum() >= 2))
  return np.array(found, bool)


def _join(earned: Sequence[combine.Scores], rows: np.ndarray) -> combine.Scores:
  """The scores of some rows of all rounds, counted through."""

  def joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for part in parts for name in part)
    missing = [
      np.full(len(each.rewards), np.nan, np.float32) for each in earned
    ]
    return {
      name: np.concatenate(
        [part.get(name, m) for part, m in zip(parts, missing, strict=True)]
      )[rows]
      for name in names
    }

  return combine.Scores(
    np.concatenate([each.rewards for each in earned])[rows],
    np.concatenate([each.valid for each in earned])[rows],
    joined([each.terms for each in earned]),
    joined([each.metrics for each in earned]),
  )
