"""From scored completions to numbers, intervals and a table."""

import itertools
import json
import math

import numpy as np
import pytest

from grpo_jax import types
from grpo_jax.evaluation import ask, estimators, results
from grpo_jax.rewards import combine

QUESTION = "22,13,10,11=35?"
RIGHT = "<think>22+13=35:35 ok</think><answer>22+13</answer>"
WRONG = [f"<think>x</think><answer>{a}</answer>" for a in ("10+11", "22+11")]
NONE = "no tags"


def answered(*groups, rewards=None):
  """Answers of a policy, a group of texts for each problem."""
  problem = types.Problem(QUESTION, "22+13", "pair_sum", "p")
  texts = [text for group in groups for text in group]
  problems = [problem] * len(texts)
  scores = combine.score(
    rewards or {"accuracy": 1.0, "format": 0.5}, problems, texts
  )
  return types.Completions(
    problems,
    texts,
    np.arange(1, len(texts) + 1),
    np.arange(len(texts)) == 0,
    len(groups[0]),
    scores,
  )


@pytest.fixture
def three():
  """Two right, then a majority for a wrong answer, then no answer at all."""
  return answered(
    [RIGHT, WRONG[0], RIGHT, NONE],
    [WRONG[0], RIGHT, WRONG[0], WRONG[1]],
    [NONE] * 4,
  )


def test_scalars_are_means(three):
  found = results.scalars(three)
  assert found["pass@1"] == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
  assert found["format"] == pytest.approx(7 / 12)
  assert found["reward"] == pytest.approx((3 + 0.5 * 7) / 12)
  assert found["mean_length"] == pytest.approx(6.5)
  assert found["truncated"] == pytest.approx(1 / 12)
  assert found["accuracy/no_answer"] == pytest.approx(5 / 12)
  assert (found["problems"], found["samples"]) == (3, 4)


def test_passes_and_votes_are_those_of_the_problems(three):
  found = results.details(three)
  for k in (2, 4):
    passed = [estimators.pass_at_k(c, 4, k) for c in (2, 1, 0)]
    votes = [(2, [1]), (1, [2, 1]), (0, [])]
    agreed = [estimators.cons_at_k(c, wrong, 4, k) for c, wrong in votes]
    assert found[f"pass@{k}"] == pytest.approx(np.mean(passed))
    assert found[f"cons@{k}"] == pytest.approx(np.mean(agreed))
  assert found["cons@4"] == pytest.approx((1 + 0 + 0) / 3)
  assert found["pass@4"] == pytest.approx(2 / 3)


def test_every_interval_holds_its_value(three):
  greedy = answered([RIGHT], [WRONG[0]], [NONE])
  found = results.details(three, greedy=greedy)
  assert found["greedy"] == pytest.approx(1 / 3)
  assert {"pass@1", "pass@4", "cons@4", "greedy", "format"} <= set(
    found["intervals"]
  )
  for name, (low, high) in found["intervals"].items():
    assert low <= found[name] <= high, name


@pytest.mark.parametrize("longest", [1, 7, 20, 21, 33_000])
def test_the_histogram_counts_every_length_once(longest):
  lengths = np.random.default_rng(0).integers(1, longest + 1, 500)
  lengths[0] = longest
  found = results._distribution(lengths)
  edges, counts = found["histogram"].values()
  assert sum(counts) == 500
  assert len(counts) <= 20 and len(edges) == len(counts) + 1
  assert len(set(np.diff(edges))) == 1
  for (low, high), count in zip(itertools.pairwise(edges), counts, strict=True):
    assert count == np.sum((low < lengths) & (lengths < high))
  assert found["percentiles"]["50"] == np.median(lengths)
  assert (found["shortest"], found["longest"]) == (lengths.min(), longest)


def test_programs_have_no_majority(three):
  problems = [p._replace(source="mbpp") for p in three.problems]
  found = results.details(three.replace(problems=problems))
  assert "pass@4" in found
  assert not [name for name in found if name.startswith("cons@")]


def test_a_term_of_ones_own_is_measured_without_accuracy():
  rewards = {"language": dict(weight=2.0, language="en", among=("en", "zh"))}
  texts = ["<think>this is good</think>", "<think>不 等 对</think>"]
  found = results.details(answered(texts, rewards=rewards))
  assert found["language"] == pytest.approx(0.5)
  assert found["reward"] == pytest.approx(1.0)
  assert "pass@1" not in found and "language" in found["intervals"]


def test_the_same_answers_win_half():
  mine = answered([RIGHT, WRONG[0]], [RIGHT, RIGHT])
  rows = results.win_rate(mine, mine)
  assert rows["win rate"].value == 0.5
  assert rows["reward"] == rows["reward of the other"]


def test_better_answers_win_prompts():
  mine = answered([RIGHT, WRONG[0]], [RIGHT, RIGHT], [NONE, NONE])
  theirs = answered([WRONG[0], WRONG[1]], [NONE, NONE], [NONE, NONE])
  won = results.win_rate(mine, theirs)["win rate"]
  # Of the first prompt two pairs are won and two are ties.
  assert won.value == pytest.approx((0.75 + 1 + 0.5) / 3)
  assert won.low <= won.value <= won.high
  lost = results.win_rate(theirs, mine)["win rate"]
  assert won.value + lost.value == pytest.approx(1)


def test_weighted_means_are_of_what_is_known():
  values = np.array([1.0, 3.0, np.nan])
  weights = np.array([1.0, 3.0, 100.0])
  measured = results.measure(values, weights=weights)
  assert measured.value == pytest.approx(2.5)
  assert results.measure(values).value == pytest.approx(2)
  assert math.isnan(results.measure(values[2:]).value)


def test_samples_tell_which_problem_they_answer(three):
  rows = list(results.samples("mine", three, greedy=True))
  assert [(r["problem"], r["sample"]) for r in rows] == [
    divmod(row, 4) for row in range(12)
  ]
  assert rows[5]["completion"] == RIGHT
  assert rows[5]["terms"] == {"accuracy": 1.0, "format": 1.0}
  assert all(r["dataset"] == "mine" and r["greedy"] for r in rows)
  json.dumps(rows, allow_nan=False)


def test_the_table_has_a_line_a_dataset_and_one_a_number_of_a_probe(three):
  found = {
    "datasets": {
      "mine": results.details(three),
      "other": results.details(answered([RIGHT])),
    },
    "probes": {"few_shot": {"increase": results.Measured(-0.25, -0.5, 0.0)}},
    "against": {"win rate": results.Measured(0.75, 0.5, 1.0)},
  }
  lines = results.table(found).splitlines()
  assert len({len(line) for line in lines[:4]}) == 1
  assert "pass@4" in lines[0] and "cons@4" in lines[0] and "@2" not in lines[0]
  assert lines[2].startswith("| mine") and "25.0 % (" in lines[2]
  # One sample has no pass@4.
  assert "100.0 % (100.0 to 100.0)" in lines[3] and "| -" in lines[3]
  assert any("few_shot" in x and "-0.25" in x for x in lines)
  assert any("win rate" in x and "0.5 to 1" in x for x in lines)
  written = json.loads(json.dumps(results.plain(found), allow_nan=False))
  assert written["against"]["win rate"] == {"value": 0.75, "interval": [0.5, 1]}
  assert written["datasets"]["mine"]["pass@1"] == pytest.approx(0.25)


def test_json_has_null_for_what_is_no_number():
  assert results.plain({"a": [math.nan, 1.0], "b": (math.inf,)}) == {
    "a": [None, 1.0],
    "b": [None],
  }


def test_a_mean_that_is_none_says_why():
  problem = types.Problem("?", "", "pair_sum", "p")
  texts = [RIGHT] * 4
  scores = combine.score({"accuracy": 1.0}, [problem] * 4, texts)
  none = types.Completions(
    [problem] * 4, texts, np.ones(4, int), np.zeros(4, bool), 2, scores
  )
  found = results.scalars(none)
  why = "the reference answer cannot be read, of all 4 completions"
  assert math.isnan(found["pass@1"])
  assert results.reason(found, "pass@1") == why
  assert f"pass@1 none ({why})" in ask.summary(found)
  assert "nan" not in ask.summary(found)
  whole = {"mine": results.details(none)}
  table = results.table({"datasets": whole, "probes": {}, "against": {}})
  assert f"mine: no pass@1, for {why}." in table
  unknown = {"format": math.nan, "problems": 2, "samples": 2}
  assert results.reason(unknown, "format") == "no completion has a score"
  down = unknown | {"judge/unreachable": 1.0, "judge": math.nan}
  assert "judge did not reply" in results.reason(down, "judge")
