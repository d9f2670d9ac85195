"""Losses of preferences on what a policy thinks of completions."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import sharding
from grpo_jax.losses import preference
from grpo_jax.models import scoring
from grpo_jax.train import preference_loss, update
from grpo_jax.types import PairedCompletions

CFG = helpers.tiny(num_layers=1)
KINDS = tuple(preference.PREFERENCES)


def make_batch(num_rows=4, width=12, seed=0):
  """Random pairs; the last row is padding, of weight 0."""
  rng = np.random.default_rng(seed)
  shape = num_rows, 2, width
  lengths = rng.integers(6, width + 1, shape[:2])
  at = np.arange(width)
  weights = np.full(num_rows, 1 / (num_rows - 1), np.float32)
  weights[-1] = 0
  return PairedCompletions(
    tokens=rng.integers(0, CFG.vocab_size, shape, dtype=np.int32),
    segments=(at < lengths[..., None]).astype(np.int32),
    mask=(at >= 3) & (at < lengths[..., None]),
    weights=weights,
    ref_logprobs=rng.normal(-30, 5, shape[:2]).astype(np.float32),
    reference_point=np.full(num_rows, 0.7, np.float32),
  )


def log_sigmoid(x):
  return -np.log1p(np.exp(-x))


def by_hand(kind, sums, lengths, refs):
  """The loss of one pair from the papers, with the default options."""
  (chosen, rejected), (ref_chosen, ref_rejected) = sums, refs
  h = (chosen - ref_chosen) - (rejected - ref_rejected)
  mean, other = sums / lengths
  if kind == "dpo":
    return -log_sigmoid(0.1 * h)
  if kind == "ipo":
    return (h - 1 / (2 * 0.1)) ** 2
  if kind == "orpo":
    odds = [x - np.log1p(-np.exp(x)) for x in (mean, other)]
    return -mean - 0.1 * log_sigmoid(odds[0] - odds[1])
  if kind == "simpo":
    return -log_sigmoid(2.0 * (mean - other) - 1.0)
  gains = 0.1 * (sums - refs - 0.7)
  good, bad = 1 / (1 + np.exp(-gains * [1, -1]))
  return 0.5 * (1 - good) + 0.5 * (1 - bad)


@functools.cache
def scored():
  """Parameters, and sums [B, 2] over the completions' tokens in float64."""
  params, batch = helpers.make_params(CFG), make_batch()
  tokens, segments, mask = (
    x.reshape(-1, x.shape[-1])
    for x in (batch.tokens, batch.segments, batch.mask)
  )
  positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
  logprobs = scoring.score_text(
    params, CFG, *map(jnp.asarray, (tokens, positions, segments))
  ).logprobs
  sums = np.where(mask, np.asarray(logprobs, np.float64), 0).sum(axis=-1)
  return params, sums.reshape(-1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_each_loss_is_that_of_its_paper_on_sums_of_completion_tokens(kind):
  params, sums = scored()
  batch = make_batch()
  lengths = batch.mask.sum(axis=-1)
  loss, metrics = preference_loss.loss_fn(
    params, jax.tree.map(jnp.asarray, batch), cfg=CFG, kind=kind
  )
  want = [
    by_hand(kind, sums[b], lengths[b], np.float64(batch.ref_logprobs[b]))
    for b in range(3)
  ]
  assert float(loss) == pytest.approx(np.mean(want), rel=1e-4)
  rewards = {"orpo": None, "simpo": 2 * sums / lengths}.get(
    kind, 0.1 * (sums - batch.ref_logprobs)
  )
  if rewards is not None:
    margins = (rewards[:, 0] - rewards[:, 1])[:3]
    assert float(metrics["margin"]) == pytest.approx(margins.mean(), rel=1e-4)
    share = np.mean(margins > 0)
    assert float(metrics["accuracy"]) == pytest.approx(share, abs=1e-6)


def test_only_losses_that_read_a_reference_need_one():
  needing = {kind for kind in KINDS if preference_loss.needs_reference(kind)}
  assert needing == {"dpo", "ipo", "kto"}


def test_four_devices_and_microbatches_give_the_gradient_of_one():
  batch = make_batch(num_rows=8)
  loss = functools.partial(preference_loss.loss_fn, cfg=CFG, kind="kto")
  found = {}
  for sizes in ({}, dict(data=2, fsdp=2)):
    mesh = helpers.make_mesh(**sizes)
    with jax.set_mesh(mesh):
      params = helpers.make_params(CFG, mesh)
      axes = sharding.split_rows(mesh, 4)[:1]
      placed = sharding.place(mesh, batch, axes)
      pieces = 2 if sizes else 1
      found[pieces] = jax.device_get(
        jax.jit(update.gradients, static_argnums=(0, 3))(
          loss, params, placed, pieces
        )
      )
  helpers.assert_trees_close(found[2], found[1], rtol=1e-4, atol=1e-5)


def test_an_option_that_is_out_of_range_is_one_sentence():
  with pytest.raises(ValueError, match="config.loss: beta=-1.0 must be"):
    preference_loss.check(kind="dpo", beta=-1.0)
