"""Dynamic sampling: groups whose completions all do alike are drawn anew.

A group of equal outcomes has no advantages. DAPO, https://arxiv.org/abs/
2503.14476, section 3.2, asks further prompts until the batch is full of groups
that differ. What counts is the raw outcome, such as accuracy: lengths or format
may differ where no completion, or every one, is right.

P prompts, G completions each; B = P * G rows, row b in group b // G.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from grpo_jax.types import Completions, Rewards, join

_TOLERANCE = 1e-6


class Pending(NamedTuple):
  """Completions whose rewards are on their way.

  Attributes:
    completions: of P problems, with their rollout.
    finish: waits for what they earn; called once.
  """

  completions: Completions
  finish: Callable[[], Rewards]


def fill(
  ask: Callable[[], Pending], *, term: str = "accuracy", max_rounds: int = 4
) -> tuple[Completions, dict[str, int]]:
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

  Raises:
    ValueError: `max_rounds` is below 1.
  """
  if max_rounds < 1:
    raise ValueError(f"{max_rounds=} must be at least 1.")
  rounds, differ = [], np.zeros(0, bool)
  while len(rounds) < max_rounds:
    completions, finish = ask()
    rounds.append(completions.replace(rewards=finish()))
    differ = np.append(differ, differing(rounds[-1], term))
    size = len(completions) // completions.group_size
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
  return join(rounds)[chosen], counts


def differing(completions: Completions, term: str) -> Bool[np.ndarray, " P"]:
  """Returns which groups have two valid completions of different outcomes.

  Or two valid ones and no outcome at all.
  """
  outcomes = completions.groups(completions.rewards.terms[term])
  valid = completions.rewards.valid.reshape(outcomes.shape)
  found = []
  for group, usable in zip(outcomes, valid, strict=True):
    known = group[usable & ~np.isnan(group)]
    if known.size:
      found.append(bool(np.ptp(known) > _TOLERANCE))
    else:
      found.append(bool(usable.sum() >= 2))
  return np.array(found, bool)
