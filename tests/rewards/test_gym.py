"""Tasks of reasoning-gym: their problems, their scorers, and those refused."""

import sys

import pytest

from grpo_jax import types
from grpo_jax.data import datasets
from grpo_jax.data.sources import gym_entries
from grpo_jax.rewards import answer
from grpo_jax.rewards.isolation import workers

SMALL = dict(train_size=12, test_size=3)
FEW = {"max_animals": 1, "min_animals": 1, "max_instances": 1}


def grade(problem, text, deadline=10.0):
  completion = f"<think>So.</think><answer>{text}</answer>"
  (graded,) = answer.grades([problem], [completion], deadline=deadline)
  return graded


def score(problem, text):
  (outcome,) = workers.shared().map(
    "grpo_jax.rewards.gym:score", [(problem.details, text)], deadline=30.0
  )
  return outcome


@pytest.mark.parametrize(
  "value",
  [
    None,
    [1, 2.5, "a", True, None],
    (1, (2, [3, (4,)])),
    {"a": (1, 2), "tuple": [], "dict": {}},
    {1: "a", "1": "b", (1, 2): {"c": ()}},
    {},
    (),
    "\ud800 \u202e",
    10**30,
  ],
)
def test_what_is_packed_comes_back_as_it_was(value):
  back = gym_entries.unpack(gym_entries.pack(value))
  assert back == value and repr(back) == repr(value)


def test_what_cannot_come_back_is_not_packed():
  with pytest.raises(ValueError, match="set"):
    gym_entries.pack([{1, 2}])


def test_problems_are_kept_and_their_own_scorer_grades_them(tmp_path):
  options = dict(task="chain_sum", seed=3, config={"max_terms": 3}, **SMALL)
  splits = {
    split: datasets.load("reasoning_gym", split, data_dir=tmp_path, **options)
    for split in ("train", "test")
  }
  assert [len(p) for p in splits.values()] == [12, 3]
  questions = [{p.question for p in problems} for problems in splits.values()]
  assert len(questions[0]) == 12 and not questions[0] & questions[1]
  for problem in splits["test"]:
    assert problem.source == "reasoning_gym"
    right = grade(problem, problem.answer)
    assert right == ("correct", 1.0, problem.answer)
    assert grade(problem, "no") == ("wrong", 0.0, "no")
    # Tags inside the answer, and none.
    assert grade(problem, f"{problem.answer}</answer>").score == 0.0
    assert grade(problem, "").outcome == "no_answer"
  assert splits["train"] == datasets.load(
    "reasoning_gym", "train", data_dir=tmp_path, **options
  )


def test_splits_of_different_seeds_have_no_question_in_common(tmp_path):
  seen = {"train": set(), "test": set()}
  for seed in range(3):
    for split, found in seen.items():
      # A world of few questions, which different seeds share.
      found |= {
        p.question
        for p in datasets.load(
          "reasoning_gym",
          split,
          data_dir=tmp_path,
          task="leg_counting",
          seed=seed,
          config={"max_animals": 2, "min_animals": 1, "max_instances": 3},
          **SMALL,
        )
      }
  assert not seen["train"] & seen["test"]


@pytest.mark.parametrize(
  ("options", "says"),
  [
    (dict(task="chain_summ"), "did you mean 'chain_sum'"),
    (dict(task="countdown"), "use the dataset 'countdown'"),
    (dict(task="composite"), "no task 'composite'"),
    (dict(task="chain_sum", config=dict(max_term=3)), "'max_terms'"),
    (dict(task="chain_sum", config=dict(seed=3)), "no field 'seed'"),
    (dict(task="chain_sum", config=dict(min_terms=-1)), "refuses its config"),
    (dict(task="chain_sum", config=dict(min_terms="a")), "refuses its config"),
    (dict(task="chain_sum", train_size=0), "train_size=0"),
    (
      dict(task="leg_counting", config=FEW, train_size=50, test_size=3),
      "different questions",
    ),
  ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, options, says):
  with pytest.raises(ValueError) as error:
    datasets.load("reasoning_gym", "train", data_dir=tmp_path, **options)
  assert says in str(error.value)


PROBES = (
  "[1, 2]",
  "[[1, 2], [3, 4]]",
  "x**2 + 1",
  "(1)",
  "print(1)",
  "__import__('os').getpid()",
  "{'a': 1}",
)


def problem_of(task):
  question, reference, details = next(
    gym_entries.entries(task, count=1, seed=5, config={})
  )
  return types.Problem(question, reference, "reasoning_gym", "", details)


@pytest.mark.slow
@pytest.mark.parametrize(
  "task",
  sorted(
    set(gym_entries.factory.DATASETS) - {*gym_entries.REFUSED, "composite"}
  ),
)
def test_no_scorer_that_is_allowed_runs_text_or_does_what_workers_refuse(task):
  problem = problem_of(task)
  if problem.answer:
    outcome = score(problem, problem.answer)
    assert outcome.status == "value", outcome
    assert outcome.value > 0.9, outcome
  for text in (*PROBES, f"{problem.answer} "):
    outcome = score(problem, text)
    # A scorer may raise on what it cannot read; no rule of workers is broken.
    assert "is refused" not in outcome.detail, (text, outcome)
    assert outcome.status != "timed_out"


@pytest.mark.slow
@pytest.mark.parametrize("task", gym_entries.REFUSED)
def test_every_scorer_that_is_refused_runs_text(task):
  ran = []
  watched = [True]

  def hook(event, arguments):
    if watched[0] and event == "compile" and arguments[1] == "<string>":
      ran.append(arguments[0])

  sys.addaudithook(hook)
  dataset = gym_entries.reasoning_gym.create_dataset(task, seed=5, size=3)
  entry = dataset[0]
  ran.clear()
  for text in (*PROBES, str(entry["answer"])):
    try:
      dataset.score_answer(text, entry)
    except Exception:
      pass
  watched[0] = False
  assert ran
  with pytest.raises(ValueError, match="as code"):
    gym_entries.check(task, {})


def test_an_answer_that_would_hang_a_scorer_is_wrong_at_its_deadline():
  problem = problem_of("coin_flip")
  assert grade(problem, problem.answer).score == 1.0
  # As a fraction this number has a hundred million digits.
  assert grade(problem, "1e99999999", 1.0) == ("timed_out", 0.0, "1e99999999")
  assert grade(problem, "9" * 10**6).outcome == "wrong"
  assert grade(problem, problem.answer).score == 1.0


def test_partial_credit_of_a_scorer_is_kept():
  problem = problem_of("word_sorting")
  graded = grade(problem, problem.answer.upper())
  assert graded.outcome == "wrong" and 0 < graded.score < 1
