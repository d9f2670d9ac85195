"""Writes a directory of Hugging Face: config.json, safetensors, tokenizer."""

import functools
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import numpy as safetensors_numpy

from grpo_jax import sharding
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.hf import config as config_lib
from grpo_jax.models.hf import names, tensor_files
from grpo_jax.models.hf.names import Tensor
from grpo_jax.models.params import Params

_GENERATION = "generation_config.json"


@runtime_checkable
class Tokenizer(Protocol):
  """What `save` asks of a tokenizer; those of `data/tokenizers` have it."""

  bos_id: int | None
  eos_ids: tuple[int, ...]
  pad_id: int

  def save(self, directory: pathlib.Path) -> None:
    """Writes the tokenizer's files."""


def save(
  path: str | os.PathLike,
  cfg: ModelConfig,
  params: Params,
  tokenizer: Tokenizer | None = None,
  *,
  dtype: str | None = None,
  max_shard_bytes: int = 5_000_000_000,
) -> None:
  """Writes a directory that `transformers` and vLLM load.

  It appears at once or not at all. Every process must call it; the first one
  writes, and holds one file's tensors at a time.

  Args:
    path: of the directory; it must not be there yet, or be empty.
    cfg: the model.
    params: its parameters, wherever they are.
    tokenizer: whose files and stop tokens go with the model.
    dtype: of the numbers; None for what each parameter has. The router's bias
      is float32 always.
    max_shard_bytes: the size of one file; a larger tensor has its own.

  Raises:
    ValueError: there is something in the directory, or no family of Hugging
      Face has such a model.
  """
  path = pathlib.Path(path)
  check_target(path)
  flat = traverse_util.flatten_dict(params)
  types = {
    leaf: jnp.dtype(
      "float32" if leaf[-1] == names.ALWAYS_FLOAT32 else dtype or x.dtype
    )
    for leaf, x in flat.items()
  }
  sizes = {
    tensor: math.prod(tensor.shape) * types[tensor.path].itemsize
    for tensor in names.tensors(cfg)
  }
  shards = _split(sizes, max_shard_bytes)
  config = config_lib.to_hf(cfg) | {"torch_dtype": types["embed",].name}
  ids = {}
  if tokenizer is not None:
    stop = tokenizer.eos_ids
    ids = {
      "bos_token_id": tokenizer.bos_id,
      "eos_token_id": stop[0] if len(stop) == 1 else list(stop),
      "pad_token_id": tokenizer.pad_id,
    }
  writes = jax.process_index() == 0
  partial = path.with_name(path.name + ".partial")
  if writes:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_json(partial / "config.json", config | ids)
    if tokenizer is not None:
      tokenizer.save(partial)
      if not (partial / _GENERATION).exists():
        _write_json(partial / _GENERATION, ids)
  files, gather = {}, _make_gather(flat, types)
  for i, shard in enumerate(shards, start=1):
    name = f"model-{i:05}-of-{len(shards):05}.safetensors"
    if len(shards) == 1:
      name = tensor_files.SINGLE
    files |= dict.fromkeys((t.name for t in shard), name)
    arrays = {t.name: gather(t) for t in shard}
    if writes:
      safetensors_numpy.save_file(
        arrays, partial / name, metadata={"format": "pt"}
      )
    del arrays
  if not writes:
    return
  if len(shards) > 1:
    total = {"total_size": sum(sizes.values())}
    index = {"metadata": total, "weight_map": dict(sorted(files.items()))}
    _write_json(partial / tensor_files.INDEX, index)
  if path.exists():
    path.rmdir()
  partial.rename(path)


def check_target(path: str | os.PathLike) -> None:
  """Raises ValueError unless `save` may write to the directory."""
  path = pathlib.Path(path)
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise ValueError(f"{path} is not empty; give another directory to save to.")


def _make_gather(
  flat: Mapping[tuple[str, ...], Any], types: Mapping[tuple[str, ...], np.dtype]
) -> Callable[[Tensor], np.ndarray]:
  """Returns a function from a tensor to its numbers, in the file's layout."""

  @functools.lru_cache(maxsize=1)  # Of a layer's experts, one after the other.
  def parameter(path: tuple[str, ...], *layer: int) -> np.ndarray:
    x = flat[path][layer].astype(types[path])
    return sharding.gather(x)

  def gather(tensor: Tensor) -> np.ndarray:
    layer, expert = tensor.index[:1], tensor.index[1:]
    return tensor_files.copy(
      tensor.to_file(parameter(tensor.path, *layer)[expert])
    )

  return gather


def _split(sizes: Mapping[Tensor, int], max_bytes: int) -> list[list[Tensor]]:
  """Returns the tensors in order, in lists of at most so many bytes."""
  shards, left = [], 0
  for tensor, size in sizes.items():
    if size > left:
      shards.append([])
      left = max_bytes
    shards[-1].append(tensor)
    left -= size
  return shards


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2) + "\n")
