"""Meshes, tables of axes, and which rows go where."""

import dataclasses
import itertools
import math
import subprocess
import sys

import helpers
import jax
import numpy as np
import processes
import pytest

from grpo_jax import errors, sharding, types


def test_a_mesh_takes_what_the_other_axes_leave():
  ones = dict(data=1, fsdp=1, tensor=1, expert=1)
  assert dict(sharding.make_mesh().shape) == ones | dict(data=8)
  mesh = sharding.make_mesh(dict(data=2, fsdp=-1, expert=2))
  assert dict(mesh.shape) == ones | dict(data=2, fsdp=2, expert=2)
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Explicit}


@pytest.mark.parametrize(
  "sizes, sentence",
  [
    (dict(model=2), "Unknown mesh axis 'model'; the axes are"),
    (dict(data=3), "needs 3 devices, and there are 8"),
    (dict(data=-1, fsdp=3), "needs 6 devices, and there are 8"),
    (dict(data=-1, fsdp=-1), "one of them may be -1"),
    (dict(data=0), "must be positive"),
    (dict(data=-2), "must be positive"),
    (dict(data=-1, fsdp=3), "mesh that works is data=2, fsdp=4[.]$"),
    (dict(data=1, tensor=5), "mesh that works is tensor=8[.]$"),
    (dict(fsdp=16), "nearest mesh that works is fsdp=8, and JAX_NUM_CPU"),
    (dict(data=-1, fsdp=16), "needs 16 devices, and there are 8"),
  ],
)
def test_a_mesh_that_cannot_be_is_refused_in_one_sentence(sizes, sentence):
  with pytest.raises(errors.ConfigError, match=sentence) as error:
    sharding.make_mesh(sizes)
  assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_one_device_says_both_counts_and_how_to_get_more():
  with pytest.raises(errors.ConfigError) as error:
    sharding.make_mesh(dict(data=-1, fsdp=4), jax.devices()[:1])
  told = str(error.value)
  assert told.startswith("Mesh fsdp=4 needs 4 devices, and there is 1 (cpu);")
  # What it says to set does make as many.
  (setting,) = (w for w in told.split() if w.startswith("JAX_NUM_CPU_DEVICES="))
  assert "XLA_FLAGS=--xla_force_host_platform_device_count=4" in told
  name, _, value = setting.partition("=")
  seen = subprocess.run(
    [sys.executable, "-c", "import jax; print(jax.device_count())"],
    env={"PATH": "", "JAX_PLATFORMS": "cpu", name: value},
    capture_output=True,
    text=True,
    check=True,
  )
  assert seen.stdout.strip() == "4"


@dataclasses.dataclass(frozen=True)
class Chip:
  """What `jax.experimental.mesh_utils` reads of a TPU."""

  id: int
  coords: tuple[int, int, int]
  slice_index: int
  device_kind: str
  platform: str = "tpu"
  core_on_chip: int = 0
  process_index: int = 0


def chips(kind: str, size: tuple[int, int, int], slices: int = 1):
  """The chips of a topology, x first, as libtpu numbers them."""
  places = itertools.product(*(range(n) for n in reversed(size)))
  both = itertools.product(range(slices), [p[::-1] for p in places])
  return [Chip(i, at, s, kind) for i, (s, at) in enumerate(both)]


def factors(count: int, parts: int):
  """All ways to write a power of two as a product, slowly."""
  sizes = [2**i for i in range(count.bit_length())]
  return [
    shape
    for shape in itertools.product(sizes, repeat=parts)
    if math.prod(shape) == count
  ]


@pytest.mark.parametrize(
  "kind, size, meshes",
  [
    ("TPU v5 lite", (2, 4, 1), 20),
    ("TPU v5 lite", (4, 8, 1), 56),
    ("TPU v5", (2, 2, 4), 35),
    ("TPU v5", (4, 4, 4), 84),
    ("TPU v6 lite", (8, 8, 1), 84),
    ("TPU v6 lite", (4, 8, 1), 56),
    ("TPU v5", (4, 4, 8), 120),
  ],
)
def test_every_mesh_of_powers_of_two_exists(kind, size, meshes):
  devices = chips(kind, size)
  shapes = factors(len(devices), len(sharding.MESH_AXES))
  assert len(shapes) == meshes
  for shape in shapes:
    sizes = dict(zip(sharding.MESH_AXES, shape, strict=True))
    mesh = sharding.make_mesh(sizes, devices)
    assert mesh.devices.shape == shape
    assert set(mesh.devices.flat) == set(devices)


def test_the_innermost_axis_that_fits_a_torus_is_of_neighbors():
  mesh = sharding.make_mesh(
    dict(data=2, fsdp=4, tensor=8), chips("TPU v5", (4, 4, 4))
  )
  for row in mesh.devices.reshape(-1, 8):
    spans = np.ptp([chip.coords for chip in row], axis=0) + 1
    assert math.prod(spans) == 8


@pytest.mark.parametrize(
  "kind, size, slices",
  [("TPU v5 lite", (4, 4, 1), 2), ("TPU v5", (2, 2, 2), 4)],
)
def test_slices_are_split_by_data_alone(kind, size, slices):
  devices = chips(kind, size, slices)
  made = 0
  for shape in factors(len(devices), len(sharding.MESH_AXES)):
    sizes = dict(zip(sharding.MESH_AXES, shape, strict=True))
    if shape[0] % slices:
      with pytest.raises(errors.ConfigError, match=f"in {slices} slices") as e:
        sharding.make_mesh(sizes, devices)
      # What the sentence names is a mesh.
      named = str(e.value).rpartition(" works is ")[2].rstrip(".")
      given = dict(part.split("=") for part in named.split(", "))
      sizes = {axis: int(size) for axis, size in given.items()}
    mesh = sharding.make_mesh(sizes, devices)
    for row in mesh.devices.reshape(mesh.shape["data"], -1):
      assert len({chip.slice_index for chip in row}) == 1
    made += 1
  assert made == len(factors(len(devices), 4))


@pytest.mark.parametrize(
  "prompts, group, want",
  [
    (4, 3, (("data", "fsdp"), None)),
    (2, 2, ("data", "fsdp")),
    (6, 2, ("data", "fsdp")),
    (1, 4, (None, ("data", "fsdp"))),
    (3, 8, (None, ("data", "fsdp"))),
  ],
)
def test_a_group_is_spread_where_prompts_are_few(prompts, group, want):
  mesh = helpers.make_mesh(**helpers.EIGHT)
  assert sharding.split_rows(mesh, prompts, group) == want


def test_rows_that_no_split_divides_are_refused_in_one_sentence():
  mesh = helpers.make_mesh(data=4, fsdp=2)
  assert sharding.split_rows(mesh, 2, 4) == ("fsdp", "data")
  with pytest.raises(
    ValueError, match=r"3 prompts x 3 completions do not .* 4 \(data\) x 2"
  ):
    sharding.split_rows(mesh, 3, 3)


@pytest.mark.parametrize(
  "data, fsdp, prompts, parts",
  [
    (1, 16, 4, 1),
    (1, 32, 4, 8),
    (1, 64, 4, 16),
    (1, 128, 32, 4),
    (2, 32, 4, 8),
    (4, 32, 8, 4),
    (16, 16, 32, 1),
  ],
)
def test_a_group_is_cut_where_an_axis_exceeds_it(data, fsdp, prompts, parts):
  """The paper's groups of 16, whose microbatch has 4 prompts."""
  mesh = jax.sharding.AbstractMesh((data, fsdp), ("data", "fsdp"))
  assert sharding.group_parts(mesh, prompts, 16) == parts
  axes = sharding.split_rows(mesh, prompts, 16)
  rows = prompts * parts, 16 // parts
  assert sharding.split_rows(mesh, *rows) == axes
  assert sharding.group_parts(mesh, *rows) == 1
  for size, names in zip(rows, axes, strict=True):
    names = (names,) if isinstance(names, str) else names or ()
    assert size % math.prod(mesh.shape[name] for name in names) == 0


def test_groups_that_were_cut_are_joined_to_what_they_were():
  tokens = np.arange(2 * 6 * 3).reshape(2, 6, 3)
  prompts = types.PromptBatch(np.arange(8).reshape(2, 4), np.ones((2, 4), bool))
  rollout = types.Rollout(
    prompts, tokens, tokens > 4, tokens * 0.5, tokens[..., 0] > 7
  )
  cut = types.cut_groups(rollout, 3)
  assert cut.tokens.shape == (6, 2, 3) and cut.truncated.shape == (6, 2)
  np.testing.assert_array_equal(cut.prompts.tokens[4], prompts.tokens[1])
  # Rows keep their numbers, by which keys are derived.
  np.testing.assert_array_equal(
    cut.tokens.reshape(12, 3), tokens.reshape(12, 3)
  )
  helpers.assert_trees_close(types.join_groups(cut), rollout)


def test_hosts_of_gpus_are_no_slices():
  """JAX numbers a slice for each, and its own make_mesh refuses several."""
  devices = [
    Chip(i, (0, 0, 0), i // 8, "NVIDIA H100", "gpu", 0, i // 8)
    for i in range(16)
  ]
  mesh = sharding.make_mesh(dict(fsdp=2, tensor=8), devices)
  for row in mesh.devices.reshape(2, 8):
    assert len({chip.process_index for chip in row}) == 1


@pytest.mark.parametrize(
  "count, mesh, sentence",
  [
    (1, "fsdp=4", "Mesh fsdp=4 needs 4 devices, and there is 1 (cpu); the"),
    (8, "tensor=8", "of 8 devices the nearest mesh that works is data="),
    (8, "expert=8", "the model has no experts"),
  ],
)
def test_a_run_ends_with_the_sentence_and_writes_nothing(
  count, mesh, sentence, tmp_path
):
  told = processes.main(
    "experiments/r1_zero.py:smoke",
    tmp_path / "run",
    f"--config.mesh.{mesh}",
    fails=True,
    JAX_PLATFORMS="cpu",
    JAX_NUM_CPU_DEVICES=str(count),
  )
  assert sentence in told and "Traceback" not in told
  assert not (tmp_path / "run").exists()


def test_rows_go_to_devices_and_come_back():
  mesh = helpers.make_mesh(**helpers.EIGHT)
  tree = {"a": np.arange(24).reshape(4, 2, 3), "b": np.eye(4, dtype=bool)}
  placed = sharding.place(mesh, tree, (("data", "fsdp"),))
  assert placed["a"].addressable_shards[0].data.shape == (1, 2, 3)
  back = sharding.to_host(placed)
  for name, x in tree.items():
    np.testing.assert_array_equal(back[name], x)


def test_without_a_mesh_nothing_is_laid_out():
  x = jax.numpy.ones((4, 2))
  assert not sharding.has_mesh()
  assert sharding.row_spec(x) is None
  assert sharding.out(None, "vocab") is None
  assert sharding.to_use(x, ("embed", "ffn")) is x
  assert sharding.reshard(x, ("data", None)) is x
  assert sharding.reshard_like(x, x) is x


def test_a_parameter_in_use_is_cast_and_whole_over_fsdp():
  mesh = helpers.make_mesh(**helpers.EIGHT)
  with jax.set_mesh(mesh):
    spec = sharding.spec(("embed", "ffn"), sharding.TRAIN)
    x = jax.device_put(np.ones((4, 6), np.float32), spec)
    used = jax.jit(lambda x: sharding.to_use(x, ("embed", "ffn"), "bfloat16"))(
      x
    )
    assert used.dtype == jax.numpy.bfloat16
    assert tuple(used.sharding.spec) == (None, "tensor")
    gradient = jax.jit(
      jax.grad(lambda x: sharding.to_use(x, ("embed", "ffn")).sum())
    )(x)
    assert tuple(gradient.sharding.spec) == ("fsdp", "tensor")
