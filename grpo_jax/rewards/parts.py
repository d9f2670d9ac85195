"""Which part of a completion a model reads that scores it."""

from collections.abc import Callable

from grpo_jax import types
from grpo_jax.rewards import format


def final_answer(problem: types.Problem, completion: str) -> str:
  """What stands after the thinking, without answer tags, blanks cut off.

  Empty where thinking that was begun is not ended; the whole completion where
  there is none. The helpfulness model of DeepSeek-R1 reads this part,
  https://arxiv.org/abs/2501.12948 section 3.2.2 (the final summary).
  """
  pieces = format.split_tags(problem, completion)
  last = 0
  for index in range(1, len(pieces), 2):
    if pieces[index] == "<think>":
      last = len(pieces)
    elif pieces[index] == "</think>":
      last = index + 1
  return "".join(pieces[last::2]).strip()


def whole(problem: types.Problem, completion: str) -> str:
  """The completion, thinking included, as the safety model reads it."""
  del problem
  return completion


PARTS: dict[str, Callable[[types.Problem, str], str]] = {
  "answer": final_answer,
  "completion": whole,
}


def check(name: str) -> None:
  """Raises ValueError unless `name` is one of `PARTS`."""
  if name not in PARTS:
    raise ValueError(f"reads={name!r} must be one of {', '.join(PARTS)}.")
