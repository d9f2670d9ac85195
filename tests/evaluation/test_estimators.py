"""pass@k, cons@k, win shares and intervals against their definitions."""

import collections
import itertools
import math

import numpy as np
import pytest

from grpo_jax.evaluation import estimators


@pytest.mark.parametrize("samples", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(samples):
  for correct, k in itertools.product(
    range(samples + 1), range(1, samples + 1)
  ):
    right = [i < correct for i in range(samples)]
    subsets = [any(s) for s in itertools.combinations(right, k)]
    assert estimators.pass_at_k(correct, samples, k) == pytest.approx(
      np.mean(subsets)
    )


def vote(answers):
  """The chance that "right" wins a vote among answers; None does not vote."""
  counts = collections.Counter(a for a in answers if a is not None)
  if not counts:
    return 0.0
  most = max(counts.values())
  first = [a for a, count in counts.items() if count == most]
  return ("right" in first) / len(first)


@pytest.mark.parametrize(
  "correct, wrong, silent",
  [
    (3, (2, 2), 1),
    (2, (2, 1, 1), 2),
    (1, (1, 1, 1, 1), 0),
    (0, (3, 2), 3),
    (4, (), 4),
    (8, (), 0),
    (0, (), 5),
    (3, (5,), 0),
  ],
)
def test_cons_at_k_is_the_mean_vote_of_all_subsets(correct, wrong, silent):
  answers = ["right"] * correct + [None] * silent
  for name, count in enumerate(wrong):
    answers += [name] * count
  for k in range(1, len(answers) + 1):
    votes = [vote(s) for s in itertools.combinations(answers, k)]
    assert estimators.cons_at_k(
      correct, wrong, len(answers), k
    ) == pytest.approx(np.mean(votes))


def test_one_vote_is_one_sample():
  for correct in range(6):
    counts = 64, 1
    wrong = [(64 - correct) // 2, (63 - correct) // 3]
    assert estimators.cons_at_k(correct, wrong, *counts) == pytest.approx(
      estimators.pass_at_k(correct, *counts)
    )


def test_consensus_of_64_scattered_samples_is_quick_enough():
  """Many different answers are the most work."""
  for k in (8, 32, 64):
    value = estimators.cons_at_k(24, [1] * 30 + [2] * 4, 64, k)
    assert 0.37 < value <= 1


def test_fewer_samples_than_k_are_no_estimate():
  assert math.isnan(estimators.pass_at_k(1, 3, 4))
  assert math.isnan(estimators.cons_at_k(1, [1], 3, 4))


@pytest.mark.parametrize(
  "correct, samples, k", [(4, 3, 1), (-1, 3, 1), (1, 3, 0)]
)
def test_impossible_counts_are_refused(correct, samples, k):
  with pytest.raises(ValueError, match="k=|counted="):
    estimators.pass_at_k(correct, samples, k)
  with pytest.raises(ValueError, match="k=|counted="):
    estimators.cons_at_k(correct, [], samples, k)


def test_win_share_counts_pairs():
  rng = np.random.default_rng(0)
  mine = rng.integers(0, 3, (4, 3)).astype(float)
  theirs = rng.integers(0, 3, (4, 5)).astype(float)
  mine[0, 1] = theirs[1, 2] = np.nan
  expected = []
  for row, other in zip(mine, theirs, strict=True):
    pairs = [
      (a > b) + 0.5 * (a == b)
      for a, b in itertools.product(row, other)
      if not (np.isnan(a) or np.isnan(b))
    ]
    expected.append(np.mean(pairs))
  np.testing.assert_allclose(estimators.win_share(mine, theirs), expected)


def test_win_shares_of_two_policies_sum_to_one():
  rng = np.random.default_rng(1)
  mine, theirs = rng.integers(0, 3, (2, 20, 4)).astype(float)
  np.testing.assert_allclose(
    estimators.win_share(mine, theirs) + estimators.win_share(theirs, mine), 1
  )
  np.testing.assert_array_equal(
    estimators.win_share(mine[:, :1], mine[:, :1]), 0.5
  )


def test_a_problem_without_rewards_has_no_win_share():
  share = estimators.win_share(np.full((1, 2), np.nan), np.ones((1, 2)))
  assert np.isnan(share[0])


def test_bootstrap_intervals_cover():
  """95 % intervals hold the true mean in 95 % of simulated evaluations.

  100 problems of different difficulty, 4 samples each: the interval has to
  tell of both the problems and the samples.
  """
  rng = np.random.default_rng(0)
  trials, problems, samples = 400, 100, 4
  difficulty = rng.beta(0.7, 0.9, (problems, trials))
  values = rng.binomial(samples, difficulty) / samples
  # Columns would share their draws, which is no matter for coverage.
  ends = estimators.bootstrap(values, resamples=1_000, seed=1)
  true = 0.7 / 1.6
  covered = np.mean((ends[:, 0] <= true) & (true <= ends[:, 1]))
  # Three standard deviations of 400 trials, and the method's small bias.
  assert 0.91 <= covered <= 0.98


def test_bootstrap_width_is_that_of_the_normal_approximation():
  values = np.random.default_rng(3).normal(size=(400, 1))
  (low, high) = estimators.bootstrap(values)[0]
  error = values.std(ddof=1) / 20
  assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_a_seed_gives_one_interval():
  values = np.random.default_rng(0).random((30, 2))
  first, again, other = (
    estimators.bootstrap(values, seed=seed) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).all()


def test_problems_without_a_value_do_not_count():
  rng = np.random.default_rng(0)
  values = rng.random((50, 1))
  holes = np.concatenate([values, np.full((50, 1), np.nan)])
  (low, high), (other_low, other_high) = (
    estimators.bootstrap(v)[0] for v in (values, holes)
  )
  # As many problems count on the average, not in each resample.
  assert (other_low, other_high) == pytest.approx((low, high), abs=0.03)
  assert np.isnan(estimators.bootstrap(np.full((5, 1), np.nan))).all()
  assert np.isnan(estimators.bootstrap(np.ones((0, 2)))).all()


def test_equal_problems_leave_no_width():
  np.testing.assert_allclose(estimators.bootstrap(np.ones((9, 1))), [[1, 1]])


def test_weights_make_a_ratio_of_sums():
  """Documents of different lengths: the mean is over tokens."""
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 9, (40, 1)).astype(float)
  nats = rng.random((40, 1))
  low, high = estimators.bootstrap(nats, weights=lengths, seed=5)[0]
  drawn = np.random.default_rng(5).multinomial(40, np.full(40, 1 / 40), 500)
  means = [
    (row[:, None] * lengths * nats).sum() / (row[:, None] * lengths).sum()
    for row in drawn
  ]
  assert low == pytest.approx(np.quantile(means, 0.025), abs=0.01)
  assert high == pytest.approx(np.quantile(means, 0.975), abs=0.01)


@pytest.mark.parametrize("options", [dict(level=1.0), dict(resamples=0)])
def test_impossible_intervals_are_refused(options):
  with pytest.raises(ValueError, match="level=.*resamples="):
    estimators.bootstrap(np.ones((3, 1)), **options)
