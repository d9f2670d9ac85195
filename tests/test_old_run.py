"""A run that an earlier version wrote is read and gone on with as it was meant.

`old_run/README.md` says how it was made.
"""

import pathlib
import shutil
import tarfile

import helpers
import jax
import numpy as np
import processes
import pytest

from grpo_jax.runs import directory
from grpo_jax.runs import log as run_log
from grpo_jax.runs import source as source_lib
from grpo_jax.stages import claim

HERE = pathlib.Path(__file__).parent / "old_run"
EXPERIMENT = str(HERE / "experiment.py")


@pytest.fixture(scope="module")
def old(tmp_path_factory):
  """The run, which no test may change."""
  workdir = tmp_path_factory.mktemp("old") / "run"
  with tarfile.open(HERE / "run.tar.xz") as archive:
    archive.extractall(workdir, filter="data")
  return workdir


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  """A home without prepared data, and one folder of compiled programs."""
  home = tmp_path_factory.mktemp("home")
  return dict(
    HOME=str(home),
    JAX_COMPILATION_CACHE_DIR=str(home / "compiled"),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
  )


def assert_same_history(actual, expected):
  """What both tell of a step is the same; a metric may be new."""
  assert [row["step"] for row in actual] == [row["step"] for row in expected]
  for got, want in zip(actual, expected, strict=True):
    missing = want.keys() - got.keys()
    assert not missing
    for name, value in want.items():
      np.testing.assert_allclose(
        np.float64(got[name]),
        np.float64(value),
        rtol=1e-3,
        atol=1e-4,
        err_msg=name,
      )


def test_its_policy_is_loaded(old):
  mesh = helpers.make_mesh()
  cfg, params, step = source_lib.load_policy(old, mesh)
  assert (cfg.d_model, cfg.num_layers, step) == (16, 1, 4)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
  _, base, step = source_lib.load_policy(old / "base", mesh)
  assert step == 6
  moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), params, base)
  assert max(jax.tree.leaves(moved)) > 1e-3


def test_it_goes_on_as_the_old_code_did(old, environment, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(old, workdir)
  shutil.rmtree(workdir / "checkpoints/4")
  out = processes.main(EXPERIMENT, workdir, **environment)
  assert "Going on after step 2" in out
  assert_same_history(run_log.history(workdir), run_log.history(old))
  name = "evaluations.jsonl"
  for got, want in zip(
    run_log.read(workdir / name), run_log.read(old / name), strict=True
  ):
    assert want.items() <= got.items()
  texts = [
    [row["completion"] for row in run_log.read(run / "completions.jsonl")]
    for run in (workdir, old)
  ]
  assert texts[0] == texts[1]


def test_finished_it_is_recognized_and_can_be_a_source(
  old, environment, tmp_path
):
  workdir = tmp_path / "run"
  shutil.copytree(old, workdir)
  out = processes.main(EXPERIMENT, workdir, **environment)
  assert "Going on after step 4" in out
  assert run_log.history(workdir) == run_log.history(old)
  assert directory.kept_steps(workdir) == [2, 4]
  out = processes.main(
    f"experiments/evaluate.py:source={workdir}",
    tmp_path / "results",
    "--config.datasets.pair_sum.data.name=pair_sum",
    "--config.datasets.pair_sum.data.test_size=8",
    "--config.evaluate.sampling.max_new_tokens=16",
    **environment,
  )
  assert "pass@1" in out


def test_a_field_that_it_lacks_has_its_default(old, tmp_path):
  """Whatever is new since; and what is not by default is a difference."""
  workdir = tmp_path / "run"
  shutil.copytree(old, workdir)
  config = directory.read_config(workdir)
  assert "correction" not in config
  changed = config | {"correction": {"kind": "none"}}
  directory.claim(workdir, changed, complete=claim.complete)
  changed["correction"] = {"kind": "keep_band"}
  with pytest.raises(ValueError, match=r"correction\.kind is .none. and"):
    directory.claim(workdir, changed, complete=claim.complete)
