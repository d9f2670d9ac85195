"""A small base model from text: the model that R1-Zero starts from.

B rows of packed documents, T positions.
"""

import functools
import itertools
import pathlib
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from grpo_jax import configs, errors, sharding
from grpo_jax.data import datasets
from grpo_jax.data.text import TextSource
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models import moe
from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig
from grpo_jax.runs import directory, progress
from grpo_jax.train import loop, optimizer, text_loss
from grpo_jax.train.update import make_update

_TOKENIZER_DOCUMENTS = 20_000
# The vocabulary is padded to a multiple that every usual `tensor` axis divides,
# so that a model's shapes and draws do not depend on the mesh.
_VOCAB_MULTIPLE = 64


def run(config: ConfigDict, workdir: pathlib.Path) -> bool:
  """Trains on packed text; returns whether to go on with what it made.

  Raises:
    ValueError: a field of the config is unknown or does not fit the others.
    FileNotFoundError: a file of text is missing.
  """
  check(config)
  mesh = sharding.make_mesh(config.mesh.to_dict())
  jax.set_mesh(mesh)
  rows = sharding.split_rows(mesh, config.batch.num_rows)[:1]
  data_dir = pathlib.Path(config.data_dir).expanduser()
  documents = datasets.load(**config.data, data_dir=data_dir)
  directory.claim(workdir, config.to_dict())
  if loop.is_finished(workdir, config.total_steps):
    progress.say(f"{workdir} already holds all {config.total_steps} steps.")
    return True

  tok = make_tokenizer(config.tokenizer, documents, workdir / "tokenizer")
  vocab_size = -(-tok.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
  cfg = ModelConfig(vocab_size=vocab_size, **config.model)
  directory.save_model(workdir, cfg)
  specs = params_lib.param_specs(cfg)
  progress.say(
    f"{params_lib.count(specs):,} parameters, {len(documents):,} documents,"
    f" {tok.vocab_size} tokens in the vocabulary."
  )
  batches = TextSource(
    documents,
    tok,
    num_rows=config.batch.num_rows,
    row_length=config.batch.row_length,
    seed=config.seed,
  )
  tx, learning_rate = optimizer.make_optimizer(
    config.total_steps, **config.optimizer
  )
  update = make_update(
    functools.partial(text_loss.loss_fn, cfg=cfg, **config.loss),
    tx,
    num_microbatches=config.batch.num_microbatches,
    router_bias_rate=config.router_bias_rate,
  )
  key = jax.random.key(config.seed)
  return loop.train(
    workdir,
    mesh,
    specs=specs,
    start=lambda: params_lib.init_params(key, specs, mesh),
    tx=tx,
    learning_rate=learning_rate,
    update=update,
    batches=batches,
    rows=rows,
    num_tokens=loop.text_tokens,
    total_steps=config.total_steps,
    log_every=config.log_every,
    checkpoint_every=config.checkpoint.every,
    keep=config.checkpoint.keep,
  ).finished


def make_tokenizer(
  section: ConfigDict, documents: Sequence[str], directory: pathlib.Path
) -> tokenizer.Tokenizer:
  """Returns the run's tokenizer, made from its documents the first time."""
  if directory.exists():
    return tokenizer.load(directory)
  if section.kind == "bytes":
    tok = tokenizer.ByteTokenizer(section.symbols)
    tok.save(directory)
    return tok
  # A few thousand documents show every word of a small corpus.
  texts = itertools.islice(documents, _TOKENIZER_DOCUMENTS)
  return tokenizer.train_sentencepiece(
    texts,
    directory,
    vocab_size=section.vocab_size,
    symbols=section.symbols,
    byte_fallback=section.byte_fallback,
  )


def check(config: ConfigDict) -> None:
  """Raises ValueError, in one sentence, if the config cannot be run."""
  errors.check_fields(
    config, configs.pretrain(), free=("data", "model", "loss", "optimizer")
  )
  given = ("vocab_size",)
  errors.check_section("model", config.model, ModelConfig, given)
  errors.check_section(
    "optimizer", config.optimizer, optimizer.make_optimizer, ("total_updates",)
  )
  errors.check_section("loss", config.loss, text_loss.check)
  text_loss.check(**config.loss)
  cfg = ModelConfig(vocab_size=1, **config.model)
  moe.check(cfg, config.mesh.get("expert", 1), config.router_bias_rate)
  optimizer.make_optimizer(config.total_steps, **config.optimizer)
  kinds = ("sentencepiece", "bytes")
  if config.tokenizer.kind not in kinds:
    raise ValueError(
      f"config.tokenizer.kind={config.tokenizer.kind!r} must be one of {kinds}."
    )
  rows, pieces = config.batch.num_rows, config.batch.num_microbatches
  if rows % pieces:
    raise ValueError(
      f"config.batch.num_rows={rows} must divide by num_microbatches={pieces}."
    )
