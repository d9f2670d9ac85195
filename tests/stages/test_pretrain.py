"""The loss and the tokenizer of the pretrain stage, and what it refuses."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import configs, sharding, types
from grpo_jax.data import text
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models import scoring
from grpo_jax.stages import pretrain
from grpo_jax.train import update

DOCUMENTS = ["35,22,13,19=35? 22+13", "1+2=3", "ok", "no wait, 4+5=9"]


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


def test_the_loss_is_the_mean_over_predicted_tokens():
  cfg = helpers.tiny(num_layers=1)
  params, batch = helpers.make_params(cfg), make_batch()
  loss, _ = pretrain.loss_fn(params, batch, cfg=cfg)
  logprobs = scoring.score_text(
    params, cfg, batch.tokens, batch.positions, batch.segments
  ).logprobs
  predicted = np.asarray((batch.segments > 0) & (batch.positions > 0))
  want = -np.asarray(logprobs, np.float64)[predicted].mean()
  assert float(loss) == pytest.approx(want, rel=1e-5)
  assert isinstance(batch, types.TextBatch)


def test_eight_devices_and_microbatches_give_the_loss_of_one():
  cfg = helpers.tiny(num_layers=1)
  batch = make_batch(num_rows=8)

  def loss_fn(params, batch):
    return pretrain.loss_fn(params, batch, cfg=cfg)

  found = {}
  for name, sizes in {"one": {}, "eight": helpers.EIGHT}.items():
    mesh = helpers.make_mesh(**sizes)
    with jax.set_mesh(mesh):
      params = helpers.make_params(cfg, mesh)
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


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_the_tokenizer_is_made_once_and_then_read(kind, tmp_path):
  section = configs.pretrain().tokenizer
  section.kind, section.vocab_size = kind, 64
  directory = tmp_path / "tokenizer"
  made = pretrain.make_tokenizer(section, DOCUMENTS, directory)
  again = pretrain.make_tokenizer(section, ["other text"], directory)
  assert made.encode(DOCUMENTS[0]) == again.encode(DOCUMENTS[0])
  assert made.decode(made.encode(DOCUMENTS[3])) == DOCUMENTS[3]


@pytest.mark.parametrize(
  "changes, sentence",
  [
    (dict(num_rows=30, num_microbatches=4), "num_rows=30 must divide by"),
    (dict(num_rowz=3), "has no field 'num_rowz'; did you mean 'num_rows'"),
  ],
)
def test_bad_batches_are_refused_in_one_sentence(changes, sentence, tmp_path):
  config = configs.pretrain()
  with config.unlocked():
    config.batch.update(changes)
  with pytest.raises(ValueError, match=sentence):
    pretrain.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "section, field, value, sentence",
  [
    ("tokenizer", "kind", "words", "kind='words' must be one of"),
    ("model", "num_kv_heads", 3, "must divide by"),
    ("model", "dtype", "float8", "dtype='float8' must be one of"),
    ("mesh", "expert", 2, "expert=2, and the model has no experts"),
    ("optimizer", "schedule", "sine", "schedule='sine' must be one of"),
    ("optimizer", "warmup_updates", 10_000, "warmup_updates=10000 must be"),
  ],
)
def test_bad_fields_are_refused_in_one_sentence(
  section, field, value, sentence, tmp_path
):
  config = configs.pretrain()
  config[section][field] = value
  with pytest.raises(ValueError, match=sentence):
    pretrain.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
