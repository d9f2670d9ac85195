"""Every family through the one forward: its many paths agree, on any mesh.

P prompts, G completions each, S prompt slots, N completion slots.
"""

import dataclasses
import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import sharding
from grpo_jax.losses import weighting
from grpo_jax.models import scoring, transformer
from grpo_jax.sampling import decode

FAMILIES = helpers.FAMILIES
LENGTHS = [3, 6, 1, 5]
G, N = 2, 8


@functools.partial(jax.jit, static_argnames="cfg")
def score(cfg, params, prompts, tokens, mask):
  return scoring.score_completions(
    params, cfg, prompts.tokens, prompts.mask, tokens, mask
  )


@functools.partial(jax.jit, static_argnames="cfg")
def loss(cfg, params, prompts, tokens, mask):
  """A scalar of what completions score, their log-probs, and the gradient."""

  def inner(params):
    scores = score(cfg, params, prompts, tokens, mask)
    logprobs = jnp.where(mask, scores.logprobs, 0.0)
    total = jnp.sum(jnp.where(mask, logprobs - 0.1 * scores.entropy, 0.0))
    return total, (logprobs, scores.load)

  return jax.value_and_grad(inner, has_aux=True)(params)


def run(cfg, mesh):
  """What a mesh draws, and what it makes of it: on the host."""
  with jax.set_mesh(mesh):
    params = helpers.make_params(cfg, mesh)
    prompts = helpers.make_prompts(LENGTHS, slots=6)
    axes = sharding.split_rows(mesh, len(LENGTHS), G)
    rollout = decode.sample(
      params,
      cfg,
      sharding.place(mesh, prompts, axes[:1]),
      jax.random.key(1),
      sampling=decode.SamplingParams(
        group_size=G, max_new_tokens=N, cache_chunk=4
      ),
      eos_ids=(1, 5),
    )
    scored = loss(
      cfg, params, rollout.prompts, rollout.tokens, rollout.completion_mask
    )
    return sharding.to_host((rollout, scored))


@pytest.mark.parametrize(
  "family",
  [
    family
    if family in ("mistral", "qwen3_moe", "deepseek_v3")
    else pytest.param(family, marks=pytest.mark.slow)
    for family in FAMILIES
  ],
)
def test_sampler_and_scorer_agree_on_one_and_on_eight_devices(family):
  cfg = FAMILIES[family]
  one = run(cfg, helpers.make_mesh())
  eight = run(cfg, helpers.make_mesh(**helpers.eight(cfg)))
  for rollout, ((_, (logprobs, load)), _) in (one, eight):
    mask = rollout.completion_mask
    assert mask.sum() > 20
    assert np.abs(logprobs - rollout.logprobs)[mask].max() < 1e-5
    # Each prompt's and each completion's tokens once, X experts each.
    tokens = sum(LENGTHS) + mask.sum()
    for counts in load.values():
      np.testing.assert_array_equal(
        counts.sum(axis=-1), tokens * cfg.experts_per_token
      )
  np.testing.assert_array_equal(one[0].tokens, eight[0].tokens)
  # Gradients of up to 19 in float32, summed in other orders; what cancels is
  # off by 3.4e-5 on one kind of CPU and by less than 2e-5 on another.
  helpers.assert_trees_close(eight[1], one[1], rtol=1e-4, atol=1e-4)


@functools.partial(jax.jit, static_argnames="cfg")
def text_logprobs(cfg, params, tokens, mask):
  return scoring.score_text(
    params, cfg, tokens, weighting.positions(mask), mask.astype(jnp.int32)
  ).logprobs


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prompts_score_as_rows_with_their_own_however_padded(family):
  cfg = FAMILIES[family]
  params = helpers.make_params(cfg)
  tokens, mask = helpers.make_completions([[4, 8], [2, 6], [8, 1], [5, 3]], N)
  shared = {}
  for slots in (6, 9):
    prompts = helpers.make_prompts(LENGTHS, slots)
    shared[slots] = np.asarray(
      score(cfg, params, *to_jax((prompts, tokens, mask))).logprobs
    )
  np.testing.assert_allclose(shared[6][mask], shared[9][mask], atol=5e-6)
  for side in ("left", "right"):
    rows = np.random.default_rng(0).integers(0, 32, (len(LENGTHS) * G, 16))
    real = np.zeros(rows.shape, bool)
    for row in range(len(rows)):
      p, g = divmod(row, G)
      ids = prompts.tokens[p][prompts.mask[p]].tolist()
      ids += tokens[p, g][mask[p, g]].tolist()
      inside = slice(len(ids)) if side == "right" else slice(-len(ids), None)
      rows[row, inside], real[row, inside] = ids, True
    alone = text_logprobs(cfg, params, jnp.asarray(rows), jnp.asarray(real))
    for row, logprobs in enumerate(np.asarray(alone)):
      p, g = divmod(row, G)
      count = mask[p, g].sum()
      np.testing.assert_allclose(
        logprobs[real[row]][-count:], shared[6][p, g][:count], atol=5e-6
      )


def test_a_latent_cache_holds_one_vector_per_position_for_all_heads():
  cfg = FAMILIES["deepseek_v3"]
  cache = transformer.empty_cache(cfg, jnp.zeros((3, 2), jnp.int32), 5)
  assert {name: len(layers) for name, layers in cache.layers.items()} == {
    "dense_layers": 1,
    "layers": 2,
  }
  leaves = jax.tree.leaves(cache.layers)
  assert [x.shape for x in leaves] == [(3, 2, 1, 5, 20)] * 3


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_bfloat16_sampler_and_scorer_choose_the_same_experts(family):
  # The router computes in float32 in both, on hidden states that agree to the
  # rounding of bfloat16; a path that rounded its weights would be far off.
  cfg = dataclasses.replace(FAMILIES[family], dtype="bfloat16")
  rollout, ((_, (logprobs, _)), _) = run(cfg, helpers.make_mesh())
  gap = np.abs(logprobs - rollout.logprobs)[rollout.completion_mask]
  assert np.median(gap) < 0.02


def to_jax(tree):
  return jax.tree.map(jnp.asarray, tree)
