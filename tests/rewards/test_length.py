"""Soft overlong punishment, cosine-scaled accuracy and repetition."""

import math

import numpy as np
import pytest

from grpo_jax import types
from grpo_jax.rewards import combine, length

RIGHT = types.Problem("17+25=?", "42", "gsm8k", "")
UNGRADABLE = types.Problem("?", "", "gsm8k", "")


def overlong(lengths, limit=100, cache=20):
  texts = ["any"] * len(lengths)
  return length.overlong(
    [RIGHT] * len(lengths),
    texts,
    lengths=np.array(lengths),
    limit=limit,
    cache=cache,
  )


def cosine(completion, tokens, cut=False, problem=RIGHT, **options):
  (score,) = length.cosine(
    [problem],
    [completion],
    lengths=np.array([tokens]),
    truncated=np.array([cut]),
    limit=100,
    **options,
  )
  return score


def test_overlong_is_zero_then_falls_in_a_line_to_minus_one_at_the_limit():
  assert overlong([1, 79, 80]) == [0.0, 0.0, 0.0]
  np.testing.assert_allclose(overlong([81, 90, 99]), [-0.05, -0.5, -0.95])
  assert overlong([100, 101, 10_000]) == [-1.0, -1.0, -1.0]


def test_overlong_counts_tokens_and_reads_no_text():
  assert overlong([90]) == length.overlong(
    [RIGHT], ["x" * 99_999], lengths=np.array([90]), limit=100, cache=20
  )


def test_overlong_falls_monotonically():
  assert np.all(np.diff(overlong(list(range(130)))) <= 0)


@pytest.mark.parametrize("limit,cache", [(100, 0), (100, 101), (0, 0)])
def test_overlong_needs_a_cache_within_the_limit(limit, cache):
  with pytest.raises(ValueError, match="must be above 0"):
    overlong([1], limit, cache)


def test_cosine_starts_and_ends_at_the_given_values():
  assert cosine("42", 0) == 2.0
  assert cosine("42", 50) == pytest.approx(1.5)
  assert cosine("42", 100) == pytest.approx(1.0)
  assert cosine("41", 0) == -10.0
  assert cosine("41", 50) == pytest.approx(-5.0)
  assert cosine("41", 100) == pytest.approx(0.0)


@pytest.mark.parametrize("completion,ends", [("42", (2, 1)), ("41", (-10, 0))])
def test_cosine_follows_the_formula_of_the_paper(completion, ends):
  for tokens in range(0, 101, 7):
    low, high = ends[1], ends[0]
    expected = low + 0.5 * (high - low) * (1 + math.cos(tokens * math.pi / 100))
    assert cosine(completion, tokens) == pytest.approx(expected)


def test_short_right_answers_and_long_wrong_ones_score_higher():
  lengths = range(1, 101)
  assert np.all(np.diff([cosine("42", n) for n in lengths]) < 0)
  assert np.all(np.diff([cosine("41", n) for n in lengths]) > 0)


def test_what_runs_out_of_room_scores_the_same_right_or_wrong():
  assert cosine("42", 100, cut=True) == -10.0
  assert cosine("42", 101) == -10.0
  assert cosine("41", 100, cut=True, exceeded=-3) == -3.0


def test_cosine_of_what_cannot_be_graded_is_none():
  assert cosine("42", 50, problem=UNGRADABLE) is None


def test_an_empty_batch_checks_the_options():
  combine.check({"overlong": dict(weight=1.0, limit=9, cache=2)})
  with pytest.raises(ValueError, match="config.rewards.overlong: cache=12"):
    combine.check({"overlong": dict(weight=1.0, limit=9, cache=12)})
  combine.check({"cosine": dict(weight=1.0, limit=9)})
  with pytest.raises(ValueError, match="config.rewards.cosine: limit=0"):
    combine.check({"cosine": dict(weight=1.0, limit=0)})
  with pytest.raises(ValueError, match="config.rewards.repetition: ngram=0"):
    combine.check({"repetition": dict(weight=1.0, ngram=0)})


def test_without_lengths_there_is_one_sentence():
  with pytest.raises(ValueError, match="'overlong' needs the lengths"):
    length.overlong([RIGHT], ["a"], lengths=None, limit=2, cache=1)
  with pytest.raises(ValueError, match="'cosine' needs the lengths"):
    length.cosine([RIGHT], ["a"], lengths=None, truncated=None, limit=2)


def slow_repetition(words, ngram):
  """How many n-grams are equal to an earlier one, compared pair by pair."""
  grams = [words[i : i + ngram] for i in range(len(words) - ngram + 1)]
  repeated = sum(gram in grams[:i] for i, gram in enumerate(grams))
  return -repeated / len(grams) if grams else 0.0


@pytest.mark.parametrize("seed", range(5))
def test_repetition_is_the_share_of_ngrams_seen_before(seed):
  rng = np.random.default_rng(seed)
  words = [str(word) for word in rng.integers(0, 3, 60)]
  for ngram in (1, 2, 3, 5):
    (score,) = length.repetition([RIGHT], [" ".join(words)], ngram=ngram)
    assert score == pytest.approx(slow_repetition(words, ngram))


def test_repetition_near_its_ends():
  assert length.repetition([RIGHT], ["wait " * 1000]) == pytest.approx(
    [1 / 961 - 1]
  )
  assert length.repetition([RIGHT], ["", "a b"][:1]) == [0.0]
  fresh = " ".join(map(str, range(500)))
  assert length.repetition([RIGHT], [fresh]) == [0.0]
  with pytest.raises(ValueError, match="ngram=0"):
    length.repetition([RIGHT], ["a"], ngram=0)
