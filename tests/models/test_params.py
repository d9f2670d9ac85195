"""Parameters, and where they rest."""

import helpers
import jax
import numpy as np
import pytest

from grpo_jax.errors import ConfigError
from grpo_jax.models import params as params_lib


def test_a_spec_names_every_axis():
  with pytest.raises(ValueError, match="differ in length"):
    params_lib.ParamSpec((3, 4), ("embed",), params_lib.ones)


def test_parameters_start_with_the_declared_spread():
  cfg = helpers.tiny(d_model=64, d_ff=128)
  specs = params_lib.param_specs(cfg)
  attention, mlp = specs["layers"]["attention"], specs["layers"]["mlp"]
  kept = {name: attention[name] for name in ("norm", "q_bias", "q", "o")}
  kept["down"] = mlp["down"]
  x = params_lib.init_params(jax.random.key(0), kept)
  # A normal cut at two standard deviations spreads as 0.88 of its own.
  for name, want in [
    ("q", 64**-0.5),
    ("o", 16**-0.5 / 2),
    ("down", 128**-0.5 / 2),
  ]:
    assert np.std(x[name]) / want == pytest.approx(0.88, rel=0.05), name
    assert not np.allclose(x[name][0], x[name][1])  # Layers start apart.
  np.testing.assert_array_equal(x["norm"], 1.0)
  np.testing.assert_array_equal(x["q_bias"], 0.0)


def test_a_parameter_starts_the_same_beside_any_others_and_on_any_mesh():
  key, specs = jax.random.key(3), params_lib.param_specs(helpers.tiny())
  few = {"layers": {"mlp": {"gate": specs["layers"]["mlp"]["gate"]}}}
  alone = params_lib.init_params(key, few)["layers"]["mlp"]["gate"]
  mesh = helpers.make_mesh(**helpers.EIGHT)
  with jax.set_mesh(mesh):
    params = params_lib.init_params(key, specs, mesh)
  np.testing.assert_allclose(params["layers"]["mlp"]["gate"], alone, rtol=1e-5)
  leaves = zip(
    jax.tree.leaves(params),
    jax.tree.leaves(params_lib.abstract_params(specs, mesh)),
    strict=True,
  )
  for x, abstract in leaves:
    assert (x.shape, x.dtype) == (abstract.shape, abstract.dtype)
    assert x.sharding.is_equivalent_to(abstract.sharding, x.ndim)


def test_parameters_rest_by_the_table():
  specs = params_lib.param_specs(helpers.tiny(tied_head=False))
  mesh = helpers.make_mesh(**helpers.EIGHT)
  where = params_lib.shardings(specs, mesh)
  layers = where["layers"]
  assert tuple(where["embed"].spec) == ("tensor", "fsdp")
  assert tuple(where["head"].spec) == ("fsdp", "tensor")
  assert tuple(layers["attention"]["q"].spec)[:3] == (None, "fsdp", "tensor")
  assert tuple(layers["attention"]["q_bias"].spec)[:2] == (None, "tensor")
  assert tuple(layers["mlp"]["down"].spec) == (None, "tensor", "fsdp")
  assert not any(layers["mlp"]["norm"].spec)


def test_a_size_that_the_mesh_does_not_divide_is_named():
  specs = params_lib.param_specs(helpers.tiny(d_ff=25))
  mesh = helpers.make_mesh(**helpers.EIGHT)
  with pytest.raises(
    ValueError,
    match=r"Axis 'ffn' of parameter layers\.mlp\.\w+ has size 25,.* 2 devices"
    r" of mesh axis 'tensor'",
  ):
    params_lib.shardings(specs, mesh)


def test_more_devices_than_key_value_heads_name_the_nearest_mesh():
  specs = params_lib.param_specs(helpers.tiny(num_kv_heads=2))
  with pytest.raises(ConfigError, match="'kv_heads' .* has size 2") as error:
    params_lib.shardings(specs, helpers.make_mesh(tensor=8))
  named = "; of 8 devices the nearest mesh that works is data=4, tensor=2."
  assert str(error.value).endswith(named)
  params_lib.shardings(specs, helpers.make_mesh(data=4, tensor=2))
  with pytest.raises(ConfigError, match="works is fsdp=4, tensor=2"):
    params_lib.shardings(specs, helpers.make_mesh(fsdp=2, tensor=4))
