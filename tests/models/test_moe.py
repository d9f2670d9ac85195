"""Experts: routing from the formulas, sums against all experts on all tokens.

P prompts, G completions each, T positions.
"""

import dataclasses
import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from grpo_jax.models import layers, moe
from grpo_jax.train import state as state_lib
from grpo_jax.train.update import make_update

SOFTMAX = helpers.FAMILIES["qwen3_moe"]
SIGMOID = helpers.FAMILIES["deepseek_v3"]


def layer_params(cfg, seed=0):
  params = helpers.make_params(cfg, seed=seed)["layers"]["moe"]
  return jax.tree.map(lambda x: x[0], params)


def random(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def slow_route(logits, bias, cfg):
  """Weights [n, E] in float64, token by token, from the papers' formulas."""
  result = np.zeros(logits.shape)
  for n, row in enumerate(np.asarray(logits, np.float64)):
    if cfg.router == "softmax":
      scores = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
      choice = scores
    else:
      scores = 1 / (1 + np.exp(-row))
      choice = scores + bias
    groups = np.split(np.arange(len(row)), cfg.router_groups)
    if cfg.router_groups > 1:
      best = [np.sort(choice[group])[-2:].sum() for group in groups]
      groups = [groups[i] for i in np.argsort(best)[-cfg.router_top_groups :]]
    allowed = np.concatenate(groups)
    order = np.argsort(choice[allowed])[-cfg.experts_per_token :]
    chosen = allowed[order]
    weights = scores[chosen]
    if cfg.normalize_experts:
      weights = weights / weights.sum()
    result[n, chosen] = weights * cfg.routed_scale
  return result


@pytest.mark.parametrize(
  "cfg",
  [
    SOFTMAX,
    dataclasses.replace(SOFTMAX, normalize_experts=False),
    SIGMOID,
    helpers.FAMILIES["deepseek_v3_direct"],
  ],
  ids=["softmax", "not_normalized", "groups", "sigmoid"],
)
def test_routing_is_the_formula(cfg):
  logits, bias = random(0, 64, cfg.num_experts), random(1, cfg.num_experts)
  experts, weights = moe.route(
    jnp.asarray(logits),
    jnp.asarray(bias) if cfg.router != "softmax" else None,
    cfg,
  )
  got = np.zeros(logits.shape)
  np.put_along_axis(got, np.asarray(experts), np.asarray(weights), axis=-1)
  np.testing.assert_allclose(got, slow_route(logits, bias, cfg), rtol=1e-5)


def dense(params, cfg, x):
  """The oracle: all experts compute all tokens, most with weight 0."""
  logits = x.astype(jnp.float32) @ params["router"]
  experts, weights = moe.route(
    logits.reshape(-1, cfg.num_experts), params.get("router_bias"), cfg
  )
  full = jnp.zeros((experts.shape[0], cfg.num_experts))
  full = full.at[jnp.arange(len(full))[:, None], experts].add(weights)
  full = full.reshape(*x.shape[:-1], cfg.num_experts)
  hidden = jax.nn.silu(jnp.einsum("PGTD,EDF->PGTEF", x, params["gate"]))
  hidden = hidden * jnp.einsum("PGTD,EDF->PGTEF", x, params["up"])
  y = jnp.einsum("PGTEF,EFD,PGTE->PGTD", hidden, params["down"], full)
  if cfg.num_shared_experts:
    y = y + layers.mlp(params["shared"], cfg, x)
  return y


def value(function, weight, params, x):
  y, load = function(params, x=x)
  return jnp.sum(weight * y), (y, load)


@pytest.mark.parametrize("cfg", [SOFTMAX, SIGMOID], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize(
  "sizes",
  [
    None,
    dict(fsdp=2, tensor=2, expert=2),
    dict(expert=8),
    dict(data=2, fsdp=2, tensor=2),
  ],
  ids=["plain", "all_axes", "an_expert_each", "no_experts_split"],
)
def test_experts_and_gradients_are_those_of_the_dense_oracle(cfg, sizes):
  params, x = layer_params(cfg), random(3, 4, 2, 5, cfg.d_model)
  # Some experts have no token at all.
  params["router"] = params["router"].at[:, 2].set(0.0)
  if "router_bias" in params:
    params["router_bias"] = params["router_bias"].at[5].set(-9.0)
  weight, real = random(4, *x.shape), np.ones(x.shape[:3], bool)
  real[1, 0] = False
  oracle = lambda params, x: (dense(params, cfg, x), None)  # noqa: E731
  (_, (want, _)), gradient = jax.value_and_grad(
    functools.partial(value, oracle, weight), argnums=(0, 1), has_aux=True
  )(params, jnp.asarray(x))

  def ours(params, x, weight, real):
    return jax.value_and_grad(
      functools.partial(
        value, functools.partial(moe.moe, cfg=cfg, real=real), weight
      ),
      argnums=(0, 1),
      has_aux=True,
    )(params, x)

  given = params, x, weight, real
  if sizes is None:
    found = jax.jit(ours)(*jax.tree.map(jnp.asarray, given))
  else:
    mesh = helpers.make_mesh(**sizes)
    with jax.set_mesh(mesh):
      rows = PartitionSpec(("data", "fsdp"))
      if sizes.get("expert") == 8:
        rows = PartitionSpec()
      placed = [jax.device_put(v, rows) for v in (x, weight, real)]
      found = jax.jit(ours)(jax.device_put(params, PartitionSpec()), *placed)
  (_, (got, load)), (params_gradient, x_gradient) = found
  np.testing.assert_allclose(got, want, atol=2e-5)
  np.testing.assert_allclose(x_gradient, gradient[1], rtol=1e-4, atol=2e-5)
  helpers.assert_trees_close(params_gradient, gradient[0], rtol=1e-4, atol=5e-5)
  assert float(load.sum()) == real.sum() * cfg.experts_per_token
  if "router_bias" in params:
    assert not np.any(params_gradient["router_bias"])
    assert float(load[5]) == 0


def test_a_token_gets_the_same_beside_any_others():
  params, x = layer_params(SIGMOID), jnp.asarray(random(5, 1, 1, 40, 32))
  real = jnp.ones((1, 1, 40), bool)
  run = jax.jit(functools.partial(moe.moe, cfg=SIGMOID))
  together, _ = run(params, x=x, real=real)
  # All tokens alike go to the same experts, and none is dropped.
  crowd, _ = run(params, x=jnp.broadcast_to(x[:, :, :1], x.shape), real=real)
  np.testing.assert_allclose(
    crowd, np.broadcast_to(together[:, :, :1], x.shape), atol=1e-5
  )


class TestLoad:
  even = {"layers": jnp.full((2, 4), 6.0)}
  one_for_all = {"layers": jnp.array([[0.0, 24, 0, 0], [6, 6, 6, 6]])}

  def test_figures_of_an_even_load_are_one(self):
    for value in moe.load_metrics(self.even).values():
      assert float(value) == pytest.approx(1.0)

  def test_figures_tell_the_worst_layer(self):
    figures = moe.load_metrics(self.one_for_all)
    assert float(figures["experts/load_max"]) == pytest.approx(2.5)
    assert float(figures["experts/load_max_worst"]) == pytest.approx(4.0)
    assert float(figures["experts/load_entropy"]) == pytest.approx(0.5)

  def test_biases_move_by_the_rate_towards_an_even_load(self):
    bias = jnp.array([[0.5, 0.0, 0.0, -0.5], [0.0, 1.0, 2.0, 3.0]])
    params = {"embed": 1, "layers": {"moe": {"router_bias": bias, "up": 2}}}
    moved = moe.balance(params, self.one_for_all, 0.25)
    np.testing.assert_allclose(
      moved["layers"]["moe"]["router_bias"],
      [[0.75, -0.25, 0.25, -0.25], [0.0, 1.0, 2.0, 3.0]],
    )
    assert (moved["embed"], moved["layers"]["moe"]["up"]) == (1, 2)
    assert params["layers"]["moe"]["router_bias"] is bias

  @pytest.mark.parametrize("num_microbatches", [1, 2])
  def test_balancing_makes_an_uneven_load_even(self, num_microbatches):
    """Only the rule moves the bias, and it moves the load."""
    cfg = dataclasses.replace(SIGMOID, router_groups=1, router_top_groups=1)
    params = {
      "layers": {"moe": jax.tree.map(lambda x: x[None], layer_params(cfg))}
    }
    x = jnp.asarray(random(6, 64, 1, 4, 32)) + 0.5

    def loss_fn(params, x):
      layer = jax.tree.map(lambda x: x[0], params["layers"]["moe"])
      y, load = moe.moe(layer, cfg, x, jnp.ones(x.shape[:3], bool))
      return jnp.sum(y**2), {"expert_load": {"layers": load[None]}}

    tx = optax.adamw(0.0, weight_decay=0.1)
    update = make_update(
      loss_fn, tx, num_microbatches=num_microbatches, router_bias_rate=0.02
    )
    state = state_lib.init_state(jax.tree.map(jnp.copy, params), tx)
    before = after = None
    for _ in range(60):
      state, metrics = update(state, x)
      after = {name: float(value) for name, value in metrics.items()}
      before = before or after
    assert before["experts/load_max"] > 1.5
    assert after["experts/load_max"] < 1.2
    assert after["experts/load_entropy"] > 0.99 > before["experts/load_entropy"]
    moved = state.params["layers"]["moe"]
    for name in ("router", "gate"):
      np.testing.assert_array_equal(moved[name], params["layers"]["moe"][name])


@pytest.mark.parametrize(
  "cfg, devices, rate, sentence",
  [
    (SOFTMAX, 1, 0.1, "needs a model whose router has a bias"),
    (helpers.tiny(), 1, 0.1, "needs a model whose router has a bias"),
    (SIGMOID, 2, -0.1, "router_bias_rate=-0.1 must not be negative"),
    (helpers.tiny(), 2, 0.0, "expert=2, and the model has no experts"),
    (helpers.tiny(), -1, 0.0, "expert=-1, and the model has no experts"),
  ],
)
def test_what_the_model_has_not_is_refused(cfg, devices, rate, sentence):
  moe.check(cfg, 1, 0.0)
  with pytest.raises(ValueError, match=sentence):
    moe.check(cfg, devices, rate)
