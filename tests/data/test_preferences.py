"""Pairs and labels from files of several forms; splits share no prompt."""

import collections
import gzip
import json

import numpy as np
import pytest

from grpo_jax import types
from grpo_jax.data import datasets, preferences, records
from grpo_jax.data import rows as rows_lib
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.reward_models import batches, learned

TOKENIZER = tokenizer.ByteTokenizer()


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def question_of(split):
  """A question that is in the split."""
  names = (f"q{i}" for i in range(100))
  return next(q for q in names if preferences.split_of(q) == split)


class TestForms:
  QUESTION = question_of("train")

  def read(self, path, record, read=preferences.pairs):
    (row,) = read(write(path / "rows.jsonl", [record]), "train")
    return row

  @pytest.mark.parametrize(
    "record",
    [
      dict(question=QUESTION, chosen="a", rejected="b"),
      dict(prompt=QUESTION, chosen="a", rejected="b"),
      dict(
        conversations=[{"from": "human", "value": QUESTION}],
        chosen={"from": "gpt", "value": "a"},
        rejected={"from": "gpt", "value": "b"},
      ),
      dict(
        prompt=[{"role": "user", "content": QUESTION}],
        chosen={"role": "assistant", "content": "a"},
        rejected={"role": "assistant", "content": "b"},
      ),
    ],
    ids=lambda record: next(iter(record)),
  )
  def test_of_pairs(self, tmp_path, record):
    pair = self.read(tmp_path, record)
    assert (pair.problem.question, *pair[1:]) == (self.QUESTION, "a", "b", 0.0)

  def test_of_several_messages(self, tmp_path):
    said = [("human", self.QUESTION), ("gpt", "What?"), ("human", "That.")]
    record = dict(
      conversations=[{"from": who, "value": text} for who, text in said],
      chosen="a",
      rejected="b",
    )
    rows = [
      row
      for split in ("train", "test")
      for row in self.both(tmp_path, record, split)
    ]
    text = f"Human: {self.QUESTION}\n\nGpt: What?\n\nHuman: That."
    assert [row.problem.question for row in rows] == [text]

  def both(self, path, record, split):
    try:
      return preferences.pairs(write(path / "rows.jsonl", [record]), split)
    except ValueError:
      return []

  def test_dialogues_share_their_question_up_to_the_assistants_turn(
    self, tmp_path
  ):
    opening = f"\n\nHuman: {self.QUESTION}\n\nAssistant: Hm.\n\nHuman: So?"
    record = dict(
      chosen=f"{opening}\n\nAssistant: That is good.",
      rejected=f"{opening}\n\nAssistant: That is bad.",
    )
    pairs = [
      pair
      for split in ("train", "test")
      for pair in self.both(tmp_path, record, split)
    ]
    assert [(p.problem.question, p.chosen, p.rejected) for p in pairs] == [
      (f"{opening}\n\nAssistant:", " That is good.", " That is bad.")
    ]

  def test_a_pair_is_two_labelled_texts(self, tmp_path):
    record = dict(question=self.QUESTION, chosen="a", rejected="b")
    path = write(tmp_path / "rows.jsonl", [record])
    found = preferences.labelled(path, "train")
    assert [row[1:] for row in found] == [("a", (1.0,)), ("b", (0.0,))]

  @pytest.mark.parametrize(
    ("mistake", "labels"),
    [
      (None, (1.0, 1.0, 1.0)),
      (0, (0.0, None, None)),
      (1, (1.0, 0.0, None)),
      (2, (1.0, 1.0, 0.0)),
    ],
  )
  def test_what_follows_the_first_mistake_has_no_label(
    self, tmp_path, mistake, labels
  ):
    record = dict(input=self.QUESTION, steps=["a", "b", "c"])
    record["mistake_index"] = mistake
    row = self.read(tmp_path, record, preferences.labelled)
    assert row.completion == "a\nb\nc" and row.labels == labels

  def test_labels_may_be_json_within_json(self, tmp_path):
    # A list of numbers is no field of a dataset that a stage writes.
    record = dict(question=self.QUESTION, completion="a\n\nb")
    record["labels"] = "[0.25, null]"
    row = self.read(tmp_path, record, preferences.labelled)
    assert row.labels == (0.25, None)

  def test_files_of_each_kind_hold_the_same(self, tmp_path, monkeypatch):
    rows = [
      dict(question=f"q{i}", answer="", source="s", chosen="a", rejected="b")
      for i in range(40)
    ]
    monkeypatch.setenv("MY_DATA", str(tmp_path))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl").write_text(text)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
      file.write(text)
    records.write(tmp_path / "dataset", rows, {})
    for split in ("train", "test"):
      found = [
        preferences.pairs(f"$MY_DATA/{name}", split)
        for name in ("folder", "a.json", "a.jsonl.gz", "dataset")
      ]
      assert found[0] == found[1] == found[2] == found[3] and found[0]


@pytest.mark.parametrize(
  ("row", "says"),
  [
    (dict(question="q", chosen="a"), "'chosen' and 'rejected'"),
    (dict(chosen="a", rejected="b"), "no question"),
    (dict(question="q", chosen=1, rejected="b"), "a text or a message"),
    ([1], "a JSON object"),
  ],
)
def test_what_is_no_pair_is_told_with_its_place(tmp_path, row, says):
  path = write(tmp_path / "rows.jsonl", [row])
  with pytest.raises(ValueError, match=says) as error:
    preferences.pairs(path, "train")
  assert "rows.jsonl, line 1" in str(error.value)


def test_what_is_no_label_or_is_not_there_is_told(tmp_path):
  row = dict(question="q", completion="a", label=2)
  path = write(tmp_path / "rows.jsonl", [row])
  with pytest.raises(ValueError, match="must be in"):
    preferences.labelled(path, "train")
  with pytest.raises(FileNotFoundError, match="r1_preferences.py"):
    preferences.pairs("runs/r1_preferences/dataset", "train")
  (tmp_path / "bad.jsonl").write_text("{")
  with pytest.raises(ValueError, match="no valid JSON"):
    preferences.pairs(tmp_path / "bad.jsonl", "train")


class TestRealData:
  def test_every_pair_of_hh_harmless_is_read_and_openings_are_not_shared(
    self, shared_data
  ):
    path = shared_data / "preferences" / "hh_harmless_base_test.jsonl.gz"
    found = {s: preferences.pairs(path, s) for s in ("train", "test")}
    assert sum(map(len, found.values())) == 2312
    assert 150 < len(found["test"]) < 310
    openings = {
      split: {p.problem.question.split("\n\nAssistant:")[0] for p in pairs}
      for split, pairs in found.items()
    }
    assert not openings["train"] & openings["test"]
    assert all(
      p.problem.question.endswith("\n\nAssistant:")
      for pairs in found.values()
      for p in pairs
    )

  def test_every_trace_of_big_bench_mistake_has_a_label_for_each_step(
    self, shared_data
  ):
    reading = learned.Reading("process", separators=("\n",))
    found = [
      row
      for split in ("train", "test")
      for row in preferences.labelled(shared_data / "process", split)
    ]
    assert len(found) == 1886
    for row in found:
      steps = learned.step_offsets(row.completion, reading.separators)
      batches.check_labels(row, len(steps), reading)
      assert row.labels.count(0.0) <= 1

  def test_a_corpus_has_the_preferred_text_of_training_pairs(
    self, shared_data, tmp_path
  ):
    path = str(shared_data / "preferences" / "dpo_en_demo.json")
    texts = datasets.load(
      "preference_corpus", "train", data_dir=tmp_path, path=path
    )
    pairs = preferences.pairs(path, "train")
    assert list(texts) == [p.problem.question + p.chosen for p in pairs]


class TestBatches:
  def rows(self, count=50):
    rng = np.random.default_rng(0)
    pairs = [
      preferences.Pair(
        types.Problem(f"q{i}", "", "s", ""),
        "a" * int(rng.integers(1, 150)),
        "b" * int(rng.integers(1, 150)),
        0.0,
      )
      for i in range(count)
    ]
    reading = learned.Reading("outcome")
    return batches.encode_pairs(reading, TOKENIZER, pairs, 128)

  def batches(self, rows, **changes):
    options = dict(num_rows=8, max_length=128, pad_id=0, epochs=2, seed=0)
    return rows_lib.Batches(rows, batches.collate_pairs, **options | changes)

  def test_every_row_comes_once_in_each_epoch_whatever_its_length(self):
    rows = self.rows()
    assert 20 < len(rows) < 50  # Too long ones are gone.
    batches = self.batches(rows, epochs=3)
    seen = collections.Counter()
    for number in range(len(batches)):
      batch = batches(number)
      assert batch.weights.sum() == pytest.approx(1)
      for row in np.flatnonzero(batch.weights):
        seen[batch.tokens[row, 0][batch.segments[row, 0] > 0].tobytes()] += 1
    want = {np.asarray(row.chosen.ids, np.int32).tobytes(): 3 for row in rows}
    assert seen == want
    assert len(batches) == -(-3 * len(rows) // 8)

  def test_a_batch_is_a_function_of_the_step_and_the_seed(self):
    rows = self.rows()
    one, two = self.batches(rows), self.batches(rows)
    two(1)
    np.testing.assert_array_equal(one(3).tokens, two(3).tokens)
    other = self.batches(rows, seed=1)
    assert not np.array_equal(one(3).tokens, other(3).tokens)

  def test_scores_are_read_where_a_text_ends(self):
    batch = self.batches(self.rows())(0)
    eos = np.take_along_axis(batch.tokens, batch.ends[..., None], axis=-1)
    assert (eos == TOKENIZER.eos_ids[0]).all()
    np.testing.assert_array_equal(batch.ends + 1, batch.segments.sum(axis=-1))
