"""One device and eight give the same: draws, scores, gradients, histories."""

import functools
import types

import helpers
import jax
import numpy as np
import optax
import pytest

from grpo_jax import sharding
from grpo_jax.losses import policy
from grpo_jax.models import lora
from grpo_jax.rl import experience, learner, programs, value_model
from grpo_jax.sampling import decode, generate
from grpo_jax.train import optimizer
from grpo_jax.train import state as state_lib
from grpo_jax.train.update import gradients, make_update
from grpo_jax.types import Experience, Rewards

CFG = helpers.tiny(num_layers=1)
SAMPLING = decode.SamplingParams(group_size=4, max_new_tokens=12, cache_chunk=6)
STOPS = (1, 5)
MESHES = {"one": {}, "eight": helpers.EIGHT}


@functools.cache
def score(num_pieces: int):
  return programs.make_score(CFG, 1.0, num_pieces)


def sample(mesh, params, num_prompts: int, step: int = 0):
  lengths = [3, 7, 1, 5][:num_prompts]
  prompts = helpers.make_prompts(lengths, 7, seed=step)
  axes = sharding.split_rows(mesh, num_prompts, SAMPLING.group_size)
  rollout = decode.sample(
    params,
    CFG,
    sharding.place(mesh, prompts, axes[:1]),
    jax.random.key(step),
    sampling=SAMPLING,
    eos_ids=STOPS,
  )
  return sharding.to_host(rollout)


def make_experience(mesh, params, rollout, reference=None):
  """Experience in which even tokens are rewarded."""
  placed = experience.place(rollout, mesh)
  given = placed.prompts, placed.tokens, placed.completion_mask
  old = sharding.to_host(score(1)(params, *given))
  ref = None
  if reference is not None:
    ref = sharding.to_host(score(1)(reference, *given).logprobs)
  mask = rollout.completion_mask
  even = np.sum((rollout.tokens % 2 == 0) * mask, -1) / mask.sum(-1)
  rewards = even.ravel().astype(np.float32)
  scores = Rewards(rewards, np.ones(rewards.shape, bool), {})
  return experience.make_experience(
    helpers.earning(rollout, scores),
    experience.Scored(old.logprobs, old.entropy, ref),
  )


def loss_fn(params, batch, kl_coef=0.1):
  loss = functools.partial(policy.grpo_loss, kl_coef=kl_coef)
  return programs.loss_fn(
    params, batch, cfg=CFG, temperature=1.0, policy_loss=loss
  )


@pytest.mark.parametrize("num_prompts", [1, 2, 4])
def test_eight_devices_draw_the_tokens_of_one(num_prompts):
  drawn = {}
  for name, sizes in MESHES.items():
    mesh = helpers.make_mesh(**sizes)
    with jax.set_mesh(mesh):
      params = helpers.make_params(CFG, mesh)
      drawn[name] = sample(mesh, params, num_prompts)
  one, eight = drawn["one"], drawn["eight"]
  np.testing.assert_array_equal(one.tokens, eight.tokens)
  np.testing.assert_array_equal(one.completion_mask, eight.completion_mask)
  np.testing.assert_allclose(one.logprobs, eight.logprobs, atol=1e-5)


@pytest.mark.parametrize("name", MESHES)
def test_sampler_and_scorer_agree_and_the_first_ratio_is_one(name):
  mesh = helpers.make_mesh(**MESHES[name])
  with jax.set_mesh(mesh):
    params = helpers.make_params(CFG, mesh)
    rollout = sample(mesh, params, 4)
    data = make_experience(mesh, params, rollout)
    mask = rollout.completion_mask
    gap = np.abs(data.old_logprobs - rollout.logprobs)[mask]
    assert gap.max() < 1e-5
    (part,) = experience.minibatches(data, 1, "sequence_mean", 12)
    metrics = jax.jit(functools.partial(loss_fn, kl_coef=0.0))(
      params, experience.place(part, mesh)
    )[1]
    # Sums of weights are 1 to rounding; the square is 1 only if each ratio is.
    weight = float(metrics["weight"])
    assert abs(float(metrics["ratio/mean"]) - weight) < 1e-6
    assert abs(float(metrics["ratio/square"]) - weight) < 1e-6


def test_microbatches_and_devices_give_one_gradient():
  trees = {}
  for name, sizes in MESHES.items():
    mesh = helpers.make_mesh(**sizes)
    with jax.set_mesh(mesh):
      params = helpers.make_params(CFG, mesh)
      reference = helpers.make_params(CFG, mesh, seed=1)
      rollout = sample(mesh, params, 4)
      data = make_experience(mesh, params, rollout, reference)
      (part,) = experience.minibatches(data, 1, "token_mean", 12)
      for pieces in (1, 2, 4):
        placed = experience.place(part, mesh, pieces)
        found = jax.jit(gradients, static_argnums=(0, 3))(
          loss_fn, params, placed, pieces
        )
        trees[name, pieces] = sharding.to_host(found)
  expected = trees["one", 1]
  for found in trees.values():
    for a, b in zip(
      jax.tree.leaves(expected), jax.tree.leaves(found), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


def test_histories_of_ten_steps_agree_to_rounding():
  histories = {}
  for name, sizes in MESHES.items():
    mesh = helpers.make_mesh(**sizes)
    with jax.set_mesh(mesh):
      reference = helpers.make_params(CFG, mesh)
      tx, _ = optimizer.make_optimizer(20, learning_rate=1e-3)
      train = state_lib.init_state(helpers.make_params(CFG, mesh), tx)
      update = make_update(loss_fn, tx, num_microbatches=2)
      histories[name] = []
      for step in range(10):
        rollout = sample(mesh, train.params, 4, step)
        data = make_experience(mesh, train.params, rollout, reference)
        for part in experience.minibatches(data, 1, "sequence_mean", 12):
          train, metrics = update(train, experience.place(part, mesh, 2))
        metrics = sharding.to_host(metrics)
        lengths = rollout.completion_mask.sum()
        histories[name].append(
          [lengths, metrics["loss"], metrics["grad_norm"], metrics["kl"]]
        )
  np.testing.assert_allclose(
    histories["one"], histories["eight"], rtol=1e-3, atol=1e-5
  )


def steps(mesh, cfg, num_prompts, **options):
  """What two steps of a run draw, score and change, on a mesh."""
  with jax.set_mesh(mesh):
    reference = helpers.make_params(cfg, mesh)
    # Plain descent: Adam would divide rounding errors by their own size.
    tx = optax.sgd(0.1)
    parts = dict(num_minibatches=1, num_microbatches=2)
    trunk = {
      k: x for k, x in helpers.make_params(cfg, mesh, 1).items() if k != "head"
    }
    value = trunk | {
      "reward": {
        "weight": np.full(cfg.d_model, 0.1, np.float32),
        "bias": np.float32(0),
      }
    }
    student = learner.Learner(
      lambda temperature: programs.make_programs(
        cfg,
        tx,
        temperature=temperature,
        loss=dict(kl_coef=0.1),
        **parts,
        **options,
      ),
      lora.Trainable({}),
      tx,
      mesh,
      weighting="token_mean",
      value=value_model.make(cfg, tx, num_pieces=2, num_microbatches=2),
      value_state=state_lib.init_state(value, tx),
      **parts,
    )
    student.begin(helpers.make_params(cfg, mesh), reference)
    found = []
    for step in range(2):
      tok = types.SimpleNamespace(eos_ids=STOPS)
      rollout = generate.draw(
        generate.Policy(student.policy, cfg, tok, mesh),
        helpers.make_prompts([3, 7, 1, 5][:num_prompts], 7, seed=step),
        jax.random.key(step),
        SAMPLING,
      )
      scored = student.score(rollout, 1.0)
      mask = rollout.completion_mask
      even = np.sum((rollout.tokens % 2 == 0) * mask, -1) / mask.sum(-1)
      rewards = even.ravel().astype(np.float32)
      data = experience.make_experience(
        helpers.earning(
          rollout, Rewards(rewards, np.ones(rewards.shape, bool), {})
        ),
        scored,
        advantages=dict(kind="gae"),
      )
      metrics = student.update(data, 1.0, 12, 1.0)
      # What lies outside means nothing.
      scored = [np.where(mask, x, 0) for x in scored if x is not None]
      found.append((rollout, scored, metrics))
    return found, sharding.to_host(
      (student.state.params, student.value_state.params)
    )


@pytest.mark.parametrize(
  "cfg, options",
  [
    (CFG, {}),
    pytest.param(
      helpers.FAMILIES["deepseek_v3"],
      dict(router_bias_rate=0.01),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_a_step_whose_groups_are_cut_is_that_of_one_device(cfg, options):
  """4 prompts x 4, two at a time, on fsdp=8: groups of 2, and of 1."""
  mesh = helpers.make_mesh(fsdp=8)
  assert sharding.group_parts(mesh, 4, 4) == 2
  assert sharding.group_parts(mesh, 2, 4) == 4
  one, eight = (
    steps(m, cfg, 4, **options) for m in (helpers.make_mesh(), mesh)
  )
  for a, b in zip(one[0], eight[0], strict=True):
    np.testing.assert_array_equal(a[0].tokens, b[0].tokens)
    np.testing.assert_array_equal(a[0].prompts.tokens, b[0].prompts.tokens)
    assert b[0].prompts.parts == 1
  helpers.assert_trees_close(eight, one, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_updates_with_experts_agree_and_move_the_router_alike():
  cfg = helpers.FAMILIES["deepseek_v3"]
  meshes = {"one": {}, "eight": dict(fsdp=2, tensor=2, expert=2)}
  prompts = helpers.make_prompts([3, 7, 1, 5], 7)
  tokens, mask = helpers.make_completions([[4, 6], [2, 6], [6, 3], [1, 5]], 6)
  zeros = np.zeros(mask.shape, np.float32)
  rng = np.random.default_rng(0)
  data = Experience(
    prompts=prompts,
    tokens=tokens,
    completion_mask=mask,
    old_logprobs=zeros - 3,
    ref_logprobs=zeros - 3,
    sampler_logprobs=zeros,
    advantages=rng.standard_normal(mask.shape).astype(np.float32) * mask,
    weights=(mask / mask.sum()).astype(np.float32),
  )
  loss = functools.partial(
    programs.loss_fn,
    cfg=cfg,
    temperature=1.0,
    policy_loss=functools.partial(policy.grpo_loss, kl_coef=0.1),
  )
  found = {}
  for name, sizes in meshes.items():
    mesh = helpers.make_mesh(**sizes)
    with jax.set_mesh(mesh):
      # Plain descent: Adam would divide rounding errors by their own size.
      tx = optax.sgd(0.1)
      train = state_lib.init_state(helpers.make_params(cfg, mesh), tx)
      update = make_update(loss, tx, num_microbatches=2, router_bias_rate=0.01)
      for _ in range(2):
        train, metrics = update(train, experience.place(data, mesh, 2))
      found[name] = sharding.to_host((train.params, metrics))
  helpers.assert_trees_close(found["eight"], found["one"], rtol=1e-3, atol=2e-5)
  params, metrics = found["one"]
  assert 1 <= metrics["experts/load_max"] <= metrics["experts/load_max_worst"]
  start = helpers.make_params(cfg)["layers"]["moe"]["router_bias"]
  moved = np.abs(params["layers"]["moe"]["router_bias"] - start) / 0.01
  np.testing.assert_allclose(moved, np.round(moved), atol=1e-3)
  assert moved.max() > 0.5
