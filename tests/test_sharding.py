"""Meshes, tables of axes, and which rows go where."""

import helpers
import jax
import numpy as np
import pytest

from grpo_jax import sharding


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
  ],
)
def test_a_mesh_that_cannot_be_is_refused_in_one_sentence(sizes, sentence):
  with pytest.raises(ValueError, match=sentence):
    sharding.make_mesh(sizes)


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
