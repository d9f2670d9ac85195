"""Datasets of compared completions and labelled steps, stopped or not."""

import collections
import json

import helpers
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from grpo_jax import configs
from grpo_jax.data import preferences as data
from grpo_jax.data import records
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.reward_models import learned
from grpo_jax.runs import directory
from grpo_jax.stages import preferences

TOKENIZER = tokenizer.ByteTokenizer()
CFG = helpers.tiny(num_layers=1, vocab_size=264, tied_head=False)
LETTERS = "ab;"


def run(config, workdir):
  """Runs the stage; the mesh is then what it was before."""
  with jax.set_mesh(helpers.make_mesh()):
    return preferences.run(config, workdir)


def length(problems, completions):
  """Something that differs between completions."""
  return [len(text) % 5 / 4 for text in completions]


def beginning(problems, completions):
  """What is settled before the first step ends."""
  return [float(text[:1] == "a") for text in completions]


def large(problems, completions):
  return [2.0] * len(completions)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A policy that says a few letters and ends soon."""
  folder = tmp_path_factory.mktemp("policy")
  TOKENIZER.save(folder / "tokenizer")
  directory.save_model(folder, CFG)
  params = helpers.make_params(CFG)
  said = [TOKENIZER.eos_ids[0], *TOKENIZER.encode(LETTERS)]
  head = np.array(params["head"])
  head[:, said] *= 6
  params |= {"head": head}
  args = ocp.args.StandardSave(params)
  with ocp.CheckpointManager(folder / directory.CHECKPOINTS) as manager:
    manager.save(1, args=ocp.args.Composite(params=args))
  return str(folder)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("data"))


def make_config(source, data_dir, kind, reward=length):
  c = configs.preferences()
  c.kind, c.source, c.data_dir = kind, source, data_dir
  c.model.dtype = "float32"
  c.data = dict(name="addition", split="train", train_size=12)
  c.prompts = dict(template="plain", prompt_slots=32, prompts_per_batch=8)
  c.sampling = dict(group_size=4, max_new_tokens=24, cache_chunk=24)
  function = f"{__name__}:{reward.__name__}"
  c.rewards = dict(mine=dict(weight=1.0, function=function))
  c.pairs = dict(margin=0.3, per_problem=2)
  c.steps = dict(separators=(";",), continuations=4)
  return c


@pytest.fixture(scope="module")
def pairs(source, data_dir, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("pairs") / "run"
  assert run(make_config(source, data_dir, "pairs"), workdir)
  return workdir


def test_pairs_are_of_one_problem_and_differ_by_more_than_the_margin(pairs):
  rows = records.read(pairs / "dataset")
  asked = collections.Counter(row["question"] for row in rows)
  assert len(asked) > 3 and max(asked.values()) == 2
  for row in rows:
    (chosen,), (rejected,) = (length([], [row[s]]) for s in data._SIDES)
    assert (row["chosen_reward"], row["rejected_reward"]) == (chosen, rejected)
    assert row["margin"] == chosen - rejected > 0.3
  found = [
    pair
    for split in ("train", "test")
    for pair in data.pairs(pairs / "dataset", split)
  ]
  assert len(found) == len(rows)


def test_a_dataset_says_where_it_is_from_and_what_was_left_out(pairs, source):
  told = records.provenance(pairs / "dataset")
  assert told["stage"] == "preferences"
  assert told["source"] == {"path": source, "step": 1}
  counts = told["counts"]
  assert counts["problems"] == 12 and counts["completions"] == 48
  assert 0 < counts["truncated"] < 48 and counts["unscored"] == 0


@pytest.mark.parametrize("kept", ["", "whole", "whole and a part"])
def test_a_stopped_run_goes_on_to_the_same_dataset(
  kept, pairs, source, data_dir, tmp_path
):
  config = make_config(source, data_dir, "pairs")
  directory.claim(tmp_path / "run", config.to_dict())
  first, second = (pairs / "drawn.jsonl").read_bytes().splitlines(True)
  begun = {"": b"", "whole": first, "whole and a part": first + second[:40]}
  (tmp_path / "run" / "drawn.jsonl").write_bytes(begun[kept])
  assert run(config, tmp_path / "run")
  for name in (records.RECORDS, records.PROVENANCE):
    want = (pairs / "dataset" / name).read_bytes()
    assert (tmp_path / "run" / "dataset" / name).read_bytes() == want


def test_a_written_dataset_is_left_alone(pairs, source, data_dir, capsys):
  assert run(make_config(source, data_dir, "pairs"), pairs)
  assert "already written" in capsys.readouterr().out


def test_labels_are_what_completions_earn(source, data_dir, tmp_path):
  config = make_config(source, data_dir, "labels")
  assert run(config, tmp_path / "run")
  rows = records.read(tmp_path / "run" / "dataset")
  assert [[r["label"]] for r in rows] == [
    length([], [r["completion"]]) for r in rows
  ]
  known = len({(r["question"], r["completion"]) for r in rows})
  assert known == len(rows) > 8


@pytest.mark.parametrize("reward", [beginning, length])
def test_steps_are_labelled_by_what_continuations_of_them_earn(
  reward, source, data_dir, tmp_path
):
  config = make_config(source, data_dir, "steps", reward)
  assert run(config, tmp_path / "run")
  rows = records.read(tmp_path / "run" / "dataset")
  several = 0
  for row in rows:
    labels = json.loads(row["labels"])
    steps = learned.step_offsets(row["completion"], [";"])
    assert len(labels) == len(steps)
    earned = reward([], [row["completion"]])[0]
    assert labels[-1] == earned
    # What cannot be encoded in the room of a prompt has no label.
    labels = [label for label in labels if label is not None]
    if reward is beginning:
      # A continuation keeps the beginning of what it continues.
      assert labels == [earned] * len(labels)
    else:
      # Each of four continuations earns a multiple of a quarter.
      assert all(label * 16 == int(label * 16) for label in labels)
    several += len(labels) > 1
  assert several > 2
  if reward is length:
    assert len({x for r in rows for x in json.loads(r["labels"])[:-1]}) > 2


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (dict(kind="triples"), "one of 'labels', 'pairs', 'steps'"),
    (dict(pairs=dict(best=1)), "no field 'best'"),
    (dict(sampling=dict(group_size=1)), "at least 2"),
    (dict(steps=dict(continuations=0)), "at least 1"),
    (dict(source="runs/r1_zero"), "r1_zero.py"),
  ],
)
def test_what_does_not_fit_is_one_sentence_and_leaves_nothing(
  changes, says, source, data_dir, tmp_path
):
  config = make_config(source, data_dir, "pairs")
  with config.unlocked():
    config.update(changes)
  with pytest.raises((ValueError, OSError), match=says):
    run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_reward_that_is_no_label_is_told(source, data_dir, tmp_path):
  config = make_config(source, data_dir, "labels", large)
  with pytest.raises(ValueError, match="must be in"):
    run(config, tmp_path / "run")
