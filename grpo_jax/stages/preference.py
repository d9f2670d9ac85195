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

from grpo_jax import configs, errors, sharding
from grpo_jax.data import pair_batches, preferences, prompts, rows
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.losses import preference
from grpo_jax.models import lora, moe
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.rewards import combine
from grpo_jax.rl import experience
from grpo_jax.runs import directory, progress, report
from grpo_jax.runs import source as source_lib
from grpo_jax.sampling import decode
from grpo_jax.stages import evaluate
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


def run(config: ConfigDict, workdir: pathlib.Path) -> bool:
  """Trains on pairs; returns whether it got to its last step.

  Raises:
    ValueError: a field of the config is unknown or does not fit the others, or
      the tokenizer does not fit the pairs.
    FileNotFoundError: there is no model to start from, or no pairs.
  """
  check(config)
  mesh = sharding.make_mesh(config.mesh.to_dict())
  piece = config.batch.num_rows // config.batch.num_microbatches
  axes = sharding.split_rows(mesh, piece)[:1]
  template = prompts.read_template(config.prompts.template, chat_too=True)
  tok = tokenizer.load(source_lib.tokenizer_directory(config.source))
  train, test = (
    make_batches(config, tok, template, split) for split in ("train", "test")
  )
  total_steps = len(train)
  tx, learning_rate = optimizer.make_optimizer(total_steps, **config.optimizer)
  questions = None
  if config.evaluate:
    data_dir = pathlib.Path(config.data_dir).expanduser()
    questions = evaluate.make_questions(
      config.evaluate, tok, template, data_dir
    )
  cfg = source_lib.read_model(config.source, **config.model)
  moe.check(cfg, config.mesh.get("expert", 1), 0.0)
  jax.set_mesh(mesh)
  if loop.is_finished(workdir, total_steps):
    directory.claim(workdir, config.to_dict())
    progress.say(f"{workdir} already holds all {total_steps} steps.")
    return True

  settings = lora.LoraConfig(**config.lora)
  needs_reference = preference_loss.needs_reference(config.loss.kind)

  def load(frozen: bool) -> Params:
    return source_lib.load_policy(
      config.source, mesh, frozen=frozen, **config.model
    )[1]

  # With adapters the base is the reference, and there is one of it.
  frozen = load(frozen=True) if settings.rank or needs_reference else None
  base = frozen if settings.rank else None
  trainable = lora.trainable(cfg, base, settings)
  # Last of what can refuse a config, so that a refusal leaves nothing behind.
  directory.claim(workdir, config.to_dict())
  tok.save(workdir / "tokenizer")
  directory.save_model(workdir, cfg)
  if settings.rank:
    directory.save_lora(workdir, settings, config.source)
  root_key = jax.random.key(config.seed)

  def start() -> Params:
    if base is None:
      return load(frozen=False)
    key = jax.random.fold_in(root_key, _ADAPTERS)
    return trainable.start(key, base, mesh)

  compare = Comparison(
    config.loss.to_dict(),
    cfg,
    mesh,
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
    policy = trainable.policy(part)
    results = compare.evaluate(policy, test)
    progress.say(
      f"Held-out pairs: loss {results['loss']:.4f}, accuracy"
      f" {results['accuracy']:.1%} of {results['pairs']}, margin"
      f" {results['margin']:.3f}"
    )
    found = {"held_out": results}
    if questions:
      key = jax.random.fold_in(root_key, _EVALUATE)
      answers, _, _ = evaluate.evaluate(policy, cfg, tok, questions, key, mesh)
      progress.say(f"Held out: {evaluate.summary(answers)}")
      found[config.evaluate.data.name] = answers
    return found

  trained = loop.train(
    workdir,
    mesh,
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
    num_tokens=loop.text_tokens,
    total_steps=total_steps,
    log_every=config.log_every,
    checkpoint_every=config.checkpoint.every,
    keep=config.checkpoint.keep,
    frozen=trainable.frozen,
    columns=_COLUMNS,
    evaluate=held_out,
    evaluate_every=config.evaluate.every if config.evaluate else 0,
  )
  if not trained.finished:
    progress.say("Stopped; the same command goes on from there.")
    return False
  report.write_report(workdir, panels=_PANELS)
  return True


def make_batches(
  config: ConfigDict, tok: tokenizer.Tokenizer, template: str, split: str
) -> rows.Batches:
  """Returns the pairs of a split by step; those held out come once."""
  pairs = preferences.pairs(config.data.path, split)
  encoded = pair_batches.encode(pairs, tok, template, config.max_length)
  progress.say(
    f"{split}: {len(encoded):,} of {len(pairs):,} pairs have at most"
    f" {config.max_length} tokens."
  )
  return rows.Batches(
    encoded,
    pair_batches.collate,
    num_rows=config.batch.num_rows,
    max_length=config.max_length,
    pad_id=tok.pad_id,
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
      experience.in_pieces(
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
    """Returns the means over all pairs of loss and metrics, and their number.

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
    return {"pairs": pairs, **results, "accuracy_stderr": error}

  def _logprobs(self, params: Params, batch: PairedCompletions) -> np.ndarray:
    """Log-probs [B, 2] of the completions, on the host."""
    given = batch.tokens, batch.segments, batch.mask
    placed = sharding.place(self._mesh, given, self._axes)
    return sharding.to_host(self._score(params, *placed))


def check(config: ConfigDict) -> None:
  """Raises an error of one sentence if the config cannot be run.

  Raises:
    ValueError: a field is unknown or does not fit the others.
    FileNotFoundError: `config.source` holds no checkpoint.
  """
  free = ("loss", "optimizer", "lora", "sampling", "data", "rewards")
  if config.evaluate is None:
    free += ("evaluate",)
  errors.check_fields(config, configs.preference(), free=free)
  errors.check_section(
    "optimizer", config.optimizer, optimizer.make_optimizer, ("total_updates",)
  )
  errors.check_section("lora", config.lora, lora.LoraConfig)
  preference_loss.check(**config.loss)
  if config.evaluate:
    section = config.evaluate.sampling
    errors.check_section("evaluate.sampling", section, decode.SamplingParams)
    decode.SamplingParams(**section)
    combine.check(config.evaluate.rewards)
  source_lib.require_source(config.source)
  rows, pieces = config.batch.num_rows, config.batch.num_microbatches
  if rows % pieces:
    raise ValueError(
      f"config.batch.num_rows={rows} must divide by num_microbatches={pieces}."
    )
