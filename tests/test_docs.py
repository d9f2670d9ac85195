"""Documents: their code runs, their links lead somewhere, pages are current."""

import contextlib
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import types
from unittest import mock

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import config_dict

import grpo_jax
from grpo_jax import configs
from grpo_jax.configs import stages as builders
from grpo_jax.data import datasets
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.losses import advantages
from grpo_jax.models.hf import names
from grpo_jax.rewards import answer
from grpo_jax.runs import directory
from grpo_jax.runs.signals import Outcome
from grpo_jax.train import checkpoint
from grpo_jax.train import state as state_lib
from grpo_jax.types import Problem

REPOSITORY = pathlib.Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted(
  path
  for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "grpo_jax/*/*.md")
  for path in REPOSITORY.glob(pattern)
)


def section(page: str, heading: str) -> str:
  """The text under a heading, up to the next one of its level."""
  text = (DOCS / page).read_text(encoding="utf-8")
  found = text.split(f"## {heading}\n", 1)[1]
  return re.split(r"^## ", found, maxsplit=1, flags=re.MULTILINE)[0]


def blocks(page: str, heading: str) -> list[str]:
  """The fenced Python under a heading, in order."""
  found = re.findall(
    r"^ *```python\n(.*?)^ *```",
    section(page, heading),
    re.DOTALL | re.MULTILINE,
  )
  return [textwrap.dedent(block) for block in found]


def run(*parts: str) -> dict:
  namespace = {"__name__": "docs"}
  for part in parts:
    exec(part, namespace)
  return namespace


def anchors(path: pathlib.Path) -> set[str]:
  """What links may name within a page, as GitHub makes it of headings."""
  titles = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
  kept = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
  return {title.replace(" ", "-") for title in kept}


@pytest.mark.parametrize(
  "path", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY))
)
def test_every_link_leads_to_a_file_and_a_heading_that_exist(path):
  text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
  for link in re.findall(r"\]\(([^)\s]+)\)", text):
    if link.startswith(("http://", "https://")):
      continue
    name, _, anchor = link.partition("#")
    target = (path.parent / name).resolve() if name else path
    assert target.exists(), f"{path.name} links to {link}."
    if anchor:
      assert anchor in anchors(target), f"{path.name} links to {link}."


def test_every_document_is_in_the_index():
  index = (DOCS / "README.md").read_text("utf-8")
  pages = {path.name for path in DOCS.glob("*.md")} - {"README.md"}
  assert {page for page in pages if f"({page})" not in index} == set()


def test_the_readme_fits_and_keeps_the_two_commands():
  text = (REPOSITORY / "README.md").read_text("utf-8")
  assert len(text.splitlines()) <= 150
  for command in (
    "pip install -e . && python -m grpo_jax.main"
    " --config=experiments/r1_zero.py",
    "pip install -e '.[test]' && pytest -n auto --dist worksteal",
  ):
    assert f"\n{command}\n" in text


def test_the_changes_begin_with_this_version():
  text = (REPOSITORY / "CHANGELOG.md").read_text("utf-8")
  assert re.search(r"^## (\S+)", text, re.M)[1] == grpo_jax.__version__


@pytest.fixture(scope="module")
def generate():
  spec = importlib.util.spec_from_file_location("pages", DOCS / "generate.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize("page", ["losses.md", "configuration.md"])
def test_pages_that_are_made_from_the_code_are_current(page, generate):
  current = (DOCS / page).read_text("utf-8")
  assert generate.PAGES[page]() == current, "Run `python docs/generate.py`."


def test_losses_run_in_flax_nnx_and_in_equinox():
  setup, *examples = blocks("models.md", "Losses in your own code")
  libraries = []
  for example in examples:
    namespace = run(setup, example)
    grads = jax.tree.leaves(namespace["grads"])
    assert jnp.isfinite(namespace["loss"])
    assert any(jnp.any(grad != 0) for grad in grads)
    libraries += [name for name in ("nnx", "eqx") if name in namespace]
  assert libraries == ["nnx", "eqx"]


def test_recipe_of_an_objective():
  (block,) = blocks("extending.md", "An objective")
  namespace = run(block)
  # The ratio is 1, so the surrogate is A, and the loss minus its mean.
  assert float(namespace["loss"]) == pytest.approx(-1.0)
  with pytest.raises(ValueError, match="strength"):
    exec("squared(None, strength=-1.0)", namespace)


@pytest.fixture
def tables():
  """Tables that recipes add to, as they were afterwards."""
  changed = (
    *(advantages.ADVANTAGES, answer.VERIFIERS, datasets.DATASETS),
    names.TABLES,
  )
  with contextlib.ExitStack() as stack:
    for table in changed:
      stack.enter_context(mock.patch.dict(table))
    yield


def test_recipe_of_an_advantage(tables):
  (block,) = blocks("extending.md", "An advantage")
  run(block)
  found = advantages.ADVANTAGES["median"](
    rewards=jnp.array([[0.0, 1.0, 5.0, 9.0]]),
    valid=jnp.array([[True, True, True, False]]),
    scale=2.0,
  )
  np.testing.assert_array_equal(found, [[-2.0, 0.0, 8.0, 0.0]])


def test_recipe_of_a_model_family(tables, capsys):
  sizes, table = blocks("extending.md", "A model family")
  run(sizes)
  assert "parameters" in capsys.readouterr().out
  run(table)
  assert names.TABLES["mine"].keys() == names.TABLES["llama"].keys()
  assert names.TABLES["mine"] != names.TABLES["llama"]


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


def test_recipe_of_a_reward_by_hand(tmp_path, monkeypatch, capsys):
  reward, use = blocks("extending.md", "A reward")
  (tmp_path / "my_rewards.py").write_text(reward)
  monkeypatch.syspath_prepend(tmp_path)
  run(use)
  sys.modules.pop("my_rewards")
  assert capsys.readouterr().out == "[0.5]\n"


def test_a_rule_of_ones_own_reads_what_r1_zero_writes(tables):
  rule = blocks("extending.md", "A dataset")[1]
  scope = run(rule)
  problem = Problem("7*7=?", "49", source="squares", prompt="")
  for said, score in (("49", 1.0), ("it is 49", 1.0), ("149", 0.0)):
    text = f"<think>7 * 7</think> <answer>{said}</answer>"
    assert scope["last_word"](problem, text) == score


def test_rewards_of_trl_and_verl_are_named_as_they_are(
  tmp_path, monkeypatch, capsys
):
  theirs, use = blocks("extending.md", "A reward in TRL's or verl's form")
  (tmp_path / "their_rewards.py").write_text(theirs)
  monkeypatch.syspath_prepend(tmp_path)
  run(use)
  sys.modules.pop("their_rewards")
  assert capsys.readouterr().out == "[2.]\n"


# What a reader adds below the recipes: a run of one step, in seconds.
_EXPERIMENT = """
import pathlib

def get_config(arg=None):
  c.source, c.pretrain = arg, None
  c.data_dir = str(pathlib.Path(__file__).parent / "data")
  c.advantages = dict(kind="median", scale=2.0)
  c.data = dict(name="squares", split="train", largest=50)
  c.evaluate.data = dict(name="squares", split="test", largest=50)
  c.evaluate.prompts_per_batch = 4
  c.evaluate.sampling.update(group_size=1, max_new_tokens=4)
  c.prompts.update(num_prompts=4, prompt_slots=48)
  c.evaluate.prompt_slots = 48
  c.sampling.update(group_size=2, max_new_tokens=4, cache_chunk=4)
  c.batching.update(num_minibatches=1, length_multiple=4)
  c.total_steps = 1
  return c
"""


def test_recipes_make_a_step_of_r1_zero(base, tmp_path):
  reward, use = blocks("extending.md", "A reward")
  (tmp_path / "my_rewards.py").write_text(reward)
  parts = [
    use,
    *blocks("extending.md", "An advantage"),
    *blocks("extending.md", "A dataset"),
    _EXPERIMENT,
  ]
  (tmp_path / "mine.py").write_text("\n".join(parts))
  workdir = tmp_path / "run"
  process = subprocess.run(
    [
      *(sys.executable, "-m", "grpo_jax.main"),
      *(f"--config={tmp_path / 'mine.py'}:{base}", f"--workdir={workdir}"),
      "--config.rewards.brevity.weight=0.5",
    ],
    cwd=REPOSITORY,
    env=os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
      "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
    },
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert process.returncode == 0, process.stderr[-2000:]
  lines = (workdir / "completions.jsonl").read_text("utf-8").splitlines()
  rows = [json.loads(line) for line in lines]
  assert len(rows) == 8
  for row in rows:
    # Four tokens at most of sixty.
    assert 1 - 4 / 60 <= row["terms"]["brevity"] + 1e-6
    assert row["terms"]["accuracy"] in (0.0, 1.0)
  config = json.loads((workdir / "config.json").read_text("utf-8"))
  assert config["rewards"]["brevity"]["weight"] == 0.5


def test_recipe_of_a_stage(base, tmp_path, monkeypatch):
  module, builder, experiment = blocks("extending.md", "A stage")
  exec(builder, vars(builders))
  make = vars(builders).pop("prompt_lengths")
  monkeypatch.setattr(configs, "prompt_lengths", make, raising=False)
  stage = types.ModuleType("grpo_jax.stages.prompt_lengths")
  exec(module, vars(stage))
  c = run(experiment)["get_config"](f"source={base}")
  assert isinstance(c, config_dict.ConfigDict)
  c.data_dir = str(tmp_path / "data")
  c.data = dict(name="addition", split="test", train_size=8, test_size=8)
  c.prompts.template = "plain"
  assert stage.run(c, tmp_path / "run") is Outcome.FINISHED
  found = json.loads((tmp_path / "run" / "lengths.json").read_text())
  # One token per byte.
  assert found["longest"] == len("User: 17+25=?\nAssistant:")
  c.prompts.templat = "plain"
  with pytest.raises(ValueError, match="templat"):
    stage.check(c)
