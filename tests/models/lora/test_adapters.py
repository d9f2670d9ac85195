"""Adapters: attached, merged, trained and sampled with.

P prompts, G completions each, S prompt slots, N completion slots.
"""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from grpo_jax import sharding
from grpo_jax.models import lora, scoring
from grpo_jax.models import params as params_lib
from grpo_jax.rl import experience
from grpo_jax.runs import directory
from grpo_jax.runs import source as source_lib
from grpo_jax.sampling import decode
from grpo_jax.train import checkpoint
from grpo_jax.train import state as state_lib
from grpo_jax.train import update as update_lib
from grpo_jax.types import Rollout

FAMILIES = ("qwen2", "deepseek_v3")
SETTINGS = lora.LoraConfig(rank=2, alpha=3.0)
PROMPTS, SLOTS = [3, 5, 1, 4], 5
LENGTHS = [[6, 2], [4, 1], [5, 6], [3, 3]]


def make_batch(mesh=None):
  tokens, mask = helpers.make_completions(LENGTHS, 6)
  prompts = helpers.make_prompts(PROMPTS, SLOTS)
  nothing = np.zeros(tokens.shape[:2], bool)
  batch = Rollout(prompts, tokens, mask, np.zeros(mask.shape), nothing)
  if mesh is None:
    return jax.tree.map(jnp.asarray, batch)
  return experience.place(batch, mesh)


@functools.partial(jax.jit, static_argnames="cfg")
def logprobs(params, cfg, batch):
  scores = scoring.score_completions(
    params,
    cfg,
    batch.prompts.tokens,
    batch.prompts.mask,
    batch.tokens,
    batch.completion_mask,
  )
  return jnp.where(batch.completion_mask, scores.logprobs, 0.0)


def loss_fn(cfg, params, batch):
  each = logprobs(params, cfg, batch)
  # No symmetry between tokens, so that no gradient cancels.
  weights = jnp.cos(jnp.arange(each.shape[-1], dtype=jnp.float32))
  return jnp.sum(each * weights), {}


def adapted_gradients(cfg, base, adapters, batch):
  trainable = lora.Trainable({}, (base,), SETTINGS.scale)
  loss = trainable.loss(functools.partial(loss_fn, cfg))
  return jax.jit(lambda a, b, base: update_lib.gradients(loss, a, b, 1, base))(
    adapters, batch, base
  )


@pytest.mark.parametrize("family", FAMILIES)
def test_attached_is_merged_and_a_zero_up_is_the_base_to_the_bit(family):
  cfg = helpers.FAMILIES[family]
  base, batch = helpers.make_params(cfg), make_batch()
  adapters = helpers.make_adapters(cfg, SETTINGS)
  want = logprobs(base, cfg, batch)
  zero = lora.attach(
    base, helpers.make_adapters(cfg, SETTINGS, up=0.0), SETTINGS.scale
  )
  np.testing.assert_array_equal(logprobs(zero, cfg, batch), want)
  attached = lora.attach(base, adapters, SETTINGS.scale)
  merged = lora.merge(base, adapters, SETTINGS.scale)
  got = logprobs(attached, cfg, batch)
  np.testing.assert_allclose(got, logprobs(merged, cfg, batch), atol=1e-4)
  assert np.abs(got - want).max() > 0.1


def test_a_merge_is_the_formula_and_keeps_the_dtype_of_the_base():
  cfg = helpers.FAMILIES["qwen2"]
  base, adapters = (
    helpers.make_params(cfg),
    helpers.make_adapters(cfg, SETTINGS),
  )
  pair = adapters["layers"]["attention"]["o"]
  low = np.einsum("LKRHA,LAD->LKRHD", pair["down"], pair["up"])
  want = base["layers"]["attention"]["o"] + 1.5 * low
  merged = lora.merge(base, adapters, 1.5)
  got = merged["layers"]["attention"]["o"]
  np.testing.assert_allclose(got, want, atol=1e-6)
  assert merged["embed"] is base["embed"]
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
  got = lora.merge(half, adapters, 1.5)["layers"]["attention"]["o"]
  exact = half["layers"]["attention"]["o"].astype(jnp.float32) + 1.5 * low
  np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))


def test_the_gradient_is_the_chain_rule_through_the_merged_matrix():
  cfg = helpers.tiny(num_layers=1)
  base, adapters = (
    helpers.make_params(cfg),
    helpers.make_adapters(cfg, SETTINGS),
  )
  batch = make_batch()
  _, _, got = adapted_gradients(cfg, base, adapters, batch)
  merged = lora.merge(base, adapters, SETTINGS.scale)
  loss = functools.partial(loss_fn, cfg)
  full, _ = jax.jit(jax.grad(loss, has_aux=True))(merged, batch)
  want = {}
  for path, x in traverse_util.flatten_dict(adapters).items():
    pair = adapters["layers"][path[1]][path[2]]
    rank = SETTINGS.rank
    down = pair["down"].reshape(-1, rank)
    up = pair["up"].reshape(rank, -1)
    d = full["layers"][path[1]][path[2]].reshape(len(down), -1)
    d = d @ up.T if path[-1] == "down" else down.T @ d
    want[path] = SETTINGS.scale * d.reshape(x.shape)
  want = traverse_util.unflatten_dict(want)
  helpers.assert_trees_close(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_eight_devices_have_the_loss_and_gradient_of_one(family):
  cfg = helpers.FAMILIES[family]
  given = (
    helpers.make_params(cfg),
    helpers.make_adapters(cfg, SETTINGS),
    make_batch(),
  )
  want = adapted_gradients(cfg, *given)
  mesh = helpers.make_mesh(**helpers.eight(cfg))
  with jax.set_mesh(mesh):
    base, adapters = (
      helpers.make_params(cfg, mesh),
      helpers.make_adapters(cfg, SETTINGS, mesh=mesh),
    )
    got = adapted_gradients(cfg, base, adapters, make_batch(mesh))
    where = jax.tree.map(lambda x: x.sharding.spec, got[2])
    assert where == jax.tree.map(lambda x: x.sharding.spec, adapters)
    merged = lora.merge(base, adapters, SETTINGS.scale)
    for x, y in zip(
      jax.tree.leaves(merged), jax.tree.leaves(base), strict=True
    ):
      assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
  np.testing.assert_allclose(got[0], want[0], rtol=1e-4)
  helpers.assert_trees_close(got[2], want[2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
  "family, many",
  [("qwen2", False), ("deepseek_v3", False), ("deepseek_v3", True)],
)
def test_sampler_and_scorer_agree(family, many):
  """For latent attention the sampler takes the absorbed path."""
  cfg = helpers.FAMILIES[family]
  mesh = helpers.make_mesh(**(helpers.eight(cfg) if many else {}))
  with jax.set_mesh(mesh):
    base, adapters = (
      helpers.make_params(cfg, mesh),
      helpers.make_adapters(cfg, SETTINGS, mesh=mesh),
    )
    params = lora.attach(base, adapters, SETTINGS.scale)
    prompts = helpers.make_prompts(PROMPTS, SLOTS)
    axes = sharding.split_rows(mesh, len(PROMPTS), 2)
    rollout = decode.sample(
      params,
      cfg,
      sharding.place(mesh, prompts, axes[:1]),
      jax.random.key(1),
      sampling=decode.SamplingParams(group_size=2, max_new_tokens=6),
      eos_ids=(1,),
    )
    scored = logprobs(params, cfg, rollout)
    drawn, scored, mask = jax.device_get(
      (rollout.logprobs, scored, rollout.completion_mask)
    )
  np.testing.assert_allclose(scored[mask], drawn[mask], atol=2e-5)


def test_an_update_moves_adapters_and_leaves_the_base_alone():
  cfg = helpers.tiny(num_layers=1)
  base, tx = helpers.make_params(cfg), optax.adam(1e-2)
  before = jax.device_get(base)
  trainable = lora.trainable(cfg, base, SETTINGS)
  start = trainable.start(jax.random.key(0), base, None)
  for path, x in traverse_util.flatten_dict(jax.device_get(start)).items():
    fan_in = np.prod(x.shape[1:-1])
    if path[-1] == "up":
      assert not x.any()
    else:
      assert 0.5 < np.abs(x).max() * fan_in**0.5 <= 1
      assert abs(x.mean()) * fan_in**0.5 < 0.4
  state = state_lib.init_state(start, tx)
  moments = sum(x.size for x in jax.tree.leaves(state.opt_state))
  assert moments <= 2 * params_lib.count(trainable.specs) + 1
  update = update_lib.make_update(
    trainable.loss(functools.partial(loss_fn, cfg)), tx
  )
  losses = []
  for _ in range(3):
    state, metrics = update(state, make_batch(), *trainable.frozen)
    losses.append(float(metrics["loss"]))
  assert losses[2] < losses[1] < losses[0]
  for x in jax.tree.leaves(state.params):
    assert np.abs(x).max() > 0
  helpers.assert_trees_close(jax.device_get(base), before, rtol=0, atol=0)


@pytest.mark.parametrize(
  "family, fields, sentence",
  [
    (None, dict(rank=-1), "lora.rank=-1 must not be negative"),
    (None, dict(alpha=0.0), "lora.alpha=0.0 must be above 0"),
    (None, dict(targets="q_proj"), "lora.targets='q_proj' must be a tuple"),
    (None, dict(targets=()), r"lora.targets=\(\) must be a tuple"),
    (None, dict(targets=("q_prj",)), "has 'q_prj'; .* 'q_proj'"),
    (None, dict(targets=("gate",)), "has 'gate'; .*no routed experts, routers"),
    (None, dict(targets=("embed_tokens",)), "has 'embed_tokens'; .*embedding"),
    (None, dict(targets=("lm_head",)), "has 'lm_head'; .* or head"),
    (None, dict(targets=("all-linear", "q_proj")), "'all-linear' alone"),
    ("qwen3_moe", dict(targets=("up_proj",)), "of this model .* 'k_proj'"),
    ("deepseek_v3", dict(targets=("q_proj",)), "of this model .* 'q_a_proj'"),
    ("qwen2", dict(targets=("q_b_proj",)), "of this model .* 'q_proj'"),
  ],
)
def test_bad_settings_are_refused_in_one_sentence(family, fields, sentence):
  with pytest.raises(ValueError, match=sentence) as caught:
    settings = lora.LoraConfig(**dict(rank=2) | fields)
    lora.adapter_specs(helpers.FAMILIES[family], settings)
  assert "\n" not in str(caught.value)


def test_targets_reach_shared_experts_and_dense_layers_but_no_routed_ones():
  cfg = helpers.FAMILIES["deepseek_v3"]
  settings = lora.LoraConfig(rank=2, targets=("gate_proj",))
  flat = traverse_util.flatten_dict(lora.adapter_specs(cfg, settings))
  assert set(flat) == {
    (*path, factor)
    for path in (
      ("dense_layers", "mlp", "gate"),
      ("layers", "moe", "shared", "gate"),
    )
    for factor in ("down", "up")
  }


def test_a_run_of_adapters_is_read_with_its_base(tmp_path):
  cfg = helpers.tiny(dtype="bfloat16")
  mesh = helpers.make_mesh()
  run, inside, tx = tmp_path / "run", tmp_path / "run" / "base", optax.sgd(1.0)
  with jax.set_mesh(mesh):
    base, adapters = (
      helpers.make_params(cfg, mesh),
      helpers.make_adapters(cfg, SETTINGS, mesh=mesh),
    )
    for workdir, params, number in ((inside, base, 5), (run, adapters, 3)):
      workdir.mkdir(parents=True, exist_ok=True)
      directory.save_model(workdir, cfg)
      checkpointer = checkpoint.Checkpointer(workdir)
      checkpointer.save(number, state_lib.init_state(params, tx))
      checkpointer.close()
    with pytest.raises(ValueError, match="is no run that trained adapters"):
      source_lib.load_adapters(inside, mesh)
    directory.save_lora(run, SETTINGS, inside)
    run = run.rename(tmp_path / "moved")
    got = source_lib.load_adapters(run, mesh)
    assert (got.settings, got.step, got.base) == (SETTINGS, 3, run / "base")
    helpers.assert_trees_close(got.adapters, adapters, rtol=0, atol=0)
    merged = lora.merge(base, adapters, SETTINGS.scale)
    _, params, number = source_lib.load_policy(run, mesh)
    assert number == 3
    helpers.assert_trees_close(params, merged, rtol=0, atol=0)
    for source, want in ((run / "base", base), (run, merged)):
      _, params, _ = source_lib.load_policy(source, mesh, frozen=True)
      used = jax.tree.map(lambda x, y: x.astype(y.dtype), want, params)
      helpers.assert_trees_close(params, used, rtol=0, atol=0)
      layer = params["layers"]["attention"]
      assert layer["q"].dtype == layer["q_bias"].dtype == jnp.bfloat16
      assert layer["norm"].dtype == layer["q_norm"].dtype == jnp.float32


def test_a_frozen_base_in_bf16_computes_as_its_masters_do():
  cfg = helpers.tiny(dtype="bfloat16", remat="full")
  base, adapters = (
    helpers.make_params(cfg),
    helpers.make_adapters(cfg, SETTINGS),
  )
  specs = params_lib.param_specs(cfg)
  abstract = params_lib.abstract_params(specs, helpers.make_mesh(), "bfloat16")
  frozen = jax.tree.map(lambda x, a: x.astype(a.dtype), base, abstract)
  want, got = (
    adapted_gradients(cfg, params, adapters, make_batch())
    for params in (base, frozen)
  )
  helpers.assert_trees_close(got, want, rtol=0, atol=0)
