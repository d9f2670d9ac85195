"""A run's directory: what is restored is what was saved."""

import json

import helpers
import jax
import numpy as np
import pytest

from grpo_jax.models import params as params_lib
from grpo_jax.runs import directory
from grpo_jax.runs import source as source_lib
from grpo_jax.train import checkpoint, optimizer
from grpo_jax.train import state as state_lib

CFG = helpers.tiny(num_layers=1)
CONFIG = {"stage": "rl", "seed": 0, "sampling": {"group_size": 8, "top_p": 1.0}}


def make_tx():
  return optimizer.make_optimizer(9, learning_rate=0.1)[0]


def trained(mesh, seed=0):
  """A state whose every leaf is told apart from the others'."""
  tx = make_tx()
  state = state_lib.init_state(helpers.make_params(CFG, mesh, seed), tx)
  gradient = helpers.make_params(CFG, mesh, seed + 1)
  _, opt_state = tx.update(gradient, state.opt_state, state.params)
  return state.replace(step=state.step + 3, opt_state=opt_state)


def abstract(mesh):
  params = params_lib.abstract_params(params_lib.param_specs(CFG), mesh)
  return state_lib.abstract_state(params, make_tx())


def assert_restored(tree, saved):
  assert jax.tree.structure(tree) == jax.tree.structure(saved)
  for got, want in zip(
    jax.tree.leaves(tree), jax.tree.leaves(saved), strict=True
  ):
    np.testing.assert_array_equal(got, want)
    assert got.dtype == want.dtype


@pytest.fixture(scope="module")
def run_of_eight(tmp_path_factory):
  """A run saved from 2 x 2 x 2 devices: its directory, state and reference."""
  workdir = tmp_path_factory.mktemp("run")
  mesh = helpers.make_mesh(**helpers.EIGHT)
  with jax.set_mesh(mesh):
    state = trained(mesh)
    reference = helpers.make_params(CFG, mesh, seed=7)
    directory.save_model(workdir, CFG)
    checkpointer = checkpoint.Checkpointer(workdir)
    progress = {"batches": {"next": 5, "rows": [1, 2]}}
    checkpointer.save(4, state, reference=reference, progress=progress)
    checkpointer.close()
    return workdir, jax.device_get(state), jax.device_get(reference)


@pytest.mark.parametrize(
  "sizes",
  [helpers.EIGHT, dict(data=4, fsdp=2), dict()],
  ids=["2x2x2", "4x2x1", "one"],
)
def test_all_is_restored_to_the_bit_on_any_mesh(sizes, run_of_eight):
  workdir, state, reference = run_of_eight
  mesh = helpers.make_mesh(**sizes)
  with jax.set_mesh(mesh):
    checkpointer = checkpoint.Checkpointer(workdir)
    assert checkpointer.latest() == 4
    got, got_reference, progress = checkpointer.restore(4, abstract(mesh))
    checkpointer.close()
    assert_restored(got, state)
    assert_restored(got_reference, reference)
    assert progress["batches"] == {"next": 5, "rows": [1, 2]}
    where = params_lib.shardings(params_lib.param_specs(CFG), mesh)
    for tree in (got.params, got_reference, got.opt_state[1][0].mu):
      for x, sharding in zip(
        jax.tree.leaves(tree), jax.tree.leaves(where), strict=True
      ):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)


def test_a_policy_is_loaded_with_the_model_that_it_is(run_of_eight):
  workdir, state, _ = run_of_eight
  mesh = helpers.make_mesh()
  with jax.set_mesh(mesh):
    cfg, params, step = source_lib.load_policy(
      workdir, mesh, dtype="bfloat16", remat="full"
    )
  assert (cfg.dtype, cfg.remat, step) == ("bfloat16", "full", 4)
  assert cfg.d_model == CFG.d_model and cfg.qkv_bias
  changes = dict(dtype="bfloat16", remat="full")
  assert source_lib.read_model(workdir, **changes) == cfg
  assert_restored(params, state.params)


def test_beside_a_value_model_the_policy_is_loaded_alone(tmp_path):
  mesh = helpers.make_mesh(**helpers.EIGHT)
  with jax.set_mesh(mesh):
    state, value = trained(mesh), trained(mesh, seed=5)
    directory.save_model(tmp_path, CFG)
    checkpointer = checkpoint.Checkpointer(tmp_path)
    checkpointer.save(2, state, value=value)
    checkpointer.close()
    checkpointer = checkpoint.Checkpointer(tmp_path)
    got, reference, _ = checkpointer.restore(2, abstract(mesh))
    got_value = checkpointer.restore_value(2, abstract(mesh))
    checkpointer.close()
    _, params, _ = source_lib.load_policy(tmp_path, mesh)
  assert reference is None
  assert_restored(got, jax.device_get(state))
  assert_restored(got_value, jax.device_get(value))
  assert_restored(params, jax.device_get(state.params))


def test_parameters_of_another_model_are_named(run_of_eight):
  workdir, _, _ = run_of_eight
  mesh = helpers.make_mesh()
  specs = params_lib.param_specs(helpers.tiny(num_layers=1, d_ff=32))
  wanted = params_lib.abstract_params(specs, mesh)
  with jax.set_mesh(mesh):
    checkpointer = checkpoint.Checkpointer(workdir)
    with pytest.raises(
      ValueError, match=r"mlp/down is \(1, 24, 16\), and \(1, 32, 16\) in this"
    ):
      checkpointer.restore(4, state_lib.abstract_state(wanted, make_tx()))
    checkpointer.close()


def test_only_the_newest_stay_and_a_step_is_saved_once(tmp_path):
  mesh = helpers.make_mesh()
  with jax.set_mesh(mesh):
    checkpointer = checkpoint.Checkpointer(tmp_path, keep=2)
    assert checkpointer.latest() is None
    for step in (2, 4, 6):
      checkpointer.save(step, trained(mesh, seed=step))
    checkpointer.save(6, trained(mesh, seed=0))
    checkpointer.close()
    kept = {
      int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*")
    }
    assert kept == {4, 6}
    checkpointer = checkpoint.Checkpointer(tmp_path)
    state, reference, _ = checkpointer.restore(6, abstract(mesh))
    checkpointer.close()
    assert reference is None
    assert_restored(state, jax.device_get(trained(mesh, seed=6)))


@pytest.mark.parametrize("made", [False, True])
def test_a_directory_without_a_checkpoint_is_named(made, tmp_path):
  workdir = tmp_path / "nothing"
  if made:
    workdir.mkdir()
    directory.save_model(workdir, CFG)
    (workdir / "checkpoints").mkdir()
  with pytest.raises(
    FileNotFoundError, match=r"No checkpoint of a model in .*nothing\.$"
  ):
    source_lib.load_policy(workdir, helpers.make_mesh())


class TestClaim:
  """A directory belongs to one config."""

  def test_a_run_comes_back_to_its_own(self, tmp_path):
    workdir = tmp_path / "deep" / "run"
    directory.claim(workdir, CONFIG)
    (workdir / "metrics.jsonl").write_text("{}\n")
    directory.claim(workdir, CONFIG)
    assert json.loads((workdir / "config.json").read_text()) == CONFIG

  @pytest.mark.parametrize(
    "changes, sentence",
    [
      (dict(seed=1), r"its config\.seed is 0 and not 1;"),
      (
        dict(sampling={"group_size": 4, "top_p": 1.0}),
        r"its config\.sampling\.group_size is 8 and not 4;",
      ),
      (dict(more=1), r"its config\.more is '\(absent\)' and not 1;"),
    ],
  )
  def test_another_config_is_refused_and_the_field_named(
    self, changes, sentence, tmp_path
  ):
    directory.claim(tmp_path / "run", CONFIG)
    with pytest.raises(ValueError, match="holds another run: " + sentence):
      directory.claim(tmp_path / "run", CONFIG | changes)
    assert json.loads((tmp_path / "run/config.json").read_text()) == CONFIG

  def test_files_of_something_else_are_left_alone(self, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
      directory.claim(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

  def test_an_empty_directory_is_fine(self, tmp_path):
    directory.claim(tmp_path, CONFIG)
    assert (tmp_path / "config.json").exists()


def test_files_can_be_read_by_whoever_can_read_the_folder(tmp_path):
  directory.write_text(tmp_path / "ours", "x")
  (tmp_path / "other").write_text("x")
  modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
  assert modes == dict.fromkeys(("ours", "other"), modes["other"])
