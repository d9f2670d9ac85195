"""Reinforcement learning with verifiable rewards: GRPO, as in R1-Zero.

Prompts > rollout > rewards > advantages > update. P prompts, G completions
each, N completion slots, B = P * G rows.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from grpo_jax import (
  experience,
  generation,
  metrics,
  progress,
  report,
  run_log,
  sharding,
)
from grpo_jax.data import tokenizer
from grpo_jax.losses import correction, policy
from grpo_jax.models import scoring
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.rewards import combine
from grpo_jax.sampling import decode
from grpo_jax.stages import evaluate, rl_setup
from grpo_jax.step import make_update
from grpo_jax.stopping import StopRequest
from grpo_jax.types import Experience, PromptBatch, Rollout


def run(config: ConfigDict, workdir: pathlib.Path) -> bool:
  """Trains a policy by GRPO; returns whether it got to its last step.

  Raises:
    ValueError: a field of the config is unknown or does not fit the others.
    FileNotFoundError: there is no base model, and no way given to make one.
  """
  start = rl_setup.start(config, workdir)
  if start is None:
    return False
  setup, state, reference, refreshed = start
  del start  # It would keep the first reference in memory.
  mesh, cfg, tok, trainable = setup.mesh, setup.cfg, setup.tok, setup.trainable
  step = setup.first_step or 0

  sampling = decode.SamplingParams(**config.sampling)
  num_pieces = rl_setup.num_pieces(config)
  score = experience.make_score(cfg, sampling.temperature, num_pieces)
  loss = functools.partial(
    loss_fn,
    cfg=cfg,
    temperature=sampling.temperature,
    policy_loss=functools.partial(
      policy.OBJECTIVES[config.objective], **config.loss
    ),
  )
  update = make_update(
    trainable.loss(loss),
    setup.tx,
    num_microbatches=config.batching.num_microbatches,
    router_bias_rate=config.router_bias_rate,
  )
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
    print(f"Held out, after step {step}: {evaluate.summary(results)}")

  if setup.first_step is None:
    evaluate_now()
  with StopRequest() as stop:
    while step < config.total_steps and not stop:
      with timer.phase("data"):
        batch, asked = setup.batches(step)
        rows = [
          problem for problem in asked for _ in range(sampling.group_size)
        ]
      with timer.phase("sample"):
        key = jax.random.fold_in(sample_key, step)
        current = trainable.policy(state.params)
        rollout = draw(current, cfg, batch, key, sampling, tok, mesh)
        rollout = experience.trim(rollout, config.batching.length_multiple)
      with timer.phase("reward"):
        texts = generation.decoded(tok, rollout.tokens, rollout.completion_mask)
        lengths = rollout.completion_mask.sum(axis=-1).ravel()
        finish = combine.begin(
          config.rewards,
          rows,
          texts,
          lengths=lengths,
          truncated=rollout.truncated.ravel(),
        )
      with timer.phase("score"):
        placed = experience.place(rollout, mesh, num_pieces)
        given = placed.prompts, placed.tokens, placed.completion_mask
        old = sharding.to_host(score(current, *given))
        ref = None
        if reference is not None:
          ref = sharding.to_host(score(reference, *given).logprobs)
      with timer.phase("reward"):
        scores = finish()  # What remains of it after the device's work.
      with timer.phase("score"):
        data = experience.make_experience(
          rollout, scores, old.logprobs, ref, **config.advantages
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
          updates.append(sharding.to_host(update_metrics))
      step += 1
      if config.ref_every and step % config.ref_every == 0:
        if reference is not None:
          refreshed = jax.tree.map(jnp.copy, state.params)
          reference = trainable.policy(refreshed)

      mask = rollout.completion_mask
      scalars = metrics.mean_over_updates(updates)
      scalars |= metrics.reward_metrics(scores, sampling.group_size)
      scalars |= metrics.completion_metrics(texts, mask, rollout.truncated)
      gap = correction.sampler_gap(old.logprobs, rollout.logprobs, mask)
      scalars |= {f"sampling/{name}": value for name, value in gap.items()}
      scalars["entropy"] = float(old.entropy[mask].mean())
      scalars["learning_rate"] = setup.learning_rate(state.step - 1)
      scalars["num_tokens"] = int(lengths.sum())
      metrics.require_finite(step, scalars)
      completions.write(
        step, rows, texts, scores, lengths, rollout.truncated.ravel()
      )
      if step % config.evaluate.every == 0 or step == config.total_steps:
        evaluate_now()
      seconds = timer.step()
      seconds["time/tokens_per_second"] = lengths.sum() / seconds["time/step"]
      scalars |= seconds | metrics.memory()
      writer.write(step, scalars)
      table.show(step, scalars)
      if step % config.print_completions_every == 0:
        print(progress.render(rows, texts, scores, rows=(0,)))
      # Last, so that a checkpoint never knows of a step that no file tells of.
      if step % config.checkpoint.every == 0:
        setup.checkpointer.save(step, state, reference=refreshed)
  setup.checkpointer.save(step, state, reference=refreshed)
  setup.checkpointer.close()
  writer.close()
  completions.close()
  if step < config.total_steps:
    print(f"Stopped after step {step}; the same command goes on from there.")
    return False
  picture = report.write_report(workdir)
  print(report.compare(workdir))
  print(f"A picture of the run is in {picture}.")
  return True


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
