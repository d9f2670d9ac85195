"""The programs of a run compile for a TPU's mesh, and what they hold there."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "benchmarks" / "tpu_memory.py"
SIZES = (
  *("sampling.max_new_tokens=64", "sampling.cache_chunk=64"),
  *("prompts.num_prompts=16", "prompts.prompt_slots=64"),
  *("batching.num_minibatches=2", "batching.num_microbatches=2"),
)


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs the extra `tpu`"
)
@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2)])
def test_sampler_scorer_and_update_compile_for_eight_chips(mesh):
  sizes = zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), mesh, strict=True)
  run = subprocess.run(
    [
      *(sys.executable, SCRIPT, "--model=qwen2.5-0.5b", "--set", *SIZES),
      *(f"{name}={size}" for name, size in sizes),
    ],
    cwd=SCRIPT.parents[1],
    # Without the flags that tests on a CPU set.
    env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
    capture_output=True,
    text=True,
    check=True,
  )
  rows = [line.split() for line in run.stdout.splitlines()]
  held = {row[0]: tuple(map(float, row[1:4])) for row in rows[2:]}
  assert set(held) == {"sample", "score", "update"}
  # Float32, 494 M of them, split over fsdp and tensor; Adam has two moments.
  share = 4 * 0.494e9 / 2**30 / (mesh[1] * mesh[2])
  for name, trees in (("sample", 1), ("score", 1), ("update", 3)):
    arguments, in_place, peak = held[name]
    assert arguments == pytest.approx(trees * share, rel=0.05), name
    assert in_place == pytest.approx(share * trees * (trees > 1), rel=0.05)
    assert peak > arguments * 0.99
