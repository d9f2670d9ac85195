"""Runs that cannot learn say so: at their start, and at their end."""

import json
import socket

import helpers
import orbax.checkpoint as ocp
import pytest

from grpo_jax import configs, errors, stages
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.runs import directory
from grpo_jax.runs import log as run_log
from grpo_jax.runs.signals import Outcome

CFG = helpers.tiny(num_layers=1, vocab_size=264)
RL = stages.load("rl")


def nobody_knows(problems, completions):
  return [None] * len(completions)


def asks_for_solution(completions, solution, **kwargs):
  return [0.0] * len(completions)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A policy's run, as a stage leaves it: it draws letters at random."""
  folder = tmp_path_factory.mktemp("policy")
  tokenizer.ByteTokenizer().save(folder / "tokenizer")
  directory.save_model(folder, CFG)
  args = ocp.args.StandardSave(helpers.make_params(CFG))
  with ocp.CheckpointManager(folder / directory.CHECKPOINTS) as manager:
    manager.save(1, args=ocp.args.Composite(params=args))
  return str(folder)


@pytest.fixture
def config(source):
  c = configs.built_in_rl()
  c.source, c.pretrain, c.total_steps = source, None, 2
  c.mesh = dict(data=4, fsdp=2, tensor=1, expert=1)
  c.prompts = dict(template="plain", num_prompts=8, prompt_slots=40)
  c.sampling.update(group_size=4, max_new_tokens=8, cache_chunk=8)
  c.batching = dict(num_minibatches=1, num_microbatches=1, length_multiple=8)
  c.evaluate.data.test_size = 4
  c.evaluate.prompt_slots = 40
  c.evaluate.sampling.update(group_size=1, max_new_tokens=8, cache_chunk=8)
  c.print_completions_every = 9
  c.optimizer.schedule = "constant"
  return c


def closed_port():
  """A port of this machine that nobody listens at."""
  with socket.socket() as held:
    held.bind(("127.0.0.1", 0))
    return held.getsockname()[1]


def told(text):
  return [x for x in text.splitlines() if x.startswith("Warning: ")]


def test_without_any_score_the_end_says_whose_fault_it_is(
  config, tmp_path, capsys
):
  config.rewards.mine = dict(
    weight=1.0, function=f"{__name__}:nobody_knows", deadline=60
  )
  config.rewards.judge = dict(
    weight=1.0,
    url=f"http://127.0.0.1:{closed_port()}/v1",
    model="judge",
    attempts=1,
    backoff=0.01,
  )
  workdir = tmp_path / "run"
  assert RL.run(config, workdir) is Outcome.FINISHED
  printed = capsys.readouterr().out
  said = told(printed)
  assert printed.strip().endswith(said[-1])  # The last that is read.
  assert "nan" not in printed
  (mine,) = (x for x in said if "config.rewards.mine returned None" in x)
  (judge,) = (x for x in said if "config.rewards.judge had no reply" in x)
  assert mine.startswith("Warning: Steps 1 to 2: ") and "server is up" in judge
  rows = run_log.read(workdir / "warnings.jsonl")
  assert {r["name"] for r in rows} >= {"no_score:mine", "no_score:judge"}
  # A run that goes on knows of the steps before.
  config.total_steps = 5
  assert RL.run(config, workdir) is Outcome.FINISHED
  said = told(capsys.readouterr().out)
  assert sum("Steps 1 to 5: config.rewards.mine" in x for x in said) == 2
  rows = run_log.read(workdir / "warnings.jsonl")
  assert ("no_score:mine", 1, 5) in {
    (r["name"], r["step"], r["until"]) for r in rows
  }


def problems(path, answers):
  lines = [
    json.dumps({"question": f"What is {i}?", "answer": answer})
    for i, answer in enumerate(answers)
  ]
  path.write_text("\n".join(lines))
  return str(path)


def test_references_that_nobody_can_read_end_it_before_it_begins(
  config, tmp_path
):
  # The source of a number's rule; mathematics would read them.
  path = problems(tmp_path / "mine.jsonl", ["yes", "no"] * 20)
  config.data = dict(name="jsonl", split="train", path=path, source="gsm8k")
  config.data_dir = str(tmp_path / "data")
  with pytest.raises(errors.ConfigError, match="^None of the .* answers") as e:
    RL.run(config, tmp_path / "run")
  assert 'source="math"' in str(e.value) and "config.data (40" in str(e.value)
  assert not (tmp_path / "run").exists()


def test_a_column_that_a_reward_lacks_ends_it_before_it_begins(
  config, tmp_path
):
  function = f"{__name__}:asks_for_solution"
  config.rewards.mine = dict(weight=1.0, function=function)
  with pytest.raises(errors.ConfigError, match="the column 'solution'"):
    RL.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
