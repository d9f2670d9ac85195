"""Which completions of a problem gave the same answer: the votes of cons@k.

P problems with N completions each, B = P * N rows; row b answers problem
b // N.
"""

import collections
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from grpo_jax import types
from grpo_jax.rewards import answer


def is_possible(problems: Sequence[types.Problem]) -> bool:
  """Whether all problems have answers that can agree; programs have none."""
  return all(answer.compares(problem.source) for problem in problems)


def wrong_votes(
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  scores: Float[np.ndarray, " B"],
  samples: int,
) -> list[list[int]]:
  """Returns how many completions gave each wrong answer, for each problem.

  Equality is the grader's, see `answer.same`. It need not be transitive (0.33
  may equal both 1/3 and 0.334), so each answer is compared with the first one
  of each class, in the order of the completions, and joins the first class that
  it equals. Completions that are right agree with the reference and form one
  class of their own, which is not among those returned. A completion without an
  answer has no vote.

  Args:
    problems: B, each repeated N times.
    completions: B texts.
    scores: B accuracies; 1 is right, and NaN has no vote.
    samples: N.
  """
  votes = [collections.Counter() for _ in range(len(problems) // samples)]
  for row, (problem, text) in enumerate(
    zip(problems, completions, strict=True)
  ):
    if scores[row] < 1:
      found = answer.extract(problem, text)
      if found:
        votes[row // samples][found] += 1
  classes = [[] for _ in votes]
  # All problems at once, so that workers are asked together: in each round the
  # first answer that is left begins a class, and the others are compared to it.
  while any(votes):
    asked = collections.defaultdict(list)
    for index, left in enumerate(votes):
      first, *others = left or [None]
      if first is not None:
        classes[index].append(left.pop(first))
        asked[problems[index * samples].source] += [
          (index, first, other) for other in others
        ]
    for source, pairs in asked.items():
      equal = answer.same(source, [pair[1:] for pair in pairs])
      for (index, _, other), joins in zip(pairs, equal, strict=True):
        if joins:
          classes[index][-1] += votes[index].pop(other)
  return classes
