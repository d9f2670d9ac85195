"""Datasets of stages: what one process writes, others read in two ways."""

import json
import os
import signal
import subprocess
import sys
import tempfile

import pytest
import tensorflow_datasets as tfds

from grpo_jax.data import records

ROWS = [
  {
    "messages": [
      {"role": "user", "content": f"{i}+1=?"},
      {"role": "assistant", "content": f"<think>对\n\u2028</think>{i + 1}"},
    ],
    "question": f"{i}+1=?",
    "answer": str(i + 1),
    "reward": i / 4,
    "length": -i,
    "kept": i % 2 == 0,
  }
  for i in range(5)
]
WRITE = """
import json, sys
from grpo_jax.data import records
records.write(sys.argv[1], json.loads(sys.argv[2]), {"stage": "test"})
"""
DIE = """
import os, signal, sys
from grpo_jax.data import records
def rows():
  yield {"a": 1}
  os.kill(os.getpid(), signal.SIGKILL)
records.write(sys.argv[1], rows(), {})
"""


def from_tfds(directory):
  """The records as TFDS has them, in the form that JSONL has."""
  builder = tfds.builder_from_directory(directory / "tfds")
  return [
    {name: plain(value) for name, value in record.items()}
    for record in builder.as_data_source("train")
  ]


def plain(value):
  if isinstance(value, dict):
    pairs = zip(value["role"], value["content"], strict=True)
    return [{"role": r.decode(), "content": c.decode()} for r, c in pairs]
  return value.decode() if isinstance(value, bytes) else value


def test_what_one_process_writes_others_read_as_jsonl_and_by_tfds(tmp_path):
  directory = tmp_path / "a" / "set"
  subprocess.run(
    [sys.executable, "-c", WRITE, directory, json.dumps(ROWS)], check=True
  )
  assert records.read(directory) == ROWS
  assert from_tfds(directory) == ROWS
  told = records.provenance(directory)
  assert told["stage"] == "test" and told["num_records"] == len(ROWS)
  assert told["fields"] == {
    "messages": "messages",
    "question": "str",
    "answer": "str",
    "reward": "float",
    "length": "int",
    "kept": "bool",
  }
  names = sorted(path.name for path in directory.iterdir())
  assert names == ["dataset.json", "records.jsonl", "tfds"]
  assert os.listdir(tmp_path / "a") == ["set"], "nothing is left beside it"


def test_a_dataset_can_be_moved(tmp_path):
  records.write(tmp_path / "set", ROWS, {})
  (tmp_path / "set").rename(tmp_path / "moved")
  assert from_tfds(tmp_path / "moved") == ROWS


def test_counts_may_be_made_while_the_rows_are_read(tmp_path):
  counts = {"asked": 0}

  def rows():
    for row in ROWS:
      counts["asked"] += 1
      yield row

  records.write(tmp_path / "set", rows(), {"counts": counts})
  assert records.provenance(tmp_path / "set")["counts"] == {"asked": 5}


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    ([], r"No record is left to write to .*set\. Counts: {'asked': 0}\."),
    ([{"a": 1}, {"b": 1}], "Record 1 has the fields .*'b'"),
    ([{"a": 1}, {"a": "1"}], "Record 1 has the fields"),
    ([{"a": None}], "'a' must be a str"),
    ([{"a": float("nan")}], "a finite float"),
    ([{"a": [{"role": "user"}]}], "messages with role and content"),
    ([{"a": []}], "messages with role and content"),
  ],
)
def test_bad_rows_are_one_sentence_and_leave_nothing(tmp_path, rows, message):
  with pytest.raises(ValueError, match=message):
    records.write(tmp_path / "set", iter(rows), {"counts": {"asked": 0}})
  assert not os.listdir(tmp_path)


def test_a_dataset_is_not_overwritten(tmp_path):
  records.write(tmp_path / "set", ROWS, {})
  with pytest.raises(ValueError, match="already there; remove it"):
    records.write(tmp_path / "set", ROWS[:1], {})
  assert records.read(tmp_path / "set") == ROWS


def test_a_killed_writer_leaves_no_dataset_and_no_obstacle(tmp_path):
  directory = tmp_path / "set"
  done = subprocess.run([sys.executable, "-c", DIE, directory])
  assert done.returncode == -signal.SIGKILL
  assert not records.is_dataset(directory)
  with pytest.raises(FileNotFoundError, match="holds no dataset"):
    records.read(directory)
  records.write(directory, ROWS, {})
  assert records.read(directory) == ROWS


def test_nothing_is_left_behind_in_the_folder_of_temporary_files(
  tmp_path, monkeypatch
):
  temporary = tmp_path / "temporary"
  temporary.mkdir()
  monkeypatch.setattr(tempfile, "tempdir", str(temporary))
  records.write(tmp_path / "set", ROWS, {})
  assert from_tfds(tmp_path / "set") == ROWS
  assert not list(temporary.iterdir())
