"""Parameters, and where they rest."""

import helpers
import jax
import numpy as np
import pytest
from flax import traverse_util

from grpo_jax import sharding
from grpo_jax.models import params as params_lib


def flat(tree):
  return traverse_util.flatten_dict(tree, sep=".")


def test_a_spec_names_every_axis():
  with pytest.raises(ValueError, match="differ in length"):
    params_lib.ParamSpec((3, 4), ("embed",), params_lib.ones)


def test_parameters_start_with_the_declared_spread():
  cfg = helpers.tiny(d_model=64, d_ff=128, vocab_size=512, tied_head=False)
  x = flat(
    params_lib.init_params(jax.random.key(0), params_lib.param_specs(cfg))
  )
  into, layers = 64**-0.5, "layers.attention"
  # A normal cut at two standard deviations spreads as 0.88 of its own.
  for name, want in [
    ("embed", into),
    ("head", into),
    (f"{layers}.q", into),
    ("layers.mlp.gate", into),
    (f"{layers}.o", 16**-0.5 / 2),
    ("layers.mlp.down", 128**-0.5 / 2),
  ]:
    assert np.std(x[name]) == pytest.approx(want, rel=0.15), name
  for name in ("norm", f"{layers}.norm", f"{layers}.q_norm"):
    np.testing.assert_array_equal(x[name], 1.0)
  for name in ("q_bias", "k_bias", "v_bias"):
    np.testing.assert_array_equal(x[f"{layers}.{name}"], 0.0)
  q = np.asarray(x[f"{layers}.q"])
  assert not np.allclose(q[0], q[1])  # Layers start apart.


def test_a_parameter_starts_the_same_whatever_else_the_model_has():
  key = jax.random.key(3)

  def start(cfg):
    return flat(params_lib.init_params(key, params_lib.param_specs(cfg)))

  plain = start(helpers.tiny(qkv_bias=False, qk_norm=False))
  more = start(helpers.tiny(tied_head=False))
  assert set(more) > set(plain)
  for name, x in plain.items():
    np.testing.assert_array_equal(x, more[name], err_msg=name)


def test_parameters_start_the_same_on_any_mesh_and_rest_by_the_table():
  key, specs = jax.random.key(0), params_lib.param_specs(helpers.tiny())
  alone = params_lib.init_params(key, specs)
  mesh = helpers.make_mesh(**helpers.EIGHT)
  with jax.set_mesh(mesh):
    spread = params_lib.init_params(key, specs, mesh)
  helpers.assert_trees_close(spread, alone, rtol=1e-6)
  leaves = zip(
    jax.tree.leaves(spread),
    jax.tree.leaves(params_lib.abstract_params(specs, mesh)),
    strict=True,
  )
  for x, abstract in leaves:
    assert (x.shape, x.dtype) == (abstract.shape, abstract.dtype)
    assert x.sharding.is_equivalent_to(abstract.sharding, x.ndim)
  q = spread["layers"]["attention"]["q"]
  assert q.sharding.spec == sharding.spec(
    ("layers", "embed", "kv_heads", None, None), sharding.TRAIN
  )
  assert q.addressable_shards[0].data.size * 4 == q.size


def test_a_size_that_the_mesh_does_not_divide_is_named():
  specs = params_lib.param_specs(helpers.tiny(d_ff=25))
  mesh = helpers.make_mesh(**helpers.EIGHT)
  with pytest.raises(
    ValueError,
    match=r"Axis 'ffn' of parameter layers\.mlp\.\w+ has size 25,.* 2 devices"
    r" of mesh axis 'tensor'",
  ):
    params_lib.shardings(specs, mesh)
