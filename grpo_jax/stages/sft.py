"""Supervised fine-tuning: the cold start, the SFT of R1, distilled text.

Conversations are text, so that any tokenizer which can write them will do.

B rows of packed conversations, T positions.
"""

import functools
import pathlib

from ml_collections import ConfigDict

from grpo_jax import configs, schema
from grpo_jax.data import conversations, datasets
from grpo_jax.evaluation import ask
from grpo_jax.models import lora
from grpo_jax.models.params import Params
from grpo_jax.runs import progress, report
from grpo_jax.runs import source as source_lib
from grpo_jax.runs.signals import Outcome
from grpo_jax.sampling import decode
from grpo_jax.sampling.generate import Policy
from grpo_jax.stages import describe as describe_lib
from grpo_jax.stages import fit, prompting, sections, setup
from grpo_jax.train import loop, optimizer, text_loss
from grpo_jax.train.update import make_update

# What a random number is for.
_ADAPTERS, _EVALUATE = 0, 1
_PANELS = (report.Panel("Loss, nats per token", "loss"), *report.PANELS)


def run(config: ConfigDict, workdir: pathlib.Path) -> Outcome:
  """Trains on conversations.

  Raises:
    ValueError: a field of the config is unknown or does not fit the others, or
      the tokenizer does not fit the conversations.
    FileNotFoundError: there is no model to start from, or no dataset.
  """
  check(config)
  with setup.open_run(config, workdir) as run:
    rows = run.rows(config.batch.num_rows)
    pieces = fit.rows(
      config, config.batch.row_length, fit.split(run.mesh), fit.memory()
    )
    batches = make_batches(run)
    total_steps = min(batches.num_steps, config.max_steps or batches.num_steps)
    tx, learning_rate = optimizer.make_optimizer(
      total_steps, **config.optimizer
    )
    questions, cfg = run.questions(), run.cfg
    if run.is_finished(total_steps):
      return Outcome.FINISHED
    # Where all is trained, the source is loaded when a run begins and not kept.
    base = run.load(frozen=True) if run.lora.rank else None
    trainable = lora.trainable(cfg, base, run.lora)
    # Last of what can refuse a config, so that a refusal leaves nothing behind.
    run.describe(cfg, run.tok)

    def start() -> Params:
      if base is None:
        return run.load()
      return trainable.start(run.key(_ADAPTERS), base, run.mesh)

    def held_out(part: Params) -> loop.Evaluations:
      policy = Policy(trainable.policy(part), cfg, run.tok, run.mesh)
      results, _ = ask.evaluate(policy, questions, run.key(_EVALUATE))
      progress.say(f"Held out: {ask.summary(results)}")
      return {config.evaluate.data.name: results}

    progress.say(_summary(batches, config))
    prompting.say_stops(run.tok, run.template)
    trained = loop.train(
      workdir,
      run.mesh,
      run.schedule(total_steps, config.evaluate.every if questions else 0),
      loop.Task(
        specs=trainable.specs,
        start=start,
        tx=tx,
        learning_rate=learning_rate,
        update=make_update(
          trainable.loss(
            functools.partial(text_loss.loss_fn, cfg=cfg, **config.loss)
          ),
          tx,
          num_microbatches=pieces,
          router_bias_rate=config.router_bias_rate,
        ),
        batches=loop.ByStep(batches),
        rows=rows,
        frozen=trainable.frozen,
        evaluate=held_out if questions else None,
      ),
    )
  if not trained.finished:
    progress.say("Stopped; the same command goes on from there.")
    return Outcome.STOPPED
  report.write_report(workdir, panels=_PANELS)
  progress.say(report.compare(workdir))
  return Outcome.FINISHED


def make_batches(run: setup.Run) -> conversations.ConversationSource:
  """Returns the packed conversations of `config.data`, by step."""
  config = run.config
  return conversations.ConversationSource(
    datasets.load(**config.data, data_dir=run.data_dir),
    run.tok,
    run.template,
    num_rows=config.batch.num_rows,
    row_length=config.batch.row_length,
    num_epochs=config.num_epochs,
    seed=config.seed,
    tell=progress.say,
  )


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
    "prompts": sections.prompts(),
    "model": sections.MODEL,
    "lora": sections.LORA,
    "loss": schema.Options(text_loss.loss_fn, ("cfg",)),
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
  text_loss.check(**config.loss)
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
  fit.check(pieces, "batch.num_microbatches")
  if rows % max(pieces, 1):
    raise ValueError(
      f"config.batch.num_rows={rows} must divide by num_microbatches={pieces}."
    )


def describe(config: ConfigDict) -> list[str]:
  """Returns lines on what the run would take."""
  cfg = describe_lib.read_model(config)
  _, lines = describe_lib.training(cfg, lora.LoraConfig(**config.lora))
  held_out = ["evaluate.data"] if config.evaluate else []
  lines[:0] = describe_lib.data(config, "data", *held_out)
  tokens = config.batch.num_rows * config.batch.row_length
  lines.append(f"tokens of a step: {tokens:,}, padding included")
  return lines
