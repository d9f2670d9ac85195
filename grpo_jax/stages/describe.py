"""What a run would take: parameters, memory and the tokens of a step.

Numbers are of the whole, over all devices, by arithmetic from shapes: nothing
is computed or allocated. Temporaries of a step (activations, logits) come on
top; they depend on how the step is cut, and on the compiler.
"""

import dataclasses

import jax.numpy as jnp
from ml_collections import ConfigDict

from grpo_jax.models import lora, params
from grpo_jax.models.config import ModelConfig
from grpo_jax.runs import source as source_lib

_FLOAT32 = 4


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
