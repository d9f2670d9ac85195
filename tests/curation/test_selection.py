"""What is kept of completions, and the reason that each other one is given."""

import dataclasses
import os

import ml_collections
import numpy as np
import pytest
from judge_server import chat, honest, serving

from grpo_jax import errors, types
from grpo_jax.curation import decontamination, selection
from grpo_jax.types import Completions

SUM = types.Problem("25,22,13,19=35?", "22+13", "pair_sum", "")
OTHER = types.Problem("25,22,13,19=38?", "25+13", "pair_sum", "")
TALK = types.Problem("greet ann?", "hello ann", "chat", "", "ann")
FIRST = "<think>25+22=47:35 wrong wait 22+13=35:35 right</think>"
SECOND = "<think>13+22=35:35 right</think>"
RIGHT = f"{FIRST}<answer>22+13</answer>"
ALSO_RIGHT = f"{SECOND}<answer>13+22</answer>"
WRONG = f"{FIRST}<answer>25+22</answer>"


def make_config(**fields):
  config = ml_collections.ConfigDict(
    dict(
      rewards=dict(accuracy=1.0),
      keep=dict(accuracy=1.0),
      filters=dict(truncated=True, bad_format=True, duplicate=True),
      max_per_prompt=0,
    )
  )
  for name, value in fields.items():
    del config[name]
    config[name] = value
  return config


def make_selection(tests=None, again=(), **fields):
  rules = selection.read_rules(make_config(**fields))
  return selection.Selection(dataclasses.replace(rules, tests=tests), again)


def select(selected, texts, problems=None, truncated=None, way="w", **rewrite):
  count = len(texts)
  truncated = truncated or [False] * count
  rows = selected.select(
    way,
    Completions(
      problems or [SUM] * count,
      texts,
      np.arange(count),
      np.array(truncated, bool),
    ),
    rewrite,
  )
  assert [row["length"] for row in rows] == list(range(count))
  return [row["dropped"] for row in rows]


def test_each_completion_has_the_first_reason_against_it():
  index = decontamination.make_index({"t": ["one two three"]}, 3)
  selected = make_selection(index, max_per_prompt=2)
  leak = RIGHT.replace("wrong", "one two three")
  third = RIGHT.replace("wrong", "no")
  texts = [RIGHT, RIGHT, WRONG, "22+13", "22+13", leak, ALSO_RIGHT, third]
  truncated = [False] * 4 + [True] + [False] * 3
  assert select(selected, texts, truncated=truncated) == [
    None,
    "duplicate",
    "accuracy",
    "bad_format",
    "truncated",
    "contaminated",
    None,
    "max_per_prompt",
  ]
  assert selected.counts["w"] == {
    "asked": 8,
    "kept": 2,
    "dropped": dict.fromkeys(
      (
        *("duplicate", "accuracy", "bad_format", "truncated"),
        *("contaminated", "max_per_prompt"),
      ),
      1,
    ),
  }


def test_what_is_dropped_for_another_reason_makes_no_duplicate():
  selected = make_selection()
  assert select(selected, [RIGHT, RIGHT], truncated=[True, False]) == [
    "truncated",
    None,
  ]


def test_questions_are_compared_with_themselves():
  selected = make_selection(keep={}, rewards={}, max_per_prompt=1)
  problems = [SUM, OTHER, SUM, OTHER]
  assert select(selected, [RIGHT] * 4, problems) == [
    *(None, None),
    *("duplicate", "duplicate"),
  ]


def test_a_question_that_comes_again_is_compared_over_batches():
  for again in ((SUM.question,), ()):
    selected = make_selection(again=again)
    assert select(selected, [RIGHT]) == [None]
    expected = "duplicate" if again else None
    assert select(selected, [RIGHT], way="v") == [expected]


def test_rows_taken_in_again_lead_to_the_same_state():
  texts = [RIGHT, WRONG, ALSO_RIGHT, RIGHT]
  rules = dict(again=(SUM.question,), max_per_prompt=2)
  whole, resumed = make_selection(**rules), make_selection(**rules)
  rows = whole.select(
    "w",
    Completions([SUM] * 4, texts, np.zeros(4, int), np.zeros(4, bool)),
    {},
  )
  for row in rows:
    resumed.add(row)
  assert resumed.counts == whole.counts
  more = RIGHT.replace("wrong", "no")
  assert select(resumed, [more, RIGHT]) == select(whole, [more, RIGHT])
  assert resumed.counts == whole.counts


def test_totals_are_sums_over_ways():
  selected = make_selection()
  select(selected, [RIGHT, WRONG], way="a")
  select(selected, [WRONG, "x"], way="b")
  assert selected.total() == {
    "asked": 4,
    "kept": 1,
    "dropped": {"accuracy": 2, "bad_format": 1},
  }
  assert list(selected.total()["dropped"]) == ["accuracy", "bad_format"]


def test_what_was_rewritten_is_scored_and_what_was_sampled_is_told():
  selected = make_selection()
  loose = RIGHT.replace("</think>", "").replace("wrong", "不")
  (row,) = selected.select(
    "w",
    Completions([SUM], [loose], np.array([9]), np.array([False])),
    dict(retag=True, words=(("不", "wrong"),)),
  )
  assert row["dropped"] is None
  assert (row["completion"], row["sampled"]) == (RIGHT, loose)
  assert row["terms"] == {"accuracy": 1.0}
  record = selection.record(row)
  assert record["completion"] == record["messages"][1]["content"] == RIGHT
  assert record["messages"][0] == {"role": "user", "content": SUM.question}
  assert (record["way"], record["length"]) == ("w", 9)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
  for name in list(os.environ):
    if name.lower().endswith("_proxy"):
      monkeypatch.delenv(name)


def judging(server):
  judge = dict(weight=1.0, url=server.url, model="m", deadline=5.0, attempts=1)
  return make_selection(
    rewards=dict(accuracy=1.0, judge=judge),
    keep=dict(accuracy=1.0, judge=0.5),
    filters=dict(bad_format=True),
  )


def test_a_judge_is_asked_about_what_rules_leave():
  """Its verdict here is whether "42" occurs."""
  liked = RIGHT.replace("wrong", "wrong, 42")
  with serving(honest) as server:
    dropped = select(judging(server), [RIGHT, liked, WRONG, "42"])
    asked = [body["messages"][0]["content"] for *_, body in server.requests]
  assert dropped == ["judge", None, "accuracy", "bad_format"]
  assert len(asked) == 2
  assert sum(liked in prompt for prompt in asked) == 1


def test_what_a_judge_gives_no_verdict_on_is_dropped_by_a_name_of_its_own():
  def behave(handler, prompt, number):
    handler.answer(chat("I cannot say."))

  with serving(behave) as server:
    selected = judging(server)
    assert select(selected, [RIGHT, WRONG]) == ["judge_unscored", "accuracy"]


def test_a_term_decides_for_its_sources_only():
  selected = make_selection(
    rewards=dict(
      accuracy=dict(weight=1.0, only_for=("pair_sum",)),
      tag_count=dict(weight=1.0, only_for=("chat",)),
    ),
    keep=dict(accuracy=1.0, tag_count=0.6),
    filters={},
  )
  half = "<think>x</think> hello ann"
  texts = [RIGHT, WRONG, RIGHT, half]
  problems = [SUM, SUM, TALK, TALK]
  assert select(selected, texts, problems) == [
    None,
    "accuracy",
    None,
    "tag_count",
  ]


def test_a_source_that_nothing_scores_is_refused():
  rules = selection.read_rules(
    make_config(rewards=dict(accuracy=dict(weight=1.0, only_for=("pair_sum",))))
  )
  selection.check_sources(rules, ["pair_sum"])
  with pytest.raises(errors.ConfigError, match="problems of source 'chat'"):
    selection.check_sources(rules, ["pair_sum", "chat"])


def test_rules_are_asked_before_judges():
  with serving(honest) as server:
    judge = dict(weight=1.0, url=server.url, model="m")
    rules = selection.read_rules(
      make_config(
        rewards=dict(judge=judge, language=1.0, accuracy=1.0),
        keep=dict(judge=0.5, language=0.5, accuracy=1.0),
      )
    )
  assert list(rules.keep) == ["accuracy", "language", "judge"]


@pytest.mark.parametrize(
  "fields, sentence",
  [
    (dict(keep={}), "accuracy is scored for nothing"),
    (dict(keep=dict(acuracy=1.0)), "names 'acuracy', .* mean 'accuracy'"),
    (
      dict(keep=dict(accuracy=1.0, formats=1.0)),
      "names 'formats', which is no reward",
    ),
    (dict(keep=dict(accuracy="all")), "keep.accuracy must be a number"),
    (
      dict(rewards=dict(accuracy=dict(weight=1.0, from_step=3))),
      "accuracy.from_step gates",
    ),
    (dict(max_per_prompt=-1), "must not be negative"),
  ],
)
def test_what_does_not_fit_is_one_sentence(fields, sentence):
  with pytest.raises(errors.ConfigError, match=sentence):
    selection.read_rules(make_config(**fields))
