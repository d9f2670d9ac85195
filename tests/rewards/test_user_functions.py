"""A user's reward in our form, in TRL's and verl's, and what is refused."""

import functools
import inspect

import numpy as np
import pytest

from grpo_jax import errors, types
from grpo_jax.rewards import combine, user_functions

PROBLEMS = [
  types.Problem(
    f"{n}+1=?",
    f"Add.\n#### {n + 1}",
    "sums",
    f"Q: {n}+1=?",
    columns={"level": n, "tags": ["a"]},
  )
  for n in range(3)
]
TEXTS = ["1", "2", "no"]


def score(name, **fields):
  section = {"mine": dict(weight=1.0, function=f"{__name__}:{name}", **fields)}
  combine.check(section)
  return combine.score(section, PROBLEMS, TEXTS)


def ours(problems, completions, *, bonus=0.0):
  rows = zip(problems, completions, strict=True)
  return [float(t == p.answer.split()[-1]) + bonus for p, t in rows]


# TRL's own documentation has these three.
def trl_columns(completions, answer, **kwargs):
  assert set(kwargs) == {"prompts", "question", "source", "level", "tags"}
  assert kwargs["prompts"][0] == "Q: 0+1=?" and kwargs["level"] == [0, 1, 2]
  rows = zip(completions, answer, strict=True)
  return [1.0 if c == a.split()[-1] else 0.0 for c, a in rows]


def trl_prompts(prompts, completions, **kwargs):
  del prompts
  return [float(c in a) for c, a in zip(completions, kwargs["answer"])]  # noqa: B905


def trl_messages(completions, answer, **kwargs):
  contents = [completion[0]["content"] for completion in completions]
  return [float(c == a.split()[-1]) for c, a in zip(contents, answer)]  # noqa: B905


async def trl_async(completions, level, *, least=1, **kwargs):
  return [None if n < least else float(n) for n in level]


def verl(data_source, solution_str, ground_truth, extra_info=None):
  assert data_source == "sums" and extra_info["level"] + 1 == int(ground_truth)
  return float(solution_str == ground_truth)


def verl_dict(data_source, solution_str, ground_truth, extra_info, bonus=0):
  right = solution_str == ground_truth
  return {"score": float(right) + bonus, "acc": right, "pred": solution_str}


def verl_batch(data_sources, solution_strs, ground_truths, extra_infos):
  assert len(data_sources) == len(extra_infos) == 3
  return [float(s == t) for s, t in zip(solution_strs, ground_truths)]  # noqa: B905


@pytest.mark.parametrize(
  "name",
  [
    "ours",
    "trl_columns",
    "trl_prompts",
    "trl_messages",
    "verl",
    "verl_dict",
    "verl_batch",
  ],
)
def test_every_form_scores_the_same_completions_alike(name):
  scores = score(name)
  np.testing.assert_array_equal(scores.terms["mine"], [1, 1, 0])
  assert scores.valid.all()


def test_options_of_a_foreign_function_are_set_as_of_ours():
  assert score("ours", bonus=2.0).total[0] == 3.0
  found = score("verl_dict", bonus=2)
  assert found.total.tolist() == [3, 3, 2]
  assert found.metrics["mine/acc"].tolist() == [1, 1, 0]
  found = score("trl_async", least=2)
  np.testing.assert_array_equal(found.terms["mine"], [np.nan, np.nan, 2])
  with pytest.raises(errors.ConfigError, match="'lest'; did you mean 'least'"):
    score("trl_async", lest=2)


def swapped(completions, problems):
  return [0.0] * len(completions)


def asks_for_solution(completions, solution, **kwargs):
  return [0.0] * len(completions)


def test_a_column_that_problems_lack_is_told_at_the_start():
  for name, column in ("swapped", "problems"), ("asks_for_solution", "solutio"):
    section = {"mine": dict(weight=1.0, function=f"{__name__}:{name}")}
    combine.check(section)
    with pytest.raises(errors.ConfigError, match=f"the column '{column}"):
      combine.check_columns(section, PROBLEMS)
  section = {"mine": dict(weight=1.0, function=f"{__name__}:trl_columns")}
  combine.check_columns(section, PROBLEMS)


def one_row(completion, answer):
  return 0.0


def answers_first(responses, answers):
  return [0.0] * len(responses)


def openrlhf(queries, prompts, labels):
  return [0.0] * len(queries)


def trl_ids(completions, completion_ids, **kwargs):
  return [0.0] * len(completions)


def verl_more(data_source, solution_str, ground_truth, reward_router):
  return 0.0


def anything(*args, **kwargs):
  return [0.0] * len(args)


def alone(problems):
  return [0.0] * len(problems)


def positional_only(completions, answer, /):
  return [0.0] * len(completions)


class Class:
  def __call__(self, problems, completions):
    return [0.0] * len(problems)


@pytest.mark.parametrize(
  "function",
  [
    one_row,
    answers_first,
    openrlhf,
    trl_ids,
    verl_more,
    anything,
    alone,
    positional_only,
    Class,
  ],
)
def test_what_is_of_no_form_is_refused_by_name(function):
  name = function.__name__
  with pytest.raises(errors.ConfigError, match=name) as error:
    score(name)
  assert str(error.value).startswith("config.rewards.mine: ")
  assert str(error.value).count(". ") == 0


INSTANCE = Class()
PARTIAL = functools.partial(ours, bonus=1.0)


def short(ps, cs):
  return [0.0] * len(cs)


def unused(_, texts):
  return [0.0] * len(texts)


@pytest.mark.parametrize("name", ["INSTANCE", "PARTIAL", "short", "unused"])
def test_our_form_is_taken_whatever_can_be_called(name):
  assert len(score(name).total) == 3


def test_the_reference_is_the_final_answer():
  answers = {r"so \boxed{4}.": "4", "a\n#### 5": "5", " 6 ": "6"}
  for answer, final in answers.items():
    problem = types.Problem("?", answer, "math", "")
    assert user_functions.reference(problem) == final


def test_adapted_functions_keep_their_text_and_show_our_signature():
  adapted = user_functions.adapt("config.rewards.x", trl_ids_optional)
  assert list(inspect.signature(adapted).parameters) == [
    "problems",
    "completions",
    "scale",
    "messages",
  ]
  assert adapted.__doc__ == "Scores."


def trl_ids_optional(completions, answer, completion_ids=None, scale=1.0):
  """Scores."""
  return [0.0] * len(completions)
