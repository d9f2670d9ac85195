r"""What a run needs of each TPU chip: its programs compiled, without a TPU.

  pip install -e '.[tpu]'
  python benchmarks/tpu_memory.py --topology=v5p:4x4x4 \
    --config=experiments/r1_zero.py:qwen2.5-7b --model=qwen2.5-7b

compiles the sampler, the scorer and the update of an rl config for a topology
(such as v5e:2x4, v6e:16x16 or v5p:4x4x4) with a model of
`grpo_jax.models.presets`, and prints GiB per chip, or by how much a program
does not fit. What a program does not read comes on top: the optimizer's moments
(twice the sampler's arguments) and the reference (as much as these). No weights
are needed and nothing is run. libtpu complains that it finds no TPU, and goes
on.
"""

import argparse
import ast
import dataclasses
import importlib.util
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

# Read when JAX starts: this machine's CPU is all that is there.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grpo_jax import configs, sharding
from grpo_jax.models import params, presets
from grpo_jax.models.config import ModelConfig
from grpo_jax.rl import programs as rl_programs
from grpo_jax.sampling import decode
from grpo_jax.train import optimizer
from grpo_jax.train import state as state_lib
from grpo_jax.types import Experience, PromptBatch

GIB = 2**30


def main() -> None:
  """Compiles the programs of a run and prints what each needs."""
  args = parse()
  path, _, arg = args.config.partition(":")
  path = pathlib.Path(path)
  config = configs.experiment(path, path.stem, arg or None)
  changes = (change.split("=", 1) for change in args.set)
  config.update_from_flattened_dict(
    {name: ast.literal_eval(value) for name, value in changes}
  )
  if config.stage != "rl" or config.value is not None or config.lora.rank:
    sys.exit(
      f"{args.config} is not for this script, which knows the rl stage without"
      " a value model and without adapters."
    )
  devices = topologies.get_topology_desc(
    platform="tpu", topology_name=args.topology
  ).devices
  mesh = sharding.make_mesh(config.mesh.to_dict(), devices)
  cfg = dataclasses.replace(presets.PRESETS[args.model], **config.model)
  shape = {axis: size for axis, size in mesh.shape.items() if size > 1}
  print(f"{args.model} on {mesh.size} x {devices[0].device_kind}, mesh {shape}")
  print("GiB per chip   arguments   updated in place    peak   seconds")
  with jax.set_mesh(mesh):
    for name, lowered in programs(config, cfg, mesh):
      print(f"{name:<12}{needs(lowered)}", flush=True)


def needs(lowered: jax.stages.Lowered) -> str:
  """Returns the figures of a compiled program, or that it does not fit."""
  began = time.monotonic()
  try:
    memory = lowered.compile().memory_analysis()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return str(error).splitlines()[0]
  return (
    f"{memory.argument_size_in_bytes / GIB:>12.2f}"
    f"{memory.alias_size_in_bytes / GIB:>19.2f}"
    f"{memory.peak_memory_in_bytes / GIB:>8.2f}"
    f"{time.monotonic() - began:>10.0f}"
  )


def parse() -> argparse.Namespace:
  """Returns the command line's options."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--topology", default="v5e:2x4")
  parser.add_argument("--config", default="experiments/r1_zero.py:qwen2.5-7b")
  parser.add_argument(
    "--model", default="qwen2.5-7b", choices=sorted(presets.PRESETS)
  )
  parser.add_argument(
    "--set",
    nargs="*",
    default=(),
    metavar="FIELD=VALUE",
    help="fields of the config, such as mesh.tensor=2",
  )
  args = parser.parse_args()
  if importlib.util.find_spec("libtpu") is None:
    parser.error("there is no libtpu here: pip install -e '.[tpu]'")
  return args


def programs(
  config: Any, cfg: ModelConfig, mesh: Mesh
) -> Iterator[tuple[str, jax.stages.Lowered]]:
  """Yields the sampler, the scorer and the update, lowered for the mesh."""
  weights = params.abstract_params(params.param_specs(cfg), mesh)
  tx, _ = optimizer.make_optimizer(
    config.total_steps * config.batching.num_minibatches, **config.optimizer
  )
  sampling = decode.SamplingParams(**config.sampling)
  batching = config.batching
  score, update = rl_programs.make_programs(
    cfg,
    tx,
    temperature=sampling.temperature,
    objective=config.objective,
    loss=config.loss,
    num_minibatches=batching.num_minibatches,
    num_microbatches=batching.num_microbatches,
    router_bias_rate=config.router_bias_rate,
  )
  size, group = config.prompts.num_prompts, sampling.group_size
  rollout = completions(config, mesh, size, group)
  key = jax.eval_shape(lambda: jax.random.key(0))
  key = on_mesh(mesh, key.shape, key.dtype)
  yield (
    "sample",
    decode.sample.lower(
      weights,
      cfg,
      rollout.prompts,
      key,
      sampling=dataclasses.replace(
        sampling, group_size=rollout.tokens.shape[1]
      ),
      eos_ids=(0,),
    ),
  )
  pieces = batching.num_minibatches * batching.num_microbatches
  rows = completions(config, mesh, size, group, pieces)
  yield (
    "score",
    score.lower(weights, rows.prompts, rows.tokens, rows.completion_mask),
  )
  part = completions(
    config,
    mesh,
    size // config.batching.num_minibatches,
    group,
    config.batching.num_microbatches,
  )
  yield "update", update.lower(state_lib.abstract_state(weights, tx), part, {})


def completions(
  config: Any, mesh: Mesh, size: int, group: int, pieces: int = 1
) -> Experience:
  """Returns what the loss reads of `size` prompts, all slots in use."""
  at_once = size // pieces, group
  axes = sharding.split_rows(mesh, *at_once)
  parts = sharding.group_parts(mesh, *at_once)
  size, group = size * parts, group // parts
  slots = (size, config.prompts.prompt_slots)
  shape = (size, group, config.sampling.max_new_tokens)
  numbers = on_mesh(mesh, shape, jnp.float32, *axes)
  return Experience(
    prompts=PromptBatch(
      tokens=on_mesh(mesh, slots, jnp.int32, axes[0]),
      mask=on_mesh(mesh, slots, jnp.bool, axes[0]),
      parts=parts,
    ),
    tokens=on_mesh(mesh, shape, jnp.int32, *axes),
    completion_mask=on_mesh(mesh, shape, jnp.bool, *axes),
    old_logprobs=numbers,
    ref_logprobs=numbers if config.loss.kl_coef else None,
    sampler_logprobs=numbers,
    advantages=numbers,
    weights=numbers,
  )


def on_mesh(mesh: Mesh, shape: tuple[int, ...], dtype: Any, *axes: Any) -> Any:
  """Returns an array's shape and how it is split."""
  where = NamedSharding(mesh, PartitionSpec(*axes))
  return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


if __name__ == "__main__":
  main()
