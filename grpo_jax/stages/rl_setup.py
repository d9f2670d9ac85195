"""What the rl stage begins with: its config checked, its source, its state."""

import pathlib
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from grpo_jax import configs, errors, schema, sharding
from grpo_jax.data import datasets, prompts
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.losses import advantages, correction, policy, weighting
from grpo_jax.losses import value as value_lib
from grpo_jax.models import lora, moe
from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.rewards import combine
from grpo_jax.rl import curriculum as curriculum_lib
from grpo_jax.rl import dynamic_sampling, value_model
from grpo_jax.runs import directory, progress
from grpo_jax.runs import source as source_lib
from grpo_jax.sampling import decode
from grpo_jax.stages import describe as describe_lib
from grpo_jax.stages import evaluate, pretrain, sections
from grpo_jax.train import checkpoint, optimizer
from grpo_jax.train import state as state_lib

# What a random number is for; steps, rows and positions are folded in after it.
SAMPLE, EVALUATE, ADAPTERS = 0, 1, 2


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


class Setup(NamedTuple):
  """What stays as it is throughout a run.

  Attributes:
    mesh: in force.
    cfg: the model.
    tok: of the source.
    curriculum: the prompts, one batch after the other.
    questions: held-out problems.
    trainable: what of the policy is trained.
    tx: the optimizer.
    learning_rate: by optimizer update.
    value: the value model; None without.
    checkpointer: of the run's directory.
    first_step: steps already done; None where the run begins.
  """

  mesh: Mesh
  cfg: ModelConfig
  tok: tokenizer.Tokenizer
  curriculum: curriculum_lib.Curriculum
  questions: evaluate.Questions
  trainable: lora.Trainable
  tx: optax.GradientTransformation
  learning_rate: optax.Schedule
  value: value_model.ValueModel | None
  checkpointer: checkpoint.Checkpointer
  first_step: int | None


class Start(NamedTuple):
  """What a run begins with, or goes on from.

  Attributes:
    setup: what stays as it is.
    state: after the steps already done.
    value_state: of the value model; None without.
    reference: the reference policy; None where nothing reads it.
    refreshed: what was trained of it; None while it is the source.
  """

  setup: Setup
  state: state_lib.TrainState
  value_state: state_lib.TrainState | None
  reference: Params | None
  refreshed: Params | None


def start(config: ConfigDict, workdir: pathlib.Path) -> Start | None:
  """Returns what the run begins with; None where making its base was stopped.

  The directory is the run's own from here on; before that, whatever can refuse
  a config has been asked.

  Raises:
    ValueError: a field of the config is unknown or does not fit the others.
    FileNotFoundError: there is no base model, and no way given to make one.
  """
  check(config)
  mesh = sharding.make_mesh(config.mesh.to_dict())
  jax.set_mesh(mesh)
  for parts in (1, num_pieces(config)):
    sharding.split_rows(
      mesh, config.prompts.num_prompts // parts, config.sampling.group_size
    )
  template = prompts.read_template(config.prompts.template, chat_too=True)
  data_dir = pathlib.Path(config.data_dir).expanduser()
  problems = datasets.load(**config.data, data_dir=data_dir)
  from_step = curriculum_lib.first_steps(problems, config.from_step)
  combine.check_sources(config.rewards, from_step)
  source = base_model(config, workdir)
  if source is None:
    return None
  tok = tokenizer.load(source_lib.tokenizer_directory(source))
  batches = prompts.PromptSource(
    problems,
    tok,
    template,
    seed=config.seed,
    num_prompts=config.prompts.num_prompts,
    prompt_slots=config.prompts.prompt_slots,
  )
  pass_rates = None
  if config.curriculum is not None:
    pass_rates = curriculum_lib.PassRates(**config.curriculum)
  curriculum = curriculum_lib.Curriculum(
    batches, seed=config.seed, from_step=from_step, pass_rates=pass_rates
  )
  questions = evaluate.make_questions(config.evaluate, tok, template, data_dir)
  settings = lora.LoraConfig(**config.lora)
  cfg, reference, _ = source_lib.load_policy(
    source, mesh, frozen=settings.rank > 0, **config.model
  )
  trainable = lora.trainable(cfg, reference, settings)
  moe.check(cfg, config.mesh.get("expert", 1), config.router_bias_rate)
  total_updates = config.total_steps * config.batching.num_minibatches
  tx, learning_rate = optimizer.make_optimizer(
    total_updates, **config.optimizer
  )
  value, value_state = None, None
  if config.value is not None:
    value, value_state = start_value(config, cfg, reference, tok, mesh)
  directory.claim(workdir, config.to_dict())

  checkpointer = checkpoint.Checkpointer(workdir, keep=config.checkpoint.keep)
  first_step = checkpointer.latest()
  refreshed = None
  if first_step is None:
    tok.save(workdir / "tokenizer")
    directory.save_model(workdir, cfg)
    if settings.rank:
      directory.save_lora(workdir, settings, source)
    key = jax.random.fold_in(jax.random.key(config.seed), ADAPTERS)
    state = state_lib.init_state(trainable.start(key, reference, mesh), tx)
  else:
    abstract = params_lib.abstract_params(trainable.specs, mesh)
    state, refreshed, kept = checkpointer.restore(
      first_step, state_lib.abstract_state(abstract, tx)
    )
    curriculum.set_state(kept["curriculum"])
    if value_state is not None:
      value_state = checkpointer.restore_value(first_step, value_state)
    if refreshed is not None:
      reference = trainable.policy(refreshed)
    progress.say(f"Going on after step {first_step}.")
  if not (config.loss.kl_coef or config.advantages.get("kl_coef")):
    reference = refreshed = None
  setup = Setup(
    mesh=mesh,
    cfg=cfg,
    tok=tok,
    curriculum=curriculum,
    questions=questions,
    trainable=trainable,
    tx=tx,
    learning_rate=learning_rate,
    value=value,
    checkpointer=checkpointer,
    first_step=first_step,
  )
  return Start(setup, state, value_state, reference, refreshed)


def start_value(
  config: ConfigDict,
  cfg: ModelConfig,
  policy: Params,
  tok: tokenizer.Tokenizer,
  mesh: Mesh,
) -> tuple[value_model.ValueModel, state_lib.TrainState]:
  """Returns the value model and its state before the first update."""
  cfg, params = value_model.start(
    config.value.source, cfg, policy, tok, mesh, **config.model
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


def sampling_at(config: ConfigDict, step: int) -> decode.SamplingParams:
  """Returns how completions are drawn when `step` steps are done."""
  fields = dict(config.sampling)
  for first in sorted(config.schedule):
    if step >= first:
      fields |= dict(config.schedule[first])
  return decode.SamplingParams(**fields)


def num_pieces(config: ConfigDict) -> int:
  """Returns into how many gradients the prompts of a step are cut."""
  return config.batching.num_minibatches * config.batching.num_microbatches


def base_model(
  config: ConfigDict, workdir: pathlib.Path
) -> pathlib.Path | None:
  """Returns the directory of the base model, made here if so configured.

  None where making it was stopped.
  """
  if config.pretrain:
    directory.claim(workdir, config.to_dict())
    base = workdir / "base"
    progress.say(f"The base model, in {base}:")
    return base if pretrain.run(config.pretrain, base) else None
  return pathlib.Path(config.source)


def default_advantages(config: errors.Section) -> str:
  """Returns `config.advantages.kind` of a config that does not say it."""
  return "group" if config.get("value") is None else "gae"


SCHEMA = schema.Fields(
  configs.rl,
  {
    "pretrain": schema.Optional(pretrain.SCHEMA),
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
    "rewards": combine.SCHEMA,
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
    pretrain.check(config.pretrain)
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
