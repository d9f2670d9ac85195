"""A fork begins where its parent was, and leaves the parent as it is."""

import json
import pathlib
import shutil
import tarfile

import processes
import pytest

from grpo_jax.runs import directory, fork
from grpo_jax.runs import log as run_log

EXPERIMENT = str(pathlib.Path(__file__).parents[1] / "old_run/experiment.py")
LOGS = "metrics.jsonl", "evaluations.jsonl", "completions.jsonl"


@pytest.fixture
def parent(tmp_path):
  """A run of four steps that keeps the checkpoints of two."""
  path = tmp_path / "parent"
  archive = pathlib.Path(EXPERIMENT).with_name("run.tar.xz")
  with tarfile.open(archive) as content:
    content.extractall(path, filter="data")
  return path


@pytest.fixture
def config(parent):
  return directory.read_config(parent)


def files(path):
  found = (file for file in path.rglob("*") if file.is_file())
  return {str(file.relative_to(path)): file.read_bytes() for file in found}


def test_what_the_parent_held_after_the_step_is_there(parent, config, tmp_path):
  workdir = tmp_path / "deep" / "fork"
  before = files(parent)
  fork.fork(parent, 2, workdir, config)
  assert files(parent) == before
  assert directory.kept_steps(workdir) == [2]
  for name in LOGS:
    whole = run_log.read(parent / name)
    kept = [row for row in whole if row["step"] <= 2]
    assert run_log.read(workdir / name) == kept
    assert 0 < len(kept) < len(whole)
  same = [
    name
    for name in before
    if name.startswith(("checkpoints/2/", "base/", "tokenizer/", "model."))
  ]
  held = files(workdir)
  assert {name: held[name] for name in same} == {n: before[n] for n in same}
  assert set(held) == {*same, *LOGS, "config.json", "parent.json"}
  origin = fork.read(workdir)
  assert (origin["path"], origin["step"]) == (str(parent.resolve()), 2)
  assert origin["changes"] == {}


def test_logs_of_the_fork_do_not_reach_the_parent(parent, config, tmp_path):
  """Files that grow are copies, also those of the base model."""
  fork.fork(parent, 4, tmp_path / "fork", config)
  before = files(parent)
  for name in (*LOGS, "base/metrics.jsonl", "config.json"):
    with (tmp_path / "fork" / name).open("a") as file:
      file.write("more\n")
  shutil.rmtree(tmp_path / "fork/checkpoints/4")
  assert files(parent) == before


def test_without_a_step_it_is_the_newest_and_the_changes_are_told(
  parent, config, tmp_path
):
  config["optimizer"]["learning_rate"] = 0.5
  config["total_steps"] = 9
  fork.fork(parent, None, tmp_path / "fork", config)
  origin = fork.read(tmp_path / "fork")
  assert origin["step"] == 4
  assert origin["changes"] == {
    "optimizer.learning_rate": [0.01, 0.5],
    "total_steps": [4, 9],
  }
  directory.claim(tmp_path / "fork", config)


def test_the_same_fork_goes_on_and_another_is_refused(parent, config, tmp_path):
  workdir = tmp_path / "fork"
  fork.fork(parent, 2, workdir, config)
  # Before a checkpoint of its own, the config may still be another.
  config["seed"] = 3
  fork.fork(parent, None, workdir, config)
  assert directory.read_config(workdir)["seed"] == 3
  shutil.copytree(workdir / "checkpoints/2", workdir / "checkpoints/3")
  before = files(workdir)
  fork.fork(parent, 2, workdir, config | {"seed": 4})
  assert files(workdir) == before
  with pytest.raises(ValueError, match=r"holds a fork of .*parent at step 2"):
    fork.fork(parent, 4, workdir, config)
  with pytest.raises(ValueError, match="is not empty and holds no fork"):
    fork.fork(workdir, 2, parent, config)


def test_a_step_that_is_not_kept_is_answered_with_those_that_are(
  parent, config, tmp_path
):
  with pytest.raises(
    ValueError, match=r"no checkpoint of step 3, only of 2, 4"
  ):
    fork.fork(parent, 3, tmp_path / "fork", config)
  with pytest.raises(FileNotFoundError, match="holds no run with a checkpoint"):
    fork.fork(tmp_path / "nothing", None, tmp_path / "fork", config)
  assert not (tmp_path / "fork").exists()


@pytest.mark.parametrize(
  "path, value, named",
  [
    ("lora.rank", 8, r"config\.lora\.rank, from 0 to 8"),
    ("pretrain.model.d_model", 8, r"config\.pretrain\.model\.d_model"),
    ("stage", "sft", r"config\.stage"),
    ("value", {"source": ""}, r"config\.value"),
  ],
)
def test_what_is_trained_stays(path, value, named, parent, config, tmp_path):
  section = config
  *names, last = path.split(".")
  for name in names:
    section = section[name]
  section[last] = value
  with pytest.raises(ValueError, match=f"A fork cannot change {named}"):
    fork.fork(parent, 2, tmp_path / "fork", config)
  assert not (tmp_path / "fork").exists()


def test_how_the_model_is_computed_may_change(parent, config, tmp_path):
  config["model"]["remat"] = "full"
  fork.fork(parent, 2, tmp_path / "fork", config)


@pytest.mark.parametrize(
  "text, want",
  [
    ("runs/a@12", ("runs/a", 12)),
    ("runs/a", ("runs/a", None)),
    ("me@home/a", ("me@home/a", None)),
    ("me@home/a@3", ("me@home/a", 3)),
  ],
)
def test_a_run_and_a_step_are_told_apart(text, want):
  path, step = fork.parse(text)
  assert (str(path), step) == want


def test_a_fork_that_changes_nothing_repeats_its_parent(tmp_path):
  """In real processes; and one with another rate is another run."""
  environment = dict(
    JAX_COMPILATION_CACHE_DIR=str(tmp_path / "compiled"),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
  )
  data = f"--config.data_dir={tmp_path / 'data'}"
  whole, same, other = (tmp_path / name for name in ("whole", "same", "other"))
  processes.main(EXPERIMENT, whole, data, **environment)
  before = files(whole)
  flags = data, f"--fork={whole}@2"
  out = processes.main(EXPERIMENT, same, *flags, **environment)
  assert "Going on after step 2" in out
  for name in LOGS[1:]:
    assert run_log.read(same / name) == run_log.read(whole / name)
  assert run_log.history(same) == run_log.history(whole)
  flags = *flags, "--config.optimizer.learning_rate=0.5"
  out = processes.main(EXPERIMENT, other, *flags, **environment)
  assert "config.optimizer.learning_rate is 0.5 and no longer 0.01" in out
  theirs, ours = run_log.history(whole), run_log.history(other)
  assert [row["step"] for row in ours] == [1, 2, 3, 4]
  assert ours[:2] == theirs[:2]
  assert ours[2]["learning_rate"] > 10 * theirs[2]["learning_rate"]
  assert ours[3]["entropy"] != theirs[3]["entropy"]
  assert files(whole) == before
  assert json.loads((other / "parent.json").read_text())["step"] == 2
