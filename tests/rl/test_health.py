"""Synthetic histories of runs that cannot learn, and of some that can."""

import copy

import pytest

from grpo_jax.rl import health

TERMS = {
  "accuracy": health.Term("accuracy", 1.0),
  "format": health.Term("format", 1.0),
  "mine": health.Term("mine"),
}
# A step of a healthy run, of which a case says what differs.
GOOD = {
  "reward": 0.6,
  "reward_std": 0.4,
  "frac_reward_invalid": 0.0,
  "frac_reward_zero_std": 0.1,
  "frac_advantage_zero": 0.1,
  "rewards/accuracy/mean": 0.5,
  "rewards/accuracy/std": 0.5,
  "rewards/accuracy/ungradable": 0.0,
  "rewards/format/mean": 0.7,
  "rewards/format/std": 0.4,
  "rewards/mine/mean": 0.1,
  "rewards/mine/std": 0.2,
  "rewards/mine/failed": 0.0,
  "completions/mean_length": 50.0,
  "completions/clipped_ratio": 0.1,
  "entropy": 0.1,
  "grad_norm": 0.2,
  "learning_rate": 1e-6,
}


def rows(*parts):
  """Rows of a run: each part is a number of steps and what differs."""
  found = []
  for count, changes in parts:
    for _ in range(count):
      found.append({"step": len(found) + 1, **GOOD, **changes})
  return found


def watch(history, terms=TERMS, **options):
  watcher = health.Health(terms, **options)
  said = [watcher.add(row) for row in history]
  watcher.finish()
  return watcher, said


def names(history, **options):
  return [w.name for w in watch(history, **options)[0].warnings]


def constant(name, value):
  return {f"rewards/{name}/mean": value, f"rewards/{name}/std": 0.0}


SAME = {
  "frac_reward_zero_std": 1.0,
  "frac_advantage_zero": 1.0,
  "grad_norm": 2e-10,
  "reward": 0.0,
  "reward_std": 0.0,
}
NOBODY = SAME | {
  "reward": None,
  "reward_std": None,
  "frac_reward_invalid": 1.0,
}
NO_MINE = NOBODY | {"rewards/mine/mean": None, "rewards/mine/std": None}
NO_ACCURACY = NOBODY | {
  "rewards/accuracy/mean": None,
  "rewards/accuracy/std": None,
}
DEAD = SAME | constant("accuracy", 0.0) | constant("format", 0.0)
CASES = {
  "no_score": (NO_MINE, "no_score", "no score came from config.rewards.mine"),
  "ungradable": (
    NO_ACCURACY | {"rewards/accuracy/ungradable": 1.0},
    "no_score:accuracy",
    'source="math"',
  ),
  "judge": (
    NO_MINE | {"rewards/mine/unreachable": 1.0},
    "no_score:mine",
    "server is up",
  ),
  "failed": (
    NO_MINE | {"rewards/mine/failed": 1.0},
    "no_score:mine",
    "raised an error for every completion",
  ),
  "none": (
    NO_MINE | {"rewards/mine/no_score": 1.0},
    "no_score:mine",
    "returned None for every completion",
  ),
  "outcome": (
    DEAD | constant("mine", 0.0),
    "one_outcome",
    "config.rewards.mine is 0 for every completion.",
  ),
  "format": (constant("format", 0.0), "constant:format", "<think>"),
  "mine": (constant("mine", 0.3), "constant:mine", "mine is 0.3 for every"),
  "truncated": (
    {"completions/clipped_ratio": 1.0},
    "truncated",
    "max_new_tokens",
  ),
  "entropy": ({"entropy": 1e-4}, "entropy", "1.0e-04 nats"),
  "gradient": ({"grad_norm": 0.0}, "gradient", "no update changes the policy"),
  "rate": ({"learning_rate": 0.0}, "learning_rate", "config.optimizer"),
  "huge": (
    {"frac_advantage_zero": 1.0, "reward": 4e29, "reward_std": 5e29},
    "advantages",
    "rewards of 5e+29 are too large for float32",
  ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_way_not_to_learn_is_said_once_after_patience(case):
  changes, name, text = CASES[case]
  watcher, said = watch(rows((5, changes), (3, changes)), patience=5)
  assert [w.name for w in watcher.warnings] == [name]
  assert text in watcher.warnings[0].text
  assert [len(new) for new in said] == [0, 0, 0, 0, 1, 0, 0, 0]
  assert str(watcher.warnings[0]).startswith("Steps 1 to 8: ")


@pytest.mark.parametrize("case", [c for c in CASES if c != "no_score"])
def test_one_step_that_does_otherwise_begins_anew(case):
  changes, name, _ = CASES[case]
  if name.startswith("constant:mine"):
    return  # It has varied.
  broken = rows((4, changes), (1, {}), (4, changes), (1, {}))
  assert names(broken) == []
  assert names(rows((20, {}), (5, changes)))[:1] in ([name], [])


def test_a_healthy_run_is_left_alone():
  improving = [
    dict(row, reward=0.01 * i, **constant("format", 1.0))
    for i, row in enumerate(rows((100, {})))
  ]
  assert names(improving) == []


def test_what_is_solved_by_learning_is_no_fault():
  top = SAME | {"reward": 2.0} | constant("accuracy", 1.0)
  top |= constant("format", 1.0) | constant("mine", 1.0) | {"entropy": 1e-5}
  assert names(rows((10, {}), (20, top))) == []
  # From the first step on it is: there is nothing to learn from.
  assert names(rows((20, top)))[:1] == ["one_outcome"]
  # And what earns less than before is no success.
  fallen = SAME | {"reward": 0.2} | constant("mine", 0.2) | DEAD
  assert "one_outcome" in names(rows((10, {}), (20, fallen | {"reward": 0.2})))


def test_lengths_collapse_where_they_earn_nothing_by_it():
  short = {"completions/mean_length": 4.0, "reward": 0.5}
  assert names(rows((5, {}), (5, short))) == ["length"]
  assert names(rows((5, {}), (5, short | {"reward": 0.9}))) == []
  assert (
    names(rows((5, {}), (5, short | {"completions/mean_length": 9.0}))) == []
  )
  assert names(rows((5, {"completions/mean_length": 1.0}))) == ["length"]


def test_a_term_that_is_not_asked_is_not_held_against_it():
  absent = {f"rewards/mine/{x}": None for x in ("mean", "std", "failed")}
  assert names(rows((9, absent))) == []
  asked = constant("mine", 0.0)
  mixed = rows(*[(1, asked), (1, absent)] * 4)
  assert names(mixed) == [] and names(mixed + rows((9, asked))[8:]) == [
    "constant:mine"
  ]


def test_a_short_run_without_any_score_is_told_at_its_end():
  assert names(rows((2, NO_MINE))) == ["no_score"]
  assert names(rows((1, NO_MINE), (1, {}))) == []
  assert names(rows((2, DEAD | constant("mine", 0.0)))) == []


def test_a_run_that_goes_on_says_what_one_start_would():
  changes = CASES["outcome"][0]
  history = rows((3, {}), (10, changes), (6, {}), (7, CASES["none"][0]))
  whole, _ = watch(history)
  for cut in range(len(history)):
    watcher = health.Health(TERMS)
    for row in copy.deepcopy(history[:cut]):
      watcher.add(row)
    for row in history[cut:]:
      watcher.add(row)
    assert watcher.warnings == whole.warnings
  assert [(w.first, w.last) for w in whole.warnings] == [(4, 13), (20, 26)]


def test_notes_of_the_start_come_first():
  watcher, _ = watch(rows((1, {})), notes=["Half cannot be read."])
  assert [w.record() for w in watcher.warnings] == [
    {"step": 0, "until": 0, "name": "start", "text": "Half cannot be read."}
  ]
  assert str(watcher.warnings[0]) == "Half cannot be read."


def test_patience_is_at_least_one():
  with pytest.raises(ValueError, match="config.health.patience=0"):
    health.Health(TERMS, patience=0)
  assert names(rows((1, {"grad_norm": 0.0})), patience=1) == ["gradient"]
