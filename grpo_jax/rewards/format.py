"""The format reward: thinking, then an answer, each in its own tags.

Here too: the tags that every reward reads, and how often a completion reflects.
"""

import collections
import re
from collections.abc import Sequence

from grpo_jax import types

_TAG = re.compile(r"(</?(?:think|answer)>)")
_WELL_FORMED = ["<think>", "</think>", "<answer>", "</answer>"]
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


def well_formed(
  problems: Sequence[types.Problem], completions: Sequence[str]
) -> list[float]:
  """1.0 for `<think> ... </think> <answer> ... </answer>`, otherwise 0.0.

  Each tag once and in this order, something written in both, and only white
  space before, between and after. DeepSeek-R1, https://arxiv.org/abs/2501.12948
  section 2.2 and table 1.
  """
  return [
    float(_is_well_formed(split_tags(problem, completion)))
    for problem, completion in zip(problems, completions, strict=True)
  ]


def tag_count(
  problems: Sequence[types.Problem], completions: Sequence[str]
) -> list[float]:
  """A quarter for each of the four tags that is in its place.

  A softer `well_formed`, which a base model finds earlier, and 1.0 for the same
  completions. A tag is in its place if it stands once, no tag that belongs
  behind it stands before it, something is written on its inner side and nothing
  on its outer side. So empty thoughts and answers, nested and repeated tags and
  text outside earn less.
  """
  return [
    _tag_count(split_tags(problem, completion))
    for problem, completion in zip(problems, completions, strict=True)
  ]


def _tag_count(pieces: list[str]) -> float:
  tags, texts = pieces[1::2], [piece.strip() for piece in pieces[::2]]
  counts = collections.Counter(tags)
  furthest, earned = -1, 0
  for tag, before, behind in zip(tags, texts[:-1], texts[1:], strict=True):
    place = _WELL_FORMED.index(tag)
    inner, outer = (before, behind) if tag[1] == "/" else (behind, before)
    in_order = place > furthest
    earned += bool(counts[tag] == 1 and in_order and inner and not outer)
    furthest = max(furthest, place)
  return earned / len(_WELL_FORMED)


def _is_well_formed(pieces: list[str]) -> bool:
  if pieces[1::2] != _WELL_FORMED:
    return False
  before, thinking, between, answer, after = (p.strip() for p in pieces[::2])
  return bool(thinking and answer) and not (before or between or after)


def reflection_words(text: str) -> int:
  """How many words of reflection the text holds, whatever their case.

  wait, mistake, however, but, retry, error, verify, wrong, evaluate, check: the
  representative words counted in DeepSeek-R1, https://arxiv.org/abs/2501.12948
  supplement on the self-evolution of R1-Zero (figure of reflective words).
  A metric, never a reward.
  """
  return len(_REFLECTION.findall(text))
