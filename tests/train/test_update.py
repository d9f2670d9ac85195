"""Microbatches, shards and the optimizer's update."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.train import state as state_lib
from grpo_jax.train import update as update_lib


def loss_fn(params, batch):
  """A weighted sum over rows, as every loss here is."""
  prediction = jnp.tanh(batch["x"] @ params["w"]) @ params["v"]
  error = (prediction - batch["y"]) ** 2
  loss = jnp.sum(batch["weights"] * error)
  return loss, {"error": loss, "rows": jnp.sum(batch["weights"] > 0)}


def example():
  rng = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(rng.standard_normal(shape, np.float32))

  params = {"w": normal(5, 3), "v": normal(3)}
  weights = jnp.asarray(rng.random(8, np.float32) / 8).at[2].set(0.0)
  return params, {"x": normal(8, 5), "y": normal(8), "weights": weights}


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_microbatches_give_one_gradient_and_one_set_of_metrics(count):
  params, batch = example()
  (loss, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
    params, batch
  )
  got = update_lib.gradients(loss_fn, params, batch, count)
  helpers.assert_trees_close(got, (loss, metrics, gradient), rtol=1e-5)
  assert int(got[1]["rows"]) == 7


def test_cut_gives_row_b_to_piece_b_mod_count_and_join_undoes_it():
  tree = {"a": jnp.arange(24).reshape(8, 3), "b": jnp.arange(8)}
  pieces = update_lib.cut(tree, 4)
  np.testing.assert_array_equal(pieces["b"], np.arange(8).reshape(2, 4).T)
  assert pieces["a"].shape == (4, 2, 3)
  helpers.assert_trees_close(update_lib.join(pieces), tree, rtol=0)


def test_cut_leaves_rows_on_their_devices():
  mesh = helpers.make_mesh(data=2, fsdp=2)
  with jax.set_mesh(mesh):
    spec = jax.sharding.PartitionSpec(("data", "fsdp"))
    rows = jax.device_put(np.arange(8), spec)
    pieces = jax.jit(lambda x: update_lib.cut(x, 2))(rows)
    assert tuple(pieces.sharding.spec) == (None, ("data", "fsdp"))
    whole = jax.jit(update_lib.join)(pieces)
    assert tuple(whole.sharding.spec) == (("data", "fsdp"),)
    for before, after in zip(
      rows.addressable_shards, whole.addressable_shards, strict=True
    ):
      np.testing.assert_array_equal(before.data, after.data)


def test_an_update_is_the_optimizers_on_the_gradient():
  params, batch = example()
  tx = optax.sgd(0.1, momentum=0.9)
  state = state_lib.init_state(jax.tree.map(jnp.copy, params), tx)
  update = update_lib.make_update(loss_fn, tx, num_microbatches=2)
  want, opt_state = params, tx.init(params)
  for i in range(3):
    loss, gradient = jax.value_and_grad(lambda p: loss_fn(p, batch)[0])(want)
    changes, opt_state = tx.update(gradient, opt_state, want)
    want = optax.apply_updates(want, changes)
    state, metrics = update(state, batch)
    assert int(state.step) == i + 1
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(
      float(optax.tree.norm(gradient)), rel=1e-5
    )
  helpers.assert_trees_close(state.params, want)


def test_an_update_gives_its_memory_to_the_next():
  params, batch = example()
  state = state_lib.init_state(params, optax.sgd(0.1))
  update_lib.make_update(loss_fn, optax.sgd(0.1))(state, batch)
  assert state.params["w"].is_deleted()


def test_moments_rest_as_their_parameters_do():
  cfg = helpers.tiny()
  mesh = helpers.make_mesh(**helpers.EIGHT)
  with jax.set_mesh(mesh):
    params = helpers.make_params(cfg, mesh)
    tx = optax.adamw(1e-3)
    state = state_lib.init_state(params, tx)
    abstract = state_lib.abstract_state(params, tx)
  for p, m in zip(
    jax.tree.leaves(params),
    jax.tree.leaves(state.opt_state[0].mu),
    strict=True,
  ):
    assert m.sharding.is_equivalent_to(p.sharding, p.ndim)
  assert jax.tree.structure(abstract) == jax.tree.structure(state)
