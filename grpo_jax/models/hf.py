"""Checkpoints of Hugging Face in and out: one name table, read both ways.

`load` takes a directory with `config.json` and safetensors, `save` writes one
that `transformers` and vLLM load. Tensors pass through the host one at a time,
from the file straight to their place on the mesh. Nothing is unpickled and no
code of the directory is run.
"""

import collections
import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors import numpy as safetensors_numpy

from grpo_jax import sharding
from grpo_jax.models import hf_config, tensor_files
from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.models.tensor_files import Stored

# Our path within the tree, or within a layer, to the tensor's name and how many
# axes of ours are inputs: those come first here and last in a file, where a
# matrix is [outputs, inputs]. 0 is for what is the same in both.
_TOP = {
  "embed": ("model.embed_tokens.weight", 0),
  "norm": ("model.norm.weight", 0),
  "head": ("lm_head.weight", 1),
}
_LAYER = "model.layers.{layer}."
_GROUPED = {
  "attention.norm": (_LAYER + "input_layernorm.weight", 0),
  "attention.q": (_LAYER + "self_attn.q_proj.weight", 1),
  "attention.k": (_LAYER + "self_attn.k_proj.weight", 1),
  "attention.v": (_LAYER + "self_attn.v_proj.weight", 1),
  "attention.o": (_LAYER + "self_attn.o_proj.weight", 3),
}
_BIASES = {
  "attention.q_bias": (_LAYER + "self_attn.q_proj.bias", 0),
  "attention.k_bias": (_LAYER + "self_attn.k_proj.bias", 0),
  "attention.v_bias": (_LAYER + "self_attn.v_proj.bias", 0),
}
_QK_NORMS = {
  "attention.q_norm": (_LAYER + "self_attn.q_norm.weight", 0),
  "attention.k_norm": (_LAYER + "self_attn.k_norm.weight", 0),
}
_LATENT = {
  "attention.norm": (_LAYER + "input_layernorm.weight", 0),
  "attention.q": (_LAYER + "self_attn.q_proj.weight", 1),
  "attention.q_down": (_LAYER + "self_attn.q_a_proj.weight", 1),
  "attention.q_norm": (_LAYER + "self_attn.q_a_layernorm.weight", 0),
  "attention.q_up": (_LAYER + "self_attn.q_b_proj.weight", 1),
  "attention.kv_down": (_LAYER + "self_attn.kv_a_proj_with_mqa.weight", 1),
  "attention.kv_norm": (_LAYER + "self_attn.kv_a_layernorm.weight", 0),
  "attention.kv_up": (_LAYER + "self_attn.kv_b_proj.weight", 1),
  "attention.o": (_LAYER + "self_attn.o_proj.weight", 2),
}
_DENSE = {
  "mlp.norm": (_LAYER + "post_attention_layernorm.weight", 0),
  "mlp.gate": (_LAYER + "mlp.gate_proj.weight", 1),
  "mlp.up": (_LAYER + "mlp.up_proj.weight", 1),
  "mlp.down": (_LAYER + "mlp.down_proj.weight", 1),
}
_EXPERTS = {
  "moe.norm": (_LAYER + "post_attention_layernorm.weight", 0),
  "moe.router": (_LAYER + "mlp.gate.weight", 1),
  "moe.gate": (_LAYER + "mlp.experts.{expert}.gate_proj.weight", 1),
  "moe.up": (_LAYER + "mlp.experts.{expert}.up_proj.weight", 1),
  "moe.down": (_LAYER + "mlp.experts.{expert}.down_proj.weight", 1),
}
_SHARED = {
  "moe.router_bias": (_LAYER + "mlp.gate.e_score_correction_bias", 0),
  "moe.shared.gate": (_LAYER + "mlp.shared_experts.gate_proj.weight", 1),
  "moe.shared.up": (_LAYER + "mlp.shared_experts.up_proj.weight", 1),
  "moe.shared.down": (_LAYER + "mlp.shared_experts.down_proj.weight", 1),
}
_LLAMA = _TOP | _GROUPED | _DENSE
TABLES = {
  "llama": _LLAMA,
  "mistral": _LLAMA,
  "qwen2": _LLAMA | _BIASES,
  "qwen3": _LLAMA | _QK_NORMS,
  "qwen3_moe": _LLAMA | _QK_NORMS | _EXPERTS,
  "deepseek_v3": _TOP | _LATENT | _DENSE | _EXPERTS | _SHARED,
}

# Steers the choice of experts and is moved by steps of 1e-3: bf16 loses them.
_ALWAYS_FLOAT32 = "router_bias"
# Buffers that old files hold; they follow from the config.
_BUFFERS = re.compile(r".*\.rotary_emb\.inv_freq")
_GENERATION = "generation_config.json"
_SCALE = "_scale_inv"  # Of "NAME.weight", under "NAME.weight_scale_inv".


@runtime_checkable
class Tokenizer(Protocol):
  """What `save` asks of a tokenizer; those of `data/tokenizers` have it."""

  bos_id: int | None
  eos_ids: tuple[int, ...]
  pad_id: int

  def save(self, directory: pathlib.Path) -> None:
    """Writes the tokenizer's files."""


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of a file, and where it is in our tree.

  Attributes:
    name: in the file.
    shape: in the file.
    path: of the parameter.
    index: of the layer in its stack, and of the expert; none at the top.
    ours: shape in the parameter, without the axes of `index`.
    inputs: how many axes of `ours` are inputs.
  """

  name: str
  shape: tuple[int, ...]
  path: tuple[str, ...]
  index: tuple[int, ...]
  ours: tuple[int, ...]
  inputs: int

  def to_ours(self, x: np.ndarray) -> np.ndarray:
    """Returns the file's array in our layout; a view."""
    return (x.T if self.inputs else x).reshape(self.ours)

  def to_file(self, x: np.ndarray) -> np.ndarray:
    """Returns our array in the file's layout; a view."""
    if self.inputs:
      return x.reshape(self.shape[::-1]).T
    return x.reshape(self.shape)


def layer_table(cfg: ModelConfig) -> dict[str, tuple[str, int]]:
  """Returns the names in files of all that a model's layers can have.

  By path within a layer: the tensor's name, and how many axes are inputs. Of
  one family or of none, such as a base of our own.
  """
  attention = _LATENT if cfg.latent_dim else _GROUPED | _BIASES | _QK_NORMS
  return attention | _DENSE | _EXPERTS | _SHARED


def tensors(cfg: ModelConfig) -> list[Tensor]:
  """Returns the tensors of a model's files, layer by layer.

  Raises:
    ValueError: no family of `TABLES` has such a model.
  """
  table = TABLES[hf_config.family(cfg)]
  found, first = [], 0
  specs = params_lib.param_specs(cfg)
  top = {
    name: specs.pop(name) for name in ("embed", "norm", "head") if name in specs
  }
  for name, spec in top.items():
    found.append(make_tensor(table[name], (name,), spec.shape))
  for stack in cfg.stacks:
    flat = traverse_util.flatten_dict(specs[stack.name])
    for layer in range(stack.num_layers):
      for path, spec in flat.items():
        entry = table[".".join(path)]
        experts = (None,)
        if "{expert}" in entry[0]:
          experts = range(cfg.num_experts)
        for expert in experts:
          index = (layer,) if expert is None else (layer, expert)
          found.append(
            make_tensor(
              entry,
              (stack.name, *path),
              spec.shape[len(index) :],
              index,
              layer=first + layer,
              expert=expert,
            )
          )
    first += stack.num_layers
  return found


def make_tensor(
  entry: tuple[str, int],
  path: tuple[str, ...],
  ours: tuple[int, ...],
  index: tuple[int, ...] = (),
  **numbers: int | None,
) -> Tensor:
  """Returns the tensor of an entry of a table, with its numbers filled in."""
  name, inputs = entry
  shape = ours
  if inputs:
    shape = math.prod(ours[inputs:]), math.prod(ours[:inputs])
  elif name.endswith(".bias"):
    shape = (math.prod(ours),)
  return Tensor(name.format(**numbers), shape, path, index, ours, inputs)


def is_checkpoint(path: str | os.PathLike) -> bool:
  """Returns whether a directory is one of Hugging Face, by its config.json."""
  file = pathlib.Path(path) / "config.json"
  return file.exists() and "model_type" in _read_json(file)


def read_config(path: str | os.PathLike) -> ModelConfig:
  """Returns the model that a directory's `config.json` describes.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a model that is not supported.
  """
  return hf_config.from_hf(_read_json(pathlib.Path(path) / "config.json"))


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
    ValueError: a tensor is missing, surplus or of another shape than
      `config.json` says; or a model that is not supported.
  """
  path = pathlib.Path(path)
  config = _read_json(path / "config.json")
  cfg = dataclasses.replace(hf_config.from_hf(config), dtype=dtype)
  block = _float8_block(config)
  stored = tensor_files.read_headers(path)
  stored = _leave_out(stored, cfg.num_layers, config)
  wanted = tensors(cfg)
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
    exact = spec.in_float32 or leaf[-1] == _ALWAYS_FLOAT32
    read = functools.partial(
      _read,
      stored=stored,
      block=block,
      dtype=jnp.dtype("float32" if exact else dtype),
    )
    filled[leaf] = _fill_leaf(spec.shape, parts[leaf], places[leaf], read)
  return cfg, traverse_util.unflatten_dict(filled)


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
      "float32" if leaf[-1] == _ALWAYS_FLOAT32 else dtype or x.dtype
    )
    for leaf, x in flat.items()
  }
  sizes = {
    tensor: math.prod(tensor.shape) * types[tensor.path].itemsize
    for tensor in tensors(cfg)
  }
  shards = _split(sizes, max_shard_bytes)
  config = hf_config.to_hf(cfg) | {"torch_dtype": types["embed",].name}
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
  names, gather = {}, _make_gather(flat, types)
  for i, shard in enumerate(shards, start=1):
    name = f"model-{i:05}-of-{len(shards):05}.safetensors"
    if len(shards) == 1:
      name = tensor_files.SINGLE
    names |= dict.fromkeys((t.name for t in shard), name)
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
    index = {"metadata": total, "weight_map": dict(sorted(names.items()))}
    _write_json(partial / tensor_files.INDEX, index)
  if path.exists():
    path.rmdir()
  partial.rename(path)


def check_target(path: str | os.PathLike) -> None:
  """Raises ValueError unless `save` may write to the directory."""
  path = pathlib.Path(path)
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise ValueError(f"{path} is not empty; give another directory to save to.")


def _float8_block(config: Mapping[str, Any]) -> tuple[int, int] | None:
  """Returns the rows and columns that share one scale; None without float8."""
  quantization = config.get("quantization_config")
  if quantization is None:
    return None
  method = quantization.get("quant_method")
  block = quantization.get("weight_block_size")
  if method != "fp8" or block is None:
    raise ValueError(
      f"The weights are quantized by {method!r}; read are only float8 weights"
      " in blocks (weight_block_size), and those that are not quantized."
    )
  return tuple(block)


def _leave_out(
  stored: dict[str, Stored], num_layers: int, config: Mapping[str, Any]
) -> dict[str, Stored]:
  """Returns the tensors without buffers and multi-token-prediction layers."""
  more = config.get("num_nextn_predict_layers") or 0
  prefixes = tuple(_LAYER.format(layer=num_layers + i) for i in range(more))
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
  embed, head = _TOP["embed"][0], _TOP["head"][0]
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
  return _copy(tensor.to_ours(x)[index]).astype(dtype, copy=False)


def _copy(x: np.ndarray) -> np.ndarray:
  """Returns the numbers of a view side by side, in memory of their own."""
  # NumPy moves integers many times faster than numbers of ml_dtypes.
  bits = np.array(x.view(f"u{x.itemsize}"), order="C")
  return bits.view(x.dtype)


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
    return _copy(tensor.to_file(parameter(tensor.path, *layer)[expert]))

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


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  if not path.exists():
    raise FileNotFoundError(f"No {path.name} in {path.parent}.")
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is not JSON: {error}.") from error


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2) + "\n")
