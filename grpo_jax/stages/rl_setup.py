"""What the rl stage begins with: its source, its state, its prompts."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optax
from ml_collections import ConfigDict

from grpo_jax import sharding
from grpo_jax.data import datasets, prompts
from grpo_jax.evaluation import ask
from grpo_jax.losses import advantages as advantages_lib
from grpo_jax.models import lora, moe
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.rewards import combine, rules
from grpo_jax.rewards import section as section_lib
from grpo_jax.rl import (
  coefficients,
  experience,
  learner,
  programs,
  rollouts,
  value_model,
)
from grpo_jax.rl import curriculum as curriculum_lib
from grpo_jax.rl import health as health_lib
from grpo_jax.runs import log as run_log
from grpo_jax.runs import progress
from grpo_jax.runs import source as source_lib
from grpo_jax.stages import prompting, rl_checks, setup
from grpo_jax.train import loop, optimizer
from grpo_jax.train import state as state_lib
from grpo_jax.types import Problem

# What a random number is for; steps, rows and positions are folded in after it.
SAMPLE, EVALUATE, ADAPTERS = 0, 1, 2
# Fields of `sampling` that a schedule may change; each value of one of them
# is a program of its own.
SCHEDULED = ("max_new_tokens", "temperature", "cache_chunk")


class Begun(NamedTuple):
  """A run of reinforcement learning before its next step.

  Attributes:
    loop: its steps.
    learner: policy, reference and value model.
    rollouts: how it comes to its completions.
    questions: held-out problems.
    learning_rate: by optimizer update.
    health: what it was warned of, and will be.
  """

  loop: loop.Loop
  learner: learner.Learner
  rollouts: rollouts.Rollouts
  questions: ask.Questions
  learning_rate: optax.Schedule
  health: health_lib.Health


def begin(run: setup.Run) -> Begun | None:
  """Returns what the run begins with; None where making its base was stopped.

  The directory is the run's own from here on; before that, whatever can refuse
  a config has been asked.

  Raises:
    ValueError: a field of the config does not fit the others.
    FileNotFoundError: there is no base model, and no way given to make one.
  """
  config, mesh = run.config, run.mesh
  for parts in (1, rl_checks.num_pieces(config)):
    sharding.split_rows(
      mesh, config.prompts.num_prompts // parts, config.sampling.group_size
    )
  greedy = "greedy_rewards" in reads_of(config)
  if greedy:
    sharding.split_rows(mesh, config.prompts.num_prompts, 1)
  problems = datasets.load(**config.data, data_dir=run.data_dir)
  from_step = curriculum_lib.first_steps(problems, config.from_step.to_dict())
  combine.check_sources(config.rewards, from_step)
  if said := rules.check(config.rewards, problems, "config.data"):
    progress.say(said)
  template, notes = run.template, None
  if config.pretrain and isinstance(template, str):
    # Before the base is made, which takes its time.
    fill = functools.partial(prompts.fill, template)
    notes = setup.check_references(config.rewards, problems, fill=fill)
  if not run.make_base():
    return None
  curriculum = make_curriculum(run, template, problems, from_step)
  if notes is None:
    notes = setup.check_references(config.rewards, curriculum.problems)
  questions = run.questions(said=notes)
  notes = dict.fromkeys([*notes, *questions.notes])
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
      dynamic_sampling=config.dynamic_sampling
      and config.dynamic_sampling.to_dict(),
      greedy=greedy,
    ),
    questions,
    learning_rate,
    make_health(run, list(notes), steps.restored or 0),
  )


def make_health(
  run: setup.Run, notes: Sequence[str], steps: int
) -> health_lib.Health:
  """Returns the watch over a run, which knows the steps that are done."""
  terms = {
    name: health_lib.Term(term.kind or name, term.best)
    for name, term in section_lib.read(run.config.rewards).items()
    if term.weight
  }
  health = health_lib.Health(terms, notes, **run.config.health)
  for row in run_log.rows(run.workdir / run_log.METRICS):
    if row["step"] <= steps:
      health.add(row)
  return health


def make_curriculum(
  run: setup.Run,
  template: prompts.Template,
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
    tell=progress.say,
  )
  prompting.check_told(config, batches.problem(0), run.source)
  prompting.say_stops(run.tok, template)
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
    coefficients=coefficients.Coefficients(
      config.loss.to_dict(),
      adapt_kl=config.adapt_kl and config.adapt_kl.to_dict(),
      adapt_entropy=config.adapt_entropy and config.adapt_entropy.to_dict(),
    ),
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
    num_pieces=rl_checks.num_pieces(config),
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
    advantages=rl_checks.advantages_section(config),
    correction=config.correction.to_dict(),
    term_weights=terms,
  )


def reads_of(config: ConfigDict) -> list[str]:
  """Returns what data the advantages of a config read, by name."""
  kind = rl_checks.advantages_section(config)["kind"]
  return experience.data_of(advantages_lib.ADVANTAGES[kind])
