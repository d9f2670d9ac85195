"""The loss of packed text, with what may be added to it."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import sharding, types
from grpo_jax.data import text
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models import heads, transformer
from grpo_jax.train import text_loss, update

DOCUMENTS = ["35,22,13,19=35? 22+13", "1+2=3", "ok", "no wait, 4+5=9"]
CFG = helpers.tiny(num_layers=1)
BOTH = dict(z_coef=0.1, label_smoothing=0.2)


def make_batch(num_rows=4, row_length=16):
  """Packed bytes, folded into a tiny vocabulary."""
  batch = next(
    text.TextSource(
      DOCUMENTS,
      tokenizer.ByteTokenizer(),
      num_rows=num_rows,
      row_length=row_length,
      seed=0,
    )
  )
  batch = batch.replace(tokens=batch.tokens % 32)
  return jax.tree.map(jnp.asarray, batch)


@pytest.mark.parametrize("options", [{}, BOTH])
def test_it_is_the_mean_over_predicted_tokens(options):
  params, batch = helpers.make_params(CFG), make_batch()
  assert isinstance(batch, types.TextBatch)
  loss, metrics = text_loss.loss_fn(params, batch, cfg=CFG, **options)
  hidden, _ = transformer.forward(
    params, CFG, batch.tokens, batch.positions, batch.segments
  )
  logits = np.asarray(heads.logits(params, CFG, hidden), np.float64)
  smoothing = options.get("label_smoothing", 0.0)
  terms, squares = [], []
  for row, column in np.argwhere((batch.segments > 0) & (batch.positions > 0)):
    scores = logits[row, column - 1]
    log_z = np.log(np.exp(scores).sum())
    target = np.full(len(scores), smoothing / len(scores))
    target[batch.tokens[row, column]] += 1 - smoothing
    terms.append(-target @ (scores - log_z))
    squares.append(log_z**2)
  want = np.mean(terms) + options.get("z_coef", 0.0) * np.mean(squares)
  assert float(loss) == pytest.approx(want, rel=1e-5)
  assert ("z" in metrics) == bool(options)


def test_eight_devices_and_microbatches_give_the_loss_of_one():
  batch = make_batch(num_rows=8)
  loss_fn = functools.partial(text_loss.loss_fn, cfg=CFG, **BOTH)
  found = {}
  for name, sizes in {"one": {}, "eight": helpers.EIGHT}.items():
    mesh = helpers.make_mesh(**sizes)
    with jax.set_mesh(mesh):
      params = helpers.make_params(CFG, mesh)
      rows = sharding.split_rows(mesh, 8)[:1]
      placed = sharding.place(mesh, batch, rows)
      for pieces in (1, 2):
        found[name, pieces] = jax.device_get(
          jax.jit(update.gradients, static_argnums=(0, 3))(
            loss_fn, params, placed, pieces
          )
        )
  for tree in found.values():
    helpers.assert_trees_close(tree, found["one", 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("options", "says"),
  [
    (dict(z_coef=-1.0), "z_coef=-1.0 must not be negative"),
    (dict(label_smoothing=1.0), "must be in"),
  ],
)
def test_options_out_of_range_are_one_sentence(options, says):
  with pytest.raises(ValueError, match=says):
    text_loss.check(**options)
