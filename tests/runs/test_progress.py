"""What a run prints: columns that stay put, text that cannot steer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import types
from grpo_jax.runs import progress

PROBLEM = types.Problem("How many?", "three\n#### 3", "gsm8k", "How many?")


class TestRender:
  SCORES = types.Rewards(
    np.float32([1.25, 0.0]),
    np.array([True, False]),
    {"accuracy": np.float32([1.0, np.nan]), "format": np.float32([0.25, 0])},
  )

  def render(self, texts, **options):
    completions = types.Completions(
      [PROBLEM] * 2,
      texts,
      np.array([4, 5]),
      np.array([False, True]),
      rewards=self.SCORES,
    )
    return progress.render(completions, **options)

  def test_shows_question_reference_rewards_and_text(self):
    text = self.render(["a\nb", "c"], rows=(0, 1))
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
    text = self.render([long, ""])
    assert len(text) < 2200
    text = self.render(["\x1b[2J\x07", ""])
    assert text.endswith("  | \ufffd[2J\ufffd")


class TestProgress:
  def lines(self, total, steps, values, seconds, **options):
    lines, clock = [], iter(seconds)
    table = progress.Progress(
      total, out=lines.append, clock=lambda: next(clock), **options
    )
    for step in steps:
      table.show(step, values)
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
    assert progress.duration(seconds) == text

  def test_the_first_of_several_processes_prints(self, capsys, monkeypatch):
    progress.Progress(2).show(1, {})
    assert capsys.readouterr().out.count("\n") == 2
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    progress.Progress(2).show(1, {})
    assert capsys.readouterr().out == ""


class TestTimer:
  def test_adds_up_phases_and_starts_anew_each_step(self):
    now = 0.0
    timer = progress.Timer(clock=lambda: now)
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
