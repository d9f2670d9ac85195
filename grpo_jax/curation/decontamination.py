"""Which texts share wording with test sets, by n-grams of words.

DeepSeek-R1, https://arxiv.org/abs/2501.12948v2, leaves out of its training data
what has ten words in a row in common with a question of an evaluation. Words
are runs of letters or digits whatever their case; a character of Chinese,
Japanese kana or Thai is a word. What a formula is written
with are words like others.

It does not see a translation, nor a question told in other words or with other
numbers within each run of n words. It takes questions that share no more than a
stock phrase ("can be written in the form x b 2 c"). Found, of the training
questions:

  n =                     8    10    13    16
  GSM8K, 7,473, in test  94    11     4     3
  MATH, 7,500, in 500   913   371   172    86
  MGSM, 250 in English, in GSM8K's test: all of them at each n
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

# Scripts without blanks between words.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


class Index(NamedTuple):
  """The wording of test sets.

  Attributes:
    n: words in a row that must not be shared.
    runs: each run of n words, with the name of the set that it is first in.
    short: the same for questions of fewer than n words, as a whole.
  """

  n: int
  runs: dict[str, str]
  short: dict[str, str]


def make_index(tests: Mapping[str, Sequence[str]], n: int = 10) -> Index:
  """Returns the wording of the questions of each named test set.

  Args:
    tests: questions by the name of their set.
    n: words in a row; a shorter question is found by all of its words.

  Raises:
    ValueError: n is below 1.
  """
  if n < 1:
    raise ValueError(f"{n=} must be at least 1.")
  index = Index(n, {}, {})
  for name, questions in tests.items():
    for question in questions:
      found = words(question)
      if 0 < len(found) < n:
        index.short.setdefault(" ".join(found), name)
      for run in ngrams(found, n):
        index.runs.setdefault(run, name)
  return index


def find(index: Index, text: str) -> str | None:
  """Returns the test set that a text shares wording with; None for none."""
  found = words(text)
  if len(found) < index.n:
    return index.short.get(" ".join(found))
  runs = (run for run in ngrams(found, index.n) if run in index.runs)
  run = next(runs, None)
  return None if run is None else index.runs[run]


def words(text: str) -> list[str]:
  """Returns the words of a text, without case and signs."""
  return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams(words: Sequence[str], n: int) -> Iterator[str]:
  """Yields each run of n words; none where there are fewer."""
  for start in range(len(words) - n + 1):
    yield " ".join(words[start : start + n])
