r"""Finds the final answer in a completion, as it was written.

The answer is what the answer tags hold; without such tags it is looked for in
what stands after the thinking. There it is, in this order,

1. the last box, with all boxes that nothing but a comma, "and" or "or" joins
   to it (`\boxed{-2} and \boxed{1}` is a list); where a list is asked for, all
   boxes of the last sentence that has one. A box beats what follows it;
2. what follows the last `####`, to the end of that line;
3. what follows "answer is" or "answer:", to the end of that line;
4. what the tags hold;
5. the last quantity where a number is asked for, the last option's letter where
   an option is, else the last formula between dollars, else the last line.

What 2 to 5 find is a statement, read by the rule of `statement`. All of this
takes time linear in the text.
"""

import collections
import functools
import re

from grpo_jax import types
from grpo_jax.rewards import equality, format, statement

NUMBER, CHOICE, TEXT, FORMULA = "number", "choice", "text", "formula"

_SAID = re.compile(
  r"(?:\banswers?\b(?:\s+(?:is|are|was|would be|should be|equals?|comes to)\b"
  r"(?!\s+(?:not|n't)\b)|[\s*_]*[:=\uff1a])"
  r"|\u7b54\u6848(?:\u662f|\u4e3a|\u70ba|[:\uff1a])|\u7b54\u3048\u306f"
  r"|\b(?:Antwort (?:ist|lautet)|r\u00e9ponse est|respuesta es))"
  r"[\s:\uff1a=]*",
  re.IGNORECASE,
)
_BOX = re.compile(r"\\f?box(?:ed)?(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(
  r"[^\s${}]+(?:[ \t]+[^\s${}]+)*(?=[ \t]*\$)|[^\s${}.,;]+"
)
_BETWEEN = re.compile(
  r"(?:[\s$,;&.~/|]|\\[,;:! ()\[\]]|\\q?quad|\\text\s*\{\s*,?\s*(?:and|or)\s*\}"
  r"|(?<![A-Za-z])(?:and|or|vs|versus|maybe|perhaps|possibly)(?![A-Za-z])|[\u548c\u6216\u3001\uff0c\uff1b]"
  r"|\\?[A-Za-z](?:_\{?\w\}?)?\s*=)*",
  re.IGNORECASE,
)
_MAX_LINE = 2 * statement.MAX_CHARACTERS
_MAX_BETWEEN = 300  # Characters between two boxes of one list.
_END = re.compile(r"[.!?]\s|\n\s*\n|[\u3002\uff01\uff1f]")
_CORRECTION = re.compile(
  r"(?<![A-Za-z])(?:no|not|wait|but|actually|instead|rather|wrong|sorry|correction"
  r"|hence|so|thus|therefore|check)(?![A-Za-z])|n['\u2019]t",
  re.IGNORECASE,
)
_NOT_BOXED = re.compile(
  r"(?:(?<![A-Za-z])(?:not|never|n['\u2019]t)|isn['\u2019]t|\\neq?|\u2260"
  r"|\u4e0d\u662f)[\s$*]*(?:be|equal(?: to)?)?[\s$(\\]*$",
  re.IGNORECASE,
)


@functools.lru_cache(256)
def kind(reference: str) -> str:
  """What is looked for: a number, an option's letter, text or a formula."""
  if equality.is_number(reference):
    return NUMBER
  if equality.is_choice(reference):
    return CHOICE
  return TEXT if equality.is_words(reference) else FORMULA


def reference(answer: str) -> str:
  """What the last boxes of a reference hold, what follows `####`, or all."""
  found = boxed(answer)
  if found is None:
    found = answer.rpartition("####")[2]
  return found.strip()


def find(
  problem: types.Problem, completion: str, kind: str, reference: str
) -> str | None:
  """The answer as it was written; None where there is none.

  Args:
    problem: tells whether the thinking was opened in its prompt.
    completion: the text.
    kind: what is looked for.
    reference: the right answer; tells whether it is a list, and which text is
      taken whole.
  """
  tagged = _has_answer_tags(problem, completion)
  read = format.tagged_answer if tagged else _after_thinking
  text = read(problem, completion)
  if text is None:
    return None
  if _BOX.search(text):
    several = kind == FORMULA and equality.is_list(reference)
    return boxed(text, sentence=several)
  _, mark, answer = text.rpartition("####")
  if mark:
    return _stated(_line(answer), kind, reference)
  said = _last_match(_SAID, text)
  if said:
    return _stated(_line(text[said.end() :]), kind, reference)
  if tagged:
    return _stated(text, kind, reference, alone=True)
  if kind == NUMBER:
    return statement.number_at_end(text)
  if kind == CHOICE:
    return statement.choice_at_end(text)
  return statement.formula_at_end(text, reference)


def boxed(text: str, *, sentence: bool = False) -> str | None:
  r"""What the last boxes hold, a list where there are several; None for none.

  A last box that is not closed is none, and one behind a negation neither.

  Args:
    text: with `\boxed{...}` in it.
    sentence: take all boxes of a sentence together, whatever stands between
      them, but for words that take one back.
  """
  found = collections.deque(_BOX.finditer(text), maxlen=equality.MAX_CHARACTERS)
  contents: list[str] = []
  begin = len(text)
  while found:
    box = found.pop()
    inner = _content(text, box.end())
    if inner is None:
      return ", ".join(contents) or None
    content, end = inner
    if contents:
      between = text[end:begin][:_MAX_BETWEEN]
      joined = _BETWEEN.fullmatch(between)
      if sentence and not joined:
        joined = not _END.search(between) and not _CORRECTION.search(between)
      if end > begin or begin - end >= _MAX_BETWEEN or not joined:
        break
    elif _NOT_BOXED.search(text[max(0, box.start() - 40) : box.start()]):
      return None
    contents.insert(0, content)
    begin = box.start()
  if len(set(contents)) == 1:
    contents = contents[:1]
  return ", ".join(contents) if contents else None


def _content(text: str, start: int) -> tuple[str, int] | None:
  """What a box holds and where it ends; None for one that is not closed."""
  if text[start : start + 1] != "{":
    bare = _UNBRACED.match(text, start)
    return (bare[0].strip(), bare.end()) if bare else None
  depth = 0
  for brace in _BRACE.finditer(text, start):
    depth += {"{": 1, "}": -1}.get(brace[0], 0)
    if depth == 0:
      return text[start + 1 : brace.start()].strip(), brace.end()
  return None


def _stated(
  text: str, kind: str, reference: str, *, alone: bool = False
) -> str | None:
  if kind == NUMBER:
    return statement.number(text, alone=alone)
  if kind == CHOICE:
    return statement.choice(text)
  return statement.formula(text, reference, alone=alone)


def _after_thinking(problem: types.Problem, completion: str) -> str | None:
  """The text after the thinking; None where there is no end of it."""
  pieces = format.split_tags(problem, completion)
  return None if pieces[1::2][-1:] == ["<think>"] else pieces[-1]


def _has_answer_tags(problem: types.Problem, completion: str) -> bool:
  tags = format.split_tags(problem, completion)[1::2]
  return "<answer>" in tags or "</answer>" in tags


def _line(text: str) -> str:
  """The first line that is not empty."""
  text = statement.on_one_line(text[:_MAX_LINE].lstrip())
  return text.partition("\n")[0].rstrip()


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
  found = collections.deque(pattern.finditer(text), maxlen=1)
  return found[0] if found else None
