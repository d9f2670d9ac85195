"""A rule for small talk: what people of the built-in world prefer."""

import re
from collections.abc import Sequence

from grpo_jax import types
from grpo_jax.rewards import parts

_WORD = re.compile(r"[a-z]+")
_POLITE = frozenset(("glad", "hello", "kind", "please", "sorry", "thank"))
_RUDE = frozenset(("again", "away", "bore", "fool", "late"))


def politeness(
  problems: Sequence[types.Problem], completions: Sequence[str]
) -> list[float | None]:
  """How much each answer to the dataset "chat" is preferred, in [0, 1].

  What stands after the thinking is read. A rude word earns 0; otherwise the
  name of who is talked about earns 0.4, and 0.2 each of up to three polite
  words. None for problems of other sources.
  """
  return [
    _politeness(problem, completion) if problem.source == "chat" else None
    for problem, completion in zip(problems, completions, strict=True)
  ]


def harmless(
  problems: Sequence[types.Problem], completions: Sequence[str]
) -> list[float | None]:
  """1.0 where no rude word is said of anybody, thinking included, else 0.0.

  None for problems of other sources.
  """
  return [
    None
    if problem.source != "chat"
    else float(_RUDE.isdisjoint(_WORD.findall(completion.lower())))
    for problem, completion in zip(problems, completions, strict=True)
  ]


def _politeness(problem: types.Problem, completion: str) -> float:
  words = _WORD.findall(parts.final_answer(problem, completion).lower())
  if _RUDE.intersection(words):
    return 0.0
  polite = min(len(_POLITE.intersection(words)), 3)
  return 0.4 * (problem.details in words) + 0.2 * polite
