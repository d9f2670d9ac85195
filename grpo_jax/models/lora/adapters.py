"""Low-rank adapters (LoRA, arXiv 2106.09685): a second tree beside the first.

An adapted matrix acts as weight + scale * down up.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh

from grpo_jax.models import hf, layers
from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params, Specs

# PEFT's word for every linear layer but the head; here without routers and
# routed experts.
ALL = "all-linear"


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


class Linear(NamedTuple):
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
  for path, linear in chosen(cfg, settings).items():
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


def _linears(cfg: ModelConfig) -> dict[tuple[str, ...], Linear]:
  """Returns all that can be adapted, by path of the parameter."""
  found, first = {}, 0
  table, specs = hf.layer_table(cfg), params_lib.param_specs(cfg)
  for stack in cfg.stacks:
    for path, spec in traverse_util.flatten_dict(specs[stack.name]).items():
      name, inputs = table[".".join(path)]
      if _is_linear(name, inputs):
        module = name.removesuffix(".weight")
        linear = Linear(module, inputs, first, spec)
        found[(stack.name, *path)] = linear
    first += stack.num_layers
  return found


def chosen(
  cfg: ModelConfig, settings: LoraConfig
) -> dict[tuple[str, ...], Linear]:
  """Returns the matrices that the settings adapt, by path of the parameter.

  Raises:
    ValueError: as `adapter_specs`.
  """
  linears = _linears(cfg)
  if settings.targets == (ALL,):
    return linears
  _check_targets(settings.targets, names(linears), "this model")
  return {
    p: each for p, each in linears.items() if each.name in settings.targets
  }


def names(linears: Mapping[Any, Linear]) -> list[str]:
  """Returns the last names of the matrices, each once, in order."""
  return sorted({linear.name for linear in linears.values()})


def _check_targets(
  targets: Sequence[str], known: Sequence[str], whose: str
) -> None:
  for target in targets:
    if target not in known:
      raise ValueError(
        f"lora.targets has {target!r}; of {whose} can be adapted"
        f" {', '.join(map(repr, known))} (no routed experts, routers,"
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
