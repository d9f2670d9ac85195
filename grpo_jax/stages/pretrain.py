"""A small base model from text: the model that R1-Zero starts from.

B rows of packed documents, T positions.
"""

import functools
import itertools
import pathlib
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from grpo_jax import configs, processes, schema
from grpo_jax.data import datasets
from grpo_jax.data.text import TextSource
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models import moe
from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig
from grpo_jax.runs import directory, progress
from grpo_jax.runs.signals import Outcome
from grpo_jax.stages import describe as describe_lib
from grpo_jax.stages import sections, setup
from grpo_jax.train import loop, optimizer, text_loss
from grpo_jax.train.update import make_update

_TOKENIZER_DOCUMENTS = 20_000
# The vocabulary is padded to a multiple that every usual `tensor` axis divides,
# so that a model's shapes and draws do not depend on the mesh.
_VOCAB_MULTIPLE = 64


def run(config: ConfigDict, workdir: pathlib.Path) -> Outcome:
  """Trains on packed text.

  Raises:
    ValueError: a field of the config is unknown or does not fit the others.
    FileNotFoundError: a file of text is missing.
  """
  check(config)
  with setup.open_run(config, workdir) as run:
    rows = run.rows(config.batch.num_rows)
    documents = datasets.load(**config.data, data_dir=run.data_dir)
    run.claim()
    if run.is_finished(config.total_steps):
      return Outcome.FINISHED
    tok = processes.first(
      "tokenizer",
      lambda: make_tokenizer(
        config.tokenizer, documents, workdir / "tokenizer"
      ),
    )
    cfg = model_of(config, tok.vocab_size)
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
    key = jax.random.key(config.seed)
    trained = loop.train(
      workdir,
      run.mesh,
      run.schedule(config.total_steps),
      loop.Task(
        specs=specs,
        start=lambda: params_lib.init_params(key, specs, run.mesh),
        tx=tx,
        learning_rate=learning_rate,
        update=make_update(
          functools.partial(text_loss.loss_fn, cfg=cfg, **config.loss),
          tx,
          num_microbatches=config.batch.num_microbatches,
          router_bias_rate=config.router_bias_rate,
        ),
        batches=batches,
        rows=rows,
      ),
    )
  return Outcome.FINISHED if trained.finished else Outcome.STOPPED


def model_of(config: ConfigDict, vocab_size: int = 1) -> ModelConfig:
  """Returns the model of a config; its vocabulary is rounded up."""
  vocab_size = -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
  return ModelConfig(vocab_size=vocab_size, **config.model)


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


SCHEMA = schema.Fields(
  configs.pretrain,
  {
    "data": sections.DATA,
    "model": schema.Options(ModelConfig, ("vocab_size",)),
    "loss": schema.Options(text_loss.loss_fn, ("cfg",)),
    "optimizer": sections.OPTIMIZER,
  },
  choices={"tokenizer.kind": ("sentencepiece", "bytes")},
)


def check(config: ConfigDict) -> None:
  """Raises ValueError, in one sentence, if the config cannot be run."""
  schema.check(SCHEMA, config)
  counted = "total_steps", "log_every", "checkpoint.every", "checkpoint.keep"
  sections.check_counts(config, counted, 1)
  parts = "batch.num_rows", "batch.row_length", "batch.num_microbatches"
  sections.check_counts(config, parts, 1)
  text_loss.check(**config.loss)
  moe.check(
    model_of(config), config.mesh.get("expert", 1), config.router_bias_rate
  )
  optimizer.make_optimizer(config.total_steps, **config.optimizer)
  rows, pieces = config.batch.num_rows, config.batch.num_microbatches
  if rows % pieces:
    raise ValueError(
      f"config.batch.num_rows={rows} must divide by num_microbatches={pieces}."
    )


def describe(config: ConfigDict) -> list[str]:
  """Returns lines on what the run would take."""
  _, lines = describe_lib.training(describe_lib.pretrained(config))
  lines[:0] = describe_lib.data(config, "data")
  tokens = config.batch.num_rows * config.batch.row_length
  lines.append(f"tokens of a step: {tokens:,}; steps: {config.total_steps:,}")
  return lines
