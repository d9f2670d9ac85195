"""Seconds of one GRPO step on random weights: sample, score, update.

  python benchmarks/grpo_step.py            # 4 layers, width 256, 8 x 8, 64+128

Every completion runs to its last slot, the KL to a reference is in the loss,
and there is one optimizer update per step, so that the figures stand beside
those of other systems at the same sizes. Prints one JSON line.
"""

import argparse
import json
import resource
import statistics
import time

_START = time.time()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh  # noqa: E402

from grpo_jax import sharding, types  # noqa: E402
from grpo_jax.models import config, params  # noqa: E402
from grpo_jax.rl import experience, programs  # noqa: E402
from grpo_jax.runs import process  # noqa: E402
from grpo_jax.sampling import decode, generate  # noqa: E402
from grpo_jax.train import optimizer  # noqa: E402
from grpo_jax.train import state as state_lib  # noqa: E402

SIZES = dict(
  layers=4,
  d_model=256,
  heads=4,
  kv_heads=2,
  head_dim=64,
  ffn=1024,
  vocab=512,
  prompts=8,
  group=8,
  prompt_len=64,
  gen_len=128,
  steps=6,
)


class _Endless:
  """As much of a tokenizer as drawing asks for: no token ends a completion."""

  eos_ids = (-1,)


def main() -> None:
  """Times the steps and prints them."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for name, default in SIZES.items():
    parser.add_argument(
      f"--{name}", type=int, default=default, help=f"default {default}"
    )
  args = parser.parse_args()
  process.keep_freed_memory()  # As `grpo_jax.main` does.
  cfg = config.ModelConfig(
    vocab_size=args.vocab,
    num_layers=args.layers,
    d_model=args.d_model,
    num_heads=args.heads,
    num_kv_heads=args.kv_heads,
    head_dim=args.head_dim,
    d_ff=args.ffn,
  )
  mesh = sharding.make_mesh()
  with jax.set_mesh(mesh):
    time_steps(args, cfg, mesh)


def time_steps(
  args: argparse.Namespace, cfg: config.ModelConfig, mesh: Mesh
) -> None:
  """Times the steps on a mesh that is in force."""
  reference = params.init_params(
    jax.random.key(0), params.param_specs(cfg), mesh
  )
  tx, _ = optimizer.make_optimizer(args.steps, learning_rate=1e-6)
  train = state_lib.init_state(jax.tree.map(jnp.copy, reference), tx)
  score, update = programs.make_programs(cfg, tx, loss=dict(kl_coef=0.04))
  sampling = decode.SamplingParams(
    group_size=args.group,
    max_new_tokens=args.gen_len,
    cache_chunk=args.gen_len // 2,
  )
  rng = np.random.default_rng(0)
  shape = args.prompts, args.prompt_len
  problem = types.Problem("even?", "", "any", "")
  seconds = {name: [] for name in ("sample", "score", "update", "step")}
  for step in range(args.steps + 1):
    tokens = rng.integers(3, args.vocab, shape).astype(np.int32)
    prompts = types.PromptBatch(tokens, np.ones(shape, bool))
    times = [time.perf_counter()]
    policy = generate.Policy(train.params, cfg, _Endless(), mesh)
    rollout = generate.draw(policy, prompts, jax.random.key(step), sampling)
    times.append(time.perf_counter())
    rewards = np.mean(rollout.tokens % 2 == 0, axis=-1).ravel()
    valid = np.ones(rewards.shape, bool)
    earned = types.Rewards(rewards.astype(np.float32), valid, {})
    placed = experience.place(rollout, mesh)
    given = placed.prompts, placed.tokens, placed.completion_mask
    old, ref = (
      sharding.to_host(score(tree, *given))
      for tree in (train.params, reference)
    )
    # In whole groups, where the mesh had them cut.
    scored = (
      x.reshape(rollout.tokens.shape)
      for x in (old.logprobs, old.entropy, ref.logprobs)
    )
    times.append(time.perf_counter())
    completions = types.Completions(
      [problem] * len(rewards),
      [""] * len(rewards),
      rollout.completion_mask.sum(axis=-1).ravel(),
      rollout.truncated.ravel(),
      args.group,
      earned,
      rollout,
    )
    data = experience.make_experience(
      completions,
      experience.Scored(*scored),
    )
    for part in experience.minibatches(data, 1, "sequence_mean", args.gen_len):
      train, _ = update(train, experience.place(part, mesh), {})
    jax.block_until_ready(train)
    times.append(time.perf_counter())
    if step == 0:
      first = time.time() - _START
      continue
    for name, a, b in zip(seconds, times, times[1:], strict=False):
      seconds[name].append(b - a)
    seconds["step"].append(times[-1] - times[0])
  drawn = args.prompts * args.group * args.gen_len
  sample = statistics.median(seconds["sample"])
  result = {
    "system": "grpo_jax",
    "sizes": vars(args),
    "parameters": params.count(params.param_specs(cfg)),
    "seconds": {
      name: {
        "min": round(min(values), 4),
        "median": round(statistics.median(values), 4),
        "max": round(max(values), 4),
      }
      for name, values in seconds.items()
    },
    "sampled_tokens_per_second": round(drawn / sample),
    "start_to_first_step_seconds": round(first, 1),
    "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
  }
  print(json.dumps(result))


if __name__ == "__main__":
  main()
