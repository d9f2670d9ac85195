"""What a run would take: data, devices, parameters, memory, tokens of a step.

Numbers are of the whole, over all devices, by arithmetic from shapes: nothing
is computed or allocated. Temporaries of a step (activations, logits) come on
top; they depend on how the step is cut, and on the compiler. Data is read, and
prepared where it was not yet, as the run itself would.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sized
from types import ModuleType

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from grpo_jax import sharding
from grpo_jax.data import datasets
from grpo_jax.models import lora, params
from grpo_jax.models.config import ModelConfig
from grpo_jax.runs import source as source_lib

_FLOAT32 = 4


def describe(stage: ModuleType, config: ConfigDict) -> list[str]:
  """Checks a config as its stage does; returns lines on what it would take.

  Args:
    stage: a module of `grpo_jax.stages`.
    config: all of it.

  Raises:
    ValueError: the config, or the data that it names, cannot be used.
    FileNotFoundError: a model or a file is missing.
  """
  stage.check(config)
  lines = stage.describe(config)
  if "mesh" in config:
    lines.append(mesh(config))
  return lines


def mesh(config: ConfigDict) -> str:
  """Returns the line on devices: how many are asked for, and are here."""
  sizes = {axis: config.mesh.get(axis, 1) for axis in sharding.MESH_AXES}
  here = jax.device_count()
  asked = math.prod(size for size in sizes.values() if size != -1)
  if -1 not in sizes.values() and asked != here or here % asked:
    # A config for another machine is no mistake, and cannot be run on this.
    shape = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    more = "a multiple of " if -1 in sizes.values() else ""
    return f"devices: {more}{asked:,} ({shape}); this machine has {here:,}"
  sharding.make_mesh(config.mesh.to_dict())
  return f"devices: {here:,}"


def data(config: ConfigDict, *paths: str) -> list[str]:
  """Returns a line on each dataset that the run would read.

  Args:
    config: of the stage.
    paths: dotted, of sections that `datasets.load` reads.
  """
  lines = []
  for path in paths:
    section = config
    for name in path.split("."):
      section = section[name]
    folder = pathlib.Path(config.data_dir).expanduser()
    found = datasets.load(**section.to_dict(), data_dir=folder)
    lines.append(f"{path}: {len(found):,} of {section.name}, {section.split}")
  return lines


def judged(config: ConfigDict, read: Callable[..., Sized]) -> str:
  """Returns the line on the judged completions of `config.data.path`.

  Args:
    config: of the stage.
    read: `(path, split)` to them.
  """
  train, test = (
    len(read(config.data.path, split)) for split in ("train", "test")
  )
  return f"data: {train:,} to learn from, {test:,} held out"


def read_model(config: ConfigDict) -> ModelConfig:
  """Returns the model that a stage starts from, with its `config.model`.

  Of one that is made here the vocabulary may be smaller than asked for.
  """
  made = config.get("pretrain")
  if not made:
    return source_lib.read_model(config.source, **config.model)
  return dataclasses.replace(pretrained(made), **config.model)


def pretrained(config: ConfigDict) -> ModelConfig:
  """Returns the model that the pretrain stage makes."""
  size = config.tokenizer.vocab_size
  return ModelConfig(vocab_size=size, **config.model)


def training(
  cfg: ModelConfig, settings: lora.LoraConfig | None = None
) -> tuple[int, list[str]]:
  """Returns the number of trained parameters, and lines on them.

  Args:
    cfg: the model.
    settings: of its adapters, if any.
  """
  total = trained = params.count(params.param_specs(cfg))
  lines = [f"parameters: {_number(total)}"]
  frozen = []
  if settings is not None and settings.rank:
    trained = params.count(lora.adapter_specs(cfg, settings))
    lines[0] += f", and {_number(trained)} of adapters, which are trained"
    frozen = [_line("frozen parameters", total * _itemsize(cfg))]
  lines += [
    "memory over all devices, without temporaries of a step:",
    *frozen,
    _line("trained parameters", trained * _FLOAT32),
    _line("the optimizer's moments", 2 * trained * _FLOAT32),
    _line("gradients", trained * _FLOAT32),
  ]
  return trained, lines


def frozen(cfg: ModelConfig, what: str) -> list[str]:
  """Returns lines on a model that is asked and not trained."""
  total = params.count(params.param_specs(cfg))
  return [
    f"parameters of {what}: {_number(total)}",
    _line("memory over all devices", total * _itemsize(cfg)),
  ]


def reference(cfg: ModelConfig) -> str:
  """Returns the line on a reference policy."""
  size = params.count(params.param_specs(cfg)) * _FLOAT32
  return _line("reference policy", size)


def value_model(cfg: ModelConfig) -> str:
  """Returns the line on a value model with its moments and gradients."""
  size = params.count(params.param_specs(cfg)) * _FLOAT32
  return _line("value model, moments, gradients", 4 * size)


def cache(
  cfg: ModelConfig, prompts: int, slots: int, completions: int, length: int
) -> str:
  """Returns the line on keys and values while completions are drawn.

  Args:
    cfg: the model.
    prompts: of a rollout; their keys and values exist once.
    slots: tokens of a prompt.
    completions: of a rollout.
    length: tokens of a completion.
  """
  width = 2 * cfg.num_kv_heads * cfg.head_dim
  if cfg.latent_dim:
    width = cfg.latent_dim + cfg.rope_dim
  tokens = prompts * slots + completions * length
  size = tokens * width * cfg.num_layers * _itemsize(cfg)
  return _line("keys and values, all drawn to the end", size)


def _itemsize(cfg: ModelConfig) -> int:
  return jnp.dtype(cfg.dtype).itemsize


def _line(what: str, size: int) -> str:
  return f"  {what + ':':38} {size / 2**30:10.3f} GiB"


def _number(count: int) -> str:
  for unit, name in ((1e9, "B"), (1e6, "M")):
    if count >= unit / 10:
      return f"{count / unit:.2f} {name}"
  return f"{count:,}"
