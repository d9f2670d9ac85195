"""The picture of a run and the table of its two ends."""

import matplotlib.image
import numpy as np
import pytest

from grpo_jax.runs import log as run_log
from grpo_jax.runs import report


def make_run(workdir, names, evaluations=("test",), steps=30):
  writer = run_log.Writer(workdir)
  for step in range(1, steps + 1):
    writer.write(step, {name: np.sqrt(step) for name in names})
  for name in evaluations:
    for step in (0, steps):
      writer.write_evaluation(step, name, {"pass@1": step / (2 * steps)})
  writer.close()


@pytest.mark.parametrize(
  "names, panels",
  [
    ([panel.metric for panel in report.PANELS], 6),
    (["reward", "entropy", "something else"], 3),
    ([], 1),
  ],
)
def test_draws_a_panel_for_what_the_run_has(tmp_path, names, panels):
  make_run(tmp_path, names)
  path = report.write_report(tmp_path, title="A run")
  picture = matplotlib.image.imread(path)
  height, width, _ = picture.shape
  assert path == tmp_path / "report.png"
  assert width / height == pytest.approx(
    min(panels, 3) * 3.9 / (-(-panels // 3) * 2.7), rel=0.01
  )
  assert picture[..., :3].std() > 0.02  # Something is drawn.


def test_draws_runs_with_holes_one_step_and_several_evaluations(tmp_path):
  writer = run_log.Writer(tmp_path)
  writer.write(1, {"reward": 1.0, "kl": np.nan})
  writer.write_evaluation(1, "test", {"pass@1": 0.5})
  writer.write_evaluation(1, "gsm8k", {"pass@1": 0.25, "mean_length": 7.0})
  writer.close()
  assert report.write_report(tmp_path).stat().st_size > 1000


def test_warnings_stand_above_the_picture_and_in_their_file(tmp_path):
  writer = run_log.Writer(tmp_path)
  writer.write(1, {"reward": 1.0})
  writer.close()
  plain = report.write_report(tmp_path, title="Mine").read_bytes()
  records = [
    {"step": 0, "until": 0, "name": "start", "text": "All of $x$ and $y."},
    {"step": 2, "until": 9, "name": "one_outcome", "text": "No way. " * 40},
  ]
  run_log.write_warnings(tmp_path, records)
  assert run_log.read(tmp_path / "warnings.jsonl") == records
  assert report.write_report(tmp_path, title="Mine").read_bytes() != plain
  run_log.write_warnings(tmp_path, [])
  assert not (tmp_path / "warnings.jsonl").exists()
  assert report.write_report(tmp_path, title="Mine").read_bytes() == plain


def test_a_directory_without_metrics_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="no metrics of a run in"):
    report.write_report(tmp_path)


def test_the_running_mean_keeps_lines_straight():
  line = np.linspace(2.0, 5.0, 57)
  np.testing.assert_allclose(report._running_mean(line), line)
  assert report._running_mean(np.array([])).size == 0


def test_the_table_shows_base_and_trained_beside_each_other():
  base = {
    "pass@1": 0.254,
    "format": 0.57,
    "mean_length": 23.04,
    "reflection_words": 0.584,
    "truncated": 0,
    "problems": 512,
  }
  trained = base | {"pass@1": 0.951, "mean_length": None}
  del trained["truncated"]
  assert report.table(base, trained).splitlines() == [
    "                        base   trained",
    "pass@1                 25.4%     95.1%",
    "well formed            57.0%     57.0%",
    "length, tokens          23.0         -",
    "reflection words        0.58      0.58",
    "truncated               0.0%         -",
  ]


def test_a_run_is_compared_from_its_first_to_its_last_evaluation(tmp_path):
  make_run(tmp_path, [], evaluations=("test", "gsm8k"))
  first, second = report.compare(tmp_path).split("\n\n")
  assert first.startswith("test, steps 0 and 30\n")
  assert "pass@1                  0.0%     50.0%" in first
  assert second.startswith("gsm8k, steps 0 and 30\n")
  assert report.compare(tmp_path / "nothing") == ""
