"""A chain runs its steps in order, skips what is done, goes on where it ended.

Real processes, ended by real signals.
"""

import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from grpo_jax import configs
from grpo_jax.runs import log as run_log
from grpo_jax.runs import report
from grpo_jax.stages import chain

REPOSITORY = pathlib.Path(__file__).parents[2]
EXPERIMENT = """
from grpo_jax import configs

def get_config(arg=None):
  c = configs.chain()
  base = configs.pretrain()
  base.data_dir = {data_dir!r}
  base.data = dict(name="addition_corpus", split="train", size=2000)
  base.model.update(num_layers=1, d_model=32, head_dim=8, d_ff=32)
  base.batch.num_rows = 4
  base.total_steps, base.log_every, base.checkpoint.every = 60, 1, 10
  base.optimizer.warmup_updates = 5
  for name in ("first", "second"):
    c.steps[name] = base.copy_and_resolve_references()
  c.steps.second.seed = 1
  c.steps.results = configs.export()
  c.steps.results.source = "{{workdir}}/second"
  c.order = ("first", "second", "results")
  c.table.rows = (("second", "second"),)
  c.table.columns = (("a", "a", "{{:.1f}}"),)
  return c
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
  folder = tmp_path_factory.mktemp("experiments")
  path = folder / "two.py"
  path.write_text(EXPERIMENT.format(data_dir=str(folder / "data")))
  return path


def command(experiment, workdir):
  return [
    sys.executable,
    "-m",
    "grpo_jax.main",
    f"--config={experiment}",
    f"--workdir={workdir}",
  ]


def run(experiment, workdir):
  done = subprocess.run(
    command(experiment, workdir),
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=300,
  )
  return done.returncode, done.stdout, done.stderr


def test_a_chain_goes_on_in_the_step_that_was_ended(experiment, tmp_path):
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  code, printed, error = run(experiment, whole)
  # The table wants results, and no step of this chain evaluates.
  assert code == 1 and "results.json" in error
  assert printed.index("[1/3] first") < printed.index("[2/3] second")
  assert (whole / "results" / "config.json").exists()

  history = stopped / "second" / "metrics.jsonl"
  with (tmp_path / "log").open("w") as log:
    process = subprocess.Popen(
      command(experiment, stopped), cwd=REPOSITORY, stdout=log, stderr=log
    )
    deadline = time.monotonic() + 300
    while not history.exists() or history.read_bytes().count(b"\n") < 15:
      assert process.poll() is None, (tmp_path / "log").read_text()
      assert time.monotonic() < deadline
      time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 0
  assert "Stopped in second" in (tmp_path / "log").read_text()
  assert not (stopped / "results").exists()

  (stopped / "second" / "results.json").write_text('{"a": 0.25}')
  code, printed, error = run(experiment, stopped)
  assert code == 0, error
  assert "[1/3] first: done" in printed
  assert "Going on after step" in printed
  assert "second       0.2" in printed
  for name in ("first", "second"):
    assert run_log.history(stopped / name) == run_log.history(whole / name)


def tiny_chain():
  c = configs.chain()
  c.steps.base = configs.pretrain()
  c.order = ("base",)
  c.table = dict(rows=(), columns=())
  return c


@pytest.mark.parametrize(
  "change, sentence",
  [
    (dict(order=("bass",)), "no step 'bass'; did you mean 'base'"),
    (
      dict(table=dict(rows=(("x", "none"),), columns=())),
      "The chain has no step 'none'",
    ),
  ],
)
def test_a_chain_that_does_not_fit_is_refused(change, sentence, tmp_path):
  c = tiny_chain()
  for field, value in change.items():
    c[field] = value
  with pytest.raises(ValueError, match=sentence):
    chain.run(c, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_an_unknown_stage_is_named_with_the_nearest(tmp_path):
  c = tiny_chain()
  c.steps.base.stage = "pretrian"
  with pytest.raises(ValueError, match="did you mean 'pretrain'"):
    chain.run(c, tmp_path / "run")


def test_texts_of_a_step_name_the_directory_of_the_chain():
  c = tiny_chain()
  step = configs.rl()
  step.source = "{workdir}/base"
  step.rewards = dict(reward_model=dict(weight=1.0, source="{workdir}/rm"))
  filled = chain.filled(step, pathlib.Path("runs/x"))
  assert filled.source == "runs/x/base"
  assert filled.rewards.reward_model.source == "runs/x/rm"
  inner = tiny_chain()
  inner.steps.base.data_dir = "{workdir}/data"
  kept = chain.filled(inner, pathlib.Path("runs/x"))
  assert kept.steps.base.data_dir == "{workdir}/data"
  assert c.steps.base.stage == "pretrain"


def test_a_table_shows_values_under_their_paths(tmp_path):
  for name, text in (
    ("one", '{"datasets": {"a/b": {"pass@1": 0.5, "n": null}}, "top": 2}'),
    ("two", '{"datasets": {"a/b": {"n": 3}}}'),
  ):
    (tmp_path / name).mkdir()
    (tmp_path / name / "results.json").write_text(text)
  columns = (
    ("right", "datasets/a/b/pass@1", "{:.1%}"),
    ("n", "datasets/a/b/n", "{:.0f}"),
    ("top", "top", "{:d}"),
  )
  rows = (("first", "one"), ("second one", "two"))
  assert report.results_table(tmp_path, rows=rows, columns=columns) == (
    "               right         n       top\n"
    "first          50.0%         -         2\n"
    "second one         -         3         -"
  )


@pytest.mark.parametrize("arg", [None, "smoke", "seed=1"])
def test_the_recipe_reads_only_what_an_earlier_step_wrote(arg):
  c = configs.experiment(REPOSITORY / "experiments" / "x", "r1", arg)
  chain.check(c)
  assert set(c.order) == set(c.steps)
  written = set()
  for name in c.order:
    text = json.dumps(c.steps[name].to_dict())
    for source in re.findall(r'\{workdir\}(?:/\.\.)?/([^"/]+)', text):
      assert source in written | set(c.steps[name].get("steps", ())), name
    written.add(name)


def test_a_model_that_no_step_writes_is_missed_before_the_first_step(tmp_path):
  c = configs.experiment(
    REPOSITORY / "experiments" / "x", "r1_distill", "smoke"
  )
  with pytest.raises(FileNotFoundError, match=r"r1_rl.py` first"):
    chain.run(c, tmp_path / "run")
  assert not (tmp_path / "run").exists()
