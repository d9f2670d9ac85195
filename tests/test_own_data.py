"""Problems from a file of the user's, scored by a function of the user's."""

import json
import pathlib

import processes
import pytest

from grpo_jax import configs
from grpo_jax.data import datasets
from grpo_jax.runs import log as run_log

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"
# As r1_zero has it, but small; and with a reward of one's own.
MINE = f"""
from grpo_jax import configs

def get_config(arg):
  c = configs.experiment({str(EXPERIMENTS / "r1_zero.py")!r}, "r1_zero", arg)
  c.rewards.level = dict(weight=1.0, function="my_rewards:level")
  c.pretrain.total_steps = 2
  c.pretrain.optimizer.warmup_updates = 0
  c.pretrain.data.size = 100
  c.pretrain.model.update(d_model=16, d_ff=24, num_layers=1, head_dim=8)
  c.pretrain.batch.num_rows = 4
  c.prompts.num_prompts, c.sampling.group_size = 4, 2
  c.sampling.max_new_tokens = c.sampling.cache_chunk = 8
  c.batching.length_multiple = 8
  c.evaluate.sampling.update(group_size=1, max_new_tokens=8, cache_chunk=8)
  c.evaluate.prompts_per_batch = 8
  return c
"""
REWARD = """
def level(problems, completions):
  return [problem.columns["level"] / 10 for problem in problems]
"""


def arguments(arg: str):
  return configs.experiment(EXPERIMENTS / "r1_zero.py", "r1_zero", arg)


@pytest.fixture
def problems(tmp_path):
  """A file with 40 problems whose levels are told apart."""
  path = tmp_path / "problems.jsonl"
  rows = [
    {"prompt": f"What is {i} + 1?", "solution": i + 1, "level": i}
    for i in range(40)
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def test_a_reward_reads_a_column_and_some_problems_are_held_out(
  problems, tmp_path
):
  (tmp_path / "mine.py").write_text(MINE)
  (tmp_path / "my_rewards.py").write_text(REWARD)
  given = f"smoke,data={problems},question=prompt,answer=solution"
  experiment = f"{tmp_path / 'mine.py'}:{given}"
  options = dict(PYTHONPATH=f"{tmp_path}:{processes.REPOSITORY}")
  flag = f"--config.data_dir={tmp_path / 'data'}"
  misspelt = "--config.data.source=maths"
  told = processes.main(
    experiment, tmp_path / "no", flag, misspelt, fails=True, **options
  )
  assert "no rule grades its source 'maths'; did you mean 'math'?" in told
  said = processes.main(experiment, tmp_path / "run", flag, **options)
  assert (
    "Problems of config.data that name no source" in said
    and "number 100%" in said
  )
  lines = run_log.read(tmp_path / "run/completions.jsonl")
  assert {line["step"] for line in lines} == {1, 2} and len(lines) == 16
  for line in lines:
    level = int(line["answer"]) - 1
    assert line["question"] == f"What is {level} + 1?"
    assert line["terms"]["level"] == pytest.approx(level / 10)
  section = arguments(given).evaluate.data.to_dict()
  held_out = datasets.load(**section, data_dir=tmp_path / "data")
  assert 0 < len(held_out) < 20
  asked = {line["question"] for line in lines}
  assert not asked & {problem.question for problem in held_out}
  evaluated = run_log.read(tmp_path / "run/evaluations.jsonl")
  assert [row["name"] for row in evaluated] == ["jsonl", "jsonl"]


def test_a_test_file_is_asked_instead_of_a_share(problems):
  c = arguments(f"data={problems},test=other.csv,base=model")
  assert (c.data.split, c.evaluate.data.split) == ("train", "test")
  assert c.data.test == c.evaluate.data.test == "other.csv"
  assert "test_share" not in c.data and c.pretrain is None
  with pytest.raises(configs.ConfigError, match="goes with the argument data"):
    arguments("test=other.csv")


def test_a_column_that_is_not_there_is_named_before_the_run(problems, tmp_path):
  sentence = processes.main(
    f"experiments/r1_zero.py:smoke,data={problems}",
    tmp_path / "run",
    f"--config.data_dir={tmp_path / 'data'}",
    fails=True,
  )
  assert (
    "problems.jsonl, line 1: no field 'question'; it has 'prompt', 'sol"
    in (sentence)
  )
  assert "Traceback" not in sentence
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["qwen2.5-7b", "tiny"])
def test_any_model_takes_them(model, problems):
  c = arguments(f"{model},data={problems},question=prompt")
  assert (c.data.path, c.data.question) == (str(problems), "prompt")
  assert c.prompts.prompt_slots >= 336
