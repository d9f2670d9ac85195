"""What the rl stage begins with: its config checked, its source, its state."""

import pathlib
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from grpo_jax import (
  advantages,
  checkpoint,
  configs,
  optimizer,
  sharding,
)
from grpo_jax import state as state_lib
from grpo_jax.data import datasets, prompts, tokenizer
from grpo_jax.losses import policy
from grpo_jax.models import lora, moe
from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.rewards import combine
from grpo_jax.sampling import decode
from grpo_jax.stages import evaluate, pretrain

# What a random number is for; steps, rows and positions are folded in after it.
SAMPLE, EVALUATE, ADAPTERS = 0, 1, 2


class Setup(NamedTuple):
  """What stays as it is throughout a run.

  Attributes:
    mesh: in force.
    cfg: the model.
    tok: of the source.
    batches: prompts by step.
    questions: held-out problems.
    trainable: what of the policy is trained.
    tx: the optimizer.
    learning_rate: by optimizer update.
    checkpointer: of the run's directory.
    first_step: steps already done; None where the run begins.
  """

  mesh: Mesh
  cfg: ModelConfig
  tok: tokenizer.Tokenizer
  batches: prompts.PromptSource
  questions: evaluate.Questions
  trainable: lora.Trainable
  tx: optax.GradientTransformation
  learning_rate: optax.Schedule
  checkpointer: checkpoint.Checkpointer
  first_step: int | None


class Start(NamedTuple):
  """What a run begins with, or goes on from.

  Attributes:
    setup: what stays as it is.
    state: after the steps already done.
    reference: the reference policy; None where nothing reads it.
    refreshed: what was trained of it; None while it is the source.
  """

  setup: Setup
  state: state_lib.TrainState
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
  mesh = sharding.make_mesh(config.mesh)
  jax.set_mesh(mesh)
  for parts in (1, num_pieces(config)):
    sharding.split_rows(
      mesh, config.prompts.num_prompts // parts, config.sampling.group_size
    )
  template = prompts.read_template(config.prompts.template, chat_too=True)
  data_dir = pathlib.Path(config.data_dir).expanduser()
  problems = datasets.load(**config.data, data_dir=data_dir)
  source = base_model(config, workdir)
  if source is None:
    return None
  tok = tokenizer.load(checkpoint.tokenizer_directory(source))
  batches = prompts.PromptSource(
    problems,
    tok,
    template,
    seed=config.seed,
    num_prompts=config.prompts.num_prompts,
    prompt_slots=config.prompts.prompt_slots,
  )
  questions = evaluate.make_questions(config.evaluate, tok, template, data_dir)
  settings = lora.LoraConfig(**config.lora)
  cfg, reference, _ = checkpoint.load_policy(
    source, mesh, frozen=settings.rank > 0, **config.model
  )
  trainable = lora.trainable(cfg, reference, settings)
  moe.check(cfg, config.mesh.get("expert", 1), config.router_bias_rate)
  checkpoint.claim(workdir, config.to_dict())

  checkpointer = checkpoint.Checkpointer(workdir, keep=config.checkpoint.keep)
  first_step = checkpointer.latest()
  tx, learning_rate = optimizer.make_optimizer(
    config.total_steps * config.batching.num_minibatches, **config.optimizer
  )
  refreshed = None
  if first_step is None:
    tok.save(workdir / "tokenizer")
    checkpoint.save_model(workdir, cfg)
    if settings.rank:
      checkpoint.save_lora(workdir, settings, source)
    key = jax.random.fold_in(jax.random.key(config.seed), ADAPTERS)
    state = state_lib.init_state(trainable.start(key, reference, mesh), tx)
  else:
    abstract = params_lib.abstract_params(trainable.specs, mesh)
    state, refreshed, _ = checkpointer.restore(
      first_step, state_lib.abstract_state(abstract, tx)
    )
    if refreshed is not None:
      reference = trainable.policy(refreshed)
    print(f"Going on after step {first_step}.")
  if not config.loss.kl_coef:
    reference = refreshed = None
  setup = Setup(
    mesh=mesh,
    cfg=cfg,
    tok=tok,
    batches=batches,
    questions=questions,
    trainable=trainable,
    tx=tx,
    learning_rate=learning_rate,
    checkpointer=checkpointer,
    first_step=first_step,
  )
  return Start(setup, state, reference, refreshed)


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
    checkpoint.claim(workdir, config.to_dict())
    base = workdir / "base"
    print(f"The base model, in {base}:")
    return base if pretrain.run(config.pretrain, base) else None
  return pathlib.Path(config.source)


def check(config: ConfigDict) -> None:
  """Raises an error of one sentence if the config cannot be run.

  Raises:
    ValueError: a field is unknown or does not fit the others.
    FileNotFoundError: `config.source` holds no checkpoint.
  """
  # Each by itself.
  checked = "sampling", "advantages", "loss", "optimizer", "lora"
  configs.check_fields(
    config, configs.rl(), free=("data", "rewards", "pretrain", *checked)
  )
  policy.check(config.objective, config.weighting)
  for name, function, given in (
    ("sampling", decode.SamplingParams, ()),
    ("evaluate.sampling", decode.SamplingParams, ()),
    ("advantages", advantages.group_advantages, ("rewards", "valid")),
    (
      "loss",
      policy.OBJECTIVES[config.objective],
      ("entropy", "correction"),
    ),
    ("optimizer", optimizer.make_optimizer, ("total_updates",)),
    ("lora", lora.LoraConfig, ()),
  ):
    section = config
    for part in name.split("."):
      section = section[part]
    configs.check_section(name, section, function, given)
  if lora.LoraConfig(**config.lora).rank and config.router_bias_rate:
    raise ValueError(
      f"config.router_bias_rate={config.router_bias_rate} moves the router of a"
      " model that config.lora.rank freezes; set one of them to 0."
    )
  if config.pretrain:
    pretrain.check(config.pretrain)
  else:
    checkpoint.require_source(config.source)
  combine.check(config.rewards)
  sampling = decode.SamplingParams(**config.sampling)
  decode.SamplingParams(**config.evaluate.sampling)
  if sampling.group_size < 2:
    raise ValueError(
      f"config.sampling.group_size={sampling.group_size} must be at least 2:"
      " an advantage compares the completions of a group."
    )
  if not sampling.full_support:
    raise ValueError(
      "config.sampling must draw from the whole vocabulary at a temperature"
      " above 0 (top_k=0, top_p=1, min_p=0): the loss scores tokens under"
      " that distribution."
    )
  parts = config.batching.num_minibatches, config.batching.num_microbatches
  optimizer.make_optimizer(config.total_steps * parts[0], **config.optimizer)
  if config.prompts.num_prompts % (parts[0] * parts[1]):
    raise ValueError(
      f"config.prompts.num_prompts={config.prompts.num_prompts} must divide"
      f" by num_minibatches x num_microbatches = {parts[0]} x {parts[1]}."
    )
