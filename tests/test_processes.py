"""Several processes are one run: in what they draw, in how they end.

Real processes, which meet over loopback, and are ended by real signals.
"""

import pathlib
import signal
import sys
import time

import helpers
import orbax.checkpoint as ocp
import pytest
import test_every_name
import together

from grpo_jax import errors, stages
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.processes import launch
from grpo_jax.runs import directory
from grpo_jax.runs import log as run_log

CFG = helpers.tiny(num_layers=1, vocab_size=264)
RL = """
import sys

sys.path.insert(0, {tests!r})
import test_every_name

from grpo_jax import configs


def get_config(arg=None):
  c = test_every_name.make_config({source!r})
  c.data_dir, c.total_steps = {data_dir!r}, 2
  c.mesh = dict(data=2, fsdp=2, tensor=1, expert=1)
  c.checkpoint.every = 3
  if arg == "ppo":
    c.value, c.advantages = configs.value(), dict(kind="gae")
  elif arg == "chosen":
    c.lora.update(rank=2, alpha=4.0)
    c.dynamic_sampling = dict(max_rounds=2, term="mine")
    c.curriculum = dict(share=0.5, term="mine")
  elif arg == "broken":
    c.rewards = dict(mine=dict(weight=1.0, function="agreement:breaks_in_one"))
  elif arg == "long":
    c.total_steps, c.evaluate.every = 24, 10
  return c
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A policy, as a stage leaves it, and experiments that begin with it."""
  folder = tmp_path_factory.mktemp("several")
  source = folder / "source"
  tokenizer.ByteTokenizer().save(source / "tokenizer")
  directory.save_model(source, CFG)
  args = ocp.args.StandardSave(helpers.make_params(CFG))
  with ocp.CheckpointManager(source / directory.CHECKPOINTS) as manager:
    manager.save(1, args=ocp.args.Composite(params=args))
  tests = str(pathlib.Path(__file__).parent)
  (folder / "rl.py").write_text(
    RL.format(tests=tests, source=str(source), data_dir=str(folder / "data"))
  )
  return folder


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
  """Programs that one start compiled are there for the next."""
  with pytest.MonkeyPatch.context() as patch:
    cache = tmp_path_factory.mktemp("compiled")
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    yield


def assert_alike(one: pathlib.Path, two: pathlib.Path) -> None:
  """Equal draws with all that they earn; metrics equal to rounding."""
  for name in ("completions.jsonl", "evaluations.jsonl"):
    assert (one / name).exists() == (two / name).exists()
    if (one / name).exists():
      assert (one / name).read_bytes() == (two / name).read_bytes()
  for row, other in zip(
    run_log.history(one), run_log.history(two), strict=True
  ):
    assert row == pytest.approx(other, rel=1e-4, abs=1e-6, nan_ok=True)


def test_two_processes_draw_and_learn_as_one(folder, tmp_path):
  two, one = tmp_path / "two", tmp_path / "one"
  found = together.run(folder / "rl.py", two)
  assert "2 of 2 processes are here" in found[0].out
  # What a run prints, it prints once.
  assert "Held out" in found[0].out and "Held out" not in found[1].out
  c = test_every_name.make_config(str(folder / "source"))
  c.data_dir = str(folder / "data")
  stages.load("rl").run(c, one)
  assert_alike(one, two)
  assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}


def test_what_differs_between_processes_differs_nowhere(folder, tmp_path):
  """A reward by the clock; each row graded once; equal states."""
  for _ in range(3):
    address = f"127.0.0.1:{together.free_port()}"
    command = [
      sys.executable,
      str(pathlib.Path(__file__).parent / "agreement.py"),
    ]
    arguments = (str(tmp_path), str(folder / "source"))
    with together.started_commands(
      [[*command, address, str(i), *arguments] for i in range(2)],
      tmp_path / "log",
    ) as running:
      found = together.ended(running, tmp_path / "log")
    if not together.did_not_meet(found):
      break
  for each in found:
    assert each.code == 0 and "agrees" in each.out, each.err[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("arg", ["ppo", "chosen"])
def test_every_kind_of_learning_is_the_same_in_two(arg, folder, tmp_path):
  experiment = f"{folder / 'rl.py'}:{arg}"
  one, two = tmp_path / "one", tmp_path / "two"
  together.run(experiment, one, processes=1, devices=4)
  together.run(experiment, two)
  assert_alike(one, two)


@pytest.mark.slow
def test_a_stop_of_one_stops_all_after_the_same_step(folder, tmp_path):
  experiment, workdir = f"{folder / 'rl.py'}:long", tmp_path / "run"
  with together.started(experiment, workdir) as running:
    together.stop(signal.SIGTERM, 1, 6, running, workdir)
    found = together.ended(running, workdir)
  assert [each.code for each in found] == [0, 0], found
  assert "the same command goes on" in found[0].out
  step = run_log.read(workdir / "metrics.jsonl")[-1]["step"]
  assert step < 24 and directory.kept_steps(workdir)[-1] == step
  together.run(experiment, workdir)
  whole = tmp_path / "whole"
  together.run(experiment, whole)
  assert run_log.history(workdir) == run_log.history(whole)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_run_goes_on(folder, tmp_path):
  experiment, workdir = f"{folder / 'rl.py'}:long", tmp_path / "run"
  for victim, step in ((1, 4), (0, 9), (1, 15)):
    with together.started(experiment, workdir) as running:
      together.stop(signal.SIGKILL, victim, step, running, workdir)
      began = time.monotonic()
      found = together.ended(running, workdir)
    assert time.monotonic() - began < 60
    left = found[1 - victim]
    assert left.code == 1
    assert f"nothing is heard any more of process {victim} on" in left.err
  together.run(experiment, workdir)
  whole = tmp_path / "whole"
  together.run(experiment, whole)
  assert run_log.history(workdir) == run_log.history(whole)
  for name in ("completions.jsonl", "evaluations.jsonl"):
    assert (workdir / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(folder, tmp_path):
  experiment, workdir = f"{folder / 'rl.py'}:broken", tmp_path / "run"
  with together.started(experiment, workdir) as running:
    assert running[1].wait(timeout=300) == 1
    began = time.monotonic()
    found = together.ended(running, workdir)
  assert time.monotonic() - began < 60
  assert [each.code for each in found] == [1, 1]
  assert "This reward is broken." in found[1].err
  assert "for process 1 on" in found[0].err
  assert "This reward is broken." in found[0].err


@pytest.mark.slow
def test_a_chain_in_two_processes_is_the_chain_in_one(tmp_path):
  one, two = tmp_path / "one", tmp_path / "two"
  experiment = "experiments/r1.py:smoke"
  together.run(experiment, one, processes=1, devices=4, timeout=3600)
  together.run(experiment, two, timeout=3600)
  assert run_log.read(two / "done.jsonl")
  for path in one.rglob("metrics.jsonl"):
    assert_alike(path.parent, two / path.parent.relative_to(one))


def test_those_that_do_not_come_are_told_in_a_sentence(folder, tmp_path):
  workdir = tmp_path / "run"
  with together.started(
    folder / "rl.py", workdir, "--join_timeout=3"
  ) as running:
    running[1].kill()
    found = together.ended(running, workdir)
  assert found[0].code == 1
  assert "not all 2 processes came to 127.0.0.1" in found[0].err
  assert "Traceback" not in found[0].err
  assert not workdir.exists()


SLURM = dict(
  SLURM_JOB_ID="7",
  SLURM_STEP_NODELIST="node[3-4]",
  SLURM_NTASKS="2",
  SLURM_PROCID="1",
  SLURM_LOCALID="0",
)


@pytest.fixture
def environment(monkeypatch):
  for name in (*SLURM, "OMPI_COMM_WORLD_SIZE", "JAX_COORDINATOR_ADDRESS"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
  return lambda **variables: [
    monkeypatch.setenv(name, value) for name, value in variables.items()
  ]


def test_one_process_is_alone(environment):
  assert launch.Launch().alone
  environment(**SLURM | dict(SLURM_NTASKS="1"))
  assert launch.Launch().alone
  assert launch.Launch(num_processes=1).alone


def test_slurm_says_which_processes_there_are(environment):
  environment(**SLURM)
  found = launch.Launch()
  assert (found.num_processes, found.process_id) == (2, 1)
  assert found.coordinator.startswith("node3:")
  environment(JAX_COORDINATOR_PORT="8476")
  assert launch.Launch().coordinator == "node3:8476"
  assert launch.Launch("a:1", 4, 3).coordinator == "a:1"


def test_open_mpi_says_which_processes_there_are(environment):
  environment(OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="2")
  environment(OMPI_COMM_WORLD_LOCAL_RANK="0")
  # Of version 5 only the first host is not known.
  with pytest.raises(errors.ConfigError, match="--coordinator=HOST:PORT"):
    launch.Launch()
  found = launch.Launch("host:1234")
  assert (found.num_processes, found.process_id) == (4, 2)
  environment(OMPI_MCA_orte_hnp_uri="1531576320.0;tcp://10.96.0.1:34911")
  assert launch.Launch().coordinator.startswith("10.96.0.1:")


@pytest.mark.parametrize(
  "given, sentence",
  [
    (("a:1", 2, None), "--process_id is missing"),
    ((None, 2, 0), "--coordinator=HOST:PORT is missing"),
    ((None, None, 0), "--num_processes are missing"),
    (("a", 2, 0), "must be HOST:PORT"),
    (("a:1", 2, 2), "below --num_processes=2"),
    (("a:1", 0, 0), "below --num_processes=0"),
  ],
)
def test_what_is_missing_is_told_in_a_sentence(given, sentence, environment):
  with pytest.raises(errors.ConfigError, match=sentence):
    launch.Launch(*given)
