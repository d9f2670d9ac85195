"""Datasets from a policy, in real processes that may be killed."""

import hashlib
import importlib.util
import json
import pathlib
import signal
import subprocess
import sys

import helpers
import jax
import ml_collections
import optax
import pytest
import tensorflow_datasets as tfds

from grpo_jax import configs
from grpo_jax.curation import ask
from grpo_jax.data import datasets, prompts, records
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.runs import directory
from grpo_jax.runs import log as run_log
from grpo_jax.stages import rejection
from grpo_jax.train import checkpoint
from grpo_jax.train import state as state_lib

REPOSITORY = pathlib.Path(__file__).parents[2]
# 4 problems of each way in batches of 2; a tokenizer so small that an untrained
# model stops, begins a next turn, and writes a tag, now and then.
CONFIG = """
from grpo_jax import configs

def get_config(arg):
  c = configs.rejection()
  c.mesh.data = 1
  c.model.dtype = "float32"
  c.data_dir = "{folder}/data"
  c.data = dict(name="addition", split="train", train_size=200)
  way = dict(source="{folder}/source", template="plain", prompt_slots=64)
  c.ways = dict(
    few=dict(way, num_problems=40, shots="{folder}/shots", num_shots=1),
    late=dict(way, first_problem=20, rewrite=dict(words=(("+", "-"),))),
  )
  c.decontaminate = dict(
    ngram=3, tests=dict(own=dict(name="jsonl", split="train", path="{tests}"))
  )
  c.prompts_per_batch = 2
  c.sampling = dict(group_size=3, max_new_tokens=8, cache_chunk=8)
  c.rewards = dict(overlong=dict(weight=1.0, limit=8, cache=4))
  c.keep = dict(overlong=-0.3)
  c.filters = dict(truncated=True, duplicate=True, near_duplicate=dict(n=1))
  c.max_per_prompt = 1
  return c
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A source, worked examples and an experiment."""
  folder = tmp_path_factory.mktemp("rejection")
  load = datasets.load
  problems = load(
    "addition", split="train", train_size=200, data_dir=folder / "data"
  )
  tests = folder / "tests.jsonl"
  leaked = [problems[i].question for i in (0, 30, 150)]
  tests.write_text(
    "".join(json.dumps({"question": q, "answer": "1"}) + "\n" for q in leaked)
  )
  (folder / "experiment.py").write_text(
    CONFIG.format(folder=folder, tests=tests)
  )
  records.write(
    folder / "shots", [{"question": "11+12=?", "completion": "23"}], {}
  )
  texts = ["User: 1234567890+=?\nAssistant: 0123456789"] * 9
  tok = tokenizer.train_sentencepiece(
    texts,
    folder / "source" / "tokenizer",
    vocab_size=32,
    symbols=("User:", "Assistant:", "<think>", "</think>"),
    byte_fallback=False,
  )
  cfg = helpers.tiny(num_layers=1, vocab_size=tok.vocab_size)
  directory.save_model(folder / "source", cfg)
  mesh = helpers.make_mesh()
  with jax.set_mesh(mesh):
    params = helpers.make_params(cfg, mesh)
    checkpointer = checkpoint.Checkpointer(folder / "source")
    checkpointer.save(7, state_lib.init_state(params, optax.sgd(0.1)))
    checkpointer.close()
  return folder


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
  """Programs that one process compiled are there for the next."""
  with pytest.MonkeyPatch.context() as patch:
    patch.delenv("XLA_FLAGS", raising=False)
    cache = tmp_path_factory.mktemp("compiled")
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    yield


# Ends itself in the middle of writing a batch, or asks itself to stop there.
STOPPED = """
import os, signal, sys
from absl import app
from grpo_jax import configs, main
from grpo_jax.runs import log as run_log

number, batch = signal.Signals(int(sys.argv.pop(1))), int(sys.argv.pop(1))
append = run_log.JsonLines.append

def append_or_stop(lines, *rows):
  if rows[0]["step"] == batch:
    if number == signal.SIGKILL:
      append(lines, rows[0])
      lines._file.write(b'{"step": ')
      lines._file.flush()
    os.kill(os.getpid(), number)
  append(lines, *rows)

run_log.JsonLines.append = append_or_stop
app.run(main.main, flags_parser=configs.parse_flags)
"""


def run(folder, workdir, *program, code=0) -> str:
  """Runs the experiment in a process of its own; returns what it printed."""
  done = subprocess.run(
    [
      *(sys.executable, *(program or ("-m", "grpo_jax.main"))),
      f"--config={folder}/experiment.py:",
      f"--workdir={workdir}",
    ],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == code, done.stderr[-3000:]
  return done.stdout


def files(directory: pathlib.Path) -> dict[str, str]:
  return {
    str(path.relative_to(directory)): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in directory.rglob("*")
    # Protocol buffers order a record's fields anew in each process.
    if path.is_file() and ".array_record" not in path.name
  }


def of_tfds(directory: pathlib.Path) -> list[str]:
  builder = tfds.builder_from_directory(directory / "tfds")
  return list(map(str, builder.as_data_source("train")))


@pytest.fixture(scope="module")
def whole(folder):
  """A run from beginning to end: its directory, and what it printed."""
  workdir = folder / "whole"
  return workdir, run(folder, workdir)


def rows_of(workdir):
  return run_log.read(workdir / rejection.COMPLETIONS)


def test_every_completion_is_counted_once(whole):
  workdir, printed = whole
  rows = rows_of(workdir)
  provenance = records.provenance(workdir / "dataset")
  # Of the first 40 problems two are of the test set, of the last 180 two.
  assert provenance["contaminated"] == {"few": {"own": 2}, "late": {"own": 2}}
  assert len(rows) == 3 * (40 - 2 + 180 - 2)
  counts = provenance["counts"]
  assert counts["asked"] == len(rows)
  assert counts["kept"] == provenance["num_records"] > 10
  assert counts["kept"] + sum(counts["dropped"].values()) == len(rows)
  assert {"truncated", "overlong", "max_per_prompt"} <= counts["dropped"].keys()
  for way in ("few", "late"):
    of_way = [row for row in rows if row["way"] == way]
    assert provenance["ways"][way]["asked"] == len(of_way)
    assert f"{way}: kept {provenance['ways'][way]['kept']} of" in printed
  assert "drop: truncated (few)" in printed
  assert "kept (late)" in printed
  assert provenance["sources"]["few"]["step"] == 7
  assert provenance["config"]["keep"] == {"overlong": -0.3}


def test_a_question_is_kept_once_over_both_ways(whole):
  workdir, _ = whole
  found = records.read(workdir / "dataset")
  questions = [row["question"] for row in found]
  assert len(set(questions)) == len(questions)
  assert {row["way"] for row in found} == {"few", "late"}
  assert all(row["messages"][0]["content"] == row["question"] for row in found)


def test_completions_end_at_the_next_turn_and_are_rewritten(whole):
  rows = rows_of(whole[0])
  assert not any("User:" in row["completion"] for row in rows)
  late = [row for row in rows if row["way"] == "late"]
  changed = [row for row in late if "sampled" in row]
  assert changed
  for row in changed:
    assert row["completion"] == row["sampled"].replace("+", "-")
  assert not any("sampled" in row for row in rows if row["way"] == "few")


def test_tfds_reads_what_jsonl_says(whole):
  directory = whole[0] / "dataset"
  found, rows = of_tfds(directory), records.read(directory)
  assert len(found) == len(rows)
  for text, row in zip(found, rows, strict=True):
    assert str(row["completion"].encode()) in text


@pytest.mark.parametrize(
  "number, batches", [(signal.SIGKILL, 9), (signal.SIGTERM, 60)]
)
def test_a_stopped_run_writes_the_same_dataset(
  number, batches, folder, whole, tmp_path
):
  workdir = tmp_path / "run"
  program = "-c", STOPPED, str(int(number)), str(batches)
  code = 0 if number == signal.SIGTERM else -signal.SIGKILL
  printed = run(folder, workdir, *program, code=code)
  done = batches if number == signal.SIGTERM else batches - 1
  if number == signal.SIGTERM:
    assert f"Stopped after batch {done};" in printed
  assert not (workdir / "dataset").exists()
  assert f"Going on after batch {done} of" in run(folder, workdir)
  dataset, expected = workdir / "dataset", whole[0] / "dataset"
  assert files(dataset) == files(expected)
  assert of_tfds(dataset) == of_tfds(expected)
  path = workdir / rejection.COMPLETIONS
  assert path.read_bytes() == (whole[0] / rejection.COMPLETIONS).read_bytes()


def test_a_finished_run_says_so_at_once(folder, whole):
  before = files(whole[0])
  printed = run(folder, whole[0])
  assert "already holds all" in printed
  assert "kept" not in printed
  assert files(whole[0]) == before


def load_config(folder) -> ml_collections.ConfigDict:
  namespace = {}
  exec((folder / "experiment.py").read_text(), namespace)
  c = namespace["get_config"](None)
  # The eight devices of a test, and rows that divide over them.
  c.mesh.update(data=2, fsdp=2, tensor=2)
  c.sampling.group_size = 4
  return c


def test_nothing_kept_is_one_sentence_with_each_reason(folder, tmp_path):
  c = load_config(folder)
  del c.ways.late
  c.ways.few.num_problems = 4
  c.keep.overlong = 0.5
  with pytest.raises(ValueError) as error:
    rejection.run(c, tmp_path / "run")
  sentence = str(error.value)
  rows = rows_of(tmp_path / "run")
  reasons = [row["dropped"] for row in rows]
  assert sentence.startswith(f"Nothing is kept of {len(rows)} completions:")
  for reason in set(reasons):
    assert f"{reasons.count(reason)} {reason}" in sentence
  assert not (tmp_path / "run" / "dataset").exists()


REFUSED = {
  "a source that is not there": (
    lambda c: c.ways.few.update(source="runs/r1_rl"),
    r"No model in 'runs/r1_rl'.*--config\.ways\.few\.source",
  ),
  "a misspelt field of a way": (
    lambda c: c.ways.few.update(templat="plain"),
    r"config\.ways\.few has no field 'templat'; did you mean 'template'",
  ),
  "a misspelt field of its sampling": (
    lambda c: c.ways.few.update(sampling=dict(top=1)),
    r"config\.ways\.few\.sampling has no field 'top'",
  ),
  "examples without their number": (
    lambda c: c.ways.few.update(num_shots=0),
    r"config\.ways\.few needs both shots and num_shots",
  ),
  "more examples than there are": (
    lambda c: c.ways.few.update(num_shots=2),
    r"has 1 worked examples, and num_shots is 2",
  ),
  "examples that are not there": (
    lambda c: c.ways.few.update(shots="none"),
    r"'none' are neither a dataset of records nor one of word_problems",
  ),
  "a prompt that is too long": (
    lambda c: c.ways.few.update(prompt_slots=8),
    r"prompt_slots=8",
  ),
  "no problem that is not in a test set": (
    lambda c: c.ways.few.update(num_problems=1),
    r"config\.ways\.few has no problem to ask: of those that it names, 1 share",
  ),
  "test sets without what is the same wording": (
    lambda c: setattr(c, "decontaminate", dict(tests=dict())),
    r"config\.decontaminate lacks the field 'ngram'",
  ),
  "an unknown test set": (
    lambda c: c.decontaminate.tests.update(x=dict(name="gsm", split="test")),
    r"tests\.x\.name='gsm' must be one of .*; did you mean 'mgsm'\?",
  ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_run_is_refused_before_anything_is_written(
  case, folder, tmp_path
):
  change, sentence = REFUSED[case]
  c = load_config(folder)
  change(c)
  with pytest.raises((ValueError, OSError), match=sentence):
    rejection.run(c, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_source_that_went_on_is_not_mixed_with_what_was_sampled(
  folder, tmp_path
):
  c = load_config(folder)
  _, ways = rejection.read(c)
  questions = {
    n: ask.ask(way, [], None, sampling={}, prompts_per_batch=1)
    for n, way in ways.items()
  }
  first = rejection.remember_sources(tmp_path, ways, questions)
  assert rejection.remember_sources(tmp_path, ways, questions) == first
  path = tmp_path / "sources.json"
  path.write_text(path.read_text().replace('"step": 7', '"step": 6'))
  with pytest.raises(ValueError, match="the sources have changed"):
    rejection.remember_sources(tmp_path, ways, questions)


@pytest.mark.parametrize("builder", [configs.rejection, configs.collect])
def test_each_builder_s_config_can_be_read(builder):
  rules, ways = rejection.read(builder())
  assert rules.keep == {"accuracy": 1.0}
  assert all(way.message in prompts.TEMPLATES for way in ways.values())


@pytest.mark.parametrize("name", ["r1_collect", "r1_rejection"])
@pytest.mark.parametrize("arg", [None, "smoke", "qwen2.5-7b", "runs=elsewhere"])
def test_each_experiment_can_be_read(name, arg):
  path = REPOSITORY / "experiments" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  rules, ways = rejection.read(module.get_config(arg))
  assert rules.keep["accuracy"] == 1.0
  assert set(ways) == (
    {"few_shot", "detailed", "zero"} if name == "r1_collect" else {"sampled"}
  )
  if arg == "runs=elsewhere":
    assert all(way.source.startswith("elsewhere/") for way in ways.values())
