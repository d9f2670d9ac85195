"""Batch sizes that a config leaves to the machine: those that are 0.

They are the largest that fit the memory which the devices report, by the
arithmetic of `stages.describe` and a rough bound of a step's temporaries. A
device that reports none, such as a CPU, gets small ones. How many prompts a
step has changes what is learned, so a run keeps its number (`fitted.json`);
how its gradient is cut does not, and is fitted anew where it goes on.

P prompts, G completions each; rows of text.
"""

import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from grpo_jax import errors, processes, sharding
from grpo_jax.models import lora, params
from grpo_jax.models.config import ModelConfig
from grpo_jax.runs import directory, progress
from grpo_jax.stages import describe as describe_lib
from grpo_jax.stages import setup

# Prompts of a step, and of an evaluation's batch, at most; where the memory is
# not known; and the share of it that is planned with.
_MOST, _MOST_ASKED = 32, 64
_SMALL, _SMALL_ASKED = 4, 16
_SHARE = 0.8
_FLOAT32 = 4


def fit_rl(run: setup.Run) -> ConfigDict:
  """Gives the rl stage the batch sizes that its config leaves open.

  Says them, and keeps them when the run claims its directory.
  """
  if not _open(run.config):
    return run.config
  devices = split(run.mesh)
  kept = processes.from_first(lambda: _kept(run.workdir))
  config, lines = rl(run.config, devices, memory(), kept)
  run.config = config
  run.fitted = {"num_prompts": config.prompts.num_prompts}
  for line in lines:
    progress.say(line)
  return config


def rl(
  config: ConfigDict,
  devices: int,
  available: int | None,
  kept: dict[str, Any] | None = None,
) -> tuple[ConfigDict, list[str]]:
  """Returns the config with its batch sizes, and lines that tell of them.

  Args:
    config: of the rl stage.
    devices: over which rows are split.
    available: bytes of all devices; None if that is not known.
    kept: what the run began with; None for a new one.
  """
  if not _open(config):
    return config, []
  config = ConfigDict(config.to_dict())
  cfg = describe_lib.read_model(config)
  sampling, slots = config.sampling, config.prompts.prompt_slots
  tokens = slots + sampling.group_size * sampling.max_new_tokens
  parts = config.batching.num_minibatches
  unit = devices * parts
  free = None
  if available is not None:
    free = int(_SHARE * available) - state(config, cfg)
  cache = tokens * _cache_width(cfg)
  cost = temporaries(cfg, slots, sampling.group_size, sampling.max_new_tokens)
  if not config.prompts.num_prompts:
    room = None if free is None else free - _copy(cfg)
    config.prompts.num_prompts = (kept or {}).get("num_prompts") or _largest(
      cache, room, unit, (_MOST, _SMALL)
    )
  if not config.batching.num_microbatches:
    rows = config.prompts.num_prompts // parts
    config.batching.num_microbatches = _pieces(
      rows, cost, None if free is None else free - _head(cfg), devices
    )
  evaluate = config.evaluate
  if evaluate and not evaluate.prompts_per_batch:
    one = evaluate.prompt_slots + (
      evaluate.sampling.group_size * evaluate.sampling.max_new_tokens
    )
    room = None if free is None else free - _copy(cfg)
    evaluate.prompts_per_batch = _largest(
      one * _cache_width(cfg), room, devices, (_MOST_ASKED, _SMALL_ASKED)
    )
  pieces = config.batching.num_microbatches
  where = (
    "a device that does not tell its memory"
    if available is None
    else f"{available / 2**30:.1f} GiB of device memory"
  )
  lines = [
    f"Fitted to {where}: {config.prompts.num_prompts} prompts of"
    f" {sampling.group_size} completions a step, gradients in"
    f" {parts * pieces} pieces; {evaluate.prompts_per_batch} prompts at a time"
    " in evaluations."
  ]
  if free is not None and free < cost * devices + _head(cfg):
    lines.append(
      "Warning: by this arithmetic even the smallest batch does not fit: use"
      " more devices (config.mesh.fsdp), adapters (config.lora.rank), or less"
      " config.sampling.max_new_tokens."
    )
  return config, lines


def rows(
  config: ConfigDict, length: int, devices: int, available: int | None
) -> int:
  """Returns into how many pieces `config.batch.num_rows` rows are cut.

  Args:
    config: of a stage that learns from text.
    length: tokens of a row.
    devices: over which rows are split.
    available: bytes of all devices; None if that is not known.
  """
  if config.batch.num_microbatches:
    return config.batch.num_microbatches
  cfg = describe_lib.read_model(config)
  free = None
  if available is not None:
    free = int(_SHARE * available) - state(config, cfg) - _head(cfg)
  cost = temporaries(cfg, length, 0, 0)
  return _pieces(config.batch.num_rows, cost, free, devices)


def memory() -> int | None:
  """Returns the bytes that JAX may use, over all devices; None if not known."""
  # Devices of other processes may have a little more or less.
  stats = processes.from_first(jax.local_devices()[0].memory_stats) or {}
  limit = stats.get("bytes_limit")
  return None if limit is None else limit * jax.device_count()


def split(mesh: Mesh) -> int:
  """Returns over how many devices rows are split."""
  return math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)


def check(value: int, name: str) -> None:
  """Raises ConfigError for a size below 0, which is none and leaves none."""
  if value < 0:
    raise errors.ConfigError(
      f"config.{name}={value} must be at least 1, or 0 for what fits."
    )


def state(config: ConfigDict, cfg: ModelConfig) -> int:
  """Returns the bytes of parameters, moments, gradients and a reference."""
  total = params.count(params.param_specs(cfg))
  settings = lora.LoraConfig(**(config.get("lora") or {}))
  if settings.rank:
    trained = params.count(lora.adapter_specs(cfg, settings))
    return total * _itemsize(cfg) + 4 * trained * _FLOAT32
  size = 4 * total * _FLOAT32
  kl = config.get("advantages", {}).get("kl_coef")
  if config.loss.get("kl_coef") or kl:
    size += total * _FLOAT32
  if config.get("value") is not None:
    size += 4 * total * _FLOAT32
  return size


def temporaries(cfg: ModelConfig, slots: int, group: int, length: int) -> int:
  """Returns roughly the bytes of a gradient over one prompt's completions.

  What each layer keeps, what one layer computes, and its attention's scores,
  which plain XLA writes out.

  Args:
    cfg: the model.
    slots: tokens of the prompt, or of a row of text.
    group: completions.
    length: tokens of one.
  """
  tokens = slots + group * length
  kept = tokens * cfg.num_layers * cfg.d_model * _itemsize(cfg)
  heads = cfg.num_heads * cfg.head_dim
  layer = tokens * (4 * cfg.d_model + 4 * heads + 4 * cfg.d_ff) * _FLOAT32
  scores = slots * slots + group * length * (slots + length)
  return kept + layer + 3 * cfg.num_heads * scores * _FLOAT32


def _open(config: ConfigDict) -> bool:
  evaluate = config.evaluate
  return not (
    config.prompts.num_prompts
    and config.batching.num_microbatches
    and (not evaluate or evaluate.prompts_per_batch)
  )


def _kept(workdir: pathlib.Path) -> dict[str, Any] | None:
  path = workdir / directory.FITTED
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _largest(
  cost: int, room: int | None, unit: int, bounds: tuple[int, int]
) -> int:
  """The most prompts, `unit` times a power of two, that there is room for.

  At most the first of the bounds, or the second where the room is not known.
  """
  most = bounds[room is None]
  room = most * cost if room is None else room
  count = unit
  while 2 * count <= most and 2 * count * cost <= room:
    count *= 2
  return count


def _pieces(rows: int, cost: int, room: int | None, devices: int) -> int:
  """The fewest pieces, each a multiple of the devices, that there is room for.

  As many as there can be where the room is not known.
  """
  pieces = [
    n
    for n in range(1, rows + 1)
    if rows % n == 0 and (rows // n) % devices == 0
  ]
  if not pieces:
    return 1
  if room is None:
    return pieces[-1]
  return next((n for n in pieces if rows // n * cost <= room), pieces[-1])


def _head(cfg: ModelConfig) -> int:
  """Bytes of the logits that exist at one time, and of their gradient."""
  return 3 * cfg.head_chunk * cfg.vocab_size * _FLOAT32


def _copy(cfg: ModelConfig) -> int:
  """Bytes of the parameters as sampling uses them."""
  return params.count(params.param_specs(cfg)) * _itemsize(cfg)


def _cache_width(cfg: ModelConfig) -> int:
  """Bytes of a token's keys and values."""
  width = 2 * cfg.num_kv_heads * cfg.head_dim
  if cfg.latent_dim:
    width = cfg.latent_dim + cfg.rope_dim
  return width * cfg.num_layers * _itemsize(cfg)


def _itemsize(cfg: ModelConfig) -> int:
  return jnp.dtype(cfg.dtype).itemsize
