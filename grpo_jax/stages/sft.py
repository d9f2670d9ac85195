"""Supervised fine-tuning: the cold start, the SFT of R1, distilled text.

Conversations are text, so that any tokenizer which can write them will do.

B rows of packed conversations, T positions.
"""

import functools
import pathlib

import jax
from ml_collections import ConfigDict

from grpo_jax import configs, schema, sharding
from grpo_jax.data import conversations, datasets, prompts
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models import lora, moe
from grpo_jax.models.params import Params
from grpo_jax.runs import directory, progress, report
from grpo_jax.runs import source as source_lib
from grpo_jax.sampling import decode
from grpo_jax.stages import describe as describe_lib
from grpo_jax.stages import evaluate, pretrain, sections
from grpo_jax.train import loop, optimizer
from grpo_jax.train.update import make_update

# What a random number is for.
_ADAPTERS, _EVALUATE = 0, 1
_PANELS = (report.Panel("Loss, nats per token", "loss"), *report.PANELS)


def run(config: ConfigDict, workdir: pathlib.Path) -> bool:
  """Trains on conversations; returns whether it got to its last step.

  Raises:
    ValueError: a field of the config is unknown or does not fit the others, or
      the tokenizer does not fit the conversations.
    FileNotFoundError: there is no model to start from, or no dataset.
  """
  check(config)
  mesh = sharding.make_mesh(config.mesh.to_dict())
  rows = sharding.split_rows(mesh, config.batch.num_rows)[:1]
  template = prompts.read_template(config.prompts.template, chat_too=True)
  data_dir = pathlib.Path(config.data_dir).expanduser()
  examples = datasets.load(**config.data, data_dir=data_dir)
  tok = tokenizer.load(source_lib.tokenizer_directory(config.source))
  batches = conversations.ConversationSource(
    examples,
    tok,
    template,
    num_rows=config.batch.num_rows,
    row_length=config.batch.row_length,
    num_epochs=config.num_epochs,
    seed=config.seed,
    tell=progress.say,
  )
  total_steps = min(batches.num_steps, config.max_steps or batches.num_steps)
  tx, learning_rate = optimizer.make_optimizer(total_steps, **config.optimizer)
  questions = None
  if config.evaluate:
    questions = evaluate.make_questions(
      config.evaluate, tok, template, data_dir
    )
  cfg = source_lib.read_model(config.source, **config.model)
  moe.check(cfg, config.mesh.get("expert", 1), config.router_bias_rate)
  jax.set_mesh(mesh)
  if loop.is_finished(workdir, total_steps):
    directory.claim(workdir, config.to_dict())
    progress.say(f"{workdir} already holds all {total_steps} steps.")
    return True

  settings = lora.LoraConfig(**config.lora)
  root_key = jax.random.key(config.seed)

  def load() -> Params:
    return source_lib.load_policy(
      config.source, mesh, frozen=settings.rank > 0, **config.model
    )[1]

  # Where all is trained, the source is loaded when a run begins and not kept.
  base = load() if settings.rank else None
  trainable = lora.trainable(cfg, base, settings)
  # Last of what can refuse a config, so that a refusal leaves nothing behind.
  directory.claim(workdir, config.to_dict())
  tok.save(workdir / "tokenizer")
  directory.save_model(workdir, cfg)
  if settings.rank:
    directory.save_lora(workdir, settings, config.source)

  def start() -> Params:
    if base is None:
      return load()
    key = jax.random.fold_in(root_key, _ADAPTERS)
    return trainable.start(key, base, mesh)

  def held_out(part: Params) -> loop.Evaluations:
    results, _, _ = evaluate.evaluate(
      trainable.policy(part),
      cfg,
      tok,
      questions,
      jax.random.fold_in(root_key, _EVALUATE),
      mesh,
    )
    progress.say(f"Held out: {evaluate.summary(results)}")
    return {config.evaluate.data.name: results}

  progress.say(_summary(batches, config))
  trained = loop.train(
    workdir,
    mesh,
    specs=trainable.specs,
    start=start,
    tx=tx,
    learning_rate=learning_rate,
    update=make_update(
      trainable.loss(functools.partial(pretrain.loss_fn, cfg=cfg)),
      tx,
      num_microbatches=config.batch.num_microbatches,
      router_bias_rate=config.router_bias_rate,
    ),
    batches=loop.ByStep(batches),
    rows=rows,
    num_tokens=loop.text_tokens,
    total_steps=total_steps,
    log_every=config.log_every,
    checkpoint_every=config.checkpoint.every,
    keep=config.checkpoint.keep,
    frozen=trainable.frozen,
    evaluate=held_out if questions else None,
    evaluate_every=config.evaluate.every if questions else 0,
  )
  if not trained.finished:
    progress.say("Stopped; the same command goes on from there.")
    return False
  report.write_report(workdir, panels=_PANELS)
  progress.say(report.compare(workdir))
  return True


def _summary(
  batches: conversations.ConversationSource, config: ConfigDict
) -> str:
  """Returns what is learned from, and what is not, as one line of text."""
  text = (
    f"{batches.num_kept:,} conversations of {batches.num_tokens:,} tokens,"
    f" {batches.num_learned:,} of them learned; {config.num_epochs} epochs in"
    f" {batches.num_steps:,} steps."
  )
  if batches.num_too_long:
    text += (
      f" Left out because longer than {config.batch.row_length} tokens:"
      f" {batches.num_too_long:,} conversations."
    )
  return text


SCHEMA = schema.Fields(
  configs.sft,
  {
    "data": sections.DATA,
    "model": sections.MODEL,
    "lora": sections.LORA,
    "optimizer": sections.OPTIMIZER,
    "evaluate": schema.Optional(sections.evaluation(configs.sft)),
  },
)


def check(config: ConfigDict) -> None:
  """Raises an error of one sentence if the config cannot be run.

  Raises:
    ValueError: a field is unknown or does not fit the others.
    FileNotFoundError: `config.source` holds no checkpoint.
  """
  schema.check(SCHEMA, config)
  if config.evaluate:
    decode.SamplingParams(**config.evaluate.sampling)
  if config.lora.rank and config.router_bias_rate:
    raise ValueError(
      f"config.router_bias_rate={config.router_bias_rate} moves the router of a"
      " model that config.lora.rank freezes; set one of them to 0."
    )
  source_lib.require_source(config.source)
  if config.max_steps < 0:
    raise ValueError(
      f"config.max_steps={config.max_steps} must not be negative."
    )
  rows, pieces = config.batch.num_rows, config.batch.num_microbatches
  if rows % pieces:
    raise ValueError(
      f"config.batch.num_rows={rows} must divide by num_microbatches={pieces}."
    )


def describe(config: ConfigDict) -> list[str]:
  """Returns lines on what the run would take."""
  cfg = describe_lib.read_model(config)
  _, lines = describe_lib.training(cfg, lora.LoraConfig(**config.lora))
  tokens = config.batch.num_rows * config.batch.row_length
  lines.append(f"tokens of a step: {tokens:,}, padding included")
  return lines
