"""A run that was stopped anywhere goes on to the same history, to the bit.

Real processes, ended by real signals.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from grpo_jax import metrics

REPOSITORY = pathlib.Path(__file__).parents[1]
TINY = (
  "--config.model.d_model=32",
  "--config.model.num_layers=1",
  "--config.model.head_dim=8",
  "--config.model.d_ff=32",
)


def command(experiment: str, workdir: pathlib.Path, *flags: str) -> list[str]:
  return [
    sys.executable,
    "-m",
    "grpo_jax.main",
    f"--config={experiment}",
    f"--workdir={workdir}",
    *flags,
  ]


def run(*args) -> str:
  """Runs to the end; returns what was printed."""
  done = subprocess.run(
    command(*args), cwd=REPOSITORY, capture_output=True, text=True, timeout=400
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


def stop(number: signal.Signals, step: int, experiment, workdir, *flags):
  """Runs until `step` is in the history, then sends the signal."""
  environment = os.environ | {"PYTHONUNBUFFERED": "1"}
  process = subprocess.Popen(
    command(experiment, workdir, *flags),
    cwd=REPOSITORY,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  history = workdir / "metrics.jsonl"
  deadline = time.monotonic() + 400
  while not history.exists() or history.read_bytes().count(b"\n") < step:
    assert process.poll() is None, process.stderr.read()[-2000:]
    assert time.monotonic() < deadline, "It takes too long."
    time.sleep(0.05)
  process.send_signal(number)
  process.communicate(timeout=120)
  return process.returncode


def last_step(workdir: pathlib.Path) -> int:
  return metrics.read(workdir / "metrics.jsonl")[-1]["step"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return f"--config.data_dir={tmp_path_factory.mktemp('data')}"


PRETRAIN = (
  *TINY,
  "--config.data.name=addition_corpus",
  "--config.data.size=2000",
  "--config.batch.num_rows=4",
  "--config.total_steps=60",
  "--config.log_every=1",
  "--config.checkpoint.every=10",
  "--config.optimizer.warmup_updates=5",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory, data_dir):
  """An uninterrupted run of the pretrain stage."""
  workdir = tmp_path_factory.mktemp("runs") / "base"
  run("experiments/pretrain.py", workdir, data_dir, *PRETRAIN)
  return workdir


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_pretraining_goes_on_where_it_was_ended(
  number, base, tmp_path, data_dir
):
  workdir = tmp_path / "run"
  args = "experiments/pretrain.py", workdir, data_dir, *PRETRAIN
  code = stop(number, 25, *args)
  assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL)
  assert last_step(workdir) < 60
  assert "Going on after step" in run(*args)
  assert metrics.history(workdir) == metrics.history(base)


def rl_flags(base: pathlib.Path, data_dir: str) -> tuple[str, ...]:
  return (
    data_dir,
    f"--config.source={base}",
    "--config.total_steps=8",
    "--config.data.name=addition",
    "--config.prompts.num_prompts=4",
    "--config.sampling.group_size=4",
    "--config.sampling.max_new_tokens=24",
    "--config.sampling.cache_chunk=24",
    "--config.batching.length_multiple=24",
    "--config.ref_every=3",
    "--config.checkpoint.every=3",
    "--config.evaluate.every=4",
    "--config.evaluate.data.name=addition",
    "--config.evaluate.data.test_size=8",
    "--config.evaluate.prompts_per_batch=8",
    "--config.evaluate.sampling.max_new_tokens=24",
    "--config.evaluate.sampling.cache_chunk=24",
  )


@pytest.fixture(scope="module")
def whole(tmp_path_factory, base, data_dir):
  """An uninterrupted run of the rl stage."""
  workdir = tmp_path_factory.mktemp("runs") / "rl"
  flags = rl_flags(base, data_dir)
  run(f"experiments/r1_zero.py:base={base}", workdir, *flags)
  return workdir


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_rl_goes_on_where_it_was_ended(number, whole, base, tmp_path, data_dir):
  workdir = tmp_path / "run"
  flags = rl_flags(base, data_dir)
  args = f"experiments/r1_zero.py:base={base}", workdir, *flags
  stop(number, 4, *args)
  assert last_step(workdir) < 8
  assert "Going on after step" in run(*args)
  assert metrics.history(workdir) == metrics.history(whole)
  for name in ("evaluations.jsonl", "completions.jsonl"):
    assert metrics.read(workdir / name) == metrics.read(whole / name)


@pytest.mark.slow
def test_the_reference_is_the_policy_right_after_a_refresh(whole):
  """KL is measured against the policy itself in the step's first update."""
  rows = metrics.read(whole / "metrics.jsonl")
  kl = {row["step"]: row["kl"] for row in rows}
  assert kl[4] < 0.25 * kl[3]


@pytest.mark.slow
def test_a_finished_run_only_reports(whole, base, data_dir):
  before = (whole / "metrics.jsonl").read_bytes()
  flags = rl_flags(base, data_dir)
  printed = run(f"experiments/r1_zero.py:base={base}", whole, *flags)
  assert "pass@1" in printed
  assert (whole / "metrics.jsonl").read_bytes() == before
  assert (whole / "report.png").stat().st_size > 10_000
  assert json.loads((whole / "config.json").read_text())["stage"] == "rl"
