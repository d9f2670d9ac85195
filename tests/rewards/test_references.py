r"""References graded against themselves, in the forms of a template."""

import pytest

from grpo_jax import errors, types
from grpo_jax.data import prompts
from grpo_jax.rewards import references

REWARDS = {"accuracy": 1.0, "format": 1.0}
UNREADABLE = ["", "  ", "#### "]


def problems(answers, source="math", template="plain", **fields):
  return [
    prompts.fill(
      prompts.TEMPLATES.get(template, template),
      types.Problem(f"What is {i}?", answer, source, "", **fields),
    )
    for i, answer in enumerate(answers)
  ]


@pytest.mark.parametrize("template", [*prompts.TEMPLATES, "{question} \\boxed"])
def test_what_can_be_read_is_not_mentioned(template):
  answers = ["4", r"\frac{1}{2}", r"so \boxed{x^2}", "a\n#### 5", "yes"]
  asked = problems(answers, template=template)
  assert references.grade(asked).unread == []
  assert references.check(REWARDS, asked, where="config.data") == []


@pytest.mark.parametrize(
  "prompt, form, names, begin",
  [
    ("Q?", "", ["tags", "boxed", "sentence"], "The answer"),
    ("Q?", "think", ["tags", "boxed", "sentence"], "<think>\n"),
    ("Q? <think>", "think", ["tags", "boxed", "sentence"], "I see.\n</think>"),
    ("Q? <think>\n\n</think>\n", "think", None, "The answer"),
    ("In <answer> </answer>. Q?", "", ["tags"], "<think>"),
    (r"Put it into \boxed{}. Q?", "", ["boxed"], "The answer"),
  ],
)
def test_forms_are_those_that_the_prompt_leads_to(prompt, form, names, begin):
  problem = types.Problem("Q?", "#### 7", "math", prompt, form=form)
  forms = references.forms(problem)
  assert names is None or list(forms) == names
  assert list(forms.values())[-1].startswith(begin)
  assert all("7" in text for text in forms.values())


def test_a_share_is_said_with_an_example_and_all_are_an_error():
  half = problems(["4", *UNREADABLE])
  (said,) = references.check(REWARDS, half, where="config.data")
  assert said.startswith(
    "3 (75.0%) of the reference answers of config.data (4; source 'math')"
    " cannot be read by config.rewards.accuracy"
  )
  with pytest.raises(errors.ConfigError, match="^None of the reference .* can"):
    references.check(REWARDS, half[1:], where="config.data")


def test_only_terms_that_compare_answers_ask_for_references():
  bad = problems(UNREADABLE)
  assert references.check({"format": 1.0}, bad, where="config.data") == []
  rewards = {"accuracy": dict(weight=1.0, only_for=("other",)), "format": 1.0}
  assert references.check(rewards, bad, where="config.data") == []
  cosine = {"cosine": dict(weight=1.0, limit=9)}
  with pytest.raises(errors.ConfigError, match="config.rewards.cosine"):
    references.check(cosine, bad, where="config.data")


def test_references_that_are_no_answers_are_left_out():
  for source in "countdown", "reasoning_gym", "code", "humaneval":
    read = references.grade(problems(["1 2 3"], source))
    assert read.tried == read.unread == []


def test_of_many_some_are_tried_and_both_numbers_said():
  many = problems([*map(str, range(4000)), *[" "] * 4000])
  (said,) = references.check(REWARDS, many, where="config.data")
  assert "(2,000 of 8,000 tried; source 'math')" in said
  assert references.sample(many) == references.sample(many)
  assert references.check(REWARDS, [], where="config.data") == []
  # Time is a bound too: the first so many are tried in any case.
  assert len(references.grade(many, seconds=0.0).tried) == 128


def test_prompts_can_be_filled_when_few_are_chosen():
  def fill(problem):
    return prompts.fill(prompts.TEMPLATES["r1_zero"], problem)

  bare = problems([r"\boxed{4}"], template="bare")
  assert not references.check(REWARDS, bare, where="config.data", fill=fill)
