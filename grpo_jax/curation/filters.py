"""Rules by which a sampled completion is no good text to train on.

A filter is a function of a problem and a completion that returns whether to
drop it. What it needs besides, it asks for by the name of a keyword-only
parameter (`GIVEN`); its other keyword-only parameters are its options. The
config names filters:

  filters = dict(
    truncated=True,
    mixed_language=dict(language="en", least=0.95),
    code_block=False,
  )

DeepSeek-R1, https://arxiv.org/abs/2501.12948 section 2.3.3, leaves out of what
it samples for training chains of thought with mixed languages, long paragraphs
and code blocks; section 2.3.1 wants a readable pattern, thinking and then a
summary.
"""

import functools
import inspect
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from grpo_jax import errors, schema
from grpo_jax.curation import decontamination
from grpo_jax.rewards import format, parts
from grpo_jax.rewards import language as language_lib
from grpo_jax.types import Problem

# With a value to check options by. `truncated`: whether the completion ran out
# of room. `kept`: the completions of the same question that are kept already.
GIVEN: dict[str, Any] = {"truncated": False, "kept": ()}

_FENCE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)
_PARAGRAPHS = re.compile(r"\n\s*\n")
_BLANK = Problem(question="", answer="", source="", prompt="")


class Filter(NamedTuple):
  """A filter of a config.

  Attributes:
    name: in `FILTERS`.
    function: with its options bound.
    given: those of `GIVEN` that it takes.
  """

  name: str
  function: Callable[..., bool]
  given: tuple[str, ...]


def read(section: errors.Section) -> list[Filter]:
  """Returns the filters that a section of a config names.

  Those that look at `kept` come last; otherwise they stand as in `FILTERS`.

  Args:
    section: by the name of each filter True, False for without, or its options.

  Raises:
    ConfigError: there is no such filter, or its options do not fit.
  """
  for name in section:
    if name not in FILTERS:
      raise errors.ConfigError(
        f"config.filters has no filter {name!r};"
        f" {errors.nearest(name, FILTERS)}"
      )
  found = [
    _filter(name, section[name])
    for name in FILTERS
    if section.get(name, False) is not False
  ]
  return sorted(found, key=lambda each: "kept" in each.given)


def dropped_by(
  filters: Sequence[Filter],
  problem: Problem,
  completion: str,
  given: Mapping[str, Any],
) -> str | None:
  """Returns the name of the first filter that drops a completion, or None.

  Args:
    filters: what `read` returned, or some of them.
    problem: what was asked.
    completion: what came.
    given: at least those of `GIVEN` that the filters take, by name.
  """
  for name, function, names in filters:
    if function(problem, completion, **{key: given[key] for key in names}):
      return name
  return None


def _filter(name: str, options: Any) -> Filter:
  function, where = FILTERS[name], f"filters.{name}"
  if options is True:
    options = {}
  if not isinstance(options, errors.Section):
    raise errors.ConfigError(
      f"config.{where} must be True, False or a section of options, not"
      f" {options!r}."
    )
  parameters = inspect.signature(function).parameters.values()
  asked = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
  given = tuple(key for key in GIVEN if key in asked)
  known = [key for key in asked if key not in GIVEN]
  for option in options:
    if option not in known:
      raise errors.ConfigError(
        f"config.{where} has no field {option!r};"
        f" {errors.nearest(option, known)}"
      )
  bound = functools.partial(function, **dict(options.items()))
  try:
    bound(_BLANK, "", **{key: GIVEN[key] for key in given})
  except ValueError as error:
    raise errors.ConfigError(f"config.{where}: {error}") from error
  return Filter(name, bound, given)


def ran_out_of_room(
  problem: Problem, completion: str, *, truncated: bool
) -> bool:
  """Whether sampling ended before the policy did."""
  del problem, completion
  return bool(truncated)


def is_badly_formed(problem: Problem, completion: str) -> bool:
  """Whether it is anything but thinking and answer in their tags."""
  return not format.well_formed([problem], [completion])[0]


def is_unreadable(problem: Problem, completion: str) -> bool:
  """Whether it is not thinking that is closed and then a summary or answer.

  Neither part may be empty; answer tags are not asked for. Characters that
  cannot be printed, and those that stand for broken ones, are not readable.
  """
  tags = format.split_tags(problem, completion)[1::2]
  thinking = [tag for tag in tags if tag.endswith("think>")]
  if thinking != ["<think>", "</think>"]:
    return True
  thoughts = language_lib.thinking(problem, completion).strip()
  if not (thoughts and parts.final_answer(problem, completion)):
    return True
  return any(map(_is_unprintable, completion))


def is_brief(problem: Problem, completion: str, *, least: int = 50) -> bool:
  """Whether the chain of thought has fewer words than `least`: a guess.

  Words as in `decontamination.words`, numbers included.
  """
  thoughts = language_lib.thinking(problem, completion)
  return len(decontamination.words(thoughts)) < least


def mixes_languages(
  problem: Problem,
  completion: str,
  *,
  language: str = "en",
  least: float | int = 0.95,
  among: Sequence[str] = (),
) -> bool:
  """Whether too few words of the chain of thought are in the language.

  A chain of thought without words mixes nothing.

  Args:
    problem: for the language of its question.
    completion: with its chain of thought.
    language: as for `rewards.language.consistency`.
    least: share of words, 0 to 1.
    among: the languages that occur, where that is known.
  """
  share = language_lib.consistency(
    [problem], [completion], language=language, among=tuple(among)
  )[0]
  if share is None or share >= least:
    return False
  thoughts = language_lib.thinking(problem, completion)
  return bool(share or language_lib.words_by_language(thoughts))


def has_long_paragraph(
  problem: Problem, completion: str, *, most: int = 1500
) -> bool:
  """Whether text between two blank lines has more than `most` characters.

  Of 125 chains of thought of Marco-o1 the longest paragraph has 403 characters
  in the median and 1,410 at most; of 56 completions of a distilled R1, 399 and
  902.
  """
  del problem
  return any(len(p.strip()) > most for p in _PARAGRAPHS.split(completion))


def has_code_block(problem: Problem, completion: str) -> bool:
  """Whether a fence of code stands at the beginning of a line."""
  del problem
  return bool(_FENCE.search(completion))


def is_duplicate(
  problem: Problem, completion: str, *, kept: Sequence[str]
) -> bool:
  """Whether it is a kept one but for case, width of characters and blanks."""
  del problem
  text = _normalized(completion)
  return any(text == _normalized(other) for other in kept)


def is_near_duplicate(
  problem: Problem,
  completion: str,
  *,
  kept: Sequence[str],
  n: int = 5,
  most: float | int = 0.8,
) -> bool:
  """Whether it shares too much wording with a kept one.

  Args:
    problem: the same for all.
    completion: which is compared.
    kept: with each of these.
    n: words in a row that are compared.
    most: the Jaccard similarity of the sets of such runs that is allowed, 0 to
      1. Two texts without n words are alike if their words are the same.

  Raises:
    ValueError: n is below 1, or `most` out of range.
  """
  del problem
  if n < 1 or not 0 <= most <= 1:
    raise ValueError(f"{n=} must be at least 1 and {most=} in [0, 1].")
  runs = _runs(completion, n)
  return any(_jaccard(runs, _runs(other, n)) > most for other in kept)


def _normalized(text: str) -> str:
  return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _runs(text: str, n: int) -> frozenset[str]:
  words = decontamination.words(text)
  return frozenset(decontamination.ngrams(words, min(n, len(words) or 1)))


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
  return len(a & b) / len(a | b) if a or b else 1.0


def _is_unprintable(character: str) -> bool:
  """Control characters, private ones, surrogates, the sign for what is none."""
  if character in "\n\t\r":
    return False
  category = unicodedata.category(character)
  return character == "\ufffd" or category in ("Cc", "Co", "Cs")


FILTERS: dict[str, Callable[..., bool]] = {
  "truncated": ran_out_of_room,
  "unreadable": is_unreadable,
  "bad_format": is_badly_formed,
  "brief": is_brief,
  "long_paragraph": has_long_paragraph,
  "code_block": has_code_block,
  "mixed_language": mixes_languages,
  "duplicate": is_duplicate,
  "near_duplicate": is_near_duplicate,
}
# What a section of filters may hold. `read` checks it.
SCHEMA = schema.Named(
  lambda name: schema.Chosen(
    lambda _: schema.Options(FILTERS[name], tuple(GIVEN)), scalars=(bool,)
  ),
  tuple(FILTERS),
)
