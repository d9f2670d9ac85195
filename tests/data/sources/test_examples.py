"""Conversations from records and files; datasets mixed by count and weight."""

import collections
import functools
import json

import pytest

from grpo_jax.data import datasets, records

TALK = [
  {"role": "user", "content": "1+1=?"},
  {"role": "assistant", "content": "<think>数\n</think>2"},
]


@pytest.fixture
def load(tmp_path):
  return functools.partial(
    datasets.load, split="train", data_dir=tmp_path / "kept"
  )


def write(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def test_records_of_a_stage_are_conversations_with_their_source(load, tmp_path):
  records.write(
    tmp_path / "set",
    [{"messages": TALK, "source": "pair_sum", "completion": "x"}] * 2,
    {},
  )
  examples = load("records", path=str(tmp_path / "set"))
  assert len(examples) == 2
  assert list(examples[0].messages) == TALK
  assert examples[0].source == "pair_sum"


@pytest.mark.parametrize("asked", ["prompt", "question"])
@pytest.mark.parametrize("answered", ["completion", "answer"])
def test_a_users_file_may_have_one_turn_a_line(load, tmp_path, asked, answered):
  path = write(tmp_path / "a.jsonl", {asked: "1+1=?", answered: "2", "more": 1})
  (example,) = load("records", path=path, source="mine")
  assert [m["content"] for m in example.messages] == ["1+1=?", "2"]
  assert [m["role"] for m in example.messages] == ["user", "assistant"]
  assert example.source == "mine"


def test_a_list_and_a_table_are_conversations_too(load, tmp_path):
  (tmp_path / "a.json").write_text('[{"prompt": "1+1=?", "answer": 2}]')
  (tmp_path / "a.csv").write_text("prompt,answer\n1+1=?,2\n")
  for name in ("a.json", "a.csv"):
    (example,) = load("records", path=str(tmp_path / name))
    assert [message["content"] for message in example.messages] == [
      "1+1=?",
      "2",
    ]


def test_messages_keep_what_a_chat_template_may_read(load, tmp_path):
  call = {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}
  path = write(tmp_path / "a.jsonl", {"messages": [TALK[0], call]})
  (example,) = load("records", path=path)
  assert example.messages[1] == call


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"messages": "hi"}, r"a\.jsonl, line 1: 'messages' must be a list"),
    ({"messages": [{"content": "hi"}]}, "list of objects with a role"),
    ({"messages": TALK[:1]}, "no message is of the role 'assistant'"),
    ({"question": "a"}, "nor 'completion' nor 'answer'; it has 'question'"),
    ({"question": "a", "answer": ["b"]}, "'answer' must be text"),
    ({"question": "a", "answer": ""}, "'answer' is empty"),
  ],
)
def test_bad_lines_are_named(load, tmp_path, row, message):
  path = write(tmp_path / "a.jsonl", row)
  with pytest.raises(ValueError, match=message):
    load("records", path=path)


def test_a_missing_dataset_names_the_run_to_start_first(load, tmp_path):
  with pytest.raises(
    FileNotFoundError, match=r"run `.*experiments/r1_zero\.py:bilingual` first"
  ):
    load("records", path="runs/r1_zero-bilingual/dataset")
  with pytest.raises(FileNotFoundError, match="give another path"):
    load("records", path=str(tmp_path))


def part(path, **amount):
  return dict(data=dict(name="records", path=path), **amount)


@pytest.fixture
def files(tmp_path):
  """A file of 6 conversations and one of 20."""
  return [
    write(
      tmp_path / f"{name}.jsonl",
      *({"prompt": f"{name}{i}", "completion": "x"} for i in range(count)),
    )
    for name, count in (("a", 6), ("b", 20))
  ]


def asked(examples):
  return collections.Counter(
    examples[i].messages[0]["content"] for i in range(len(examples))
  )


def test_counts_are_met_exactly_and_repetitions_are_even(load, files):
  a, b = files
  parts = dict(a=part(a, count=15), b=part(b, count=8))
  found = asked(load("mixture", parts=parts))
  of_a = {text: n for text, n in found.items() if text[0] == "a"}
  of_b = {text: n for text, n in found.items() if text[0] == "b"}
  assert sorted(of_a.values()) == [2, 2, 2, 3, 3, 3]
  assert list(of_b.values()) == [1] * 8


def test_weights_give_the_largest_epoch_without_repetition(load, files):
  a, b = files
  parts = dict(a=part(a, weight=600_000), b=part(b, weight=200_000))
  found = asked(load("mixture", parts=parts))
  assert set(found.values()) == {1}
  assert sum(text[0] == "a" for text in found) == 6
  assert sum(text[0] == "b" for text in found) == 2
  parts = dict(a=part(a, weight=0.25), b=part(b, weight=1))
  found = asked(load("mixture", parts=parts))
  assert sum(text[0] == "a" for text in found) == 5
  assert sum(text[0] == "b" for text in found) == 20


def test_a_mixture_is_mixed_by_its_seed(load, files):
  a, b = files
  parts = dict(a=part(a, count=6), b=part(b, count=6))
  one, same, other = (
    [e.messages[0]["content"] for e in load("mixture", parts=parts, seed=seed)]
    for seed in (0, 0, 1)
  )
  assert one == same != other
  assert {text[0] for text in one[:6]} == {"a", "b"}


def test_problems_are_mixed_too_and_keep_their_source(load):
  parts = dict(
    sums=dict(data=dict(name="addition"), count=3),
    pairs=dict(data=dict(name="pair_sum"), count=2),
  )
  problems = load("mixture", parts=parts)
  found = collections.Counter(problem.source for problem in problems)
  assert found == {"addition": 3, "pair_sum": 2}


@pytest.mark.parametrize(
  ("parts", "message"),
  [
    ({}, "A mixture needs parts"),
    (dict(a=dict(count=1)), "Part a of a mixture needs data and either"),
    (dict(a=dict(data=dict(name="addition"))), "not data"),
    (dict(a=dict(data={}, count=1)), "data of part a of a mixture need a name"),
    (dict(a=dict(data=dict(name="addition"), count=0)), "has count=0"),
    (dict(a=dict(data=dict(name="addition"), count=0.5)), "has count=0.5"),
    (
      dict(
        a=dict(data=dict(name="addition"), count=1),
        b=dict(data=dict(name="addition"), weight=1),
      ),
      "a count for each part or a weight for each",
    ),
    (
      dict(
        a=dict(data=dict(name="addition"), count=1),
        b=dict(data=dict(name="addition_corpus", size=5), count=1),
      ),
      "records of one type, not {'a': 'Problem', 'b': 'str'}",
    ),
    (
      dict(
        a=dict(data=dict(name="addition", train_size=2), weight=1),
        b=dict(data=dict(name="addition", train_size=2), weight=1000),
      ),
      "the weight of a is so small",
    ),
  ],
)
def test_bad_mixtures_are_one_sentence(load, parts, message):
  with pytest.raises(ValueError, match=message):
    load("mixture", parts=parts)
