"""The format reward: thinking, then an answer, in the form that is asked for.

Here too: the tags that every reward reads, and how often a completion reflects.
"""

import collections
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from grpo_jax import types

_TAG = re.compile(r"(</?(?:think|answer)>)")
_THINK_TAG = re.compile(r"(</?think>)")
_WELL_FORMED = ["<think>", "</think>", "<answer>", "</answer>"]
# Something is in it.
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{\s*[^\s}]")
_REFLECTION = re.compile(
  r"\b(?:wait|mistake|however|but|retry|error|verify|wrong|evaluate|check)\b",
  re.IGNORECASE,
)


def split_tags(problem: types.Problem, completion: str) -> list[str]:
  """The completion cut at its think and answer tags: text, tag, text, ...

  A prompt that ends in `<think>` opened the thinking; the tag is put back in
  front, so that a completion reads the same under every template.

  Returns:
    An odd number of strings; tags at the odd indices, text at the even ones.
  """
  if problem.prompt.rstrip().endswith("<think>"):
    completion = "<think>" + completion
  return _TAG.split(completion)


def tagged_answer(problem: types.Problem, completion: str) -> str | None:
  """What the one pair of answer tags holds, or None if there is no such pair.

  The pair must end the completion and must not lie inside an open `<think>`.
  Whether the thinking is well formed is `well_formed`'s question.
  """
  pieces = split_tags(problem, completion)
  tags = pieces[1::2]
  if tags[-2:] != ["<answer>", "</answer>"] or pieces[-1].strip():
    return None
  earlier = tags[:-2]
  if "<answer>" in earlier or "</answer>" in earlier:
    return None
  if earlier[-1:] == ["<think>"]:
    return None
  return pieces[-3].strip()


Style = Literal["auto", "tags", "think", "box"]


def well_formed(
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  style: Style = "auto",
) -> list[float]:
  r"""1.0 for thinking and then an answer in the form asked for, otherwise 0.0.

  "tags" is `<think> ... </think> <answer> ... </answer>`: each tag once and in
  this order, and only white space before, between and after. DeepSeek-R1,
  https://arxiv.org/abs/2501.12948 section 2.2 and table 1.

  "think" is `<think> ... </think> ...`, as models write that think by
  themselves: both tags once, white space before, and the answer after.

  "box" is an answer that has one `\boxed{}` or more, behind the thinking where
  there is any. A completion need not think.

  What a prompt has begun, or ended, is not written again. A thought has a
  letter or a digit in it, and an answer something that can be seen.

  Args:
    problems: B problems with their prompts.
    completions: B texts.
    style: of those above; "auto" is what each prompt asks for
      (`Problem.form`), and "tags" where that is not known.
  """
  return [
    _score(problem, completion, style, _is_well_formed)
    for problem, completion in zip(problems, completions, strict=True)
  ]


def tag_count(
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  style: Style = "auto",
) -> list[float]:
  """An equal share for each part of the form that is in its place.

  A softer `well_formed`, which a base model finds earlier, and 1.0 for the same
  completions. The parts are the tags, four or two; with "box" the two tags,
  where there is any of them, and the box. A tag is in its place if it stands
  once, no tag that belongs behind it stands before it, something is written on
  its inner side and nothing on its outer side; behind the thinking of "think"
  and "box" stands the answer. So empty thoughts and answers, nested and
  repeated tags and text outside earn less.

  Args:
    problems: B problems with their prompts.
    completions: B texts.
    style: as for `well_formed`.
  """
  return [
    _score(problem, completion, style, _share)
    for problem, completion in zip(problems, completions, strict=True)
  ]


class _Form(NamedTuple):
  """A completion beside the form that it should have.

  Attributes:
    pieces: text, tag, text, ...
    tags: that there should be, in their order.
    answers: whether an answer stands behind the last tag, outside of tags.
    boxed: whether it needs a box, and has it; None where it needs none.
  """

  pieces: list[str]
  tags: list[str]
  answers: bool
  boxed: bool | None


def _score(
  problem: types.Problem,
  completion: str,
  style: Style,
  read: Callable[[_Form], float],
) -> float:
  chosen = (problem.form or "tags") if style == "auto" else style
  if chosen == "tags":
    pieces = split_tags(problem, completion)
    return float(read(_Form(pieces, _WELL_FORMED, False, None)))
  prompt = problem.prompt.rstrip()
  if prompt.endswith("<think>"):
    completion = "<think>" + completion
  pieces = _THINK_TAG.split(completion)
  boxed = None
  if chosen == "box":
    thinks = pieces[-2:-1] == ["<think>"]
    boxed = not thinks and bool(_BOX.search(pieces[-1]))
  # A prompt that has ended the thinking leaves none to do.
  none = prompt.endswith("</think>") or (chosen == "box" and len(pieces) == 1)
  tags = [] if none else _WELL_FORMED[:2]
  return float(read(_Form(pieces, tags, True, boxed)))


def _is_well_formed(form: _Form) -> bool:
  texts = form.pieces[::2]
  if form.pieces[1::2] != form.tags or form.boxed is False:
    return False
  if form.answers and not _is_visible(texts[-1]):
    return False
  if not form.tags:
    return True
  if len(form.tags) == 4 and not _is_visible(texts[3]):
    return False
  outside = [text for text in texts[::2] if text.strip()]
  return _says_something(texts[1]) and len(outside) == form.answers


def _share(form: _Form) -> float:
  if not form.tags:
    return float(_is_well_formed(form))
  tags, texts = form.pieces[1::2], form.pieces[::2]
  counts = collections.Counter(tags)
  furthest, earned = -1, 0
  for tag, before, behind in zip(tags, texts[:-1], texts[1:], strict=True):
    place = form.tags.index(tag)
    inner, outer = (before, behind) if tag[1] == "/" else (behind, before)
    has = _says_something if tag.endswith("think>") else _is_visible
    fits = not outer.strip()
    if form.answers and tag == form.tags[-1]:
      fits = _is_visible(outer)
    in_order = place > furthest
    earned += bool(counts[tag] == 1 and in_order and has(inner) and fits)
    furthest = max(furthest, place)
  parts = len(form.tags)
  if form.boxed is not None:
    earned, parts = earned + form.boxed, parts + 1
  return earned / parts


def _says_something(text: str) -> bool:
  """Whether a thought has a letter or a digit."""
  return any(map(str.isalnum, text))


def _is_visible(text: str) -> bool:
  """Whether there is a character that is neither blank nor of no width."""
  return any(
    not (c.isspace() or unicodedata.category(c) in ("Cc", "Cf")) for c in text
  )


def reflection_words(text: str) -> int:
  """How many words of reflection the text holds, whatever their case.

  wait, mistake, however, but, retry, error, verify, wrong, evaluate, check: the
  representative words counted in DeepSeek-R1, https://arxiv.org/abs/2501.12948
  supplement on the self-evolution of R1-Zero (figure of reflective words).
  A metric, never a reward.
  """
  return len(_REFLECTION.findall(text))
