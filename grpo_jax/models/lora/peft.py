"""Adapters in PEFT's files: `down` is its lora_A, and `up` its lora_B."""

import collections
import json
import os
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from safetensors import numpy as safetensors_numpy

from grpo_jax import sharding
from grpo_jax.models import hf
from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.hf import tensor_files
from grpo_jax.models.lora import adapters as adapters_lib
from grpo_jax.models.lora.adapters import LoraConfig
from grpo_jax.models.params import Params

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

_KEY = "base_model.model.{module}.{factor}.weight"
_FEED_FORWARD = "gate_proj", "up_proj", "down_proj"
_TARGET = re.compile(r".*\.(\w+)\.lora_A\.weight")
# Fields of PEFT's config with which an adapter is more than `down` and `up`.
_UNKNOWN = (
  "alpha_pattern",
  "alora_invocation_tokens",
  "fan_in_fan_out",
  "lora_bias",
  "modules_to_save",
  "rank_pattern",
  "target_parameters",
  "use_dora",
)


def save(
  path: str | os.PathLike,
  cfg: ModelConfig,
  settings: LoraConfig,
  adapters: Params,
  tokenizer: hf.Tokenizer | None = None,
  *,
  base: str = "",
) -> None:
  """Writes a directory that PEFT loads, in float32.

  It appears at once or not at all. Every process must call it; the first one
  writes.

  Args:
    path: of the directory; it must not be there yet, or be empty.
    cfg: the model.
    settings: of the adapters.
    adapters: their tree.
    tokenizer: whose files and stop tokens go with them, for adapters may end
      with another token than their base.
    base: name or path of the frozen model, for whoever loads the adapters.

  Raises:
    ValueError: there is something in the directory; or beside routed experts
      the adapters are of feed-forward layers too, which PEFT cannot say.
  """
  path = pathlib.Path(path)
  hf.check_target(path)
  names = adapters_lib.names(adapters_lib.chosen(cfg, settings))
  confused = [name for name in names if name in _FEED_FORWARD]
  if cfg.num_experts and confused:
    raise ValueError(
      f"PEFT takes {confused[0]!r} of a model with routed experts to mean these"
      " experts; export the merged model, or train adapters with targets in the"
      " attention alone."
    )
  flat = traverse_util.flatten_dict(adapters)
  whole = {leaf: sharding.gather(x) for leaf, x in flat.items()}
  if jax.process_index():
    return
  arrays = {
    t.name: np.array(t.to_file(whole[t.path][t.index]), np.float32, order="C")
    for t in _tensors(cfg, settings)
  }
  config = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base,
    "r": settings.rank,
    "lora_alpha": settings.alpha,
    "use_rslora": settings.rslora,
    "target_modules": names,
    "lora_dropout": 0.0,
    "bias": "none",
    "inference_mode": True,
  }
  partial = path.with_name(path.name + ".partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
  if tokenizer is not None:
    tokenizer.save(partial)
  safetensors_numpy.save_file(
    arrays, partial / WEIGHTS, metadata={"format": "pt"}
  )
  if path.exists():
    path.rmdir()
  partial.rename(path)


def load(
  path: str | os.PathLike, cfg: ModelConfig, mesh: Mesh | None = None
) -> tuple[LoraConfig, Params]:
  """Returns the adapters of a directory that PEFT or `save` wrote.

  Args:
    path: a directory with `adapter_config.json` and safetensors.
    cfg: the model that they are for.
    mesh: to place them on, by the TRAIN table; None for one device.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: these are other adapters than plain LoRA, or a tensor is
      missing, surplus, of another shape than the model's, or not finite.
  """
  path = pathlib.Path(path)
  for name in (CONFIG, WEIGHTS):
    if not (path / name).exists():
      raise FileNotFoundError(f"No {name} in {path}.")
  config = json.loads((path / CONFIG).read_text())
  more = [name for name in _UNKNOWN if config.get(name)]
  more += ["bias"] if config.get("bias", "none") != "none" else []
  if config.get("peft_type") != "LORA" or more:
    kind = f"of {more[0]}={config[more[0]]!r}" if more else "of another kind"
    raise ValueError(
      f"{path} holds adapters {kind}; read are those of plain LoRA."
    )
  stored = tensor_files.read_header(path / WEIGHTS)
  # The config may have a pattern; the tensors say what it chose.
  targets = {m[1] for m in map(_TARGET.fullmatch, stored) if m}
  settings = LoraConfig(
    rank=config["r"],
    alpha=float(config["lora_alpha"]),
    targets=tuple(sorted(targets)),
    rslora=bool(config.get("use_rslora")),
  )
  specs = adapters_lib.adapter_specs(cfg, settings)
  wanted = _tensors(cfg, settings)
  hf.check_stored(path, wanted, stored, model="this model's adapters")
  filled = {
    leaf: np.zeros(spec.shape, np.float32)
    for leaf, spec in traverse_util.flatten_dict(specs).items()
  }
  for tensor in wanted:
    x = tensor.to_ours(stored[tensor.name].map()).astype(np.float32)
    tensor_files.require_finite(tensor.name, path / WEIGHTS, x)
    filled[tensor.path][tensor.index] = x
  adapters = traverse_util.unflatten_dict(filled)
  if mesh is None:
    return settings, jax.tree.map(jnp.asarray, adapters)
  return settings, jax.device_put(adapters, params_lib.shardings(specs, mesh))


def _tensors(cfg: ModelConfig, settings: LoraConfig) -> list[hf.Tensor]:
  """Returns the tensors of the adapters' file, layer by layer."""
  found = collections.defaultdict(list)
  for path, linear in adapters_lib.chosen(cfg, settings).items():
    count, *shape = linear.spec.shape
    i, rank = linear.inputs, settings.rank
    for name, factor, ours, inputs in (
      ("down", "lora_A", (*shape[:i], rank), i),
      ("up", "lora_B", (rank, *shape[i:]), 1),
    ):
      for layer in range(count):
        number = linear.first + layer
        module = linear.module.format(layer=number)
        entry = _KEY.format(module=module, factor=factor), inputs
        found[number].append(
          hf.make_tensor(entry, (*path, name), ours, (layer,))
        )
  return [tensor for number in sorted(found) for tensor in found[number]]
