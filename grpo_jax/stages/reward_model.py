"""Reward models: a scalar head on a policy, learned from judged completions.

Three kinds, which `config.kind` names:

  bradley_terry  one score for a completion, learned from pairs: the reward
                 model r_phi of RLHF, and DeepSeek-R1's of helpfulness
  pointwise      the probability that a completion is good, learned from single
                 labelled ones: DeepSeek-R1's model of harmlessness
  process        the probability that each step of a completion is right

All of the model is trained. At the end its scores on held-out prompts are
judged (`evaluations.jsonl`, `reliability.json`), and `reward_model.json` makes
the run's directory a source of rewards: `config.rewards.reward_model.source`.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from grpo_jax import configs, errors, schema, sharding, stages
from grpo_jax.data import preferences, prompts
from grpo_jax.data import rows as rows_lib
from grpo_jax.losses import preference
from grpo_jax.models import scoring
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.reward_models import batches, calibration, learned, saved
from grpo_jax.reward_models import evaluate as held_out
from grpo_jax.runs import directory, progress
from grpo_jax.runs import source as source_lib
from grpo_jax.runs.signals import Outcome
from grpo_jax.stages import describe as describe_lib
from grpo_jax.stages import sections, setup
from grpo_jax.train import loop, optimizer
from grpo_jax.train.update import make_update
from grpo_jax.types import LabelledBatch, PairBatch

Loss = tuple[Float[Array, ""], dict[str, Array]]


class Kind(NamedTuple):
  """What is different between the kinds of reward models.

  Attributes:
    reading: of the model: "outcome" or "process".
    probability: whether an outcome's score is one.
    read: `(path, split)` to judged completions.
    encode: those to rows of tokens, without what is too long.
    collate: rows to a batch.
    loss: `(params, batch, *, cfg, ...)`; the rest is `config.loss`.
    columns: of the progress table.
  """

  reading: str
  probability: bool
  read: Callable[..., list]
  encode: Callable[..., list]
  collate: Callable[..., Any]
  loss: Callable[..., Loss]
  columns: tuple[progress.Column, ...]


def run(config: ConfigDict, workdir: pathlib.Path) -> Outcome:
  """Trains a reward model.

  Raises:
    ValueError: a field of the config is unknown or does not fit the others.
    FileNotFoundError: the source, or the data, are missing.
  """
  check(config)
  kind = KINDS[config.kind]
  with setup.open_run(config, workdir) as run:
    rows = run.rows(config.batch.num_rows // config.batch.num_microbatches)
    run.rows(config.evaluate.rows_per_batch)
    reading = make_reading(config, kind)
    known = {
      split: kind.read(config.data.path, split) for split in ("train", "test")
    }
    if not run.make_base():
      return Outcome.STOPPED
    encoded = kind.encode(reading, run.tok, known["train"], config.max_length)
    steps = rows_lib.Batches(
      encoded,
      kind.collate,
      num_rows=config.batch.num_rows,
      max_length=config.max_length,
      pad_id=run.tok.pad_id,
      epochs=config.epochs,
      seed=config.seed,
    )
    tx, learning_rate = optimizer.make_optimizer(len(steps), **config.optimizer)
    run.claim()
    if saved.is_saved(workdir):
      progress.say(f"{workdir} already holds a finished reward model.")
      return Outcome.FINISHED
    policy, cfg = run.load(), run.cfg
    run.describe(cfg, run.tok)
    progress.say(
      f"{len(encoded):,} of {len(known['train']):,} judged completions have at"
      f" most {config.max_length} tokens; {len(known['test']):,} are held out."
    )

    def model_of(params: Params) -> learned.RewardModel:
      return learned.RewardModel(
        params,
        cfg,
        run.tok,
        run.mesh,
        reading,
        config.max_length,
        config.evaluate.rows_per_batch,
      )

    def evaluate(params: Params) -> loop.Evaluations:
      results, _ = held_out.evaluate(model_of(params), known["test"])
      return {"held_out": results}

    trained = loop.train(
      workdir,
      run.mesh,
      run.schedule(len(steps), config.evaluate.every),
      loop.Task(
        specs=learned.param_specs(cfg),
        start=lambda: learned.from_policy(policy, cfg, run.mesh),
        tx=tx,
        learning_rate=learning_rate,
        update=make_update(
          functools.partial(kind.loss, cfg=cfg, **config.loss),
          tx,
          num_microbatches=config.batch.num_microbatches,
        ),
        batches=loop.ByStep(steps),
        rows=rows,
        columns=kind.columns,
        evaluate=evaluate,
      ),
    )
    if not trained.finished:
      return Outcome.STOPPED
    finish(run, model_of(trained.state.params), known)
  return Outcome.FINISHED


def make_reading(config: ConfigDict, kind: Kind) -> learned.Reading:
  """Returns how the model reads a completion."""
  return learned.Reading(
    kind=kind.reading,
    template=prompts.read_template(config.prompts.template),
    probability=kind.probability,
    **config.reading,
  )


def finish(
  run: setup.Run,
  model: learned.RewardModel,
  known: Mapping[str, Sequence[Any]],
) -> None:
  """Judges the finished model and makes its run a source of rewards."""
  report(model, known["test"], run.workdir)
  mean, std = normalization(model, known["train"], **run.config.normalize)
  saved.save(run.workdir, model.cfg, model.reading, mean=mean, std=std)


def pair_loss(
  params: Params,
  batch: PairBatch,
  *,
  cfg: ModelConfig,
  margin_coef: float = 0.0,
  center_coef: float = 0.0,
) -> Loss:
  """Returns the Bradley-Terry loss; see `preference.bradley_terry_loss`.

  Args:
    params: of the reward model.
    batch: B pairs.
    cfg: the model.
    margin_coef: times the margins of the data is how much higher a preferred
      text should score; 0 ignores them.
    center_coef: of the pull of a pair's scores to mean 0.
  """
  scalars = _scalars(
    params,
    cfg,
    sharding.merge_pairs(batch.tokens),
    sharding.merge_pairs(batch.segments),
  )
  at_end = (
    jnp.arange(scalars.shape[-1]) == sharding.merge_pairs(batch.ends)[:, None]
  )
  scores = sharding.split_pairs(
    jnp.sum(jnp.where(at_end, scalars, 0.0), axis=-1)
  )
  return preference.bradley_terry_loss(
    scores[:, 0],
    scores[:, 1],
    batch.weights,
    margins=margin_coef * batch.margins if margin_coef else None,
    center_coef=center_coef,
  )


def label_loss(
  params: Params, batch: LabelledBatch, *, cfg: ModelConfig
) -> Loss:
  """Returns the cross-entropy of labels; `preference.process_reward_loss`."""
  scalars = _scalars(params, cfg, batch.tokens, batch.segments)
  return preference.process_reward_loss(scalars, batch.labels, batch.weights)


def normalization(
  model: learned.RewardModel,
  known: Sequence[Any],
  *,
  reference: str,
  num_pairs: int,
  unit_variance: bool,
) -> tuple[float, float]:
  """Returns the mean and the standard deviation that scores are freed from.

  RLHF gives its reward model a bias, so that the reference completions score 0
  in the mean: InstructGPT, https://arxiv.org/abs/2203.02155, section 3.5. A
  probability stays what it is.

  Args:
    model: finished.
    known: of the training split.
    reference: whose scores have mean 0: those of "both" texts of a pair, which
      are draws of a policy where it made the pairs, or those of the "chosen".
    num_pairs: the first so many pairs.
    unit_variance: whether the scores are also divided by their deviation.
  """
  if model.reading.kind == "process" or model.reading.probability:
    return 0.0, 1.0
  chosen, rejected = held_out.pair_scores(model, known[:num_pairs])
  scores = chosen if reference == "chosen" else np.append(chosen, rejected)
  scores = scores[~np.isnan(scores)]
  return float(scores.mean()), float(scores.std()) if unit_variance else 1.0


def report(
  model: learned.RewardModel, known: Sequence[Any], workdir: pathlib.Path
) -> None:
  """Prints and writes how good the finished model is on held-out data."""
  results, found = held_out.evaluate(model, known)
  for name, value in results.items():
    progress.say(f"{name:24s} {value:8.4g}")
  progress.say(calibration.table(found))
  content = {
    name: np.where(np.isnan(values), None, values).tolist()
    for name, values in found._asdict().items()
    if name != "error"
  }
  directory.write_text(
    workdir / "reliability.json",
    json.dumps(content | {"error": found.error}, indent=2) + "\n",
  )


def check(config: ConfigDict) -> None:
  """Raises an error of one sentence if the config cannot be run.

  Raises:
    ValueError: a field is unknown or does not fit the others.
    FileNotFoundError: `config.source` holds no model.
  """
  schema.check(SCHEMA, config)
  if config.pretrain:
    stages.load("pretrain").check(config.pretrain)
  else:
    source_lib.require_source(config.source)
  rows, pieces = config.batch.num_rows, config.batch.num_microbatches
  if rows % pieces:
    raise errors.ConfigError(
      f"config.batch.num_rows={rows} must divide by num_microbatches={pieces}."
    )


def _scalars(
  params: Params, cfg: ModelConfig, tokens: Array, segments: Array
) -> Array:
  positions = jnp.zeros_like(tokens) + jnp.arange(tokens.shape[-1])
  return scoring.score_scalars(
    params, cfg, params["reward"], tokens, positions, segments
  )


_COLUMNS = (
  progress.TEXT_COLUMNS[0],
  progress.Column("accuracy", "accuracy", "8.3f"),
  *progress.TEXT_COLUMNS[1:],
)
_PAIRS = Kind(
  reading="outcome",
  probability=False,
  read=preferences.pairs,
  encode=batches.encode_pairs,
  collate=batches.collate_pairs,
  loss=pair_loss,
  columns=_COLUMNS,
)
_LABELS = _PAIRS._replace(
  probability=True,
  read=preferences.labelled,
  encode=batches.encode_steps,
  collate=batches.collate_steps,
  loss=label_loss,
)
KINDS = {
  "bradley_terry": _PAIRS,
  "pointwise": _LABELS,
  "process": _LABELS._replace(reading="process", probability=False),
}


SCHEMA = schema.Fields(
  configs.reward_model,
  {
    "pretrain": schema.Optional(stages.load("pretrain").SCHEMA),
    "model": sections.MODEL,
    "loss": schema.Kind(
      {name: kind.loss for name, kind in KINDS.items()},
      by="kind",
      beside=True,
      given=("cfg",),
    ),
    "optimizer": sections.OPTIMIZER,
  },
  choices={"normalize.reference": ("both", "chosen")},
)


def describe(config: ConfigDict) -> list[str]:
  """Returns lines on what the run would take."""
  _, lines = describe_lib.training(describe_lib.read_model(config))
  first = ["pretrain.data"] if config.pretrain else []
  lines[:0] = [
    *describe_lib.data(config, *first),
    describe_lib.judged(config, KINDS[config.kind].read),
  ]
  rows = config.batch.num_rows * (2 if config.kind == "bradley_terry" else 1)
  tokens = rows * config.max_length
  lines.append(f"tokens of a step: at most {tokens:,}, padding included")
  return lines
