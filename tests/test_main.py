"""The command line, in real processes: what it refuses, and one that works."""

import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys

import helpers
import jax
import optax
import pytest

from grpo_jax import main
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.runs import directory
from grpo_jax.sampling import decode
from grpo_jax.train import checkpoint
from grpo_jax.train import state as state_lib

REPOSITORY = pathlib.Path(__file__).parents[1]

# What is given after the program's name, and the sentence that comes back.
REFUSED = {
  "a misspelt field": (
    ["--config=experiments/r1_zero.py", "--config.sampling.group_sise=4"],
    r"config\.sampling has no field 'group_sise'; did you mean 'group_size'\?",
  ),
  "a value of another type": (
    ["--config=experiments/r1_zero.py", "--config.total_steps=many"],
    r"total_steps.*many",
  ),
  "a field of another objective": (
    [
      "--config=experiments/r1_zero.py",
      "--config.objective=cispo",
      "--config.loss.clip_low=0.1",
    ],
    r"config\.loss has no field 'clip_low'; ",
  ),
  "a missing experiment": (
    ["--config=experiments/r1_zer.py"],
    r"no config file 'experiments/r1_zer.py'; .*'experiments/r1_zero.py'",
  ),
  "an unknown stage": (
    ["--config=experiments/r1_zero.py", "--config.stage=rll"],
    r"config\.stage='rll' must be one of",
  ),
  "one completion per prompt": (
    ["--config=experiments/r1_zero.py", "--config.sampling.group_size=1"],
    r"config\.sampling\.group_size=1 must be at least 2",
  ),
  "batches that do not divide": (
    ["--config=experiments/r1_zero.py", "--config.prompts.num_prompts=33"],
    r"num_prompts=33 must divide by num_minibatches x num_microbatches = 2 x 1",
  ),
  "a mesh larger than the machine": (
    ["--config=experiments/r1_zero.py", "--config.mesh.fsdp=3"],
    r"needs \d+ devices, and there are 8",
  ),
  "rows that the devices do not divide": (
    [
      "--config=experiments/r1_zero.py",
      "--config.prompts.num_prompts=6",
      "--config.sampling.group_size=3",
    ],
    r"6 prompts x 3 completions do not divide over the mesh's 8 \(data\)",
  ),
  "a missing template": (
    ["--config=experiments/r1_zero.py", "--config.prompts.template=none.txt"],
    r"Template 'none.txt' is neither a file nor one of",
  ),
  "a missing file of text": (
    ["--config=experiments/pretrain.py:text=missing/texts"],
    r"missing/texts",
  ),
  "a missing base": (
    ["--config=experiments/r1_zero.py:base=missing/base"],
    r"No model in 'missing/base': run `python -m grpo_jax\.main"
    r" --config=experiments/pretrain\.py --workdir=missing/base`",
  ),
  "a prompt longer than its slots": (
    [
      "--config=experiments/r1_zero.py:base={base}",
      "--config.prompts.prompt_slots=8",
    ],
    r"The prompt 'User: .* has \d+ tokens, but prompt_slots=8; the others",
  ),
  "a directory with another run": (
    ["--config=experiments/r1_zero.py", "--workdir={other}"],
    r"holds another run: its config\.[\w.]+ is ",
  ),
  "a directory with other files": (
    ["--config=experiments/r1_zero.py", "--workdir={foreign}"],
    r"is not empty and holds no run of ours",
  ),
}


def start(arguments, **environment):
  return subprocess.run(
    [sys.executable, "-m", "grpo_jax.main", *arguments],
    cwd=REPOSITORY,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """The directory of a run with an untrained policy, made by hand."""
  workdir = tmp_path_factory.mktemp("base")
  tok = tokenizer.ByteTokenizer()
  tok.save(workdir / "tokenizer")
  cfg = helpers.tiny(num_layers=1, vocab_size=tok.vocab_size + 1)
  directory.save_model(workdir, cfg)
  mesh = helpers.make_mesh()
  with jax.set_mesh(mesh):
    params = helpers.make_params(cfg, mesh)
    checkpointer = checkpoint.Checkpointer(workdir)
    checkpointer.save(3, state_lib.init_state(params, optax.sgd(0.1)))
    checkpointer.close()
  return workdir


@pytest.fixture(scope="module")
def refusals(tmp_path_factory, base):
  """What became of each of REFUSED: its process and its directory."""
  folder = tmp_path_factory.mktemp("refused")
  other, foreign = folder / "other", folder / "foreign"
  directory.claim(other, {"stage": "rl", "seed": 8})
  foreign.mkdir()
  (foreign / "thesis.tex").write_text("")

  def refuse(name):
    workdir = folder / name.replace(" ", "_")
    arguments = [
      a.format(base=base, other=other, foreign=foreign)
      for a in REFUSED[name][0]
    ]
    if not any(a.startswith("--workdir") for a in arguments):
      arguments.append(f"--workdir={workdir}")
    if "r1_zer.py" not in arguments[0]:
      arguments.append(f"--config.data_dir={folder / 'data'}")
    if "r1_zero.py" in arguments[0]:
      arguments.append("--config.data.name=addition")
    return start(
      arguments,
      JAX_PLATFORMS="cpu",
      JAX_NUM_CPU_DEVICES="8",
      JAX_LOG_COMPILES="1",  # A line on stderr for each compilation.
    ), workdir

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    return dict(zip(REFUSED, pool.map(refuse, REFUSED), strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_sentence_before_anything_is_compiled_or_written(
  name, refusals
):
  process, workdir = refusals[name]
  assert process.returncode not in (0, None)
  lines = process.stderr.strip().splitlines()
  assert len(lines) == 1, process.stderr
  assert re.search(REFUSED[name][1], lines[0]), lines[0]
  assert not workdir.exists()


def test_evaluate_prints_and_keeps_the_pass_rate_of_another_run(base, tmp_path):
  arguments = [
    f"--config=experiments/evaluate.py:source={base}",
    f"--workdir={tmp_path / 'run'}",
    f"--config.data_dir={tmp_path / 'data'}",
    "--config.datasets.pair_sum.data.test_size=4",
    "--config.evaluate.prompt_slots=48",
    "--config.evaluate.sampling.group_size=2",
    "--config.evaluate.sampling.max_new_tokens=4",
  ]
  process = start(arguments, JAX_PLATFORMS="cpu")
  assert process.returncode == 0, process.stderr[-2000:]
  assert "| pair_sum | " in process.stdout
  written = json.loads((tmp_path / "run/results.json").read_text())
  results = written["datasets"]["pair_sum"]
  assert (results["problems"], results["samples"]) == (4, 2)
  assert 0 <= results["pass@1"] <= 1
  (kept,) = (
    json.loads(line)
    for line in (tmp_path / "run/evaluations.jsonl").read_text().splitlines()
  )
  assert (kept["step"], kept["name"]) == (written["step"], "pair_sum")
  for name in kept.keys() - {"step", "name"}:
    assert kept[name] == results[name]


def test_help_is_there_at_once_without_jax():
  code = (
    "import sys; from grpo_jax import main\n"
    "try: main.parse_flags(['main', *sys.argv[1:]])\n"
    "finally: assert 'jax' not in sys.modules"
  )

  def ask(*arguments):
    process = subprocess.run(
      [sys.executable, "-c", code, *arguments],
      cwd=REPOSITORY,
      capture_output=True,
      text=True,
      timeout=60,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout

  text = ask("--help")
  assert ask() == text
  for flag in ("--config", "--workdir", "--fork", "--fields", "--dry_run"):
    assert flag in text
  for path in (REPOSITORY / "experiments").glob("*.py"):
    listed = re.search(rf"experiments/{path.name} +\w", text)
    assert bool(listed) == ("def get_config(" in path.read_text())
  own = ask("--config=experiments/r1_zero.py:smoke", "--help")
  assert "experiments/r1_zero.py:bilingual" in own


def test_a_dry_run_says_what_it_takes_and_writes_nothing(tmp_path):
  arguments = [
    "--config=experiments/r1_zero.py",
    "--config.loss.ratio_max=3",
    "--config.objective=cispo",
    f"--workdir={tmp_path / 'run'}",
    "--dry_run",
  ]
  process = start(arguments, JAX_PLATFORMS="cpu", JAX_LOG_COMPILES="1")
  assert process.returncode == 0, process.stderr[-2000:]
  lines = process.stdout.splitlines()
  assert "config.loss.ratio_max = 3.0" in lines
  assert "config.loss.kl_coef = 0.001" in lines
  assert not any("config.loss.clip" in line for line in lines)
  assert re.search(r"parameters: .*0\.\d+ M", process.stdout)
  assert "Compiling" not in process.stderr
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("experiment", "said"),
  [
    ("r1_zero.py:data=nowhere.jsonl", "nowhere.jsonl"),
    ("export.py:nowhere", "No model in 'nowhere'"),
    ("r1_rejection.py:runs=nowhere", "No model in 'nowhere/"),
    ("r1_preferences.py:runs=nowhere", "No model in 'nowhere/"),
    ("export.py:gs://bucket/run", "config.source=gs://bucket/run is no path"),
  ],
)
def test_a_dry_run_misses_what_the_run_would_miss(experiment, said):
  process = start(
    [f"--config=experiments/{experiment}", "--dry_run"], JAX_PLATFORMS="cpu"
  )
  assert process.returncode == 1 and "All checks" not in process.stdout
  assert said in process.stderr and "Traceback" not in process.stderr


def test_a_run_goes_to_a_file_system():
  arguments = ["--config=experiments/r1_zero.py", "--workdir=gs://bucket/run"]
  process = start(arguments, JAX_PLATFORMS="cpu")
  assert process.returncode == 1 and "Traceback" not in process.stderr
  assert "--workdir=gs://bucket/run is no path of a file" in process.stderr


def test_a_dry_run_is_for_another_machine_too():
  process = start(
    ["--config=experiments/recipes.py", "--config.mesh.fsdp=64", "--dry_run"],
    JAX_PLATFORMS="cpu",
  )
  assert process.returncode == 0, process.stderr[-2000:]
  assert "devices: a multiple of 64 (data=-1, fsdp=64" in process.stdout


def test_all_fields_are_listed_with_their_meaning():
  process = start(
    ["--config=experiments/r1_zero.py", "--fields", "--config.seed=3"],
    JAX_PLATFORMS="cpu",
  )
  assert process.returncode == 0, process.stderr[-2000:]
  text = process.stdout
  assert "config.seed = 3  (default: 0)" in text
  assert "config.loss.dual_clip = None  (not set: the default)" in text
  assert "config.dynamic_sampling.max_rounds = 4  (not set" in text
  assert (
    "# completions per prompt, G.\n  config.sampling.group_size = 8" in text
  )
  for name in ("cispo", "leave_one_out", "truncate_tokens", "overlong"):
    assert name in text


@pytest.mark.parametrize(
  "config, workdir",
  [
    ("experiments/r1_zero.py", "runs/r1_zero"),
    ("experiments/r1_zero.py:smoke", "runs/r1_zero-smoke"),
    ("/elsewhere/mine.py:seed=3", "runs/mine-seed=3"),
  ],
)
def test_a_run_has_its_own_directory(config, workdir):
  assert main.default_workdir(config) == workdir


def test_a_sentence_is_for_errors_of_ours_and_a_traceback_for_others():
  def caught(function):
    with pytest.raises(ValueError) as error:
      function()
    return main._sentence(error.value) is not None

  assert caught(lambda: decode.SamplingParams(group_size=0))
  assert not caught(lambda: json.loads("{"))
