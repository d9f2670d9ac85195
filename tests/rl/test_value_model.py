"""The value model of PPO: what it reads, how it begins, its gradient."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import types
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models import params as params_lib
from grpo_jax.models import scoring
from grpo_jax.reward_models import learned, saved
from grpo_jax.rl import experience, value_model
from grpo_jax.train import checkpoint, optimizer, update
from grpo_jax.train import state as state_lib
from grpo_jax.types import Rollout

CFG = helpers.tiny(num_layers=1, tied_head=False)
TOK = tokenizer.ByteTokenizer()
LENGTHS = [[4, 1], [2, 6], [6, 3], [1, 1]]


def make_value_params(seed=0):
  """A model whose head says something."""
  rng = np.random.default_rng(seed)
  policy = helpers.make_params(CFG, seed=seed)
  trunk = {name: x for name, x in policy.items() if name != "head"}
  weight = jnp.asarray(rng.standard_normal(CFG.d_model, np.float32))
  return trunk | {"reward": {"weight": weight, "bias": jnp.float32(0.3)}}


def make_batch(values=None):
  tokens, mask = helpers.make_completions(LENGTHS, 6)
  rollout = Rollout(
    prompts=helpers.make_prompts([3, 5, 1, 2], 5),
    tokens=tokens,
    completion_mask=mask,
    logprobs=np.where(mask, np.float32(-1), np.float32(0)),
    truncated=np.zeros(mask.shape[:2], bool),
  )
  valid = np.ones(8, bool)
  valid[2] = False
  scores = types.Rewards(np.arange(8, dtype=np.float32) / 4, valid, {})
  if values is None:
    values = np.zeros(mask.shape, np.float32)
  data = experience.make_experience(
    helpers.earning(rollout, scores),
    experience.Scored(rollout.logprobs, rollout.logprobs, None, values),
    advantages={"kind": "gae"},
  )
  (part,) = experience.minibatches(data, 1, "token_mean", 6)
  return jax.tree.map(jnp.asarray, part)


def score(params, batch, num_pieces=1):
  tx, _ = optimizer.make_optimizer(9, learning_rate=0.1)
  model = value_model.make(CFG, tx, num_pieces=num_pieces, num_microbatches=1)
  return np.asarray(
    model.score(params, batch.prompts, batch.tokens, batch.completion_mask)
  )


def test_a_value_is_read_before_its_token():
  """As the scalar of the text before it; the token itself changes nothing."""
  params, batch = make_value_params(), make_batch()
  got = score(params, batch)
  prompts, tokens = batch.prompts, batch.tokens
  for p, g in ((0, 0), (1, 1), (2, 0)):
    text = [*prompts.tokens[p][prompts.mask[p]], *tokens[p, g]]
    start = int(prompts.mask[p].sum())
    positions = jnp.arange(len(text))[None]
    scalars = scoring.score_scalars(
      params,
      CFG,
      params["reward"],
      jnp.asarray(text)[None],
      positions,
      jnp.ones_like(positions),
    )[0]
    length = LENGTHS[p][g]
    np.testing.assert_allclose(
      got[p, g, :length], scalars[start - 1 : start - 1 + length], atol=1e-5
    )


def test_scoring_in_pieces_gives_the_same_values():
  params, batch = make_value_params(), make_batch()
  inside = np.asarray(batch.completion_mask)
  np.testing.assert_allclose(
    score(params, batch, 2)[inside], score(params, batch)[inside], atol=1e-5
  )


@pytest.mark.parametrize("clip", [0.2, None])
def test_several_microbatches_are_one_gradient(clip):
  params = make_value_params()
  batch = make_batch(score(make_value_params(1), make_batch()))

  def loss(params, batch):
    return value_model.loss_fn(params, batch, cfg=CFG, clip=clip)

  one, two, four = (
    jax.jit(update.gradients, static_argnums=(0, 3))(loss, params, batch, n)
    for n in (1, 2, 4)
  )
  helpers.assert_trees_close(two, one, rtol=1e-4)
  helpers.assert_trees_close(four, one, rtol=1e-4)
  assert float(one[1]["value/error"]) > 0.1


def test_a_completion_without_a_reward_is_not_read():
  params, batch = make_value_params(), make_batch()

  def gradient(batch):
    return jax.jit(
      jax.grad(lambda p: value_model.loss_fn(p, batch, cfg=CFG)[0])
    )(params)

  other = batch.replace(
    tokens=batch.tokens.at[1, 0].set(7),
    values=batch.values.at[1, 0].set(9.0),
  )
  helpers.assert_trees_close(gradient(other), gradient(batch), rtol=0, atol=0)


def test_updates_bring_the_values_to_the_returns():
  tx, _ = optimizer.make_optimizer(60, learning_rate=0.02)
  model = value_model.make(CFG, tx, num_pieces=1, num_microbatches=2, clip=None)
  batch = make_batch()
  state = state_lib.init_state(make_value_params(), tx)
  errors = []
  for _ in range(60):
    state, metrics = model.update(state, batch)
    errors.append(float(metrics["value/error"]))
  assert set(metrics) == {
    *("value/loss", "value/grad_norm", "value/mean", "value/error")
  }
  assert errors[-1] < 0.02 * errors[0]


def test_a_copy_of_the_policy_predicts_nothing_at_first():
  mesh = helpers.make_mesh(**helpers.EIGHT)
  with jax.set_mesh(mesh):
    policy = jax.tree.map(
      lambda x: x.astype(jnp.bfloat16), helpers.make_params(CFG, mesh)
    )
    cfg, params = value_model.start("", CFG, policy, TOK, mesh)
    specs = learned.param_specs(cfg)
    want = params_lib.abstract_params(specs, mesh)
    assert jax.tree.structure(params) == jax.tree.structure(want)
    for x, abstract in zip(
      jax.tree.leaves(params), jax.tree.leaves(want), strict=True
    ):
      assert (x.shape, x.dtype) == (abstract.shape, jnp.float32)
      assert x.sharding.is_equivalent_to(abstract.sharding, x.ndim)
  assert not np.any(params["reward"]["weight"])


def save_reward_model(workdir, tok):
  cfg = helpers.tiny(num_layers=2, vocab_size=264)
  mesh = helpers.make_mesh()
  with jax.set_mesh(mesh):
    params = params_lib.init_params(
      jax.random.key(3), learned.param_specs(cfg), mesh
    )
    saved.save(workdir, cfg, learned.Reading(kind="outcome"))
    tok.save(workdir / "tokenizer")
    tx, _ = optimizer.make_optimizer(9, learning_rate=0.1)
    checkpointer = checkpoint.Checkpointer(workdir)
    checkpointer.save(1, state_lib.init_state(params, tx))
    checkpointer.close()
    return cfg, jax.device_get(params)


def test_it_begins_as_a_reward_model_of_the_same_tokens(tmp_path):
  cfg, params = save_reward_model(tmp_path, TOK)
  mesh = helpers.make_mesh()
  with jax.set_mesh(mesh):
    policy = helpers.make_params(CFG, mesh)
    got = value_model.start(tmp_path, CFG, policy, TOK, mesh)
    assert got[0] == cfg
    helpers.assert_trees_close(got[1], params, rtol=0, atol=0)
    piece = tokenizer.train_sentencepiece(
      ["a b c d"] * 9, tmp_path / "other", vocab_size=12
    )
    with pytest.raises(ValueError, match="another tokenizer than the policy"):
      value_model.start(tmp_path, CFG, policy, piece, mesh)
