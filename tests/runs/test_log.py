"""The files of a run: what is written, dropped and read again."""

import json
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from grpo_jax import types
from grpo_jax.runs import log as run_log
from grpo_jax.runs import process

PROBLEM = types.Problem("How many?", "three\n#### 3", "gsm8k", "How many?")


def read_scalars(folder):
  """Name to {step: value}, as TensorBoard shows it, from its record files.

  A record is a length (8 bytes), a checksum (4), the event, a checksum (4). A
  session that starts at a step hides what older sessions wrote from there on.
  """
  scalars = {}
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      end = 12 + int.from_bytes(data[:8], "little")
      event = event_pb2.Event.FromString(data[12:end])
      data = data[end + 4 :]
      if event.session_log.status == event_pb2.SessionLog.START:
        for values in scalars.values():
          for step in [s for s in values if s >= event.step]:
            del values[step]
      for value in event.summary.value:
        values = scalars.setdefault(value.tag, {})
        assert event.step not in values
        values[event.step] = value.simple_value
  return scalars


def write_steps(workdir, steps, restored=None):
  writer = run_log.Writer(workdir, restored)
  for step in steps:
    writer.write(step, {"reward": step / 8, "time/step": 0.5, "kl": 0.0})
    writer.write_evaluation(step, "test", {"pass@1": step / 4})
  writer.close()


class TestWriter:
  def test_writes_one_object_per_step_with_sorted_names(self, tmp_path):
    writer = run_log.Writer(tmp_path)
    scalars = {"b": 1.5, "a/y": 2, "a/x": np.int32(3), "c": jnp.float32(0.1)}
    writer.write(7, scalars)
    # Flushed, so that it can be read while the run goes on.
    text = (tmp_path / "metrics.jsonl").read_text()
    writer.close()
    assert text == '{"step": 7, "a/x": 3, "a/y": 2, "b": 1.5, "c": 0.1}\n'

  @pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, ml_dtypes.bfloat16]
  )
  def test_numbers_are_read_back_to_the_bit(self, tmp_path, dtype):
    values = np.random.default_rng(0).normal(size=50).astype(dtype)
    writer = run_log.Writer(tmp_path)
    for step, value in enumerate(values):
      writer.write(step, {"x": value})
    writer.close()
    read = [row["x"] for row in run_log.read(tmp_path / "metrics.jsonl")]
    np.testing.assert_array_equal(np.array(read).astype(dtype), values)

  def test_what_is_not_finite_is_null(self, tmp_path):
    writer = run_log.Writer(tmp_path)
    writer.write(1, {"a": math.nan, "b": math.inf, "c": 1.0})
    writer.close()
    (row,) = run_log.read(tmp_path / "metrics.jsonl")
    assert row == {"step": 1, "a": None, "b": None, "c": 1.0}

  @pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl"])
  @pytest.mark.parametrize("killed_at", [4, 6, 9])
  def test_histories_join_where_a_run_goes_on(self, tmp_path, name, killed_at):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    write_steps(whole, range(1, 10))
    write_steps(stopped, range(1, killed_at + 1))
    write_steps(stopped, range(5, 10), restored=4)
    assert (whole / name).read_bytes() == (stopped / name).read_bytes()

  def test_a_line_cut_short_by_a_kill_is_dropped(self, tmp_path):
    write_steps(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    for end in range(len(whole) - 20, len(whole)):
      path.write_bytes(whole[:end])
      assert [row["step"] for row in run_log.rows(path)] == [1, 2]
      write_steps(tmp_path, [], restored=3)
      assert [row["step"] for row in run_log.read(path)] == [1, 2]
    path.write_bytes(whole)
    write_steps(tmp_path, [], restored=3)
    assert path.read_bytes() == whole

  def test_a_run_from_nothing_starts_anew(self, tmp_path):
    write_steps(tmp_path, range(3))
    write_steps(tmp_path, [0])
    assert run_log.history(tmp_path) == [{"step": 0, "reward": 0.0, "kl": 0.0}]

  def test_a_history_leaves_out_times_and_memory(self, tmp_path):
    writer = run_log.Writer(tmp_path)
    writer.write(1, {"kl": 0.5, "time/step": 1.0} | process.memory())
    writer.close()
    assert run_log.history(tmp_path) == [{"step": 1, "kl": 0.5}]

  def test_tensorboard_shows_each_step_once(self, tmp_path):
    write_steps(tmp_path, range(1, 7))
    write_steps(tmp_path, range(5, 9), restored=4)
    scalars = read_scalars(tmp_path / "tensorboard")
    assert scalars["reward"] == {step: step / 8 for step in range(1, 9)}
    assert scalars["test/pass_at_1"] == {s: s / 4 for s in range(1, 9)}

  def test_the_first_of_several_processes_writes(self, tmp_path, monkeypatch):
    write_steps(tmp_path, [1, 2])
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    before = sorted((p, p.read_bytes()) for p in tmp_path.rglob("*.*"))
    write_steps(tmp_path, [2, 3], restored=1)
    after = sorted((p, p.read_bytes()) for p in tmp_path.rglob("*.*"))
    assert before == after

  def test_a_file_that_is_missing_has_no_records(self, tmp_path):
    assert run_log.read(tmp_path / "metrics.jsonl") == []


class TestCompletionsLog:
  def write(self, workdir, steps, restored=None, text="it is 3"):
    log = run_log.CompletionsLog(workdir, restored)
    scores = types.Rewards(
      np.float32([1.5, 0.0]),
      np.array([True, False]),
      {"accuracy": np.float32([1.0, np.nan])},
      {
        "accuracy/correct": np.float32([1.0, 0.0]),
        "accuracy/crashed": np.float32([0.0, np.nan]),
      },
    )
    for step in steps:
      log.write(
        step,
        types.Completions(
          [PROBLEM] * 2,
          [text] * 2,
          np.array([4, 5]),
          np.array([False, True]),
          rewards=scores,
        ),
      )
    log.close()
    return workdir / "completions.jsonl"

  def test_keeps_every_completion_with_what_it_earned(self, tmp_path):
    first, second = run_log.read(self.write(tmp_path, [3]))
    assert first == {
      "step": 3,
      "question": "How many?",
      "answer": "three\n#### 3",
      "completion": "it is 3",
      "reward": 1.5,
      "terms": {"accuracy": 1.0},
      "metrics": {"accuracy/correct": 1.0},
      "length": 4,
      "truncated": False,
    }
    assert second["reward"] is None
    assert second["terms"] == {"accuracy": None}
    assert second["truncated"] is True

  def test_joins_where_a_run_goes_on(self, tmp_path):
    whole = self.write(tmp_path / "whole", range(6))
    self.write(tmp_path / "stopped", range(5))
    stopped = self.write(tmp_path / "stopped", range(3, 6), restored=2)
    assert whole.read_bytes() == stopped.read_bytes()

  @pytest.mark.parametrize(
    "text", ["\n\r\u2028\x00\x1b", "等等 \u20ac", "\udc80", '"\\'], ids=ascii
  )
  def test_any_text_stays_on_its_line(self, tmp_path, text):
    path = self.write(tmp_path, [1, 2], text=text)
    self.write(tmp_path, [], restored=1)
    first, second = run_log.read(path)
    assert first["completion"] == text.replace("\udc80", "?")
    assert second["step"] == 1


def test_a_line_of_json_is_read_by_any_reader(tmp_path):
  writer = run_log.Writer(tmp_path)
  writer.write(1, {"a": math.nan, "flag": np.bool_(True)})
  writer.close()

  def refuse(constant):
    raise AssertionError(constant)

  text = (tmp_path / "metrics.jsonl").read_text()
  assert json.loads(text, parse_constant=refuse)["flag"] == 1
