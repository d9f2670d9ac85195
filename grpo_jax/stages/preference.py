"""Preference optimization: a policy learns from pairs, without a reward model.

`config.loss.kind` names the loss, a row of `losses.preference.PREFERENCES`:

  dpo    the log-ratios to a reference are rewards of a Bradley-Terry model
  ipo    the difference of these log-ratios is drawn to a number
  kto    each completion for itself is desirable or not
  orpo   likelihood and odds ratio in one; no reference
  simpo  log-probs per token and a margin; no reference

The reference is the source as it was: the frozen base of adapters
(`config.lora`), or a frozen copy where all is trained. Its log-probs, which get
no gradient, are computed beside the update and travel in the batch.

B pairs, the preferred completion first; T positions.
"""

import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from grpo_jax import configs, schema, sharding
from grpo_jax.data import pair_batches, preferences, rows
from grpo_jax.evaluation import ask
from grpo_jax.losses import preference
from grpo_jax.models import lora
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.rl import programs
from grpo_jax.runs import progress, report
from grpo_jax.runs import source as source_lib
from grpo_jax.runs.signals import Outcome
from grpo_jax.sampling import decode
from grpo_jax.sampling.generate import Policy
from grpo_jax.stages import describe as describe_lib
from grpo_jax.stages import sections, setup
from grpo_jax.train import loop, optimizer, preference_loss
from grpo_jax.train.update import make_update
from grpo_jax.types import PairedCompletions

# What a random number is for.
_ADAPTERS, _EVALUATE = 0, 1
_COLUMNS = (
  progress.TEXT_COLUMNS[0],
  progress.Column("accuracy", "accuracy", "8.3f"),
  progress.Column("margin", "margin", "8.3f"),
  *progress.TEXT_COLUMNS[1:],
)
_PANELS = (
  report.Panel("Loss", "loss", "loss"),
  report.Panel("Preferred above the other", "accuracy", "accuracy", True),
  report.Panel("Margin of the implied rewards", "margin", "margin"),
)


def run(config: ConfigDict, workdir: pathlib.Path) -> Outcome:
  """Trains on pairs.

  Raises:
    ValueError: a field of the config is unknown or does not fit the others, or
      the tokenizer does not fit the pairs.
    FileNotFoundError: there is no model to start from, or no pairs.
  """
  check(config)
  with setup.open_run(config, workdir) as run:
    axes = run.rows(config.batch.num_rows // config.batch.num_microbatches)
    train, test = (make_batches(run, split) for split in ("train", "test"))
    total_steps = len(train)
    tx, learning_rate = optimizer.make_optimizer(
      total_steps, **config.optimizer
    )
    questions, cfg = run.questions(), run.cfg
    if run.is_finished(total_steps):
      return Outcome.FINISHED
    needs_reference = preference_loss.needs_reference(config.loss.kind)
    # With adapters the base is the reference, and there is one of it.
    frozen = None
    if run.lora.rank or needs_reference:
      frozen = run.load(frozen=True)
    base = frozen if run.lora.rank else None
    trainable = lora.trainable(cfg, base, run.lora)
    # Last of what can refuse a config, so that a refusal leaves nothing behind.
    run.describe(cfg, run.tok)

    def start() -> Params:
      if base is None:
        return run.load()
      return trainable.start(run.key(_ADAPTERS), base, run.mesh)

    compare = Comparison(
      config.loss.to_dict(),
      cfg,
      run.mesh,
      reference=frozen if needs_reference else None,
      num_pieces=config.batch.num_microbatches,
      axes=axes,
    )

    def batch(step: int) -> PairedCompletions | Callable[..., Any]:
      pairs = train(step)
      if not needs_reference:
        return pairs
      return lambda part: compare.fill(trainable.policy(part), pairs)

    def held_out(part: Params) -> loop.Evaluations:
      params = trainable.policy(part)
      found = {"held_out": compare.evaluate(params, test)}
      if questions:
        policy = Policy(params, cfg, run.tok, run.mesh)
        results, _ = ask.evaluate(policy, questions, run.key(_EVALUATE))
        progress.say(f"Held out: {ask.summary(results)}")
        found[config.evaluate.data.name] = results
      return found

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
            functools.partial(preference_loss.loss_fn, cfg=cfg, **config.loss)
          ),
          tx,
          num_microbatches=config.batch.num_microbatches,
        ),
        batches=loop.ByStep(batch),
        rows=axes,
        frozen=trainable.frozen,
        columns=_COLUMNS,
        evaluate=held_out,
      ),
    )
  if not trained.finished:
    progress.say("Stopped; the same command goes on from there.")
    return Outcome.STOPPED
  report.write_report(workdir, panels=_PANELS)
  return Outcome.FINISHED


def make_batches(run: setup.Run, split: str) -> rows.Batches:
  """Returns the pairs of a split by step; those held out come once."""
  config = run.config
  pairs = preferences.pairs(config.data.path, split)
  encoded = pair_batches.encode(pairs, run.tok, run.template, config.max_length)
  progress.say(
    f"{split}: {len(encoded):,} of {len(pairs):,} pairs have at most"
    f" {config.max_length} tokens."
  )
  return rows.Batches(
    encoded,
    pair_batches.collate,
    num_rows=config.batch.num_rows,
    max_length=config.max_length,
    pad_id=run.tok.pad_id,
    epochs=config.num_epochs if split == "train" else 1,
    seed=config.seed,
  )


class Comparison:
  """A policy against a reference on batches of pairs, without a gradient."""

  def __init__(
    self,
    loss: dict[str, Any],
    cfg: ModelConfig,
    mesh: Mesh,
    *,
    reference: Params | None,
    num_pieces: int,
    axes: Sequence[Any],
  ):
    """Compiles nothing yet.

    Args:
      loss: `config.loss`.
      cfg: the model.
      mesh: in force.
      reference: parameters; None where the loss has none.
      num_pieces: rows are scored in this many pieces, one after the other.
      axes: mesh axes of the rows.
    """
    self._loss = loss
    self._mesh, self._axes = mesh, axes
    self._reference = reference
    self._score = jax.jit(
      programs.in_pieces(
        functools.partial(preference_loss.score, cfg=cfg), num_pieces
      )
    )

  def fill(self, policy: Params, batch: PairedCompletions) -> PairedCompletions:
    """Returns the batch with what the loss reads of the reference."""
    if self._reference is None:
      return batch
    batch = batch.replace(ref_logprobs=self._logprobs(self._reference, batch))
    if "reference_point" not in preference_loss.reads(self._loss["kind"]):
      return batch
    other = pair_batches.mismatched(batch)
    point = preference.kto_reference_point(
      jnp.asarray(self._logprobs(policy, other).ravel()),
      jnp.asarray(self._logprobs(self._reference, other).ravel()),
      jnp.asarray(np.repeat(other.weights, 2)),
    )
    points = np.full(len(batch.weights), point, np.float32)
    return batch.replace(reference_point=points)

  def evaluate(
    self, policy: Params, batches: rows.Batches
  ) -> dict[str, float | int]:
    """Says and returns the means of loss and metrics over all pairs.

    `accuracy`, the share of pairs whose preferred completion has the higher
    implied reward (at the start, where policy and reference are one, none has),
    its standard error `accuracy_stderr`, and `margin`, the mean difference.
    """
    totals, pairs = {}, 0
    for step in range(len(batches)):
      batch = self.fill(policy, batches(step))
      logprobs = jnp.asarray(self._logprobs(policy, batch))
      loss, metrics = preference_loss.compare(
        logprobs, jax.tree.map(jnp.asarray, batch), **self._loss
      )
      count = int(np.count_nonzero(batch.weights))
      pairs += count
      for name, value in (metrics | {"loss": loss}).items():
        totals[name] = totals.get(name, 0.0) + count * float(value)
    del totals["weight"]
    results = {name: total / pairs for name, total in totals.items()}
    share = results["accuracy"]
    error = math.sqrt(max(share * (1 - share), 0.0) / pairs)
    progress.say(
      f"Held-out pairs: loss {results['loss']:.4f}, accuracy {share:.1%} of"
      f" {pairs}, margin {results['margin']:.3f}"
    )
    return {"pairs": pairs, **results, "accuracy_stderr": error}

  def _logprobs(self, params: Params, batch: PairedCompletions) -> np.ndarray:
    """Log-probs [B, 2] of the completions, on the host."""
    given = batch.tokens, batch.segments, batch.mask
    placed = sharding.place(self._mesh, given, self._axes)
    return sharding.to_host(self._score(params, *placed))


SCHEMA = schema.Fields(
  configs.preference,
  {
    "prompts": sections.prompts(),
    "model": sections.MODEL,
    "lora": sections.LORA,
    "loss": schema.Kind(preference.PREFERENCES),
    "optimizer": sections.OPTIMIZER,
    "evaluate": schema.Optional(sections.evaluation(configs.preference)),
  },
)


def check(config: ConfigDict) -> None:
  """Raises an error of one sentence if the config cannot be run.

  Raises:
    ValueError: a field is unknown or does not fit the others.
    FileNotFoundError: `config.source` holds no checkpoint.
  """
  schema.check(SCHEMA, config)
  preference_loss.check(**config.loss)
  if config.evaluate:
    decode.SamplingParams(**config.evaluate.sampling)
  source_lib.require_source(config.source)
  rows, pieces = config.batch.num_rows, config.batch.num_microbatches
  if rows % pieces:
    raise ValueError(
      f"config.batch.num_rows={rows} must divide by num_microbatches={pieces}."
    )


def describe(config: ConfigDict) -> list[str]:
  """Returns lines on what the run would take."""
  cfg = describe_lib.read_model(config)
  _, lines = describe_lib.training(cfg, lora.LoraConfig(**config.lora))
  held_out = ["evaluate.data"] if config.evaluate else []
  lines[:0] = [
    describe_lib.judged(config, preferences.pairs),
    *describe_lib.data(config, *held_out),
  ]
  tokens = 2 * config.batch.num_rows * config.max_length
  lines.append(f"tokens of a step: at most {tokens:,}, padding included")
  return lines
