"""A run that was stopped anywhere goes on to the same history, to the bit.

Real processes, ended by real signals.
"""

import json
import pathlib
import signal
import subprocess
import sys
import time

import helpers
import jax
import numpy as np
import pytest

from grpo_jax.models import hf, lora
from grpo_jax.runs import log as run_log
from grpo_jax.runs import source as source_lib

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


def stop(
  number: signal.Signals,
  step: int,
  experiment,
  workdir,
  *flags,
  history: str = "metrics.jsonl",
):
  """Runs until `step` lines are in the history, then sends the signal."""
  history, log = workdir / history, workdir.with_suffix(".log")
  deadline = time.monotonic() + 400
  with log.open("w") as out:
    process = subprocess.Popen(
      command(experiment, workdir, *flags),
      cwd=REPOSITORY,
      stderr=out,
      stdout=out,
    )
    try:
      while not history.exists() or history.read_bytes().count(b"\n") < step:
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline, "It takes too long."
        time.sleep(0.02)
      process.send_signal(number)
      return process.wait(timeout=120)
    finally:
      process.kill()


def last_step(workdir: pathlib.Path) -> int:
  return run_log.read(workdir / "metrics.jsonl")[-1]["step"]


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
  """Programs that one process compiled are there for the next.

  Compiled as users compile them, for one device.
  """
  with pytest.MonkeyPatch.context() as patch:
    patch.delenv("XLA_FLAGS", raising=False)
    cache = tmp_path_factory.mktemp("compiled")
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    yield


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
  assert run_log.history(workdir) == run_log.history(base)


SFT = (
  "--config.num_epochs=30",
  "--config.batch.num_rows=4",
  "--config.batch.row_length=40",
  "--config.log_every=1",
  "--config.checkpoint.every=7",
  "--config.evaluate.every=25",
  "--config.evaluate.data.name=addition",
  "--config.evaluate.data.test_size=8",
  "--config.evaluate.prompts_per_batch=8",
  "--config.evaluate.sampling.max_new_tokens=24",
  "--config.evaluate.sampling.cache_chunk=24",
)


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
  """Conversations for the sft stage."""
  path = tmp_path_factory.mktemp("talks") / "talks.jsonl"
  rows = [{"question": f"{i}+1=?", "answer": f"{i + 1}"} for i in range(20)]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, base, talks, data_dir):
  """An uninterrupted run of the sft stage."""
  workdir = tmp_path_factory.mktemp("runs") / "sft"
  experiment = f"experiments/r1_cold_start.py:base={base},data={talks}"
  run(experiment, workdir, data_dir, *SFT)
  return workdir


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_sft_goes_on_where_it_was_ended(
  number, tuned, base, talks, tmp_path, data_dir
):
  workdir = tmp_path / "run"
  experiment = f"experiments/r1_cold_start.py:base={base},data={talks}"
  args = experiment, workdir, data_dir, *SFT
  code = stop(number, 30, *args)
  assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL)
  assert last_step(workdir) < last_step(tuned)
  assert "Going on after step" in run(*args)
  assert run_log.history(workdir) == run_log.history(tuned)
  name = "evaluations.jsonl"
  assert run_log.read(workdir / name) == run_log.read(tuned / name)
  assert "already holds all" in run(*args)


@pytest.fixture(scope="module")
def preferred(tmp_path_factory):
  """Pairs for the reward_model stage."""
  path = tmp_path_factory.mktemp("preferred") / "pairs.jsonl"
  rows = [
    {"prompt": f"{i}+1=?", "chosen": f"{i + 1}", "rejected": f"{i + 2}"}
    for i in range(160)
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def test_a_reward_model_goes_on_where_it_was_killed(
  base, preferred, tmp_path, data_dir
):
  experiment = f"experiments/reward_model.py:source={base},data={preferred}"
  flags = (
    data_dir,
    "--config.reading.reads=completion",
    "--config.epochs=12",
    "--config.batch.num_rows=16",
    "--config.log_every=1",
    "--config.checkpoint.every=9",
  )
  whole, workdir = tmp_path / "whole", tmp_path / "run"
  run(experiment, whole, *flags)
  stop(signal.SIGKILL, 30, experiment, workdir, *flags)
  assert last_step(workdir) < last_step(whole)
  assert "Going on after step" in run(experiment, workdir, *flags)
  assert run_log.history(workdir) == run_log.history(whole)
  for name in ("reliability.json", "reward_model.json"):
    assert (workdir / name).read_bytes() == (whole / name).read_bytes()


def test_a_killed_evaluation_comes_to_the_same(tuned, tmp_path, data_dir):
  experiment = f"experiments/evaluate.py:source={tuned}"
  flags = (
    data_dir,
    "--config.datasets.pair_sum.data.name=addition",
    "--config.datasets.pair_sum.data.test_size=8",
    "--config.evaluate.prompts_per_batch=8",
  )
  whole, workdir = tmp_path / "whole", tmp_path / "run"
  run(experiment, whole, *flags)
  stop(signal.SIGKILL, 1, experiment, workdir, *flags, history="samples.jsonl")
  assert not (workdir / "results.json").exists()
  run(experiment, workdir, *flags)
  for name in ("results.json", "results.md", "samples.jsonl"):
    assert (workdir / name).read_bytes() == (whole / name).read_bytes()


RL_STEPS = 60


def rl_flags(base: pathlib.Path, data_dir: str) -> tuple[str, ...]:
  return (
    data_dir,
    f"--config.source={base}",
    f"--config.total_steps={RL_STEPS}",
    "--config.data.name=addition",
    "--config.prompts.num_prompts=4",
    "--config.sampling.group_size=4",
    "--config.sampling.max_new_tokens=24",
    "--config.sampling.cache_chunk=24",
    "--config.batching.length_multiple=24",
    "--config.ref_every=12",
    "--config.checkpoint.every=9",
    "--config.evaluate.every=20",
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_rl_goes_on_where_it_was_ended(number, whole, base, tmp_path, data_dir):
  workdir = tmp_path / "run"
  flags = rl_flags(base, data_dir)
  args = f"experiments/r1_zero.py:base={base}", workdir, *flags
  code = stop(number, 16, *args)
  assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL)
  assert last_step(workdir) < RL_STEPS
  assert "Going on after step" in run(*args)
  assert run_log.history(workdir) == run_log.history(whole)
  for name in ("evaluations.jsonl", "completions.jsonl"):
    assert run_log.read(workdir / name) == run_log.read(whole / name)


def test_the_reference_is_the_policy_right_after_a_refresh(whole):
  """KL is measured against the policy itself in the step's first update."""
  rows = run_log.read(whole / "metrics.jsonl")
  kl = {row["step"]: row["kl"] for row in rows}
  assert kl[13] < 0.25 * kl[12]


# All that changes on the way: a value model, two sources of which one comes
# late with its own term, groups drawn anew, pass rates, a schedule.
CHANGES = """
from grpo_jax import configs

def get_config(arg):
  c = configs.built_in_rl()
  c.source, c.pretrain = arg, None
  c.total_steps = 14
  c.value = configs.value()
  c.value.optimizer.learning_rate = 1e-2
  c.advantages = dict(lambda_=0.95, kl_coef=0.05)
  c.objective, c.loss.kl_coef, c.ref_every = "ppo", 0.0, 5
  sums = dict(name="addition", train_size=24)
  c.data = dict(
    name="mixture",
    split="train",
    parts=dict(
      early=dict(data=sums, count=12),
      late=dict(data=dict(name="jsonl", path=arg + "/../late.jsonl"), count=12),
    ),
  )
  c.from_step = dict(jsonl=6)
  c.rewards = dict(
    format=1.0,
    tag_count=dict(weight=0.5, from_step=4),
    repetition=dict(
      weight=1.0, ngram=3, only_for=("jsonl",)
    ),
  )
  c.curriculum = dict(term="format", share=0.4)
  c.dynamic_sampling = dict(term="format", max_rounds=3)
  c.schedule = {8: dict(max_new_tokens=32, temperature=0.8)}
  c.prompts.num_prompts, c.sampling.group_size = 4, 4
  c.sampling.max_new_tokens = c.sampling.cache_chunk = 24
  c.batching.length_multiple = 32
  c.checkpoint.every, c.evaluate.every = 3, 99
  c.evaluate.data = dict(name="addition", split="test", test_size=8)
  c.evaluate.prompts_per_batch = 8
  c.evaluate.sampling.max_new_tokens = 24
  c.evaluate.sampling.cache_chunk = 24
  return c
"""


@pytest.mark.slow
def test_ppo_and_all_that_changes_on_the_way_goes_on_where_it_was_ended(
  base, tmp_path, data_dir
):
  experiment = tmp_path / "changes.py"
  experiment.write_text(CHANGES)
  rows = [{"question": f"{i}+1=?", "answer": f"{i + 1}"} for i in range(12)]
  (base / ".." / "late.jsonl").write_text("\n".join(map(json.dumps, rows)))
  whole, workdir = tmp_path / "whole", tmp_path / "run"
  args = f"{experiment}:{base}", data_dir
  run(args[0], whole, args[1])
  stop(signal.SIGKILL, 10, args[0], workdir, args[1])
  assert last_step(workdir) < 14
  assert "Going on after step" in run(args[0], workdir, args[1])
  history = run_log.history(whole)
  assert run_log.history(workdir) == history
  lines = run_log.read(whole / "completions.jsonl")
  assert run_log.read(workdir / "completions.jsonl") == lines
  # Each of them did something.
  first = {row["step"]: row for row in history}
  assert all(
    ("reward/jsonl" in row) <= (step > 6) for step, row in first.items()
  )
  assert any("reward/jsonl" in row for row in history)
  assert [row["rewards/tag_count/mean"] is None for row in history] == (
    [True] * 4 + [False] * 10
  )
  assert max(row["dynamic_sampling/rounds"] for row in history) > 1
  assert any(row["curriculum/passed_over"] for row in history[:6])
  assert any(line["length"] > 24 for line in lines if line["step"] > 8)
  assert all(line["length"] <= 24 for line in lines if line["step"] <= 8)
  assert all(abs(row["ratio/mean"] - 1) < 0.2 for row in history)
  assert {row["value/explained_variance"] for row in history} != {0.0}
  # What is loaded of such a run is the policy.
  _, params, step = source_lib.load_policy(workdir, helpers.make_mesh())
  assert step == 14 and "reward" not in params


def files(directory: pathlib.Path) -> dict[str, bytes]:
  found = (path for path in directory.rglob("*") if path.is_file())
  return {str(path.relative_to(directory)): path.read_bytes() for path in found}


@pytest.mark.slow
def test_adapters_go_on_where_they_were_ended_and_are_exported(
  base, tmp_path, data_dir
):
  before = files(base)
  flags = (
    *rl_flags(base, data_dir),
    "--config.lora.rank=2",
    "--config.lora.targets=('q_proj','up_proj')",
    "--config.optimizer.learning_rate=1e-2",
    "--config.total_steps=24",
    "--config.ref_every=5",
    "--config.checkpoint.every=4",
    "--config.evaluate.every=12",
  )
  whole, workdir = tmp_path / "whole", tmp_path / "run"
  experiment = f"experiments/r1_zero.py:base={base}"
  run(experiment, whole, *flags)
  stop(signal.SIGKILL, 8, experiment, workdir, *flags)
  assert last_step(workdir) < 24
  assert "Going on after step" in run(experiment, workdir, *flags)
  assert run_log.history(workdir) == run_log.history(whole)
  assert files(base) == before
  sizes = {
    source: sum(map(len, files(source / "checkpoints" / step).values()))
    for source, step in ((base, "60"), (workdir, "24"))
  }
  assert sizes[workdir] < 0.6 * sizes[base]
  # KL to the frozen base, which has no adapters, and to what they were.
  rows = run_log.read(whole / "metrics.jsonl")
  kl = {row["step"]: row["kl"] for row in rows}
  assert kl[6] < 0.25 * kl[5]

  mesh = helpers.make_mesh()
  of_run, of_whole = (
    source_lib.load_adapters(source, mesh) for source in (workdir, whole)
  )
  leaves = jax.tree.leaves(of_run.adapters), jax.tree.leaves(of_whole.adapters)
  for x, y in zip(*leaves, strict=True):
    np.testing.assert_array_equal(x, y)
    assert np.abs(x).max() > 0
  export = f"experiments/export.py:{workdir}"
  run(export, tmp_path / "model", "--config.save.dtype=float32")
  run(export, tmp_path / "adapters", "--config.adapters_only=True")
  _, params = hf.load(tmp_path / "model")
  settings, adapters = lora.load(tmp_path / "adapters", of_run.cfg)
  assert settings.targets == ("q_proj", "up_proj")
  _, frozen, _ = source_lib.load_policy(base, mesh)
  merged = lora.merge(frozen, adapters, settings.scale)
  for x, y in zip(
    jax.tree.leaves(params), jax.tree.leaves(merged), strict=True
  ):
    np.testing.assert_array_equal(x, y)
  results = run(
    f"experiments/evaluate.py:source={workdir}",
    tmp_path / "results",
    data_dir,
    "--config.datasets.pair_sum.data.name=addition",
    "--config.datasets.pair_sum.data.test_size=8",
    "--config.evaluate.prompts_per_batch=8",
  )
  assert "pass@1" in results


def test_a_finished_run_only_reports(whole, base, data_dir):
  before = (whole / "metrics.jsonl").read_bytes()
  flags = rl_flags(base, data_dir)
  printed = run(f"experiments/r1_zero.py:base={base}", whole, *flags)
  assert "pass@1" in printed
  assert (whole / "metrics.jsonl").read_bytes() == before
  assert (whole / "report.png").stat().st_size > 10_000
  assert json.loads((whole / "config.json").read_text())["stage"] == "rl"


SIGNAL_IN_LAST_BATCH = """
import os, signal
from absl import app
from grpo_jax import configs, main
from grpo_jax.stages import pretrain

class Source(pretrain.TextSource):
  drawn = 0

  def __next__(self):
    Source.drawn += 1
    if Source.drawn == 5:
      os.kill(os.getpid(), signal.SIGTERM)
    return super().__next__()

pretrain.TextSource = Source
app.run(main.main, flags_parser=configs.parse_flags)
"""


def test_a_signal_in_the_last_step_of_the_base_stops_the_rl_run(
  tmp_path, data_dir
):
  workdir = tmp_path / "run"
  _, _, *arguments = command(
    "experiments/r1_zero.py",
    workdir,
    data_dir,
    *(flag.replace("config", "config.pretrain") for flag in TINY),
    "--config.pretrain.data.name=addition_corpus",
    "--config.pretrain.data.size=2000",
    f"--config.pretrain.{data_dir.removeprefix('--config.')}",
    "--config.pretrain.total_steps=5",
    "--config.pretrain.optimizer.warmup_updates=2",
  )
  done = subprocess.run(
    [sys.executable, "-c", SIGNAL_IN_LAST_BATCH, *arguments[1:]],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert last_step(workdir / "base") == 5
  assert not (workdir / "metrics.jsonl").exists()
