"""Distillation on logits: the policy learns a teacher's distribution.

At every token of a completion the policy is compared with the teacher over the
whole vocabulary. The tokens are those of a dataset, such as the teacher's kept
completions, or the policy's own: generalized knowledge distillation (GKD,
https://arxiv.org/abs/2306.13649, algorithm 1). It needs one vocabulary for
both; the sft stage on the teacher's completions needs none.

P prompts, G completions each; B rows of text.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from grpo_jax import configs, schema
from grpo_jax.data import conversations, datasets, prompts
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.losses import distill, policy
from grpo_jax.models import heads, scoring, transformer
from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.rl import experience
from grpo_jax.runs import progress
from grpo_jax.runs import source as source_lib
from grpo_jax.runs.signals import Outcome
from grpo_jax.sampling import decode, generate
from grpo_jax.stages import describe as describe_lib
from grpo_jax.stages import sections, setup
from grpo_jax.train import loop, optimizer
from grpo_jax.train.update import make_update
from grpo_jax.types import TextBatch

# What a random number is for; the step comes after it.
_SAMPLE, _CHOOSE = 0, 1

_COLUMNS = (
  progress.Column("divergence", "divergence", "10.4f"),
  *progress.TEXT_COLUMNS[1:],
)


def run(config: ConfigDict, workdir: pathlib.Path) -> Outcome:
  """Trains `config.source` towards `config.teacher`.

  Raises:
    ValueError: a field of the config is unknown or does not fit the others, or
      policy and teacher do not share a vocabulary.
    FileNotFoundError: there is no policy, no teacher or no dataset.
  """
  check(config)
  with setup.open_run(config, workdir) as run:
    pieces, cfg = config.batch.num_microbatches, run.cfg
    for count in num_rows(config):
      rows = run.rows(count // pieces)
    batch, total_steps = make_batches(run)
    tx, learning_rate = optimizer.make_optimizer(
      total_steps, **config.optimizer
    )
    run.claim()
    if run.is_finished(total_steps):
      return Outcome.FINISHED
    run.describe(cfg, run.tok)
    teacher_cfg, teacher, _ = source_lib.load_policy(
      config.teacher, run.mesh, frozen=True, **config.model
    )
    loss = functools.partial(
      _OBJECTIVES[config.objective], cfg=cfg, teacher_cfg=teacher_cfg
    )
    if config.objective == "divergence":
      loss = functools.partial(loss, **config.divergence)
    trained = loop.train(
      workdir,
      run.mesh,
      run.schedule(total_steps),
      loop.Task(
        specs=params_lib.param_specs(cfg),
        start=run.load,
        tx=tx,
        learning_rate=learning_rate,
        update=make_update(
          loss,
          tx,
          num_microbatches=pieces,
          router_bias_rate=config.router_bias_rate,
        ),
        batches=loop.ByStep(batch),
        rows=rows,
        frozen=(teacher,),
        columns=_COLUMNS,
      ),
    )
  return Outcome.FINISHED if trained.finished else Outcome.STOPPED


def make_batches(
  run: setup.Run,
) -> tuple[Callable[[int], TextBatch | Callable[[Params], TextBatch]], int]:
  """Returns the batch of a step, or what writes it, and the number of steps."""
  config, texts, write = run.config, None, None
  share, total_steps = config.on_policy_share, config.total_steps
  if share < 1:
    texts = make_texts(run)
    total_steps = total_steps or texts.num_steps
  if share > 0:
    write = make_write(run)

  def batch(step: int) -> TextBatch | Callable[[Params], TextBatch]:
    chance = np.random.default_rng([config.seed, _CHOOSE, step]).random()
    if write is not None and chance < share:
      return functools.partial(write, step)
    assert texts is not None  # For the share is below 1.
    return texts(step % texts.num_steps)

  return batch, total_steps


def make_texts(run: setup.Run) -> conversations.ConversationSource:
  """Returns the packed conversations of `config.data`, by step."""
  config = run.config
  texts = conversations.ConversationSource(
    datasets.load(**config.data, data_dir=run.data_dir),
    run.tok,
    run.template,
    num_rows=config.batch.num_rows,
    row_length=config.batch.row_length,
    num_epochs=config.num_epochs,
    seed=config.seed,
    tell=progress.say,
  )
  progress.say(
    f"{texts.num_kept:,} conversations of {texts.num_tokens:,} tokens;"
    f" {texts.num_too_long:,} are longer than a row and left out."
  )
  return texts


def make_write(run: setup.Run) -> Callable[[int, Params], TextBatch]:
  """Returns what the policy writes at a step, as a function of its parameters.

  P prompts of `config.prompts`, G completions each, are P * G rows.
  """
  config = run.config
  source = prompts.PromptSource(
    datasets.load(**config.prompts.data, data_dir=run.data_dir),
    run.tok,
    run.template,
    num_prompts=config.prompts.num_prompts,
    prompt_slots=config.prompts.prompt_slots,
    seed=config.seed,
    tell=progress.say,
  )
  sampling = decode.SamplingParams(**config.sampling)
  sample_key = run.key(_SAMPLE)

  def write(step: int, params: Params) -> TextBatch:
    batch, _ = source(step)
    policy = generate.Policy(params, run.cfg, run.tok, run.mesh)
    key = jax.random.fold_in(sample_key, step)
    rollout = generate.draw(policy, batch, key, sampling)
    rollout = experience.trim(rollout, config.batch.length_multiple)
    return experience.as_text(rollout)

  return write


def num_rows(config: ConfigDict) -> list[int]:
  """Returns the rows of each kind of batch: of `data`, of the policy's own."""
  drawn = config.prompts.num_prompts * config.sampling.group_size
  share = config.on_policy_share
  return [config.batch.num_rows] * (share < 1) + [drawn] * (share > 0)


def divergence_loss(
  params: Params,
  batch: TextBatch,
  teacher: Params,
  *,
  cfg: ModelConfig,
  teacher_cfg: ModelConfig,
  **divergence: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the divergence from the teacher over the vocabulary, in nats.

  A vocabulary that is padded further than the other's counts up to the other's
  size; no token is beyond it.

  Args:
    params: of the policy.
    batch: whose weights say where it is compared.
    teacher: its parameters, constants.
    cfg: the policy's model.
    teacher_cfg: the teacher's.
    **divergence: of `losses.distill.divergence`.
  """
  text = batch.tokens, batch.positions, batch.segments
  hidden, trace = transformer.forward(params, cfg, *text)
  teacher_hidden, _ = transformer.forward(teacher, teacher_cfg, *text)
  size = min(cfg.vocab_size, teacher_cfg.vocab_size)
  per_token = distill.divergence(
    heads.text_predictors(hidden),
    heads.head_matrix(params, cfg)[:, :size],
    heads.text_predictors(teacher_hidden),
    heads.head_matrix(teacher, teacher_cfg)[:, :size],
    chunk_size=cfg.head_chunk,
    **divergence,
  )
  loss, metrics = distill.distill_loss(per_token, batch.weights)
  return loss, metrics | {"expert_load": trace.load}


def advantage_loss(
  params: Params,
  batch: TextBatch,
  teacher: Params,
  *,
  cfg: ModelConfig,
  teacher_cfg: ModelConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns REINFORCE's loss with log p - log pi of each token for advantage.

  In expectation over the policy's own tokens its gradient is that of the
  reverse KL at each of them. The metric "divergence" is the same estimate of
  it, and may be negative.

  Args:
    params: of the policy that wrote the batch.
    batch: whose weights say where it is compared.
    teacher: its parameters, constants.
    cfg: the policy's model.
    teacher_cfg: the teacher's.
  """
  text = batch.tokens, batch.positions, batch.segments
  scores = scoring.score_text(params, cfg, *text)
  wanted = scoring.score_text(teacher, teacher_cfg, *text).logprobs
  old = jax.lax.stop_gradient(scores.logprobs)
  advantages = distill.on_policy_advantages(old, wanted, batch.weights > 0)
  loss, metrics = policy.reinforce_loss(
    scores.logprobs, old, None, advantages, batch.weights
  )
  metrics = {
    "weight": metrics["weight"],
    "divergence": -(batch.weights * advantages).sum(),
    "expert_load": scores.load,
  }
  return loss, metrics


_OBJECTIVES = {"divergence": divergence_loss, "advantage": advantage_loss}


def _own_prompts(
  *, data: Mapping[str, Any], num_prompts: int, prompt_slots: int
) -> None:
  """Prompts to which the policy writes.

  Args:
    data: what `data.datasets.load` reads.
    num_prompts: of a step.
    prompt_slots: tokens that a prompt may have; longer ones are left out.
  """


SCHEMA = schema.Fields(
  configs.distill,
  {
    "data": sections.DATA,
    "model": sections.MODEL,
    "divergence": schema.Options(
      distill.divergence,
      ("chunk_size",),
      choices={"kind": distill.DIVERGENCES},
    ),
    "prompts": sections.prompts(_own_prompts, data=sections.DATA),
    "sampling": sections.SAMPLING,
    "optimizer": sections.OPTIMIZER,
  },
  choices={"objective": _OBJECTIVES},
)


def check(config: ConfigDict) -> None:
  """Raises an error of one sentence if the config cannot be run.

  Raises:
    ValueError: a field is unknown or does not fit the others, or policy and
      teacher have different vocabularies.
    FileNotFoundError: `config.source` or `config.teacher` holds no model.
  """
  schema.check(SCHEMA, config)
  distill.check(**config.divergence)
  sampling = decode.SamplingParams(**config.sampling)
  share = config.on_policy_share
  if not 0 <= share <= 1:
    raise ValueError(f"config.on_policy_share={share} must be in [0, 1].")
  if share == 1 and config.total_steps < 1:
    raise ValueError(
      f"config.total_steps={config.total_steps} must say how many, for with"
      " on_policy_share=1 there are no epochs of data."
    )
  if config.objective == "advantage":
    drawn_as_scored = sampling.full_support and sampling.temperature == 1
    if share < 1 or not drawn_as_scored:
      raise ValueError(
        'config.objective="advantage" learns from what the policy itself draws:'
        " it needs on_policy_share=1 and a sampling of temperature 1 from the"
        " whole vocabulary (top_k=0, top_p=1, min_p=0)."
      )
  pieces = config.batch.num_microbatches
  for count in num_rows(config):
    if count % pieces:
      raise ValueError(
        f"The rows of a batch, {count}, must divide by"
        f" config.batch.num_microbatches={pieces}."
      )
  source_lib.require_source(config.source)
  source_lib.require_source(config.teacher, "teacher")
  # What ends a turn is what the policy learns it to be.
  template = prompts.read_template(config.prompts.template, chat_too=True)
  tok, teacher_tok = (
    prompts.fitted(
      tokenizer.load(source_lib.tokenizer_directory(source)), template
    )
    for source in (config.source, config.teacher)
  )
  if differs := tokenizer.difference(tok, teacher_tok):
    raise ValueError(
      f"Policy and teacher need one vocabulary, but the policy has {differs} as"
      " the teacher has; train on the teacher's completions instead"
      ' (config.stage="sft").'
    )


def describe(config: ConfigDict) -> list[str]:
  """Returns lines on what the run would take."""
  cfg = describe_lib.read_model(config)
  teacher = source_lib.read_model(config.teacher, **config.model)
  _, lines = describe_lib.training(cfg)
  reads = ["data"] if config.on_policy_share < 1 else []
  reads += ["prompts.data"] if config.on_policy_share else []
  lines[:0] = describe_lib.data(config, *reads)
  lines += describe_lib.frozen(teacher, "the teacher")
  tokens = config.batch.num_rows * config.batch.row_length
  lines.append(f"tokens of a step: at most {tokens:,}, padding included")
  return lines
