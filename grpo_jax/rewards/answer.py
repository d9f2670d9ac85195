"""The accuracy reward: rules that read a final answer and decide equality.

A verifier takes one problem and one completion and returns 1.0 (right), 0.0
(wrong or no answer) or None where the problem itself cannot be graded. Text of
a model is matched and compared, never evaluated, and all work is linear in it.

What a rule cannot be talked into: several answers, an answer before or inside
the thinking, tags inside the answer and text after it all count as wrong.
"""

import collections
import decimal
import itertools
import re
from collections.abc import Callable, Sequence

from grpo_jax import types
from grpo_jax.rewards import format

Verifier = Callable[[types.Problem, str], float | None]

_PAIR_SUM = re.compile(
  r"([0-9]{1,9}),([0-9]{1,9}),([0-9]{1,9}),([0-9]{1,9})=([0-9]{1,9})\?"
)
_ADDITION = re.compile(r"([0-9]{1,9})\+([0-9]{1,9})=\?")
_NUMBER = re.compile(
  r"(?<![0-9.])([-\u2212]?)(?:\$ ?)?"
  r"((?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
# Longer strings of digits are no answer to any problem that we grade.
_MAX_DIGITS = 100


def accuracy(
  problems: Sequence[types.Problem], completions: Sequence[str]
) -> list[float | None]:
  """1.0 where the final answer is right, 0.0 where it is not.

  The problem's source chooses the rule in `VERIFIERS`; sources that are not
  named there are graded by `number`. None where a problem cannot be graded.
  """
  return [
    VERIFIERS.get(problem.source, number)(problem, completion)
    for problem, completion in zip(problems, completions, strict=True)
  ]


def tagged_answer(problem: types.Problem, completion: str) -> str | None:
  """What the one pair of answer tags holds, or None if there is no such pair.

  The pair must end the completion and must not lie inside an open `<think>`.
  Whether the thinking is well formed is the format reward's question.
  """
  pieces = format.split_tags(problem, completion)
  tags = pieces[1::2]
  if tags[-2:] != ["<answer>", "</answer>"] or pieces[-1].strip():
    return None
  earlier = tags[:-2]
  if "<answer>" in earlier or "</answer>" in earlier:
    return None
  if earlier[-1:] == ["<think>"]:
    return None
  return pieces[-3].strip()


def pair_sum(problem: types.Problem, completion: str) -> float | None:
  """Which two of four numbers add up to the target: `25,22,13,19=35?`.

  Right is `x+y` in answer tags, blanks allowed, with x and y as they stand at
  two different places of the question and x + y the target.
  """
  question = _PAIR_SUM.fullmatch(problem.question.strip())
  if question is None:
    return None
  *numbers, target = question.groups()
  terms = _without_blanks(tagged_answer(problem, completion)).split("+")
  if len(terms) != 2:
    return 0.0
  for term in terms:
    if term not in numbers:
      return 0.0
    numbers.remove(term)
  return float(sum(map(int, terms)) == int(target))


def addition(problem: types.Problem, completion: str) -> float | None:
  """The sum of two numbers, `17+25=?`, as an integer in answer tags."""
  question = _ADDITION.fullmatch(problem.question.strip())
  if question is None:
    return None
  total = sum(map(int, question.groups()))
  answer = _without_blanks(tagged_answer(problem, completion))
  return float(answer == str(total))


def number(problem: types.Problem, completion: str) -> float | None:
  """One number, compared exactly; the rule for GSM8K.

  The reference is what follows `####`, or the whole reference answer. The
  completion's answer is what its answer tags hold; without such tags what
  follows the last `####`, to the end of that line; without those the last
  number after the thinking. Commas between thousands, $, a unit and trailing
  zeros after the point are tolerated. An answer that names two numbers is
  wrong, and so is one of more than 100 digits.
  """
  reference = problem.answer.rpartition("####")[2].strip()
  match = _NUMBER.fullmatch(reference.rstrip("."))
  expected = match and _decimal(match)
  if expected is None:
    return None
  return float(_final_number(problem, completion) == expected)


VERIFIERS: dict[str, Verifier] = {
  "pair_sum": pair_sum,
  "addition": addition,
  "gsm8k": number,
}


def _final_number(
  problem: types.Problem, completion: str
) -> decimal.Decimal | None:
  pieces = format.split_tags(problem, completion)
  tags = pieces[1::2]
  if "<answer>" in tags or "</answer>" in tags:
    answer = tagged_answer(problem, completion)
    return _only_number(answer) if answer is not None else None
  if tags[-1:] == ["<think>"]:
    return None
  _, mark, answer = pieces[-1].rpartition("####")
  if mark:
    return _only_number(answer.strip().partition("\n")[0])
  last = collections.deque(_NUMBER.finditer(pieces[-1]), maxlen=1)
  return _decimal(last[0]) if last else None


def _only_number(text: str) -> decimal.Decimal | None:
  matches = list(itertools.islice(_NUMBER.finditer(text), 2))
  return _decimal(matches[0]) if len(matches) == 1 else None


def _decimal(match: re.Match[str]) -> decimal.Decimal | None:
  sign, digits = match.groups()
  if len(digits) > _MAX_DIGITS:
    return None
  return decimal.Decimal(("-" if sign else "") + digits.replace(",", ""))


def _without_blanks(text: str | None) -> str:
  return "".join((text or "").split())
