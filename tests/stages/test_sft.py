"""The sft stage learns, with and without adapters, and what it refuses."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import helpers
import pytest

from grpo_jax import configs
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.runs import directory
from grpo_jax.runs import log as run_log
from grpo_jax.stages import sft
from grpo_jax.train import checkpoint, loop, optimizer
from grpo_jax.train import state as state_lib

REPOSITORY = pathlib.Path(__file__).parents[2]


def run(experiment, workdir, *flags):
  done = subprocess.run(
    [
      *(sys.executable, "-m", "grpo_jax.main", f"--config={experiment}"),
      *(f"--workdir={workdir}", *flags),
    ],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return f"--config.data_dir={tmp_path_factory.mktemp('data')}"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A model that has learned nothing, with a tokenizer for sums."""
  workdir = tmp_path_factory.mktemp("runs") / "base"
  cfg = helpers.tiny(vocab_size=64, num_layers=1)
  tokenizer.train_sentencepiece(
    ["User: 1+2=?\nAssistant: 3", "4567890"] * 9,
    workdir / "tokenizer",
    vocab_size=48,
  )
  directory.save_model(workdir, cfg)
  checkpointer = checkpoint.Checkpointer(workdir)
  tx, _ = optimizer.make_optimizer(1, learning_rate=0.1)
  checkpointer.save(1, state_lib.init_state(helpers.make_params(cfg), tx))
  checkpointer.close()
  return workdir


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
  """Forty-one sums, one of them too long for a row."""
  path = tmp_path_factory.mktemp("talks") / "talks.jsonl"
  rows = [{"question": f"{i}+1=?", "answer": f"{i + 1}"} for i in range(40)]
  rows.append({"question": "1+1=?", "answer": "1" * 200})
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def flags_for(data_dir):
  return (
    data_dir,
    "--config.num_epochs=10",
    "--config.batch.num_rows=4",
    "--config.batch.row_length=64",
    "--config.log_every=1",
  )


def evaluation(data_dir):
  return (
    "--config.evaluate.data.name=addition",
    "--config.evaluate.data.test_size=8",
    "--config.evaluate.prompts_per_batch=8",
    "--config.evaluate.sampling.max_new_tokens=8",
    "--config.evaluate.sampling.cache_chunk=8",
  )


@pytest.mark.parametrize("rank", [0, 2])
def test_it_learns_evaluates_and_says_what_it_left_out(
  rank, base, talks, data_dir, tmp_path
):
  workdir = tmp_path / "run"
  printed = run(
    f"experiments/r1_cold_start.py:base={base},data={talks}",
    workdir,
    *flags_for(data_dir),
    *evaluation(data_dir),
    f"--config.lora.rank={rank}",
    f"--config.optimizer.learning_rate={0.03 if rank else 0.01}",
  )
  assert "Left out because longer than 64 tokens: 1 conversations" in printed
  history = run_log.read(workdir / "metrics.jsonl")
  assert history[0]["weight"] == pytest.approx(1, abs=1e-5)
  assert history[-1]["loss"] < (0.9 if rank else 0.7) * history[0]["loss"]
  # Cosine to a tenth: the last update is just above it.
  rates = [row["learning_rate"] for row in history]
  assert rates[0] > 9 * rates[-1] and rates == sorted(rates, reverse=True)
  steps = [r["step"] for r in run_log.read(workdir / "evaluations.jsonl")]
  assert steps == [0, len(history)]
  assert loop.is_finished(workdir, len(history))
  assert (workdir / "lora.json").exists() == bool(rank)
  assert (workdir / "report.png").stat().st_size > 10_000


def test_the_command_line_chooses_z_loss_and_label_smoothing(
  base, talks, data_dir, tmp_path
):
  run(
    f"experiments/r1_cold_start.py:smoke,base={base},data={talks}",
    tmp_path / "run",
    *flags_for(data_dir),
    *evaluation(data_dir),
    "--config.loss.z_coef=0.5",
    "--config.loss.label_smoothing=0.1",
  )
  history = run_log.read(tmp_path / "run" / "metrics.jsonl")
  assert len(history) == 2
  for row in history:
    assert row["z"] > 0
    assert row["loss"] > 0.9 * row["nll"] + 0.5 * row["z"]


def config_of(base="", data=""):
  path = REPOSITORY / "experiments" / "r1_cold_start.py"
  spec = importlib.util.spec_from_file_location("r1_cold_start", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(f"base={base},data={data}")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_epochz": 3}, "no field 'num_epochz'; did you mean 'num_epochs'"),
    ({"batch.num_microbatches": 3}, "num_rows=16 must divide by"),
    ({"batch.row_length": 4}, "All 41 conversations are longer than"),
    ({"num_epochs": 0}, "num_epochs=0 must be at least 1"),
    ({"loss.label_smoothing": 2.0}, "label_smoothing=2.0 must be in"),
    ({"max_steps": -1}, "max_steps=-1 must not be negative"),
    ({"optimizer.warmup_updates": 99}, "warmup_updates=99 must be below"),
    ({"prompts.template": "chat"}, "tokenizer has no chat template"),
    ({"router_bias_rate": 0.1, "lora.rank": 2}, "set one of them to 0"),
    ({"evaluate.sampling.top_p": 2.0}, "top_p"),
    ({"data.path": "runs/r1_zero/dataset"}, "run `.*r1_zero.py` first"),
    ({"source": "runs/r1_zero/base"}, "No model in .*: run `.*r1_zero.py`"),
  ],
)
def test_bad_configs_are_one_sentence_and_leave_nothing(
  changes, message, base, talks, data_dir, tmp_path
):
  config = config_of(base, talks)
  config.data_dir = data_dir.partition("=")[2]
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    sft.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_text_that_the_tokenizer_cannot_write_is_refused(
  base, data_dir, tmp_path
):
  path = tmp_path / "talks.jsonl"
  path.write_text(json.dumps({"question": "1+1=?", "answer": "二"}))
  config = config_of(base, path)
  config.data_dir = data_dir.partition("=")[2]
  with pytest.raises(ValueError, match="Conversation 0 has .* write: '二'"):
    sft.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_run_may_have_no_evaluation():
  config = configs.sft()
  config.evaluate = None
  config.data.path = "conversations.jsonl"
  with pytest.raises(FileNotFoundError, match="No model in ''"):
    sft.check(config)
