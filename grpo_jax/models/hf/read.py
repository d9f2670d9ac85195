"""Reads a directory of Hugging Face: config.json and safetensors."""

import collections
import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.hf import config as config_lib
from grpo_jax.models.hf import names, tensor_files
from grpo_jax.models.hf.names import Tensor
from grpo_jax.models.hf.tensor_files import Stored
from grpo_jax.models.params import Params

# Buffers that old files hold; they follow from the config.
_BUFFERS = re.compile(r".*\.rotary_emb\.inv_freq")
_SCALE = "_scale_inv"  # Of "NAME.weight", under "NAME.weight_scale_inv".


def is_checkpoint(path: str | os.PathLike) -> bool:
  """Returns whether a directory is one of Hugging Face, by its config.json."""
  file = pathlib.Path(path) / "config.json"
  if not file.exists():
    return False
  content = _read_json(file)
  return isinstance(content, dict) and "model_type" in content


def fault(path: str | os.PathLike) -> str:
  """Returns why a directory with a `config.json` is no checkpoint; else ""."""
  file = pathlib.Path(path) / "config.json"
  content = _read_json(file) if file.exists() else {"stage": ""}
  if not isinstance(content, dict):
    return f"{file} holds a {type(content).__name__} and no object"
  # Of a run of ours, which has no checkpoint yet.
  if "model_type" in content or "stage" in content:
    return ""
  return f"{file} has no model_type, which says what model it is"


def read_config(path: str | os.PathLike) -> ModelConfig:
  """Returns the model that a directory's `config.json` describes.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a model that is not supported.
  """
  return config_lib.from_hf(_read_json(pathlib.Path(path) / "config.json"))


def load(
  path: str | os.PathLike, *, dtype: str = "float32", mesh: Mesh | None = None
) -> tuple[ModelConfig, Params]:
  """Returns the model and the parameters of a Hugging Face directory.

  Of the host's memory it takes a few times the largest tensor (with experts,
  the experts of one layer), whatever the size of the model.

  Args:
    path: a directory with `config.json`, and safetensors in one file or in
      several with an index; float32, bf16, f16, or DeepSeek's float8 in blocks.
    dtype: of the parameters, and of the model's computation.
    mesh: to place the parameters on, by the TRAIN table; None for one device.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a tensor is missing, surplus, of another shape than
      `config.json` says, or not finite; or a model that is not supported.
  """
  path = pathlib.Path(path)
  config = _read_json(path / "config.json")
  cfg = dataclasses.replace(config_lib.from_hf(config), dtype=dtype)
  block = _float8_block(config)
  stored = tensor_files.read_headers(path)
  stored = _leave_out(stored, cfg.num_layers, config)
  # Before all names are listed, which takes time and memory for each.
  parts_ = {
    "num_hidden_layers": cfg.num_layers,
    "the number of experts": cfg.num_experts,
  }
  for name, count in parts_.items():
    if count > len(stored):
      raise ValueError(
        f"{path / 'config.json'} says that {name} is {count:,}, and the files"
        f" have {len(stored):,} tensors in all."
      )
  wanted = names.tensors(cfg)
  if cfg.tied_head:
    _tie(stored)
  check_stored(path, wanted, stored, block)
  specs = params_lib.param_specs(cfg)
  places = traverse_util.flatten_dict(
    jax.tree.map(
      lambda _: jax.sharding.SingleDeviceSharding(jax.local_devices()[0]),
      specs,
      is_leaf=lambda x: isinstance(x, params_lib.ParamSpec),
    )
    if mesh is None
    else params_lib.shardings(specs, mesh)
  )
  parts = collections.defaultdict(list)
  for tensor in wanted:
    parts[tensor.path].append(tensor)
  filled = {}
  for leaf, spec in traverse_util.flatten_dict(specs).items():
    exact = spec.in_float32 or leaf[-1] == names.ALWAYS_FLOAT32
    read = functools.partial(
      _read,
      stored=stored,
      block=block,
      dtype=jnp.dtype("float32" if exact else dtype),
    )
    filled[leaf] = _fill_leaf(spec.shape, parts[leaf], places[leaf], read)
  return cfg, traverse_util.unflatten_dict(filled)


def _float8_block(config: Mapping[str, Any]) -> tuple[int, int] | None:
  """Returns the rows and columns that share one scale; None without float8."""
  quantization = config.get("quantization_config")
  if quantization is None:
    return None
  if not isinstance(quantization, dict):
    raise ValueError(
      f"quantization_config={quantization!r} of config.json must be an object."
    )
  method = quantization.get("quant_method")
  block = quantization.get("weight_block_size")
  if method != "fp8" or block is None:
    raise ValueError(
      f"The weights are quantized by {method!r}; read are only float8 weights"
      " in blocks (weight_block_size), and those that are not quantized."
    )
  if not (
    isinstance(block, list)
    and len(block) == 2
    and all(type(size) is int and size > 0 for size in block)
  ):
    raise ValueError(
      f"weight_block_size={block!r} of config.json must be two sizes above 0."
    )
  return tuple(block)


def _leave_out(
  stored: dict[str, Stored], num_layers: int, config: Mapping[str, Any]
) -> dict[str, Stored]:
  """Returns the tensors without buffers and multi-token-prediction layers."""
  more = config.get("num_nextn_predict_layers") or 0
  prefixes = tuple(
    names.LAYER.format(layer=num_layers + i) for i in range(more)
  )
  out = {name for name in stored if name.startswith(prefixes)}
  if out:
    logging.warning(
      "Left out: %d tensors of multi-token prediction, %s*.",
      len(out),
      "*, ".join(prefixes),
    )
  return {
    name: tensor
    for name, tensor in stored.items()
    if name not in out and not _BUFFERS.fullmatch(name)
  }


def _tie(stored: dict[str, Stored]) -> None:
  """Leaves one tensor for embedding and head, under the embedding's name."""
  embed, head = names.TOP["embed"][0], names.TOP["head"][0]
  if head not in stored:
    return
  tensor = stored.pop(head)
  other = stored.setdefault(embed, tensor)
  if other is not tensor and (
    other.shape != tensor.shape
    or not np.array_equal(
      other.map().view(np.uint8), tensor.map().view(np.uint8)
    )
  ):
    raise ValueError(
      f"config.json ties the head to the embedding, and {head!r} in"
      f" {tensor.file} differs from {embed!r} in {other.file}; set"
      " tie_word_embeddings to false to use both."
    )


def check_stored(
  path: pathlib.Path,
  wanted: Iterable[Tensor],
  stored: Mapping[str, Stored],
  block: tuple[int, int] | None = None,
  model: str = "its config.json",
) -> None:
  """Raises one ValueError for all tensors that do not fit the model.

  Args:
    path: the directory.
    wanted: what should be there.
    stored: what is there.
    block: of float8.
    model: a phrase for where the shapes come from.
  """
  shapes = {tensor.name: tensor.shape for tensor in wanted}
  for name in [n for n in shapes if n in stored and stored[n].is_float8]:
    if block is None:
      raise ValueError(
        f"{name!r} in {stored[name].file} is float8, and {path / 'config.json'}"
        " has no quantization_config that tells of its blocks."
      )
    sizes = zip(shapes[name], block, strict=True)
    shapes[name + _SCALE] = tuple(-(-size // b) for size, b in sizes)
  faults = [
    f"{name!r} of shape {list(shape)} is missing"
    for name, shape in shapes.items()
    if name not in stored
  ]
  for name, tensor in stored.items():
    here = f"{name!r} in {tensor.file.name} has shape {list(tensor.shape)}"
    if name not in shapes:
      faults.append(f"{here} and is no tensor of this model")
    elif tensor.shape != shapes[name]:
      faults.append(f"{here} and should have {list(shapes[name])}")
  if faults:
    more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
    raise ValueError(
      f"The tensors in {path} are not those of {model}:"
      f" {'; '.join(faults[:5])}{more}."
    )


def _read(
  tensor: Tensor,
  index: tuple[slice, ...],
  *,
  stored: Mapping[str, Stored],
  block: tuple[int, int] | None,
  dtype: np.dtype,
) -> np.ndarray:
  """Returns a part of a tensor in our layout, copied from its file."""
  source = stored[tensor.name]
  x = source.map()
  if source.is_float8:
    x = _dequantize(x, stored[tensor.name + _SCALE].map(), block)
  y = tensor_files.copy(tensor.to_ours(x)[index]).astype(dtype, copy=False)
  tensor_files.require_finite(tensor.name, source.file, y)
  return y


def _dequantize(
  x: np.ndarray, scale: np.ndarray, block: tuple[int, int]
) -> np.ndarray:
  """Returns x times the scale of each block, in float32 (arXiv 2412.19437)."""
  rows, columns = block
  y = np.empty(x.shape, np.float32)
  for i, row in enumerate(np.asarray(scale)):
    at = slice(i * rows, (i + 1) * rows)
    y[at] = x[at]
    y[at] *= np.repeat(row, columns)[: x.shape[1]]
  return y


def _fill_leaf(
  shape: tuple[int, ...],
  parts: list[Tensor],
  where: jax.sharding.Sharding,
  read: Callable[..., np.ndarray],
) -> jax.Array:
  """Returns a parameter from its tensors, placed layer by layer."""
  if not parts[0].index:
    (tensor,) = parts
    return jax.make_array_from_callback(
      shape, where, _once(functools.partial(read, tensor))
    )
  layers = collections.defaultdict(list)
  for tensor in parts:
    layers[tensor.index[0]].append(tensor)
  slab_where = where
  if isinstance(where, NamedSharding):
    slab_where = NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))

  def slab(tensors: list[Tensor], index: tuple[slice, ...]) -> np.ndarray:
    if len(tensors[0].index) == 1:
      return read(tensors[0], index)
    experts, *index = index
    return np.stack([read(t, tuple(index)) for t in tensors[experts]])

  dtype = read.keywords["dtype"]
  leaf = jnp.zeros(shape, dtype, device=where)
  for layer, tensors_ in layers.items():
    one = jax.make_array_from_callback(
      shape[1:], slab_where, _once(functools.partial(slab, tensors_))
    )
    # One layer at a time: the next one is read when this one is in its place.
    leaf = jax.block_until_ready(_put_layer(leaf, one, np.int32(layer)))
  return leaf


@functools.partial(jax.jit, donate_argnums=0)
def _put_layer(leaf: jax.Array, layer: jax.Array, i: jax.Array) -> jax.Array:
  return jax.lax.dynamic_update_index_in_dim(leaf, layer, i, axis=0)


def _once(read: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
  """Returns the function with its results kept, by slices."""
  kept = {}

  def read_once(index: tuple[slice, ...]) -> np.ndarray:
    key = tuple((each.start, each.stop) for each in index)
    if key not in kept:
      kept[key] = read(index)
    return kept[key]

  return read_once


def _read_json(path: pathlib.Path) -> Any:
  if not path.exists():
    raise FileNotFoundError(f"No {path.name} in {path.parent}.")
  try:
    return json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not JSON: {error}.") from error
