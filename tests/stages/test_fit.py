"""Batch sizes that fit the devices, and settings of real models."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import bases
import pytest

from grpo_jax import configs
from grpo_jax.models import hf, presets
from grpo_jax.runs import directory
from grpo_jax.runs import log as run_log
from grpo_jax.stages import describe, fit, rl

REPOSITORY = pathlib.Path(__file__).parents[2]
GIB = 2**30


def get_config(name, argument):
  path = REPOSITORY / "experiments" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(argument)


@pytest.fixture
def qwen(tmp_path):
  """A base whose config.json is that of Qwen2.5-1.5B; there are no weights."""
  base = bases.write_small(tmp_path / "base")
  cfg = presets.PRESETS["qwen2.5-1.5b"]
  content = hf.config.to_hf(cfg)
  (base / "config.json").write_text(json.dumps(content))
  return base


def test_more_memory_gives_more_prompts_and_fewer_pieces(qwen):
  config = get_config("r1_zero", f"base={qwen}")
  found = []
  for gib in (48, 80, 8 * 80, 64 * 80):
    fitted, lines = fit.rl(config, 1, gib * GIB)
    prompts, batching = fitted.prompts.num_prompts, fitted.batching
    pieces = batching.num_minibatches * batching.num_microbatches
    assert prompts % pieces == 0
    found.append((prompts, pieces))
    assert f"{prompts} prompts of 8 completions a step" in lines[0]
    assert f"{gib:.1f} GiB" in lines[0]
    assert fitted.evaluate.prompts_per_batch > 0
  prompts, pieces = zip(*found, strict=True)
  assert list(prompts) == sorted(prompts) and prompts[-1] == 32
  shares = [p / n for p, n in found]
  assert shares == sorted(shares) and shares[-1] > shares[0]


def test_what_cannot_fit_is_said(qwen):
  config = get_config("r1_zero", f"base={qwen}")
  _, lines = fit.rl(config, 1, 16 * GIB)
  assert "even the smallest batch does not fit: use" in lines[1]
  config.lora.rank = 8
  fitted, lines = fit.rl(config, 1, 16 * GIB)
  assert len(lines) == 1 and fitted.prompts.num_prompts >= 2


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_rows_divide_over_the_devices(devices, qwen):
  config = get_config("r1_zero", f"base={qwen}")
  for memory in (None, devices * 80 * GIB):
    fitted, _ = fit.rl(config, devices, memory)
    pieces = fitted.batching.num_minibatches * fitted.batching.num_microbatches
    assert fitted.prompts.num_prompts % (pieces * devices) == 0
    assert fitted.evaluate.prompts_per_batch % devices == 0


def test_a_run_keeps_its_prompts_on_another_machine(qwen):
  config = get_config("r1_zero", f"base={qwen}")
  fitted, _ = fit.rl(config, 1, 80 * GIB)
  kept = {"num_prompts": fitted.prompts.num_prompts}
  again, _ = fit.rl(config, 1, None, kept)
  assert again.prompts.num_prompts == fitted.prompts.num_prompts
  assert again.batching.num_microbatches >= fitted.batching.num_microbatches


def test_sizes_that_a_config_names_stay(qwen):
  config = get_config("r1_zero", f"base={qwen}")
  config.prompts.num_prompts = 6
  fitted, _ = fit.rl(config, 1, None)
  assert fitted.prompts.num_prompts == 6
  assert fitted.batching.num_microbatches == 3
  config = get_config("r1_zero", None)
  assert fit.rl(config, 1, None) == (config, [])
  config.prompts.num_prompts = -1
  with pytest.raises(ValueError, match="num_prompts=-1 must be a whole number"):
    rl.check(config)


def test_text_is_cut_into_rows_that_fit(qwen):
  config = get_config("r1_cold_start", f"base={qwen}")
  assert config.batch.row_length == 4096
  assert fit.rows(config, 4096, 1, None) == 16
  assert 1 <= fit.rows(config, 4096, 1, 80 * GIB) < 16
  assert describe.read_model(config).dtype == "bfloat16"


@pytest.mark.parametrize(
  ("name", "argument"),
  [
    ("r1_zero", "base={}"),
    ("r1_zero", "gsm8k,base={}"),
    ("r1_zero", "data=mine.jsonl,base={}"),
    ("ppo", "base={}"),
    ("recipes", "dapo,base={}"),
    ("r1_cold_start", "base={},data=mine.jsonl"),
    ("r1_sft", "base={},data=mine.jsonl"),
    ("preference", "base={},pairs=mine.jsonl"),
    ("evaluate", "source={}"),
    ("r1_rejection", "source={}"),
    ("r1_preferences", "source={}"),
    ("judge", "source={}"),
    ("r1_rl", "runs={}"),
    ("r1_rlhf", "runs={}"),
  ],
)
def test_no_setting_of_the_toy_meets_a_real_model(name, argument, qwen):
  for run in ("r1_cold_start", "r1_sft"):
    path = qwen.parent / "runs" / run
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"source": str(qwen)}))
  runs = "runs" in argument
  c = get_config(name, argument.format(qwen.parent / "runs" if runs else qwen))
  assert c.model.dtype == "bfloat16"
  text = str(c.to_dict())
  assert "'prompt_slots': 24" not in text
  assert "'max_new_tokens': 88" not in text
  assert "'template': 'plain'" not in text


def test_a_run_that_began_with_a_real_model_is_one(qwen, tmp_path):
  for name, source in (("one", qwen), ("two", "one"), ("toy", "")):
    (tmp_path / name).mkdir()
    source = source and str(tmp_path / source)
    (tmp_path / name / "config.json").write_text(
      json.dumps({"stage": "sft", "source": source})
    )
  assert configs.is_real(str(qwen))
  assert configs.is_real(str(tmp_path / "two"))
  assert not configs.is_real(str(tmp_path / "toy"))
  assert not configs.is_real(str(tmp_path / "none"))


@pytest.mark.slow
def test_the_first_command_for_a_real_model_runs(shared_data, tmp_path):
  """As docs/models.md has it, on a random Qwen2.5 with the real tokenizer."""
  base = bases.write_real(tmp_path / "base", shared_data, "qwen2_5")
  bases.write_model(base)
  done = subprocess.run(
    [
      *(sys.executable, "-m", "grpo_jax.main"),
      f"--config=experiments/r1_zero.py:smoke,base={base}",
      "--config.prompts.template=chat",
      f"--workdir={tmp_path / 'run'}",
      f"--config.data_dir={tmp_path / 'data'}",
    ],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert "The system prompt is 'r1_zero'" in done.stdout
  assert "Completions end at '<|im_end|>', '<|endoftext|>'." in done.stdout
  assert "4 prompts of 8 completions a step" in done.stdout
  history = run_log.read(tmp_path / "run" / "metrics.jsonl")
  assert [row["step"] for row in history] == [1, 2]
  kept = json.loads((tmp_path / "run" / directory.FITTED).read_text())
  assert kept == {"num_prompts": 4}
