"""What differs between two configs of a run, and what of it may change."""

import json
import pathlib

import processes
import pytest

from grpo_jax import configs
from grpo_jax.runs import changes, directory
from grpo_jax.runs import log as run_log
from grpo_jax.stages import claim

CONFIG = {
  "stage": "rl",
  "total_steps": 8,
  "seed": 0,
  "evaluate": {"every": 4, "num_problems": 0},
  "checkpoint": {"every": 2, "keep": 2},
  "optimizer": {"schedule": "constant"},
}


def changed(**fields):
  """CONFIG with other fields; `__` stands for a dot."""
  config = json.loads(json.dumps(CONFIG))
  for name, value in fields.items():
    section = config
    *path, last = name.split("__")
    for part in path:
      section = section[part]
    section[last] = value
  return config


def reach(workdir, step):
  """What of a run's directory tells that a step was done."""
  (workdir / "checkpoints" / str(step) / "params").mkdir(parents=True)
  (workdir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").write_text("")
  (workdir / "checkpoints" / str(step) / "commit_success.txt").write_text("")


@pytest.fixture
def workdir(tmp_path):
  """A run of CONFIG after 4 steps."""
  directory.claim(tmp_path / "run", CONFIG)
  reach(tmp_path / "run", 4)
  return tmp_path / "run"


@pytest.mark.parametrize(
  "field, value",
  [
    ("total_steps", 12),
    ("total_steps", 4),
    ("evaluate__every", 1),
    ("checkpoint__every", 1),
    ("checkpoint__keep", 9),
  ],
)
def test_what_changes_no_step_may_change_and_is_noted(field, value, workdir):
  config = changed(**{field: value})
  directory.claim(workdir, config)
  assert directory.read_config(workdir) == config
  name = field.replace("__", ".")
  (old,) = changes.differences(config, CONFIG).values()
  lines = (workdir / "changes.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == [
    {"step": 4, "changes": {name: [old[1], value]}}
  ]
  directory.claim(workdir, config)
  assert len((workdir / "changes.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("field", ["seed", "evaluate__num_problems"])
def test_nothing_is_noted_where_something_else_differs_too(field, workdir):
  config = changed(total_steps=12, **{field: 3})
  with pytest.raises(ValueError, match="holds another run: its config"):
    directory.claim(workdir, config)
  assert directory.read_config(workdir) == CONFIG
  assert not (workdir / "changes.jsonl").exists()


class TestTotalSteps:
  """A run ends elsewhere only where its steps do not depend on it."""

  @pytest.mark.parametrize(
    "optimizer, falls",
    [
      ({"schedule": "constant", "final_fraction": 0.1}, False),
      ({"schedule": "linear", "final_fraction": 1.0}, False),
      ({}, False),
      ({"schedule": "linear", "final_fraction": 0.1}, True),
      ({"schedule": "cosine"}, True),
    ],
  )
  def test_a_rate_that_falls_until_the_end_keeps_it(
    self, optimizer, falls, tmp_path
  ):
    old, new = (
      changed(optimizer=optimizer, total_steps=steps) for steps in (8, 12)
    )
    directory.claim(tmp_path / "run", old)
    directory.claim(tmp_path / "run", new)  # Nothing is done yet.
    directory.claim(tmp_path / "run", old)
    reach(tmp_path / "run", 4)
    if falls:
      with pytest.raises(ValueError, match="config.optimizer falls until the"):
        directory.claim(tmp_path / "run", new)
      assert directory.read_config(tmp_path / "run") == old
    else:
      directory.claim(tmp_path / "run", new)

  def test_the_value_model_has_a_rate_too(self, tmp_path):
    optimizer = {"optimizer": {"schedule": "cosine", "final_fraction": 0.0}}
    directory.claim(tmp_path / "run", changed(value=optimizer))
    reach(tmp_path / "run", 4)
    with pytest.raises(ValueError, match=r"config\.value\.optimizer falls"):
      directory.claim(tmp_path / "run", changed(value=optimizer, total_steps=9))

  def test_it_is_not_before_what_is_done(self, workdir):
    with pytest.raises(ValueError, match="after step 4 already, beyond"):
      directory.claim(workdir, changed(total_steps=3))


class TestEarlierVersions:
  """A config may lack what is new since, and name what stands elsewhere now."""

  def test_a_missing_field_has_its_default(self):
    config = configs.rl().to_dict()
    old = json.loads(json.dumps(config))
    del old["seed"], old["evaluate"]["num_problems"], old["correction"]
    old["loss"]["clip_low"] = 0.2
    old, new = claim.complete(old), claim.complete(config)
    assert not changes.differences(old, new)
    new["seed"] = 2
    assert changes.differences(old, new).keys() == {"seed"}

  def test_what_is_not_among_the_rewards_is_not_wanted(self):
    old, new = configs.rl().to_dict(), configs.rl().to_dict()
    del old["rewards"]["format"]
    found = changes.differences(claim.complete(old), claim.complete(new))
    assert found.keys() == {"rewards.format"}

  @pytest.mark.parametrize("old, new", changes.MOVED.items())
  def test_a_function_that_moved_is_the_same_function(self, old, new, tmp_path):
    old, new = f"{old}:judge", f"{new}:judge"
    rewards = [
      {"stage": "rl", "rewards": {"mine": {"function": name}}}
      for name in (old, new)
    ]
    directory.claim(tmp_path / "run", rewards[0])
    directory.claim(tmp_path / "run", rewards[1])
    directory.claim(tmp_path / "run", rewards[0])
    function = directory.read_config(tmp_path / "run")["rewards"]["mine"]
    assert function == {"function": new}


def test_a_run_that_is_extended_is_the_longer_run(tmp_path):
  """In real processes, where the learning rate does not fall."""
  environment = dict(
    JAX_COMPILATION_CACHE_DIR=str(tmp_path / "compiled"),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
  )
  experiment = str(pathlib.Path(__file__).parents[1] / "old_run/experiment.py")
  data = f"--config.data_dir={tmp_path / 'data'}"
  flags = data, "--config.optimizer.schedule=constant"
  whole, run = tmp_path / "whole", tmp_path / "run"
  processes.main(experiment, whole, *flags, **environment)
  processes.main(
    experiment, run, *flags, "--config.total_steps=2", **environment
  )
  assert run_log.history(run) == run_log.history(whole)[:2]
  more = *flags, "--config.print_completions_every=3"
  out = processes.main(experiment, run, *more, **environment)
  assert "Going on after step 2" in out
  assert run_log.history(run) == run_log.history(whole)
  assert run_log.read(run / "changes.jsonl") == [
    {
      "step": 2,
      "changes": {"print_completions_every": [20, 3], "total_steps": [2, 4]},
    }
  ]
  sentence = processes.main(
    experiment, run, *more, "--config.seed=1", fails=True, **environment
  )
  assert "its config.seed is 0 and not 1" in sentence
