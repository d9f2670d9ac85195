"""Reward models learn from pairs and labels, and are sources of rewards."""

import json

import helpers
import numpy as np
import orbax.checkpoint as ocp
import pytest

from grpo_jax import (
  checkpoint,
  configs,
  run_log,
  types,
)
from grpo_jax.data import preferences, tokenizer
from grpo_jax.rewards import learned
from grpo_jax.stages import reward_model

TOKENIZER = tokenizer.ByteTokenizer()
CFG = helpers.tiny(num_layers=1, d_model=32, head_dim=8, vocab_size=264)
READING = learned.Reading("outcome", template="{question}\n")


def problem(question):
  return types.Problem(question, "", "mine", "")


def make_pairs(count):
  """The preferred text says yes, somewhere among other letters."""
  rng = np.random.default_rng(0)
  for i in range(count):
    noise = ["".join(rng.choice(list("abcdef"), 6)) for _ in range(4)]
    chosen, rejected = f"{noise[0]}y{noise[1]}", f"{noise[2]}n{noise[3]}"
    yield dict(question=f"Is it {i}?", chosen=chosen, rejected=rejected)


def write(path, records):
  path.write_text("".join(json.dumps(r) + "\n" for r in records))
  return str(path)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A policy's run, as a stage leaves it."""
  folder = tmp_path_factory.mktemp("policy")
  TOKENIZER.save(folder / "tokenizer")
  checkpoint.save_model(folder, CFG)
  args = ocp.args.StandardSave(helpers.make_params(CFG))
  with ocp.CheckpointManager(folder / checkpoint.CHECKPOINTS) as manager:
    manager.save(1, args=ocp.args.Composite(params=args))
  return str(folder)


def make_config(source, path, kind="bradley_terry", **changes):
  c = configs.reward_model()
  c.kind, c.source, c.data.path = kind, source, str(path)
  c.mesh = dict(data=-1)
  c.model = dict(dtype="float32", remat="none")
  c.prompts.template = "bare"
  c.reading.reads = "completion"
  c.max_length = 64
  c.batch.num_rows = 16
  c.epochs = 3
  c.optimizer.learning_rate = 3e-3
  c.evaluate.rows_per_batch = 16
  c.log_every = 1
  c.update(changes)
  return c


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
  """A finished Bradley-Terry model: its config and its directory."""
  folder = tmp_path_factory.mktemp("bradley_terry")
  path = write(folder / "pairs.jsonl", make_pairs(400))
  config = make_config(source, path, normalize=dict(unit_variance=True))
  assert reward_model.run(config, folder / "run")
  return config, folder / "run"


def test_pairs_that_differ_by_a_letter_are_learned(trained):
  _, workdir = trained
  first, last = run_log.read(workdir / "evaluations.jsonl")
  assert first["step"] == 0 and first["accuracy"] == 0.5
  assert first["loss"] == pytest.approx(np.log(2))
  assert last["accuracy"] > 0.9 and last["loss"] < first["loss"]
  assert last["pairs"] == sum(
    preferences.split_of(f"Is it {i}?") == "test" for i in range(400)
  )
