"""Low-rank adapters (LoRA, arXiv 2106.09685): a second tree beside the first.

An adapted matrix acts as weight + scale * down up. The weights are frozen;
the adapters, a nested dict of `down` and `up` where the model has the matrix,
are what is trained. `attach` puts both together into one tree that every
function of the model takes. Files are those of PEFT, which calls `down` lora_A
and `up` lora_B.
"""

import collections
import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from safetensors import numpy as safetensors_numpy

from grpo_jax import sharding
from grpo_jax.models import hf, layers, tensor_files
from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params, Specs

# PEFT's word for every linear layer but the head; here without routers and
# routed experts.
ALL = "all-linear"
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


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """What adapters a model has.

  Attributes:
    rank: of `down` and `up`; 0 for no adapters.
    alpha: the scale is alpha / rank.
    targets: last names of modules, as PEFT has them: "q_proj", "up_proj"; or
      "all-linear" alone.
    rslora: the scale is alpha / sqrt(rank) instead (arXiv 2312.03732, eq. 4).
  """

  rank: int = 0
  alpha: float = 32.0
  targets: Sequence[str] = (ALL,)
  rslora: bool = False

  def __post_init__(self):
    if self.rank < 0:
      raise ValueError(f"lora.rank={self.rank} must not be negative.")
    if self.alpha <= 0:
      raise ValueError(f"lora.alpha={self.alpha} must be above 0.")
    if isinstance(self.targets, str) or not self.targets:
      raise ValueError(
        f"lora.targets={self.targets!r} must be a tuple of names, such as"
        " ('q_proj', 'v_proj')."
      )
    object.__setattr__(self, "targets", tuple(self.targets))
    if self.targets != (ALL,):
      _check_targets(self.targets, _NAMES, "a model")

  @property
  def scale(self) -> float:
    """Returns what `down up` is multiplied by."""
    return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclasses.dataclass(frozen=True)
class Trainable:
  """The part of a policy that updates change: all of it, or adapters.

  Attributes:
    specs: of that part, which a state holds as its params.
    frozen: the rest, arguments of an update after the batch; none where all is
      trained.
    scale: of the adapters.
  """

  specs: Specs
  frozen: tuple[Params, ...] = ()
  scale: float = 1.0

  def start(self, key: jax.Array, base: Params, mesh: Mesh | None) -> Params:
    """Returns the part before the first update: a copy of its own."""
    if self.frozen:
      return params_lib.init_params(key, self.specs, mesh)
    return jax.tree.map(jnp.copy, base)

  def policy(self, part: Params) -> Params:
    """Returns the whole policy of such a part; no array is copied."""
    return self._whole(part, *self.frozen)

  def loss(self, loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a loss `(policy, batch)` as one of `(part, batch, *frozen)`.

    What is frozen is an argument: in a compiled program it would otherwise be a
    constant.
    """
    return lambda part, batch, *frozen: loss_fn(
      self._whole(part, *frozen), batch
    )

  def _whole(self, part: Params, *frozen: Params) -> Params:
    return attach(*frozen, part, self.scale) if frozen else part


class _Linear(NamedTuple):
  """A matrix that can be adapted, in all layers of a stack.

  Attributes:
    module: its name in files, with {layer} open.
    inputs: how many of a layer's axes are inputs.
    first: number of the stack's first layer.
    spec: of the stacked parameter.
  """

  module: str
  inputs: int
  first: int
  spec: params_lib.ParamSpec

  @property
  def name(self) -> str:
    """Its last name, by which targets are chosen."""
    return _last_name(self.module)


def adapter_specs(cfg: ModelConfig, settings: LoraConfig) -> Specs:
  """Returns the nested dict of ParamSpec of a model's adapters.

  As in PEFT `down` starts uniform within 1 / sqrt(fan in) and `up` at zero, so
  that at first the policy is the frozen model.

  Raises:
    ValueError: a target that this model does not have, or that cannot be
      adapted: routed experts, routers, embedding and head.
  """
  specs = {}
  for path, linear in _chosen(cfg, settings).items():
    count, *shape = linear.spec.shape
    _, *axes = linear.spec.axes
    i, rank = linear.inputs, settings.rank
    pair = {
      "down": params_lib.ParamSpec(
        (*shape[:i], rank),
        (*axes[:i], None),
        _uniform(math.prod(shape[:i]) ** -0.5),
      ),
      "up": params_lib.ParamSpec(
        (rank, *shape[i:]), (None, *axes[i:]), params_lib.zeros
      ),
    }
    specs[path] = params_lib.stack(pair, count)
  return traverse_util.unflatten_dict(specs)


def trainable(
  cfg: ModelConfig, base: Params | None, settings: LoraConfig
) -> Trainable:
  """Returns what is trained of a model: adapters, or all where the rank is 0.

  Raises:
    ValueError: as `adapter_specs`.
  """
  if settings.rank:
    specs = adapter_specs(cfg, settings)
    return Trainable(specs, (base,), settings.scale)
  return Trainable(params_lib.param_specs(cfg))


def attach(base: Params, adapters: Params, scale: float) -> Params:
  """Returns one tree: where there is an adapter, `layers.Adapted`.

  No array is copied. `forward`, the scorers and the sampler take it as they
  take parameters without adapters.
  """
  flat = traverse_util.flatten_dict(base)
  for path, pair in _pairs(adapters).items():
    flat[path] = layers.Adapted(flat[path], pair["down"], pair["up"], scale)
  return traverse_util.unflatten_dict(flat)


def merge(base: Params, adapters: Params, scale: float) -> Params:
  """Returns parameters with the adapters added, in the dtypes of the base.

  The sums are of float32, and cast at the end.
  """
  flat = traverse_util.flatten_dict(base)
  for path, pair in _pairs(adapters).items():
    flat[path] = _merged(flat[path], pair["down"], pair["up"], scale)
  return traverse_util.unflatten_dict(flat)


def save(
  path: str | os.PathLike,
  cfg: ModelConfig,
  settings: LoraConfig,
  adapters: Params,
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
    base: name or path of the frozen model, for whoever loads the adapters.

  Raises:
    ValueError: there is something in the directory; or beside routed experts
      the adapters are of feed-forward layers too, which PEFT cannot say.
  """
  path = pathlib.Path(path)
  hf.check_target(path)
  names = _names(_chosen(cfg, settings))
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
      missing, surplus or of another shape than the model's.
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
  specs = adapter_specs(cfg, settings)
  wanted = _tensors(cfg, settings)
  hf.check_stored(path, wanted, stored, model="this model's adapters")
  filled = {
    leaf: np.zeros(spec.shape, np.float32)
    for leaf, spec in traverse_util.flatten_dict(specs).items()
  }
  for tensor in wanted:
    x = tensor.to_ours(stored[tensor.name].map())
    filled[tensor.path][tensor.index] = x.astype(np.float32)
  adapters = traverse_util.unflatten_dict(filled)
  if mesh is None:
    return settings, jax.tree.map(jnp.asarray, adapters)
  return settings, jax.device_put(adapters, params_lib.shardings(specs, mesh))


def _linears(cfg: ModelConfig) -> dict[tuple[str, ...], _Linear]:
  """Returns all that can be adapted, by path of the parameter."""
  found, first = {}, 0
  table, specs = hf.layer_table(cfg), params_lib.param_specs(cfg)
  for stack in cfg.stacks:
    for path, spec in traverse_util.flatten_dict(specs[stack.name]).items():
      name, inputs = table[".".join(path)]
      if _is_linear(name, inputs):
        module = name.removesuffix(".weight")
        linear = _Linear(module, inputs, first, spec)
        found[(stack.name, *path)] = linear
    first += stack.num_layers
  return found


def _chosen(
  cfg: ModelConfig, settings: LoraConfig
) -> dict[tuple[str, ...], _Linear]:
  linears = _linears(cfg)
  if settings.targets == (ALL,):
    return linears
  _check_targets(settings.targets, _names(linears), "this model")
  return {
    p: each for p, each in linears.items() if each.name in settings.targets
  }


def _names(linears: dict[Any, _Linear]) -> list[str]:
  return sorted({linear.name for linear in linears.values()})


def _check_targets(
  targets: Sequence[str], names: Sequence[str], whose: str
) -> None:
  for target in targets:
    if target not in names:
      raise ValueError(
        f"lora.targets has {target!r}; of {whose} can be adapted"
        f" {', '.join(map(repr, names))} (no routed experts, routers,"
        f" embedding or head), or all by {ALL!r} alone."
      )


def _is_linear(name: str, inputs: int) -> bool:
  """Returns whether a tensor of a table is a matrix that can be adapted."""
  return bool(inputs) and "_proj" in name and "{expert}" not in name


def _last_name(module: str) -> str:
  return module.rpartition(".")[2]


_NAMES = sorted(
  {
    _last_name(name.removesuffix(".weight"))
    for table in hf.TABLES.values()
    for name, inputs in table.values()
    if _is_linear(name, inputs)
  }
)


def _tensors(cfg: ModelConfig, settings: LoraConfig) -> list[hf.Tensor]:
  """Returns the tensors of the adapters' file, layer by layer."""
  found = collections.defaultdict(list)
  for path, linear in _chosen(cfg, settings).items():
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


def _pairs(adapters: Params) -> dict[tuple[str, ...], dict[str, jax.Array]]:
  """Returns `down` and `up` by the path of the matrix."""
  pairs = collections.defaultdict(dict)
  for (*path, name), x in traverse_util.flatten_dict(adapters).items():
    pairs[tuple(path)][name] = x
  return pairs


@jax.jit
def _merged(weight, down, up, scale):
  change = jax.lax.dot_general(
    down.astype(jnp.float32),
    up.astype(jnp.float32),
    (((down.ndim - 1,), (1,)), ((0,), (0,))),  # Over the rank, by layer.
    precision=jax.lax.Precision.HIGHEST,
  )
  return (weight.astype(jnp.float32) + scale * change).astype(weight.dtype)


def _uniform(bound: float) -> params_lib.Initializer:
  def init(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init
