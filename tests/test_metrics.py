"""What a run writes and prints, and the statistics of its completions."""

import json
import math
import statistics

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from grpo_jax import metrics, types
from grpo_jax.rewards import combine

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
  writer = metrics.Writer(workdir, restored)
  for step in steps:
    writer.write(step, {"reward": step / 8, "time/step": 0.5, "kl": 0.0})
    writer.write_evaluation(step, "test", {"pass@1": step / 4})
  writer.close()


class TestWriter:
  def test_writes_one_object_per_step_with_sorted_names(self, tmp_path):
    writer = metrics.Writer(tmp_path)
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
    writer = metrics.Writer(tmp_path)
    for step, value in enumerate(values):
      writer.write(step, {"x": value})
    writer.close()
    read = [row["x"] for row in metrics.read(tmp_path / "metrics.jsonl")]
    np.testing.assert_array_equal(np.array(read).astype(dtype), values)

  def test_what_is_not_finite_is_null(self, tmp_path):
    writer = metrics.Writer(tmp_path)
    writer.write(1, {"a": math.nan, "b": math.inf, "c": 1.0})
    writer.close()
    (row,) = metrics.read(tmp_path / "metrics.jsonl")
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
      write_steps(tmp_path, [], restored=3)
      assert [row["step"] for row in metrics.read(path)] == [1, 2]
    path.write_bytes(whole)
    write_steps(tmp_path, [], restored=3)
    assert path.read_bytes() == whole

  def test_a_run_from_nothing_starts_anew(self, tmp_path):
    write_steps(tmp_path, range(3))
    write_steps(tmp_path, [0])
    assert metrics.history(tmp_path) == [{"step": 0, "reward": 0.0, "kl": 0.0}]

  def test_a_history_leaves_out_times_and_memory(self, tmp_path):
    writer = metrics.Writer(tmp_path)
    writer.write(1, {"kl": 0.5, "time/step": 1.0} | metrics.memory())
    writer.close()
    assert metrics.history(tmp_path) == [{"step": 1, "kl": 0.5}]

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
    assert metrics.read(tmp_path / "metrics.jsonl") == []


class TestCompletionsLog:
  def write(self, workdir, steps, restored=None, text="it is 3"):
    log = metrics.CompletionsLog(workdir, restored)
    scores = combine.Scores(
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
        [PROBLEM] * 2,
        [text] * 2,
        scores,
        np.array([4, 5]),
        np.array([False, True]),
      )
    log.close()
    return workdir / "completions.jsonl"

  def test_keeps_every_completion_with_what_it_earned(self, tmp_path):
    first, second = metrics.read(self.write(tmp_path, [3]))
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
    first, second = metrics.read(path)
    assert first["completion"] == text.replace("\udc80", "?")
    assert second["step"] == 1


class TestRender:
  SCORES = combine.Scores(
    np.float32([1.25, 0.0]),
    np.array([True, False]),
    {"accuracy": np.float32([1.0, np.nan]), "format": np.float32([0.25, 0])},
  )

  def test_shows_question_reference_rewards_and_text(self):
    text = metrics.render(
      [PROBLEM] * 2, ["a\nb", "c"], self.SCORES, rows=(0, 1)
    )
    assert text == (
      "question: How many?\n"
      "reference: 3\n"
      "reward: 1.25 (accuracy 1, format 0.25)\n"
      "  | a\n"
      "  | b\n"
      "\n"
      "question: How many?\n"
      "reference: 3\n"
      "reward: none (accuracy nan, format 0)\n"
      "  | c"
    )

  def test_shortens_long_text_and_disarms_a_terminal(self):
    long = "a" * 5000 + "\x1b[2J\r" + "z" * 5000
    text = metrics.render([PROBLEM], [long], self.SCORES)
    assert len(text) < 2200
    text = metrics.render([PROBLEM], ["\x1b[2J\x07"], self.SCORES)
    assert text.endswith("  | \ufffd[2J\ufffd")


class TestProgress:
  def lines(self, total, steps, values, seconds, **options):
    lines, clock = [], iter(seconds)
    progress = metrics.Progress(
      total, out=lines.append, clock=lambda: next(clock), **options
    )
    for step in steps:
      progress.show(step, values)
    return lines

  def test_shows_columns_and_the_time_left(self):
    values = {
      "reward": jnp.float32(0.871),
      "rewards/accuracy/mean": 0.734,
      "completions/mean_length": 48.06,
      "time/tokens_per_second": 13204.4,
    }
    # Compiling took a minute; a step takes two seconds.
    lines = self.lines(40, [1, 2, 3], values, [60.0, 62.0, 64.0])
    assert lines == [
      "  step   reward accuracy   length tokens/s    left",
      "  1/40    0.871    0.734     48.1   13,204       -",
      "  2/40    0.871    0.734     48.1   13,204   01:16",
      "  3/40    0.871    0.734     48.1   13,204   01:14",
    ]

  def test_lines_stay_in_columns_and_the_header_comes_back(self):
    values = {"reward": -1.0, "completions/mean_length": 31000.0}
    steps = range(1, 9999, 97)
    lines = self.lines(9999, steps, values, range(10**6), header_every=10)
    assert len(set(map(len, lines))) == 1
    headers = [i for i, line in enumerate(lines) if "reward" in line]
    assert headers == list(range(0, len(lines), 11))
    assert lines[1].split()[2] == "-"  # No accuracy was given.

  def test_the_time_left_forgets_what_is_long_past(self):
    seconds = [*range(0, 1000, 100), *range(1000, 1030)]
    lines = self.lines(100, range(1, 41), {}, seconds, header_every=1000)
    assert lines[-1].endswith(" 01:00")

  @pytest.mark.parametrize(
    "seconds, text", [(0, "00:00"), (59.6, "01:00"), (3600, "1:00:00")]
  )
  def test_a_duration_is_read_like_a_clock(self, seconds, text):
    assert metrics.duration(seconds) == text

  def test_the_first_of_several_processes_prints(self, capsys, monkeypatch):
    metrics.Progress(2).show(1, {})
    assert capsys.readouterr().out.count("\n") == 2
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    metrics.Progress(2).show(1, {})
    assert capsys.readouterr().out == ""


class TestTimer:
  def test_adds_up_phases_and_starts_anew_each_step(self):
    now = 0.0
    timer = metrics.Timer(clock=lambda: now)
    for seconds in (1.0, 2.0):
      with timer.phase("sample"):
        now += seconds
    with pytest.raises(KeyError), timer.phase("reward"):
      now += 0.5
      raise KeyError
    now += 0.25
    assert timer.step() == {
      "time/sample": 3.0,
      "time/reward": 0.5,
      "time/step": 3.75,
    }
    now += 1.0
    assert timer.step() == {"time/step": 1.0}


def test_the_peak_of_memory_is_in_gib():
  ballast = np.ones(2**22)
  assert ballast.nbytes / 2**30 < metrics.memory()["memory/host_peak_gib"] < 64


def test_a_loss_that_is_not_finite_ends_the_run():
  metrics.require_finite(3, {"loss": jnp.float32(1.0), "grad_norm": 0.0})
  with pytest.raises(FloatingPointError, match="loss is nan at step 3"):
    metrics.require_finite(3, {"loss": math.nan, "grad_norm": 0.0})
  with pytest.raises(FloatingPointError, match="grad_norm is inf"):
    metrics.require_finite(3, {"loss": 0.0, "grad_norm": jnp.float32(jnp.inf)})


def test_a_step_shows_the_mean_of_its_updates():
  updates = [{"loss": jnp.float32(1.0), "kl": 0.0}, {"loss": 2.0, "kl": 0.5}]
  assert metrics.mean_over_updates(updates) == {"loss": 1.5, "kl": 0.25}


def scores_of(rewards, valid=None, **terms):
  rewards = np.float32(rewards)
  valid = np.ones(rewards.shape, bool) if valid is None else np.array(valid)
  return combine.Scores(
    rewards, valid, {k: np.float32(v) for k, v in terms.items()}
  )


class TestRewardMetrics:
  def test_matches_a_loop_over_groups(self):
    rng = np.random.default_rng(0)
    rewards = rng.integers(0, 3, 24) / 4
    rewards[4:8] = 0.5
    valid = rng.random(24) > 0.3
    stds, flat = [], 0
    for start in range(0, 24, 4):
      group = [rewards[i] for i in range(start, start + 4) if valid[i]]
      if len(group) > 1:
        stds.append(statistics.stdev(group))
      flat += len(group) < 2 or len(set(group)) == 1
    got = metrics.reward_metrics(scores_of(rewards, valid), 4)
    assert got == pytest.approx(
      {
        "reward": statistics.mean(rewards[valid]),
        "reward_std": statistics.mean(stds),
        "frac_reward_zero_std": flat / 6,
        "frac_reward_invalid": 1 - valid.mean(),
      }
    )

  def test_rounding_is_no_variance(self):
    rewards = [0.1, 0.1 + 1e-8, 0.1, 0.1, 0.0, 0.1, 0.1, 0.1]
    got = metrics.reward_metrics(scores_of(rewards), 4)
    assert got["frac_reward_zero_std"] == 0.5

  def test_terms_are_over_the_rows_that_they_scored(self):
    scores = scores_of(
      [1, 1, 0, 0],
      [True, True, False, True],
      accuracy=[1, 0, np.nan, 0],
      format=[1, 1, 1, 0],
    )
    got = metrics.reward_metrics(scores, 2)
    assert got["rewards/accuracy/mean"] == pytest.approx(1 / 3)
    assert got["rewards/accuracy/std"] == pytest.approx(
      statistics.stdev([1, 0, 0])
    )
    assert got["rewards/format/mean"] == 0.75
    assert got["reward"] == pytest.approx(2 / 3)

  def test_outcomes_of_grading_are_shares_of_the_rows(self):
    scores = scores_of([1, 0, 0, 0])._replace(
      metrics={"accuracy/timed_out": np.float32([0, 1, 0, 0])}
    )
    got = metrics.reward_metrics(scores, 2)
    assert got["rewards/accuracy/timed_out"] == 0.25

  def test_no_valid_row_gives_nan_and_no_warning(self, recwarn):
    got = metrics.reward_metrics(scores_of([0, 0], [False, False]), 2)
    assert math.isnan(got["reward"]) and math.isnan(got["reward_std"])
    assert got["frac_reward_zero_std"] == 1.0
    assert not recwarn.list


def test_lengths_come_from_the_mask_and_truncation_from_the_sampler():
  mask = np.arange(5) < np.array([[1, 5], [2, 4]])[..., None]
  truncated = np.array([[False, True], [False, False]])
  texts = ["", "wait, but", "no", "wait"]
  assert metrics.completion_metrics(texts, mask, truncated) == {
    "completions/mean_length": 3.0,
    "completions/min_length": 1,
    "completions/max_length": 5,
    "completions/clipped_ratio": 0.25,
    "completions/reflection_words": 0.75,
  }


class TestSamplerGap:
  def test_matches_a_loop_over_tokens(self):
    rng = np.random.default_rng(0)
    old = rng.normal(-1, 0.5, (2, 3, 7)).astype(np.float32)
    sampler = (old + rng.normal(0, 0.1, old.shape)).astype(np.float32)
    mask = rng.random(old.shape) > 0.4
    gaps = [
      float(o) - float(s)
      for o, s, inside in zip(
        old.ravel(), sampler.ravel(), mask.ravel(), strict=True
      )
      if inside
    ]
    ratios = [math.exp(gap) for gap in gaps]
    name = "sampling/sampling_logp_difference"
    weight = "sampling/importance_sampling_ratio"
    assert metrics.sampler_gap(old, sampler, mask) == pytest.approx(
      {
        f"{name}/mean": statistics.mean(map(abs, gaps)),
        f"{name}/max": max(map(abs, gaps)),
        f"{weight}/min": min(ratios),
        f"{weight}/mean": statistics.mean(ratios),
        f"{weight}/max": max(ratios),
        "sampling/kl": statistics.mean(
          r - 1 - g for r, g in zip(ratios, gaps, strict=True)
        ),
        "sampling/effective_sample_size": sum(ratios) ** 2
        / (len(ratios) * sum(r * r for r in ratios)),
      }
    )

  def test_is_neutral_where_both_agree_and_padding_is_never_read(self):
    logprobs = np.full((1, 2, 3), -0.5, np.float32)
    mask = np.array([[[True, True, False], [True, False, False]]])
    other = np.where(mask, logprobs, np.nan)
    got = metrics.sampler_gap(logprobs, other, mask)
    assert got["sampling/sampling_logp_difference/max"] == 0.0
    assert got["sampling/importance_sampling_ratio/min"] == 1.0
    assert got["sampling/kl"] == 0.0
    assert got["sampling/effective_sample_size"] == 1.0

  def test_an_extreme_gap_stays_finite(self):
    old = np.float32([[[0.0, -1.0]]])
    sampler = np.float32([[[-1000.0, -1.0]]])
    got = metrics.sampler_gap(old, sampler, np.ones((1, 1, 2), bool))
    assert all(map(math.isfinite, got.values()))
    assert got["sampling/effective_sample_size"] == pytest.approx(0.5)


def test_a_line_of_json_is_read_by_any_reader(tmp_path):
  writer = metrics.Writer(tmp_path)
  writer.write(1, {"a": math.nan, "flag": np.bool_(True)})
  writer.close()

  def refuse(constant):
    raise AssertionError(constant)

  text = (tmp_path / "metrics.jsonl").read_text()
  assert json.loads(text, parse_constant=refuse)["flag"] == 1
