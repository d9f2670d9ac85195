"""What the config of the rl stage may hold, and what it would take."""

from typing import Any

import jax
from ml_collections import ConfigDict

from grpo_jax import configs, errors, schema, stages
from grpo_jax.losses import advantages, correction, kl, policy, weighting
from grpo_jax.losses import value as value_lib
from grpo_jax.models import lora
from grpo_jax.rewards import combine
from grpo_jax.rewards import section as section_lib
from grpo_jax.rl import curriculum as curriculum_lib
from grpo_jax.rl import dynamic_sampling, experience, health, schedule
from grpo_jax.runs import source as source_lib
from grpo_jax.sampling import decode
from grpo_jax.stages import describe as describe_lib
from grpo_jax.stages import fit, sections
from grpo_jax.train import optimizer


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
    "prompts": sections.prompts(sections.drawn),
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
    "adapt_kl": schema.Optional(schema.Options(kl.adapt_coef)),
    "adapt_entropy": schema.Optional(schema.Options(kl.adapt_entropy_coef)),
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
    "health": schema.Options(health.Health, ("terms", "notes")),
    "evaluate": sections.evaluation(configs.rl),
  },
  choices={"weighting": weighting.WEIGHTINGS},
)


# Whole numbers above 0.
_COUNTED = (
  "total_steps",
  *("prompts.num_prompts", "prompts.prompt_slots"),
  *("batching.num_minibatches", "batching.num_microbatches"),
  "batching.length_multiple",
  *("evaluate.prompts_per_batch", "evaluate.prompt_slots"),
  *("checkpoint.every", "checkpoint.keep", "print_completions_every"),
)


def check(config: ConfigDict) -> None:
  """Raises an error of one sentence if the config cannot be run.

  Raises:
    ValueError: a field is unknown or does not fit the others.
    FileNotFoundError: `config.source` holds no checkpoint.
  """
  schema.check(SCHEMA, config)
  sections.check_counts(config, _COUNTED, 1)
  sections.check_counts(config, ("ref_every", "evaluate.every"), 0)
  policy.check(
    config.objective,
    config.weighting,
    num_microbatches=config.batching.num_microbatches,
    correction=config.correction.kind,
  )
  check_advantages(config)
  check_coefficients(config)
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
  health.Health({}, **config.health)
  decode.SamplingParams(**config.evaluate.sampling)
  check_sampling(config)
  check_prompts(config)
  parts = config.batching.num_minibatches, config.batching.num_microbatches
  fit.check(config.prompts.num_prompts, "prompts.num_prompts")
  fit.check(parts[1], "batching.num_microbatches")
  fit.check(config.evaluate.prompts_per_batch, "evaluate.prompts_per_batch")
  optimizer.make_optimizer(config.total_steps * parts[0], **config.optimizer)
  if config.prompts.num_prompts % (parts[0] * max(parts[1], 1)):
    raise ValueError(
      f"config.prompts.num_prompts={config.prompts.num_prompts} must divide"
      f" by num_minibatches x num_microbatches = {parts[0]} x {parts[1]}."
    )


def check_coefficients(config: ConfigDict) -> None:
  """Raises ConfigError where a coefficient that adapts has nothing to go by."""
  if config.adapt_kl is not None:
    if not config.loss.get("kl_coef"):
      raise errors.ConfigError(
        "config.adapt_kl multiplies config.loss.kl_coef, which is 0 and stays"
        " 0: give it a value to begin with, such as 0.001."
      )
    kl.adapt_coef(0.0, 0.0, **config.adapt_kl)
  if config.adapt_entropy is not None:
    kl.adapt_entropy_coef(0.0, 0.0, **config.adapt_entropy)


def check_advantages(config: ConfigDict) -> None:
  """Raises ConfigError where advantages read what the run does not have."""
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
  reads = experience.data_of(advantages.ADVANTAGES[kind])
  if "correct" in reads and experience.OUTCOME not in config.rewards:
    raise errors.ConfigError(
      f"config.advantages.kind={kind!r} reads which completions are right: it"
      f" needs the reward {experience.OUTCOME}, such as"
      f" --config.rewards.{experience.OUTCOME}=1."
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
  config, fitted = fit.rl(config, jax.device_count(), fit.memory())
  cfg = describe_lib.read_model(config)
  settings = lora.LoraConfig(**config.lora)
  _, lines = describe_lib.training(cfg, settings)
  first = ["pretrain.data"] if config.pretrain else []
  lines[:0] = describe_lib.data(config, *first, "data", "evaluate.data")
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
  return fitted + lines


def sampling_at(config: ConfigDict, step: int) -> decode.SamplingParams:
  """Returns how completions are drawn when `step` steps are done."""
  return schedule.sampling_at(config.sampling, config.schedule, step)


def num_pieces(config: ConfigDict) -> int:
  """Returns into how many gradients the prompts of a step are cut."""
  return config.batching.num_minibatches * config.batching.num_microbatches


def advantages_section(config: ConfigDict) -> dict[str, Any]:
  """Returns `config.advantages` with its kind, which follows from `value`."""
  section = config.advantages.to_dict()
  kind = "group" if config.value is None else "gae"
  return {"kind": kind} | section
