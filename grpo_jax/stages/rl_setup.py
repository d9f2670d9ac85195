"""What the rl stage begins with: its config checked, its source, its state."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optax
from ml_collections import ConfigDict

from grpo_jax import configs, errors, schema, sharding, stages
from grpo_jax.data import datasets, prompts
from grpo_jax.evaluation import ask
from grpo_jax.losses import advantages, correction, policy, weighting
from grpo_jax.losses import advantages as advantages_lib
from grpo_jax.losses import value as value_lib
from grpo_jax.models import lora, moe
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.rewards import combine
from grpo_jax.rewards import section as section_lib
from grpo_jax.rl import curriculum as curriculum_lib
from grpo_jax.rl import (
  dynamic_sampling,
  experience,
  learner,
  programs,
  rollouts,
  schedule,
  value_model,
)
from grpo_jax.runs import progress
from grpo_jax.runs import source as source_lib
from grpo_jax.sampling import decode
from grpo_jax.stages import describe as describe_lib
from grpo_jax.stages import sections, setup
from grpo_jax.train import loop, optimizer
from grpo_jax.train import state as state_lib
from grpo_jax.types import Problem

# What a random number is for; steps, rows and positions are folded in after it.
SAMPLE, EVALUATE, ADAPTERS = 0, 1, 2
# Fields of `sampling` that a schedule may change; each value of one of them
# is a program of its own.
SCHEDULED = ("max_new_tokens", "temperature", "cache_chunk")


def _scheduled(
  *, max_new_tokens: int, temperature: float, cache_chunk: int
) -> None:
  """Fields of `sampling` that a schedule may change.

  Each value of one of them is a program of its own.

  Args:
    max_new_tokens: completion slots; the stop token needs one.
    temperature: above 0.
    cache_chunk: slots by which the cache of completions grows.
  """


class Begun(NamedTuple):
  """A run of reinforcement learning before its next step.

  Attributes:
    loop: its steps.
    learner: policy, reference and value model.
    rollouts: how it comes to its completions.
    questions: held-out problems.
    learning_rate: by optimizer update.
  """

  loop: loop.Loop
  learner: learner.Learner
  rollouts: rollouts.Rollouts
  questions: ask.Questions
  learning_rate: optax.Schedule


def begin(run: setup.Run) -> Begun | None:
  """Returns what the run begins with; None where making its base was stopped.

  The directory is the run's own from here on; before that, whatever can refuse
  a config has been asked.

  Raises:
    ValueError: a field of the config does not fit the others.
    FileNotFoundError: there is no base model, and no way given to make one.
  """
  config, mesh = run.config, run.mesh
  for parts in (1, num_pieces(config)):
    sharding.split_rows(
      mesh, config.prompts.num_prompts // parts, config.sampling.group_size
    )
  problems = datasets.load(**config.data, data_dir=run.data_dir)
  from_step = curriculum_lib.first_steps(problems, config.from_step)
  combine.check_sources(config.rewards, from_step)
  template = run.template
  if not run.make_base():
    return None
  curriculum = make_curriculum(run, template, problems, from_step)
  questions = run.questions()
  cfg, source, _ = source_lib.load_policy(
    run.source, mesh, frozen=run.lora.rank > 0, **config.model
  )
  student, learning_rate = make_learner(run, cfg, source)
  run.describe(cfg, run.tok)
  steps = loop.Loop(
    run.workdir,
    run.schedule(config.total_steps, config.evaluate.every),
    progress.RL_COLUMNS,
  )
  reads = learner.reads_reference(config.loss, config.advantages)
  if steps.restored is None:
    part = student.trainable.start(run.key(ADAPTERS), source, mesh)
    student.begin(part, source if reads else None)
  else:
    kept = student.restore(
      steps.checkpointer, steps.restored, source if reads else None
    )
    curriculum.set_state(kept["curriculum"])
    progress.say(f"Going on after step {steps.restored}.")
  return Begun(
    steps,
    student,
    rollouts.Rollouts(
      curriculum,
      config.rewards,
      run.key(SAMPLE),
      steps.timer,
      dynamic_sampling=config.dynamic_sampling,
      greedy="greedy_rewards" in reads_of(config),
    ),
    questions,
    learning_rate,
  )


def make_curriculum(
  run: setup.Run,
  template: str,
  problems: Sequence[Problem],
  from_step: Mapping[str, int],
) -> curriculum_lib.Curriculum:
  """Returns the prompts of a run, one batch after the other."""
  config = run.config
  batches = prompts.PromptSource(
    problems,
    run.tok,
    template,
    seed=config.seed,
    num_prompts=config.prompts.num_prompts,
    prompt_slots=config.prompts.prompt_slots,
  )
  pass_rates = None
  if config.curriculum is not None:
    pass_rates = curriculum_lib.PassRates(**config.curriculum)
  return curriculum_lib.Curriculum(
    batches, seed=config.seed, from_step=from_step, pass_rates=pass_rates
  )


def make_learner(
  run: setup.Run, cfg: ModelConfig, source: Params
) -> tuple[learner.Learner, optax.Schedule]:
  """Returns what a step changes, without a state, and its learning rate."""
  config, batching = run.config, run.config.batching
  trainable = lora.trainable(cfg, source, run.lora)
  moe.check(cfg, config.mesh.get("expert", 1), config.router_bias_rate)
  total_updates = config.total_steps * batching.num_minibatches
  tx, learning_rate = optimizer.make_optimizer(
    total_updates, **config.optimizer
  )
  value = value_state = None
  if config.value is not None:
    value, value_state = make_value(run, cfg, source)
  parts = dict(
    num_minibatches=batching.num_minibatches,
    num_microbatches=batching.num_microbatches,
  )
  student = learner.Learner(
    functools.partial(
      programs.make_programs,
      cfg,
      tx,
      trainable,
      objective=config.objective,
      loss=config.loss,
      router_bias_rate=config.router_bias_rate,
      **parts,
    ),
    trainable,
    tx,
    run.mesh,
    weighting=config.weighting,
    value=value,
    value_state=value_state,
    **parts,
  )
  return student, learning_rate


def make_value(
  run: setup.Run, cfg: ModelConfig, source: Params
) -> tuple[value_model.ValueModel, state_lib.TrainState]:
  """Returns the value model and its state before the first update."""
  config = run.config
  cfg, params = value_model.start(
    config.value.source, cfg, source, run.tok, run.mesh, **config.model
  )
  tx, _ = optimizer.make_optimizer(
    config.total_steps * config.batching.num_minibatches,
    **config.value.optimizer,
  )
  model = value_model.make(
    cfg,
    tx,
    num_pieces=num_pieces(config),
    num_microbatches=config.batching.num_microbatches,
    **config.value.loss,
  )
  return model, state_lib.init_state(params, tx)


def experience_options(config: ConfigDict) -> dict[str, Any]:
  """Returns how rewards become advantages, as `make_experience` takes it."""
  terms = {
    name: term.weight if hasattr(term, "weight") else term
    for name, term in config.rewards.items()
  }
  return dict(
    advantages=advantages_section(config),
    correction=config.correction.to_dict(),
    term_weights=terms,
  )


def advantages_section(config: ConfigDict) -> dict[str, Any]:
  """Returns `config.advantages` with its kind, which follows from `value`."""
  section = config.advantages.to_dict()
  kind = "group" if config.value is None else "gae"
  return {"kind": kind} | section


def reads_of(config: ConfigDict) -> list[str]:
  """Returns what data the advantages of a config read, by name."""
  kind = advantages_section(config)["kind"]
  return experience.data_of(advantages_lib.ADVANTAGES[kind])


def sampling_at(config: ConfigDict, step: int) -> decode.SamplingParams:
  """Returns how completions are drawn when `step` steps are done."""
  return schedule.sampling_at(config.sampling, config.schedule, step)


def num_pieces(config: ConfigDict) -> int:
  """Returns into how many gradients the prompts of a step are cut."""
  return config.batching.num_minibatches * config.batching.num_microbatches


def default_advantages(config: errors.Section) -> str:
  """Returns `config.advantages.kind` of a config that does not say it."""
  return "group" if config.get("value") is None else "gae"


SCHEMA = schema.Fields(
  configs.rl,
  {
    "pretrain": schema.Optional(stages.load("pretrain").SCHEMA),
    "model": sections.MODEL,
    "lora": sections.LORA,
    "data": sections.DATA,
    "from_step": schema.Free(),
    "curriculum": schema.Optional(schema.Options(curriculum_lib.PassRates)),
    "dynamic_sampling": schema.Optional(
      schema.Options(dynamic_sampling.fill, ("ask",))
    ),
    "sampling": sections.SAMPLING,
    "schedule": schema.Named(
      schema.Options(_scheduled, partial=True), numbers=True
    ),
    "rewards": section_lib.SCHEMA,
    "advantages": schema.Kind(
      advantages.ADVANTAGES, default=default_advantages
    ),
    "correction": schema.Kind(correction.CORRECTIONS, default="none"),
    "value": schema.Optional(
      schema.Fields(
        configs.value,
        {
          "loss": schema.Options(value_lib.value_loss),
          "optimizer": sections.OPTIMIZER,
        },
      )
    ),
    "loss": schema.Kind(
      policy.OBJECTIVES,
      by="objective",
      beside=True,
      shared=policy.policy_loss,
    ),
    "optimizer": sections.OPTIMIZER,
    "evaluate": sections.evaluation(configs.rl),
  },
  choices={"weighting": weighting.WEIGHTINGS},
)


def check(config: ConfigDict) -> None:
  """Raises an error of one sentence if the config cannot be run.

  Raises:
    ValueError: a field is unknown or does not fit the others.
    FileNotFoundError: `config.source` holds no checkpoint.
  """
  schema.check(SCHEMA, config)
  policy.check(config.objective, config.weighting)
  check_advantages(config)
  if config.value is not None:
    check_value(config)
  if lora.LoraConfig(**config.lora).rank and config.router_bias_rate:
    raise ValueError(
      f"config.router_bias_rate={config.router_bias_rate} moves the router of a"
      " model that config.lora.rank freezes; set one of them to 0."
    )
  if config.pretrain:
    stages.load("pretrain").check(config.pretrain)
  else:
    source_lib.require_source(config.source)
  combine.check(config.rewards)
  decode.SamplingParams(**config.evaluate.sampling)
  check_sampling(config)
  check_prompts(config)
  parts = config.batching.num_minibatches, config.batching.num_microbatches
  optimizer.make_optimizer(config.total_steps * parts[0], **config.optimizer)
  if config.prompts.num_prompts % (parts[0] * parts[1]):
    raise ValueError(
      f"config.prompts.num_prompts={config.prompts.num_prompts} must divide"
      f" by num_minibatches x num_microbatches = {parts[0]} x {parts[1]}."
    )


def check_advantages(config: ConfigDict) -> None:
  """Raises ConfigError unless values are estimated where they are read."""
  kind = config.advantages.get("kind", default_advantages(config))
  if config.value is not None and kind != "gae":
    raise errors.ConfigError(
      f"config.advantages.kind={kind!r} reads no values: with config.value it"
      ' must be "gae", or set config.value=None.'
    )
  if config.value is None and kind == "gae":
    raise errors.ConfigError(
      'config.advantages.kind="gae" reads the values of a model: set'
      " config.value, such as --config.value=on."
    )


def check_sampling(config: ConfigDict) -> None:
  """Raises ValueError where what is sampled could not be trained on."""
  for step in config.schedule:
    if not (isinstance(step, int) and step > 0):
      raise ValueError(
        f"config.schedule has {step!r}, which is no number of steps above 0."
      )
  needs_groups = config.value is None or config.dynamic_sampling is not None
  if needs_groups and config.sampling.group_size < 2:
    raise ValueError(
      f"config.sampling.group_size={config.sampling.group_size} must be at"
      " least 2: an advantage compares the completions of a group."
    )
  for step in (0, *config.schedule):
    if not sampling_at(config, step).full_support:
      raise ValueError(
        "config.sampling must draw from the whole vocabulary at a temperature"
        " above 0 (top_k=0, top_p=1, min_p=0): the loss scores tokens under"
        " that distribution."
      )


def check_prompts(config: ConfigDict) -> None:
  """Raises ValueError where the sections that choose prompts do not fit."""
  for source, step in config.from_step.items():
    if not (isinstance(step, int) and step >= 0):
      raise ValueError(
        f"config.from_step.{source}={step!r} must be a number of steps."
      )
  for name in ("curriculum", "dynamic_sampling"):
    section = config[name]
    if section is None:
      continue
    term = section.get("term", "accuracy")
    if term not in config.rewards:
      raise ValueError(
        f"config.{name}.term={term!r} is no reward of this config;"
        f" {errors.nearest(term, config.rewards)}"
      )
  if config.curriculum is not None:
    curriculum_lib.PassRates(**config.curriculum)
  if config.dynamic_sampling is not None:
    rounds = config.dynamic_sampling.get("max_rounds", 1)
    if rounds < 1:
      raise ValueError(
        f"config.dynamic_sampling.max_rounds={rounds} must be at least 1."
      )


def check_value(config: ConfigDict) -> None:
  """Raises an error where `config.value` does not fit.

  Raises:
    ValueError: a field does not fit the others.
    FileNotFoundError: its source holds no checkpoint.
  """
  clip = config.value.loss.get("clip")
  if clip is not None and clip <= 0:
    raise ValueError(
      f"config.value.loss.clip={clip} must be positive, or None."
    )
  for name in ("discount", "lambda_"):
    number = config.advantages.get(name, 1.0)
    if not 0 <= number <= 1:
      raise ValueError(f"config.advantages.{name}={number} must be in [0, 1].")
  if config.value.source:
    source_lib.require_source(config.value.source, "value.source")


def describe(config: ConfigDict) -> list[str]:
  """Returns lines on what the run would take."""
  cfg = describe_lib.read_model(config)
  settings = lora.LoraConfig(**config.lora)
  _, lines = describe_lib.training(cfg, settings)
  if not settings.rank and (
    config.loss.get("kl_coef") or config.advantages.get("kl_coef")
  ):
    lines.append(describe_lib.reference(cfg))
  if config.value is not None:
    lines.append(describe_lib.value_model(cfg))
  asked, slots = config.prompts.num_prompts, config.prompts.prompt_slots
  length = max(
    sampling_at(config, step).max_new_tokens for step in (0, *config.schedule)
  )
  drawn = asked * config.sampling.group_size
  lines.append(describe_lib.cache(cfg, asked, slots, drawn, length))
  lines.append(
    f"tokens of a step: {asked:,} prompts of up to {slots:,}, and {drawn:,}"
    f" completions of up to {length:,}: {asked * slots + drawn * length:,} at"
    f" most; updates: {config.batching.num_minibatches:,}; steps:"
    f" {config.total_steps:,}"
  )
  return lines
