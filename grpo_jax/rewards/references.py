r"""Whether a right completion could be seen to be right.

Reference answers are graded against themselves, written as a completion would
write them under the template: in answer tags, in `\boxed{}`, or in a sentence.
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from grpo_jax import errors, types
from grpo_jax.rewards import answer, length, user_functions
from grpo_jax.rewards import section as section_lib

# So many references are graded, drawn by chance but the same at each start, in
# about so many seconds. Of MATH it takes half a second, of GSM8K a tenth.
MOST, SECONDS = 2000, 10.0
_AT_ONCE = 128
# Of the sources whose references are no answers but what a verifier reads.
_OWN = ("countdown", "reasoning_gym")
_SHOWN = 60  # Characters of an example.


class Read(NamedTuple):
  """What became of references that were graded against themselves.

  Attributes:
    tried: the problems whose references were graded.
    unread: those of them whose reference is right in no form.
  """

  tried: list[types.Problem]
  unread: list[types.Problem]


def check(
  section: errors.Section,
  problems: Sequence[types.Problem],
  *,
  where: str,
  fill: Callable[[types.Problem], types.Problem] = lambda problem: problem,
) -> list[str]:
  """Returns a sentence on what of a run's problems could not be rewarded.

  Nothing where the rewards compare no answer, and where all can be read.

  Args:
    section: of rewards.
    problems: at random access.
    where: how a sentence names them, such as "config.data".
    fill: gives a problem its prompt, where it has none yet.

  Raises:
    ConfigError: not one reference can be read.
  """
  terms = section_lib.read(section)
  chosen = [fill(problem) for problem in sample(problems)]
  found = []
  names = [n for n, t in terms.items() if t.function.func in _COMPARING]
  for name in names:
    asked = terms[name].only_for
    rows = [p for p in chosen if asked is None or p.source in asked]
    read = grade(rows)
    if read.unread:
      found.append(_unread_sentence(where, name, len(problems), read))
      if len(read.unread) == len(read.tried):
        raise errors.ConfigError(found[-1])
  return found


_COMPARING = (answer.accuracy, length.cosine)


def sample(
  problems: Sequence[types.Problem], most: int = MOST
) -> list[types.Problem]:
  """Returns so many of the problems, or all, in an order by chance.

  It is the same at each call.
  """
  places = range(len(problems))
  chosen = random.Random(0).sample(places, min(len(problems), most))
  return [problems[i] for i in chosen]


def grade(
  problems: Sequence[types.Problem],
  *,
  seconds: float = SECONDS,
) -> Read:
  """Grades the reference of each problem against itself.

  Problems whose reference is no answer, such as unit tests, are left out.

  Args:
    problems: with their prompts.
    seconds: after which no more are tried.
  """
  answers = [p for p in problems if _is_answer(p)]
  read, end = Read([], []), time.monotonic() + seconds
  for first in range(0, len(answers), _AT_ONCE):
    if first and time.monotonic() > end:
      break
    part = answers[first : first + _AT_ONCE]
    read.tried.extend(part)
    read.unread.extend(_unread(part))
  return read


def _unread(tried: Sequence[types.Problem]) -> list[types.Problem]:
  """Those whose reference is right in none of its forms."""
  rows, texts = [], []
  for row, problem in enumerate(tried):
    for text in forms(problem).values():
      rows.append(row)
      texts.append(text)
  grades = answer.grades([tried[row] for row in rows], texts)
  right = {
    row for row, g in zip(rows, grades, strict=True) if g.outcome == "correct"
  }
  return [p for row, p in enumerate(tried) if row not in right]


def forms(problem: types.Problem) -> dict[str, str]:
  r"""Returns right completions by the name of their form.

  The one that the prompt asks for, "tags" or "boxed"; where it asks for none,
  these and "sentence".

  Args:
    problem: with its prompt and form.
  """
  prompt = problem.prompt.rstrip()
  final = user_functions.reference(problem)
  thought = ""
  if prompt.endswith("<think>"):
    thought = "I see.\n</think>\n\n"
  elif not prompt.endswith("</think>") and (
    problem.form == "think" or "<think>" in prompt
  ):
    thought = "<think>\nI see.\n</think>\n\n"
  found = {
    "tags": (thought or "<think>I see.</think>") + f"<answer>{final}</answer>",
    "boxed": rf"{thought}The answer is \boxed{{{final}}}.",
    "sentence": f"{thought}The answer is {final}.",
  }
  if "<answer>" in prompt:
    return {"tags": found["tags"]}
  if "\\boxed" in prompt:
    return {"boxed": found["boxed"]}
  return found


def _is_answer(problem: types.Problem) -> bool:
  if problem.source in _OWN or not answer.compares(problem.source):
    return False
  rule = answer.VERIFIERS.get(problem.source)
  # A rule of the user's own may read references of a form of its own.
  return rule is None or rule.__module__ == answer.__name__


def _unread_sentence(where: str, name: str, total: int, read: Read) -> str:
  tried, unread = len(read.tried), len(read.unread)
  of = f"{tried:,}" if tried == total else f"{tried:,} of {total:,} tried"
  share = "None" if tried == unread else f"{unread:,} ({unread / tried:.1%})"
  can = "can" if tried == unread else "cannot"
  example = read.unread[0]
  sources = sorted({p.source for p in read.unread})
  text = (
    f"{share} of the reference answers of {where} ({of}; source"
    f" {', '.join(map(repr, sources))}) {can} be read by"
    f" config.rewards.{name}, so no completion could be right there: such as"
    f" {_short(example.answer)} to {_short(example.question)}."
  )
  if sources != ["math"]:
    others = [p._replace(source="math") for p in read.unread]
    more = len(others) - len(grade(others).unread)
    if more:
      text += (
        f' With source="math", whose rule reads any answer of mathematics or'
        f" text, {more:,} of these {unread:,} can be read."
      )
  return text


def _short(text: str) -> str:
  text = " ".join(text.split())
  return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
