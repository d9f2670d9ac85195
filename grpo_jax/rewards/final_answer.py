"""Finds the final answer in a completion, as it was written.

Where it is looked for depends on what is asked: one number, or any answer of
mathematics. All of this takes time linear in the text.
"""

import collections
import decimal
import itertools
import re

from grpo_jax import types
from grpo_jax.rewards import equality, format

_NUMBER = re.compile(
  r"(?<![0-9.])([-\u2212]?)(?:\$ ?)?"
  r"((?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
# Longer strings of digits are no answer to any problem that we grade.
_MAX_DIGITS = 100
_SAID = re.compile(r"\banswer(?: is:?|:| =)\s*", re.IGNORECASE)
_NUMBER_OR_RATIO = re.compile(
  rf"(?:\\[dt]?frac\{{-?[0-9]+\}}\{{[0-9]+\}}|{_NUMBER.pattern}(?:/[0-9]+)?)"
  r"(?:\s?\\?%)?"
)
_LETTER = re.compile(r"(?<![A-Za-z])[A-Z](?![A-Za-z'])")
_FORMULA = re.compile(
  r"(?<!\\)\$(?:\\.|[^$\\])+\$|\\\([^()]*\\\)|\\\[[^\[\]]*\\\]"
)
_SENTENCE = re.compile(r"\.\s+(?=[A-Z])")
_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def number_text(problem: types.Problem, completion: str) -> str | None:
  """What should be one number, see `answer.number`; None where nothing is."""
  if _has_answer_tags(problem, completion):
    return format.tagged_answer(problem, completion)
  text = _after_thinking(problem, completion)
  if text is None:
    return None
  _, mark, answer = text.rpartition("####")
  if mark:
    return answer.strip().partition("\n")[0]
  return _last(_NUMBER, text)


def math_text(
  problem: types.Problem, completion: str, reference: str
) -> str | None:
  """The answer of mathematics, see `answer.math`; None where there is none.

  Args:
    problem: tells whether the thinking was opened in its prompt.
    completion: the text.
    reference: the right answer; its kind says what is looked for.
  """
  tagged = _has_answer_tags(problem, completion)
  read = format.tagged_answer if tagged else _after_thinking
  text = read(problem, completion)
  if text is None:
    return None
  if "\\boxed" in text:
    return boxed(text)
  _, mark, answer = text.rpartition("####")
  if mark:
    return _line(answer)
  said = _last_match(_SAID, text)
  if said:
    formula = _FORMULA.match(text, said.end())
    return formula[0] if formula else _line(text[said.end() :])
  if tagged:
    return text
  if equality.is_number(reference):
    return _last(_NUMBER_OR_RATIO, text)
  if equality.is_choice(reference):
    return _last(_LETTER, text)
  formula = _last_match(_FORMULA, text)
  if formula:
    return formula[0]
  return text.strip().rpartition("\n")[2]


def boxed(text: str) -> str | None:
  r"""What the last `\boxed{...}` holds; None if it is missing or not closed."""
  start = text.rfind("\\boxed")
  if start < 0:
    return None
  box = _BOX.match(text, start)
  if box is None:
    return None
  depth = 1
  for brace in _BRACE.finditer(text, box.end()):
    depth += {"{": 1, "}": -1}.get(brace[0], 0)
    if depth == 0:
      return text[box.end() : brace.start()].strip()
  return None


def only_number(text: str) -> decimal.Decimal | None:
  """The one number that the text names; None for none, several or too long."""
  matches = list(itertools.islice(_NUMBER.finditer(text), 2))
  return _decimal(matches[0]) if len(matches) == 1 else None


def as_number(text: str) -> decimal.Decimal | None:
  """The number that the text is; None if it is more, or too long a one."""
  match = _NUMBER.fullmatch(text)
  return _decimal(match) if match else None


def _decimal(match: re.Match[str]) -> decimal.Decimal | None:
  sign, digits = match.groups()
  if len(digits) > _MAX_DIGITS:
    return None
  return decimal.Decimal(("-" if sign else "") + digits.replace(",", ""))


def _after_thinking(problem: types.Problem, completion: str) -> str | None:
  """The text after the thinking; None where there is no end of it."""
  pieces = format.split_tags(problem, completion)
  return None if pieces[1::2][-1:] == ["<think>"] else pieces[-1]


def _has_answer_tags(problem: types.Problem, completion: str) -> bool:
  tags = format.split_tags(problem, completion)[1::2]
  return "<answer>" in tags or "</answer>" in tags


def _line(text: str) -> str:
  """The first line or sentence, without the marks of emphasis around it."""
  line = text.strip().partition("\n")[0]
  return _SENTENCE.split(line, maxsplit=1)[0].strip("* ")


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
  found = collections.deque(pattern.finditer(text), maxlen=1)
  return found[0] if found else None


def _last(pattern: re.Pattern[str], text: str) -> str | None:
  match = _last_match(pattern, text)
  return match and match[0]
