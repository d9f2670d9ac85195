"""A small base model from text: the model that R1-Zero starts from.

B rows of packed documents, T positions.
"""

import functools
import itertools
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from grpo_jax import (
  checkpoint,
  configs,
  metrics,
  optimizer,
  progress,
  run_log,
  sharding,
)
from grpo_jax import state as state_lib
from grpo_jax.data import datasets, tokenizer
from grpo_jax.data.text import TextSource
from grpo_jax.losses import language
from grpo_jax.models import moe, scoring
from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.step import make_update
from grpo_jax.stopping import StopRequest
from grpo_jax.types import TextBatch

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
  mesh = sharding.make_mesh(config.mesh)
  jax.set_mesh(mesh)
  rows = sharding.split_rows(mesh, config.batch.num_rows)[:1]
  data_dir = pathlib.Path(config.data_dir).expanduser()
  documents = datasets.load(**config.data, data_dir=data_dir)
  checkpoint.claim(workdir, config.to_dict())
  checkpointer = checkpoint.Checkpointer(workdir, keep=config.checkpoint.keep)
  first_step = checkpointer.latest() or 0
  if first_step == config.total_steps:
    print(f"{workdir} already holds all {first_step} steps.")
    return True

  tok = make_tokenizer(config.tokenizer, documents, workdir / "tokenizer")
  vocab_size = -(-tok.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
  cfg = ModelConfig(vocab_size=vocab_size, **config.model)
  specs = params_lib.param_specs(cfg)
  print(
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
  if first_step:
    abstract = params_lib.abstract_params(specs, mesh)
    state, _, kept = checkpointer.restore(
      first_step, state_lib.abstract_state(abstract, tx)
    )
    batches.set_state(kept["batches"])
    print(f"Going on after step {first_step}.")
  else:
    checkpoint.save_model(workdir, cfg)
    root_key = jax.random.key(config.seed)
    state = state_lib.init_state(
      params_lib.init_params(root_key, specs, mesh), tx
    )
  update = make_update(
    functools.partial(loss_fn, cfg=cfg),
    tx,
    num_microbatches=config.batch.num_microbatches,
    router_bias_rate=config.router_bias_rate,
  )

  writer = run_log.Writer(workdir, restored=first_step or None)
  table = progress.Progress(config.total_steps, progress.TEXT_COLUMNS)
  timer = progress.Timer()
  tokens = 0
  step = first_step
  with StopRequest() as stop:
    while step < config.total_steps and not stop:
      with timer.phase("data"):
        batch = next(batches)
        tokens += int(np.count_nonzero(batch.segments))
      state, scalars = update(state, sharding.place(mesh, batch, rows))
      step += 1
      if step % config.log_every == 0 or step == config.total_steps:
        scalars = sharding.to_host(scalars)
        seconds = timer.step()
        scalars |= (
          seconds
          | metrics.memory()
          | {
            "learning_rate": learning_rate(step - 1),
            "num_tokens": int(np.count_nonzero(batch.segments)),
            "time/tokens_per_second": tokens / seconds["time/step"],
          }
        )
        tokens = 0
        writer.write(step, scalars)
        table.show(step, scalars)
        metrics.require_finite(step, scalars)
      if step % config.checkpoint.every == 0:
        save(checkpointer, step, state, batches)
  save(checkpointer, step, state, batches)
  checkpointer.close()
  writer.close()
  return step == config.total_steps and not stop


def save(
  checkpointer: checkpoint.Checkpointer,
  step: int,
  state: state_lib.TrainState,
  batches: TextSource,
) -> None:
  """Saves what `run` needs to go on after `step` steps."""
  checkpointer.save(step, state, progress={"batches": batches.get_state()})


def loss_fn(
  params: Params, batch: TextBatch, *, cfg: ModelConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the cross-entropy of a packed batch, in nats per token."""
  scores = scoring.score_text(
    params, cfg, batch.tokens, batch.positions, batch.segments
  )
  loss, metrics = language.cross_entropy(scores.logprobs, batch.weights)
  return loss, metrics | {"expert_load": scores.load}


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
  configs.check_fields(
    config, configs.pretrain(), free=("data", "model", "optimizer")
  )
  given = ("vocab_size",)
  configs.check_section("model", config.model, ModelConfig, given)
  configs.check_section(
    "optimizer", config.optimizer, optimizer.make_optimizer, ("total_updates",)
  )
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
