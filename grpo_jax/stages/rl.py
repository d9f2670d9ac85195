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
  advantages,
  checkpoint,
  configs,
  experience,
  generation,
  metrics,
  optimizer,
  progress,
  report,
  run_log,
  sharding,
)
from grpo_jax import state as state_lib
from grpo_jax.data import datasets, prompts, tokenizer
from grpo_jax.losses import correction, policy
from grpo_jax.models import lora, moe, scoring
from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.rewards import combine
from grpo_jax.sampling import decode
from grpo_jax.stages import evaluate, pretrain
from grpo_jax.step import make_update
from grpo_jax.stopping import StopRequest
from grpo_jax.types import Experience, PromptBatch, Rollout

# What a random number is for; steps, rows and positions are folded in after it.
_SAMPLE, _EVALUATE, _ADAPTERS = 0, 1, 2


def run(config: ConfigDict, workdir: pathlib.Path) -> bool:
  """Trains a policy by GRPO; returns whether it got to its last step.

  Raises:
    ValueError: a field of the config is unknown or does not fit the others.
    FileNotFoundError: there is no base model, and no way given to make one.
  """
  check(config)
  mesh = sharding.make_mesh(config.mesh)
  jax.set_mesh(mesh)
  sampling = decode.SamplingParams(**config.sampling)
  num_pieces = (
    config.batching.num_minibatches * config.batching.num_microbatches
  )
  for parts in (1, num_pieces):
    sharding.split_rows(
      mesh, config.prompts.num_prompts // parts, sampling.group_size
    )
  template = prompts.read_template(config.prompts.template, chat_too=True)
  data_dir = pathlib.Path(config.data_dir).expanduser()
  problems = datasets.load(**config.data, data_dir=data_dir)
  source = base_model(config, workdir)
  if source is None:
    return False
  tok = tokenizer.load(checkpoint.tokenizer_directory(source))
  batches = prompts.PromptSource(
    problems,
    tok,
    template,
    num_prompts=config.prompts.num_prompts,
    prompt_slots=config.prompts.prompt_slots,
    seed=config.seed,
  )
  questions = evaluate.make_questions(config.evaluate, tok, template, data_dir)
  # Last of what can refuse a config, so that a refusal leaves nothing behind.
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
  root_key = jax.random.key(config.seed)
  refreshed = None  # The reference, once it is no longer the source.
  if first_step is None:
    tok.save(workdir / "tokenizer")
    checkpoint.save_model(workdir, cfg)
    if settings.rank:
      checkpoint.save_lora(workdir, settings, source)
    key = jax.random.fold_in(root_key, _ADAPTERS)
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
  step = first_step or 0

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
    tx,
    num_microbatches=config.batching.num_microbatches,
    router_bias_rate=config.router_bias_rate,
  )
  sample_key = jax.random.fold_in(root_key, _SAMPLE)
  evaluate_key = jax.random.fold_in(root_key, _EVALUATE)
  writer = run_log.Writer(workdir, restored=first_step)
  completions = run_log.CompletionsLog(workdir, restored=first_step)
  table = progress.Progress(config.total_steps)
  timer = progress.Timer()

  def evaluate_now() -> None:
    with timer.phase("evaluate"):
      results, _, _ = evaluate.evaluate(
        trainable.policy(state.params),
        cfg,
        tok,
        questions,
        evaluate_key,
        mesh,
      )
    writer.write_evaluation(step, config.evaluate.data.name, results)
    print(f"Held out, after step {step}: {evaluate.summary(results)}")

  if first_step is None:
    evaluate_now()
  with StopRequest() as stop:
    while step < config.total_steps and not stop:
      with timer.phase("data"):
        batch, asked = batches(step)
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
      scalars["learning_rate"] = learning_rate(state.step - 1)
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
        checkpointer.save(step, state, reference=refreshed)
  checkpointer.save(step, state, reference=refreshed)
  checkpointer.close()
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
