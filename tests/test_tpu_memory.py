"""The programs of a run compile for a TPU's mesh, and what they hold there."""

import importlib.util
import json
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


needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs the extra `tpu`"
)
# Prints, of each topology, its devices, slices and meshes of powers of two.
MESHES = """
import itertools, json, math, sys
from jax.experimental import topologies
from grpo_jax import sharding
for name, slices in json.loads(sys.argv[1]):
  devices = topologies.get_topology_desc(
    platform="tpu", topology_name=name, num_slices=slices
  ).devices
  sizes, made = [2**i for i in range(11)], 0
  for shape in itertools.product(sizes, repeat=4):
    if math.prod(shape) == len(devices) and shape[0] % slices == 0:
      named = dict(zip(sharding.MESH_AXES, shape))
      made += sharding.make_mesh(named, devices).devices.shape == shape
  print(json.dumps([len(devices), sharding.num_slices(devices), made]))
"""


@needs_libtpu
@pytest.mark.slow
def test_every_mesh_exists_on_what_libtpu_describes():
  topologies = {
    ("v5e:4x8", 1): [32, 1, 56],
    ("v5p:2x2x4", 1): [16, 1, 35],
    ("v5p:4x4x4", 1): [64, 1, 84],
    ("v6e:8x8", 1): [64, 1, 84],
    ("v5e:4x4", 2): [32, 2, 35],
    ("v5p:2x2x2", 4): [32, 4, 20],
  }
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  run = subprocess.run(
    [sys.executable, "-c", MESHES, json.dumps(list(topologies))],
    cwd=SCRIPT.parents[1],
    env=env
    | dict(
      JAX_PLATFORMS="cpu",
      TPU_SKIP_MDS_QUERY="1",
      ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    ),
    capture_output=True,
    text=True,
    check=True,
  )
  found = [json.loads(line) for line in run.stdout.splitlines()]
  assert found == list(topologies.values())


@needs_libtpu
@pytest.mark.slow
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
