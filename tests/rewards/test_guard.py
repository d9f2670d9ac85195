"""A user's reward that raises, is slow, hangs, or changes what it is given."""

import threading
import time

import numpy as np
import pytest

from grpo_jax import errors, types
from grpo_jax.rewards import combine

PROBLEMS = [
  types.Problem("?", "1", "sums", "?", columns={"level": n, "seen": []})
  for n in range(3)
]
TEXTS = ["a", "b", ""]
CALLS = []
RELEASED = threading.Event()


@pytest.fixture(autouse=True)
def begin():
  CALLS.clear()
  RELEASED.clear()
  yield
  RELEASED.set()


def score(name, texts=TEXTS, problems=None, **fields):
  section = {
    "mine": dict(
      weight=1.0, function=f"{__name__}:{name}", backoff=0.01, **fields
    )
  }
  combine.check(section)
  return combine.score(
    section,
    problems or PROBLEMS,
    texts,
    lengths=np.arange(len(texts)),
    truncated=np.ones(len(texts), bool),
  )


def fails_once(problems, completions):
  CALLS.append(len(completions))
  if len(CALLS) == 1:
    raise ConnectionError("API is down")
  return [1.0] * len(completions)


def test_a_function_that_raises_is_tried_again():
  scores = score("fails_once")
  assert scores.total.tolist() == [1, 1, 1] and CALLS == [3, 3]
  assert scores.metrics["mine/failed"].sum() == 0


def fails_on_empty(problems, completions):
  CALLS.append(len(completions))
  return [1 / len(text) for text in completions]


def test_a_row_that_raises_is_that_rows_loss_alone(caplog):
  scores = score("fails_on_empty", attempts=2)
  np.testing.assert_array_equal(scores.terms["mine"], [1, 1, np.nan])
  assert scores.valid.tolist() == [True, True, False]
  assert scores.metrics["mine/failed"].tolist() == [0, 0, 1]
  assert CALLS == [3, 3, 1, 1, 1]
  assert "'mine' gave no score for 1 of 3" in caplog.text
  assert "ZeroDivisionError: division by zero" in caplog.text


def always_fails(problems, completions):
  CALLS.append(len(completions))
  raise SystemExit("enough")


def test_a_function_that_is_down_is_not_asked_about_every_row():
  problems, texts = PROBLEMS[:1] * 100, ["a"] * 100
  scores = score("always_fails", texts, problems, attempts=1)
  assert not scores.valid.any()
  assert scores.metrics["mine/failed"].all()
  assert CALLS == [100] + [1] * 32


def hangs(problems, completions):
  CALLS.append(len(completions))
  if "b" in completions:
    RELEASED.wait(60)
  return [1.0] * len(completions)


def test_a_deadline_ends_the_wait_for_a_function_that_hangs(caplog):
  begin = time.monotonic()
  scores = score("hangs", deadline=0.2)
  assert time.monotonic() - begin < 5
  assert scores.metrics["mine/timed_out"].tolist() == [1, 1, 1]
  assert not scores.valid.any()
  assert "did not return within its deadline of 0.2 s" in caplog.text
  for _ in range(5):
    score("hangs", deadline=0.05)
  assert len(CALLS) == 4  # With four threads left it is not called.
  RELEASED.set()
  time.sleep(0.2)
  assert score("hangs", deadline=5).valid.all()


def slow_rows(problems, completions):
  if len(completions) > 1:
    raise ValueError("one at a time")
  time.sleep(0.0 if completions == ["a"] else 30)
  return [1.0]


def test_rows_that_came_before_the_deadline_keep_their_scores():
  scores = score("slow_rows", attempts=1, deadline=0.5)
  np.testing.assert_array_equal(scores.terms["mine"], [1, np.nan, np.nan])
  # Of the others it is known that they raised, when all were asked at once.
  assert scores.metrics["mine/failed"].tolist() == [0, 1, 1]


def nobody_knows(problems, completions):
  return [None, 1.0, None]


def test_none_is_counted_and_is_no_failure(caplog):
  scores = score("nobody_knows")
  assert scores.metrics["mine/no_score"].tolist() == [1, 0, 1]
  assert scores.metrics["mine/failed"].sum() == 0 and not caplog.text


def meddles(problems, completions, *, lengths, truncated, limits):
  for problem in problems:
    problem.columns["seen"].append(1)
    problem.columns["level"] = -1
  completions[:] = ["x"] * len(completions)
  problems.clear()
  lengths[:], truncated[:] = -1, False
  limits.append(len(limits))
  return [float(len(limits))] * 3


def columns_as_before(problems, completions, *, lengths):
  time.sleep(0.1)
  assert completions == TEXTS and lengths.tolist() == [0, 1, 2]
  return [len(p.columns["seen"]) + p.columns["level"] for p in problems]


def test_what_a_function_changes_nobody_else_sees():
  options = []
  own = dict(function=f"{__name__}:meddles", weight=1.0, limits=options)
  section = {
    "bad": own,
    "good": dict(function=f"{__name__}:columns_as_before", weight=1.0),
  }
  lengths, truncated = np.arange(3), np.ones(3, bool)
  for _ in range(2):
    scores = combine.score(
      section, PROBLEMS, TEXTS, lengths=lengths, truncated=truncated
    )
    assert scores.terms["good"].tolist() == [0, 1, 2]
    assert scores.terms["bad"].tolist() == [1, 1, 1]
  assert options == [] and lengths.tolist() == [0, 1, 2] and truncated.all()
  assert [p.columns["seen"] for p in PROBLEMS] == [[], [], []]


RETURNED = []


def returned(problems, completions):
  return RETURNED[0]


@pytest.mark.parametrize(
  "value",
  [
    "abc",
    {"a": 1, "b": 2, "c": 3},
    {1.0, 2.0, 3.0},
    np.ones((3, 1)),
    [1, "2", 3],
  ],
  ids=str,
)
def test_what_are_no_scores_is_told_in_one_sentence(value):
  RETURNED[:] = [value]
  with pytest.raises(ValueError, match="Reward 'mine' returned .*[^.]\\.$"):
    score("returned")


def test_scores_of_other_libraries_are_numbers():
  torch = pytest.importorskip("torch")
  for value in (
    torch.tensor([1.0, 0.5, 0.0], requires_grad=True),
    torch.tensor([1.0, 0.5, 0.0], dtype=torch.bfloat16),
    [torch.tensor(1), np.float16(0.5), np.bool_(False)],
  ):
    RETURNED[:] = [value]
    assert score("returned").total.tolist() == [1.0, 0.5, 0.0]


def test_a_sum_that_is_no_float32_is_an_error():
  RETURNED[:] = [[1e38, 0.0, 0.0]]
  section = {"mine": dict(weight=1e3, function=f"{__name__}:returned")}
  with pytest.raises(ValueError, match="sum of the rewards is 1e\\+41"):
    combine.score(section, PROBLEMS, TEXTS)


@pytest.mark.parametrize("name", ["deadline", "attempts", "backoff"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), "1", True])
def test_limits_must_be_above_zero(name, value):
  section = {
    "mine": dict(weight=1, function=f"{__name__}:returned", **{name: value})
  }
  with pytest.raises(
    errors.ConfigError, match=f"mine.{name}=.* must be above 0"
  ):
    combine.check(section)


def test_limits_are_of_functions_of_the_users_own():
  with pytest.raises(errors.ConfigError, match="no field 'deadline'"):
    combine.check({"format": dict(weight=1.0, deadline=3)})


def own_deadline(problems, completions, *, deadline=7):
  return [float(deadline)] * len(completions)


def test_an_option_of_the_functions_own_keeps_its_name():
  assert score("own_deadline", deadline=0).total.tolist() == [0, 0, 0]
