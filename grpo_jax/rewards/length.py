"""Rewards of length and of repetition.

Lengths are in tokens, stop token included, as the sampler counted them, and
never read off the text. B completions.
"""

import math
import re
from collections.abc import Sequence

from jaxtyping import Bool, Int
from numpy import ndarray as Array

from grpo_jax import types
from grpo_jax.rewards import answer, terms

_WORD = re.compile(r"\w+|[^\w\s]")


@terms.checked_empty
def overlong(
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  lengths: Int[Array, " B"] | None,
  limit: int,
  cache: int,
) -> list[float]:
  """The soft overlong punishment, from 0 to -1.

  With L = limit and c = cache: 0 up to L - c tokens, (L - c - length) / c from
  there to L, -1 beyond. DAPO, https://arxiv.org/abs/2503.14476 equation 13.

  Args:
    problems: not read.
    completions: not read.
    lengths: tokens of each completion.
    limit: the longest completion that is not fully punished, tokens; the
      sampler's room, unless that is to stay above it.
    cache: tokens below `limit` over which the punishment grows.

  Raises:
    ValueError: 0 < cache <= limit does not hold, or there are no lengths.
  """
  if not 0 < cache <= limit:
    raise ValueError(f"{cache=} must be above 0 and at most {limit=}.")
  if not completions:
    return []
  lengths = _required(lengths, "overlong")
  return [
    float(min(max((limit - cache - length) / cache, -1.0), 0.0))
    for length in lengths
  ]


@terms.checked_empty
def cosine(
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  lengths: Int[Array, " B"] | None,
  truncated: Bool[Array, " B"] | None,
  limit: int,
  correct: Sequence[float | int] = (2.0, 1.0),
  wrong: Sequence[float | int] = (-10.0, 0.0),
  exceeded: float | int = -10.0,
) -> list[float | None]:
  """Accuracy scaled by length along half a cosine.

  A completion of `length` tokens with ends (r_0, r_L) scores

    r_L + (r_0 - r_L) (1 + cos(pi length / limit)) / 2,

  which is r_0 at no length and r_L at the limit: among right answers short ones
  are better, among wrong ones long ones. It stands for accuracy, not beside it.
  "Demystifying Long Chain-of-Thought Reasoning in LLMs",
  https://arxiv.org/abs/2502.03373 section 4.2, whose values are the defaults.

  Args:
    problems: B problems with reference answers for `answer.accuracy`.
    completions: B texts.
    lengths: tokens of each completion.
    truncated: which completions ran out of room; they score `exceeded`.
    limit: tokens; completions of more score `exceeded` too.
    correct: r_0 and r_L where accuracy is 1.
    wrong: r_0 and r_L where it is less. None is the score where it is None.
    exceeded: the score of what is too long, right or wrong.

  Raises:
    ValueError: the limit is not above 0, an end is missing, or there are no
      lengths.
  """
  if limit <= 0 or len(correct) != 2 or len(wrong) != 2:
    raise ValueError(
      f"{limit=} must be above 0, and {correct=} and {wrong=} two numbers each."
    )
  if not completions:
    return []
  lengths = _required(lengths, "cosine")
  truncated = _required(truncated, "cosine")
  scores = []
  right = answer.accuracy(problems, completions).scores
  for accurate, length, cut in zip(right, lengths, truncated, strict=True):
    if accurate is None:
      scores.append(None)
    elif cut or length > limit:
      scores.append(float(exceeded))
    else:
      start, end = correct if accurate == 1.0 else wrong
      fade = (1.0 + math.cos(math.pi * float(length) / limit)) / 2.0
      scores.append(float(end + (start - end) * fade))
  return scores


@terms.checked_empty
def repetition(
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  ngram: int = 40,
) -> list[float]:
  """Minus the share of n-grams of words that occurred before, 0 to -1.

  Of one completion with n n-grams, d of them distinct: d / n - 1; 0 where it
  has fewer words than one n-gram. Words are runs of letters and digits in any
  case; other signs count one each. The n is that of
  https://arxiv.org/abs/2502.03373, where each repeated token is punished.

  Args:
    problems: not read.
    completions: B texts.
    ngram: words in an n-gram.

  Raises:
    ValueError: `ngram` is below 1.
  """
  if ngram < 1:
    raise ValueError(f"{ngram=} must be at least 1.")
  return [_repetition(completion, ngram) for completion in completions]


def _repetition(text: str, ngram: int) -> float:
  words = _WORD.findall(text.lower())
  count = len(words) - ngram + 1
  if count < 1:
    return 0.0
  distinct = len(
    set(
      zip(
        *(words[start : start + count] for start in range(ngram)), strict=True
      )
    )
  )
  return distinct / count - 1.0


def _required(given: Array | None, name: str) -> Array:
  if given is None:
    raise ValueError(
      f"Reward {name!r} needs the lengths of completions in tokens, which are"
      " not known here."
    )
  return given
