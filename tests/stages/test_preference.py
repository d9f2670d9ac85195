"""Policies learn from pairs, by every loss, with and without adapters."""

import json
import signal

import helpers
import numpy as np
import orbax.checkpoint as ocp
import pytest

from grpo_jax import configs
from grpo_jax.data import rows
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.runs import directory
from grpo_jax.runs import log as run_log
from grpo_jax.runs import source as source_lib
from grpo_jax.runs.signals import Outcome
from grpo_jax.stages import preference

TOKENIZER = tokenizer.ByteTokenizer()
CFG = helpers.tiny(num_layers=1, d_model=32, head_dim=8, vocab_size=264)


def run(config, workdir):
  """Runs the stage; returns whether it got to its last step."""
  return preference.run(config, workdir) is Outcome.FINISHED


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A policy's run, as a stage leaves it."""
  folder = tmp_path_factory.mktemp("policy")
  TOKENIZER.save(folder / "tokenizer")
  directory.save_model(folder, CFG)
  args = ocp.args.StandardSave(helpers.make_params(CFG))
  with ocp.CheckpointManager(folder / directory.CHECKPOINTS) as manager:
    manager.save(1, args=ocp.args.Composite(params=args))
  return str(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """The preferred text says yes, somewhere among other letters."""
  rng = np.random.default_rng(0)
  path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
  with path.open("w") as file:
    for i in range(120):
      noise = ["".join(rng.choice(list("abc"), 4)) for _ in range(4)]
      chosen, rejected = f"{noise[0]}y{noise[1]}", f"{noise[2]}n{noise[3]}"
      record = dict(question=f"Is it {i}?", chosen=chosen, rejected=rejected)
      file.write(json.dumps(record) + "\n")
  return str(path)


def make_config(source, pairs, changes=()):
  c = configs.preference()
  c.source, c.data.path = source, pairs
  c.mesh = dict(data=-1)
  c.model = dict(dtype="float32", remat="none", head_chunk=2048)
  c.prompts.template = "bare"
  c.max_length = 64
  c.num_epochs = 2
  c.batch = dict(num_rows=16, num_microbatches=1)
  c.optimizer.update(learning_rate=3e-3, warmup_updates=0)
  c.evaluate = None
  with c.unlocked():
    c.update_from_flattened_dict(dict(changes))
  return c


@pytest.mark.parametrize(
  ("kind", "rank"),
  [("dpo", 0), ("dpo", 4), ("ipo", 0), ("kto", 0), ("orpo", 4), ("simpo", 0)],
)
def test_what_is_preferred_becomes_more_likely(
  kind, rank, source, pairs, tmp_path, monkeypatch
):
  loaded = []
  load_policy = source_lib.load_policy

  def counted(*args, frozen=False, **fields):
    loaded.append(frozen)
    return load_policy(*args, frozen=frozen, **fields)

  monkeypatch.setattr(source_lib, "load_policy", counted)
  rate = 3e-2 if rank else 3e-3
  config = make_config(
    source,
    pairs,
    {"loss.kind": kind, "lora.rank": rank, "optimizer.learning_rate": rate},
  )
  assert run(config, tmp_path / "run")
  first, last = run_log.read(tmp_path / "run" / "evaluations.jsonl")
  assert first["step"] == 0 and last["accuracy"] > 0.8
  assert last["margin"] > first["margin"] and last["loss"] < first["loss"]
  needs_reference = kind in ("dpo", "ipo", "kto")
  if needs_reference:
    assert first["margin"] == 0, "at first the policy is the reference"
  if kind == "dpo":
    assert first["loss"] == pytest.approx(np.log(2))
  # Adapters and their reference share one base; a copy of the reference stays
  # beside a policy that is all trained; otherwise there is the policy alone.
  assert loaded == ([True] if rank else [True] * needs_reference + [False])
  assert (tmp_path / "run" / "lora.json").exists() == bool(rank)


def test_a_stopped_run_goes_on_to_the_same_policy(
  source, pairs, tmp_path, monkeypatch
):
  config = make_config(source, pairs, {"loss.kind": "kto"})
  assert run(config, tmp_path / "whole")
  batch_of = rows.Batches.__call__

  def stop(batches, step):
    if step == 3:
      signal.raise_signal(signal.SIGTERM)
    return batch_of(batches, step)

  with monkeypatch.context() as patch:
    patch.setattr(rows.Batches, "__call__", stop)
    assert not run(config, tmp_path / "run")
  assert run(config, tmp_path / "run")
  found = [run_log.history(tmp_path / name) for name in ("run", "whole")]
  assert found[0] == found[1]


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"loss.kind": "dpp"}, "did you mean 'dpo'"),
    ({"loss.beta": -1.0}, "beta=-1.0 must be positive"),
    ({"loss.odds_coef": 1.0}, "no field 'odds_coef'"),
    ({"num_epochz": 1}, "did you mean 'num_epochs'"),
    ({"batch.num_microbatches": 3}, "num_rows=16 must divide by"),
    ({"max_length": 8}, "nothing to train on"),
    ({"prompts.template": "chat"}, "tokenizer has no chat template"),
    ({"data.path": "runs/r1_preferences/dataset"}, "r1_preferences.py"),
    ({"source": "runs/r1_sft"}, "No model in .*: run `.*r1_sft.py`"),
  ],
)
def test_what_does_not_fit_is_one_sentence_and_leaves_nothing(
  changes, says, source, pairs, tmp_path
):
  config = make_config(source, pairs, changes)
  with pytest.raises((ValueError, OSError), match=says):
    run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
