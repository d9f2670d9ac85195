"""The tokenizer of the pretrain stage, its options, and what it refuses."""

import pathlib
import subprocess
import sys

import pytest

from grpo_jax import configs
from grpo_jax.runs import log as run_log
from grpo_jax.stages import pretrain

REPOSITORY = pathlib.Path(__file__).parents[2]

DOCUMENTS = ["35,22,13,19=35? 22+13", "1+2=3", "ok", "no wait, 4+5=9"]


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_the_tokenizer_is_made_once_and_then_read(kind, tmp_path):
  section = configs.pretrain().tokenizer
  section.kind, section.vocab_size = kind, 64
  directory = tmp_path / "tokenizer"
  made = pretrain.make_tokenizer(section, DOCUMENTS, directory)
  again = pretrain.make_tokenizer(section, ["other text"], directory)
  assert made.encode(DOCUMENTS[0]) == again.encode(DOCUMENTS[0])
  assert made.decode(made.encode(DOCUMENTS[3])) == DOCUMENTS[3]


def test_the_command_line_chooses_z_loss_and_label_smoothing(tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, "-m", "grpo_jax.main"),
      "--config=experiments/pretrain.py",
      f"--workdir={tmp_path / 'run'}",
      f"--config.data_dir={tmp_path / 'data'}",
      "--config.data.size=200",
      "--config.tokenizer.kind=bytes",
      "--config.model.num_layers=1",
      "--config.total_steps=2",
      "--config.optimizer.warmup_updates=0",
      "--config.log_every=1",
      "--config.loss.z_coef=0.01",
      "--config.loss.label_smoothing=0.1",
    ],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  history = run_log.read(tmp_path / "run" / "metrics.jsonl")
  assert len(history) == 2
  for row in history:
    assert row["z"] > 0
    # What is above it is the share of the smoothing.
    assert row["loss"] > 0.9 * row["nll"] + 0.01 * row["z"]


@pytest.mark.parametrize(
  "changes, sentence",
  [
    (dict(num_rows=30, num_microbatches=4), "num_rows=30 must divide by"),
    (dict(num_rowz=3), "has no field 'num_rowz'; did you mean 'num_rows'"),
  ],
)
def test_bad_batches_are_refused_in_one_sentence(changes, sentence, tmp_path):
  config = configs.pretrain()
  with config.unlocked():
    config.batch.update(changes)
  with pytest.raises(ValueError, match=sentence):
    pretrain.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "section, field, value, sentence",
  [
    ("tokenizer", "kind", "words", "kind='words' must be one of"),
    ("model", "num_kv_heads", 3, "must divide by"),
    ("model", "dtype", "float8", "dtype='float8' must be one of"),
    ("loss", "label_smoothing", 1.0, "label_smoothing=1.0 must be in"),
    ("loss", "z_coef", -0.1, "z_coef=-0.1 must not be negative"),
    ("mesh", "expert", 2, "expert=2, and the model has no experts"),
    ("optimizer", "schedule", "sine", "schedule='sine' must be one of"),
    ("optimizer", "warmup_updates", 10_000, "warmup_updates=10000 must be"),
  ],
)
def test_bad_fields_are_refused_in_one_sentence(
  section, field, value, sentence, tmp_path
):
  config = configs.pretrain()
  config[section][field] = value
  with pytest.raises(ValueError, match=sentence):
    pretrain.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
