"""Countdown: reach a target from given numbers, each used exactly once.

Problems are drawn, not listed: there are too many. A problem's canonical form
(its numbers in order, then the target) decides its split by the same hash as
that of the built-in tasks, so that training and test problems never meet,
whatever the seed and the sizes.
"""

import random

from grpo_jax.data.sources import tasks
from grpo_jax.types import Problem

_QUESTION = (
  "Make {target} from the numbers {numbers}: use each of them exactly once,"
  " with +, -, *, / and parentheses."
)
# So many draws in a row without a new problem mean that few or none are left.
_FRUITLESS = 20_000


def problems(
  split: str,
  *,
  size: int,
  seed: int,
  num_numbers: int = 4,
  largest_number: int = 99,
  largest_target: int = 99,
) -> list[Problem]:
  """Different problems of one split, each with a solution as its answer.

  Every partial result of that solution is a whole number from 0. `prompt` is
  empty until a problem has one.

  Args:
    split: "train" or "test".
    size: how many.
    seed: which ones.
    num_numbers: how many numbers a problem has, at least 2.
    largest_number: they are drawn from 1 to this, repetitions allowed.
    largest_target: targets are from 1 to this.

  Raises:
    ValueError: the split is unknown, or has too few problems of this kind.
  """
  if split not in tasks.SPLITS:
    raise ValueError(f"countdown has the splits {tasks.SPLITS}, not {split!r}.")
  if num_numbers < 2 or min(size, largest_number, largest_target) < 1:
    raise ValueError(
      "countdown needs two numbers, and one as its size and its largest number"
      f" and target: {num_numbers=}, {size=}, {largest_number=},"
      f" {largest_target=}."
    )
  rng = random.Random(f"countdown {split} {seed}")
  found, seen, fruitless = [], set(), 0
  while len(found) < size:
    numbers = [rng.randint(1, largest_number) for _ in range(num_numbers)]
    target, solution = _combine(numbers, rng)
    canonical = (*sorted(numbers), target)
    if (
      1 <= target <= largest_target
      and canonical not in seen
      and tasks.split_of(canonical) == split
    ):
      seen.add(canonical)
      listed = ", ".join(map(str, numbers))
      question = _QUESTION.format(target=target, numbers=listed)
      found.append(Problem(question, solution, source="countdown", prompt=""))
      fruitless = 0
      continue
    fruitless += 1
    if fruitless == _FRUITLESS:
      raise ValueError(
        f"The {split} split of countdown has hardly more than {len(found)}"
        f" different problems with {num_numbers=}, {largest_number=} and"
        f" {largest_target=}; {size} were asked for."
      )
  return found


def _combine(numbers: list[int], rng: random.Random) -> tuple[int, str]:
  """The value and the text of an expression that uses each number once."""
  terms = [(number, str(number)) for number in numbers]
  while len(terms) > 1:
    (a, left), (b, right) = (
      terms.pop(rng.randrange(len(terms))) for _ in range(2)
    )
    values = {"+": a + b, "*": a * b}
    if a >= b:
      values["-"] = a - b
    if b and a % b == 0:
      values["/"] = a // b
    sign = rng.choice(sorted(values))
    terms.append((values[sign], f"({left}{sign}{right})"))
  ((value, text),) = terms
  return value, text[1:-1]
