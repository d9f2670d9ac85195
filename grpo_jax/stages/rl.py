"""Reinforcement learning: GRPO, as in R1-Zero, or PPO with a value model.

Prompts > rollout > rewards > advantages > update. P prompts, G completions
each, N completion slots, B = P * G rows.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from grpo_jax import sharding
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.losses import policy
from grpo_jax.models import scoring
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.rewards import combine
from grpo_jax.rl import dynamic_sampling, experience
from grpo_jax.rl import metrics as rl_metrics
from grpo_jax.runs import log as run_log
from grpo_jax.runs import process, progress, report
from grpo_jax.runs.signals import StopRequest
from grpo_jax.sampling import decode, generate
from grpo_jax.stages import evaluate, rl_setup
from grpo_jax.train import loop
from grpo_jax.train.update import make_update
from grpo_jax.types import Experience, PromptBatch, Rollout

SCHEMA, check, describe = rl_setup.SCHEMA, rl_setup.check, rl_setup.describe


def run(config: ConfigDict, workdir: pathlib.Path) -> bool:
  """Trains a policy by GRPO or PPO; returns whether it got to its last step.

  Raises:
    ValueError: a field of the config is unknown or does not fit the others.
    FileNotFoundError: there is no base model, and no way given to make one.
  """
  start = rl_setup.start(config, workdir)
  if start is None:
    return False
  setup, state, value_state, reference, refreshed = start
  del start  # It would keep the first reference in memory.
  mesh, cfg, tok, trainable = setup.mesh, setup.cfg, setup.tok, setup.trainable
  curriculum, value = setup.curriculum, setup.value
  step = setup.first_step or 0

  programs = functools.cache(functools.partial(make_programs, config, setup))
  num_pieces = rl_setup.num_pieces(config)
  root_key = jax.random.key(config.seed)
  sample_key = jax.random.fold_in(root_key, rl_setup.SAMPLE)
  evaluate_key = jax.random.fold_in(root_key, rl_setup.EVALUATE)
  writer = run_log.Writer(workdir, restored=setup.first_step)
  completions = run_log.CompletionsLog(workdir, restored=setup.first_step)
  table = progress.Progress(config.total_steps)
  timer = progress.Timer()

  def evaluate_now() -> None:
    with timer.phase("evaluate"):
      results, _, _ = evaluate.evaluate(
        trainable.policy(state.params),
        cfg,
        tok,
        setup.questions,
        evaluate_key,
        mesh,
      )
    writer.write_evaluation(step, config.evaluate.data.name, results)
    progress.say(f"Held out, after step {step}: {evaluate.summary(results)}")

  def save() -> None:
    setup.checkpointer.save(
      step,
      state,
      reference=refreshed,
      value=value_state,
      progress={"curriculum": curriculum.get_state()},
    )

  def ask() -> dynamic_sampling.Groups:
    """Prompts and completions of one rollout, with rewards on their way."""
    with timer.phase("data"):
      asked = curriculum.next(step)
      rows = [p for p in asked.problems for _ in range(sampling.group_size)]
    with timer.phase("sample"):
      key = jax.random.fold_in(sample_key, asked.turn)
      rollout = draw(current, cfg, asked.batch, key, sampling, tok, mesh)
    with timer.phase("reward"):
      mask = rollout.completion_mask
      texts = generate.decoded(tok, rollout.tokens, mask)
      pending = combine.begin(
        config.rewards,
        rows,
        texts,
        lengths=mask.sum(axis=-1).ravel(),
        truncated=rollout.truncated.ravel(),
        step=step,
      )

    def finish() -> combine.Scores:
      with timer.phase("reward"):
        scores = pending()
      curriculum.record(asked.indices, scores.terms)
      return scores

    return dynamic_sampling.Groups(rows, rollout, texts, finish)

  if setup.first_step is None:
    evaluate_now()
  with StopRequest() as stop:
    while step < config.total_steps and not stop:
      sampling = rl_setup.sampling_at(config, step)
      score, update = programs(sampling.temperature)
      current = trainable.policy(state.params)
      if config.dynamic_sampling is not None:
        groups, counts = dynamic_sampling.fill(ask, **config.dynamic_sampling)
      else:
        groups, counts = ask(), {}
      rollout = experience.trim(groups.rollout, config.batching.length_multiple)
      with timer.phase("score"):
        placed = experience.place(rollout, mesh, num_pieces)
        given = placed.prompts, placed.tokens, placed.completion_mask
        old = sharding.to_host(score(current, *given))
        ref = values = None
        if reference is not None:
          ref = sharding.to_host(score(reference, *given).logprobs)
        if value is not None:
          values = sharding.to_host(value.score(value_state.params, *given))
      scores = groups.finish()  # What remains of it after the device's work.
      with timer.phase("score"):
        data = experience.make_experience(
          rollout, scores, old.logprobs, ref, values, **config.advantages
        )
      with timer.phase("update"):
        updates = []
        for part in experience.minibatches(
          data,
          config.batching.num_minibatches,
          config.weighting,
          sampling.max_new_tokens,
        ):
          part = experience.place(part, mesh, config.batching.num_microbatches)
          state, update_metrics = update(state, part, *trainable.frozen)
          if value is not None:
            value_state, of_value = value.update(value_state, part)
            update_metrics |= of_value
          updates.append(sharding.to_host(update_metrics))
      step += 1
      if config.ref_every and step % config.ref_every == 0:
        if reference is not None:
          refreshed = jax.tree.map(jnp.copy, state.params)
          reference = trainable.policy(refreshed)

      scalars = rl_metrics.mean_over_updates(updates)
      scalars |= rl_metrics.rollout_metrics(groups, scores, data, old.entropy)
      scalars |= counts | curriculum.metrics()
      scalars["learning_rate"] = setup.learning_rate(state.step - 1)
      loop.require_finite(step, scalars)
      completions.write(
        step,
        groups.problems,
        groups.texts,
        scores,
        groups.lengths,
        rollout.truncated.ravel(),
      )
      if step % config.evaluate.every == 0 or step == config.total_steps:
        evaluate_now()
      seconds = timer.step()
      speed = scalars["num_tokens"] / seconds["time/step"]
      seconds["time/tokens_per_second"] = speed
      scalars |= seconds | process.memory()
      writer.write(step, scalars)
      table.show(step, scalars)
      if step % config.print_completions_every == 0:
        progress.say(progress.render(groups.problems, groups.texts, scores))
      # Last, so that a checkpoint never knows of a step that no file tells of.
      if step % config.checkpoint.every == 0:
        save()
  save()
  setup.checkpointer.close()
  writer.close()
  completions.close()
  if step < config.total_steps:
    progress.say(
      f"Stopped after step {step}; the same command goes on from there."
    )
    return False
  picture = report.write_report(workdir)
  progress.say(report.compare(workdir))
  progress.say(f"A picture of the run is in {picture}.")
  return True


def make_programs(
  config: ConfigDict, setup: rl_setup.Setup, temperature: float
) -> tuple[experience.ScoreFn, Callable[..., Any]]:
  """Returns the compiled scorer and update for completions of a temperature."""
  loss = functools.partial(
    loss_fn,
    cfg=setup.cfg,
    temperature=temperature,
    policy_loss=functools.partial(
      policy.OBJECTIVES[config.objective], **config.loss
    ),
  )
  return (
    experience.make_score(setup.cfg, temperature, rl_setup.num_pieces(config)),
    make_update(
      setup.trainable.loss(loss),
      setup.tx,
      num_microbatches=config.batching.num_microbatches,
      router_bias_rate=config.router_bias_rate,
    ),
  )


def draw(
  params: Params,
  cfg: ModelConfig,
  batch: PromptBatch,
  key: Key[Array, ""],
  sampling: decode.SamplingParams,
  tok: tokenizer.Tokenizer,
  mesh: Mesh,
) -> Rollout:
  """Returns G completions of each prompt, on the host."""
  axes = sharding.split_rows(mesh, len(batch.tokens), sampling.group_size)
  rollout = decode.sample(
    params,
    cfg,
    sharding.place(mesh, batch, axes[:1]),
    key,
    sampling=sampling,
    eos_ids=tok.eos_ids,
  )
  return sharding.to_host(rollout)


def loss_fn(
  params: Params,
  batch: Experience,
  *,
  cfg: ModelConfig,
  temperature: float,
  policy_loss: functools.partial,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the policy's loss on experience, additive over rows."""
  scores = scoring.score_completions(
    params,
    cfg,
    batch.prompts.tokens,
    batch.prompts.mask,
    batch.tokens,
    batch.completion_mask,
    temperature=temperature,
  )
  loss, metrics = policy_loss(
    scores.logprobs,
    batch.old_logprobs,
    batch.ref_logprobs,
    batch.advantages,
    batch.weights,
    entropy=scores.entropy,
  )
  return loss, metrics | {"expert_load": scores.load}
