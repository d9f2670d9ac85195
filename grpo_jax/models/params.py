"""Parameters: what each one is, and trees of them, abstract or real."""

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding

from grpo_jax import sharding
from grpo_jax.errors import ConfigError
from grpo_jax.models.config import ModelConfig

Params = dict[str, Any]
Specs = dict[str, Any]
Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class ParamSpec:
  """One parameter.

  Attributes:
    shape: of the array.
    axes: the logical name of each axis.
    init: how it starts.
    in_float32: it is never cast to the compute dtype.
  """

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  init: Initializer
  in_float32: bool = False

  def __post_init__(self):
    if len(self.shape) != len(self.axes):
      raise ValueError(f"{self.shape=} and {self.axes=} differ in length.")

  @property
  def is_cast(self) -> bool:
    """Whether it is computed with in the compute dtype.

    What no axis shards (the norms) stays float32.
    """
    matrix = any(axis not in (None, "layers") for axis in self.axes)
    return matrix and not self.in_float32


def normal(stddev: float) -> Initializer:
  """Returns an initializer: a normal cut at two standard deviations."""
  return jax.nn.initializers.truncated_normal(stddev)


ones = jax.nn.initializers.ones
zeros = jax.nn.initializers.zeros


def param_specs(cfg: ModelConfig) -> Specs:
  """Returns the nested dict of ParamSpec of a decoder.

  Layers are stacked: each leaf under a name of `cfg.stacks` has a leading axis
  of its layers. Matrices start at 1 / sqrt(fan in), those that write to the
  residual stream smaller by sqrt(2 L), as in GPT-2.
  """
  attention = _latent_attention if cfg.latent_dim else _grouped_attention
  after = {"mlp": _dense, "moe": _experts}
  d, v = cfg.d_model, cfg.vocab_size
  into = normal(d**-0.5)
  specs = {
    "embed": ParamSpec((v, d), ("vocab", "embed"), into),
    "norm": ParamSpec((d,), (None,), ones),
  }
  for each in cfg.stacks:
    layer = {"attention": attention(cfg), each.mlp: after[each.mlp](cfg)}
    specs[each.name] = stack(layer, each.num_layers)
  if not cfg.tied_head:
    specs["head"] = ParamSpec((d, v), ("embed", "vocab"), into)
  return specs


def _grouped_attention(cfg: ModelConfig) -> Specs:
  d, h = cfg.d_model, cfg.head_dim
  k, r = cfg.num_kv_heads, cfg.queries_per_kv
  into = normal(d**-0.5)
  specs = {
    "norm": ParamSpec((d,), (None,), ones),
    "q": ParamSpec((d, k, r, h), ("embed", "kv_heads", None, None), into),
    "k": ParamSpec((d, k, h), ("embed", "kv_heads", None), into),
    "v": ParamSpec((d, k, h), ("embed", "kv_heads", None), into),
    "o": ParamSpec(
      (k, r, h, d),
      ("kv_heads", None, None, "embed"),
      _residual(cfg, k * r * h),
    ),
  }
  if cfg.qkv_bias:
    specs |= {
      "q_bias": ParamSpec((k, r, h), ("kv_heads", None, None), zeros),
      "k_bias": ParamSpec((k, h), ("kv_heads", None), zeros),
      "v_bias": ParamSpec((k, h), ("kv_heads", None), zeros),
    }
  if cfg.qk_norm:
    specs |= {
      "q_norm": ParamSpec((h,), (None,), ones),
      "k_norm": ParamSpec((h,), (None,), ones),
    }
  return specs


def _latent_attention(cfg: ModelConfig) -> Specs:
  d, n, h, v = cfg.d_model, cfg.num_heads, cfg.head_dim, cfg.value_dim
  c, u, q = cfg.latent_dim, cfg.rope_dim, cfg.query_latent_dim
  into = normal(d**-0.5)
  specs = {
    "norm": ParamSpec((d,), (None,), ones),
    "kv_down": ParamSpec((d, c + u), ("embed", None), into),
    "kv_norm": ParamSpec((c,), (None,), ones),
    "kv_up": ParamSpec(
      (c, n, h - u + v), ("embed", "heads", None), normal(c**-0.5)
    ),
    "o": ParamSpec((n, v, d), ("heads", None, "embed"), _residual(cfg, n * v)),
  }
  if not q:
    return specs | {
      "q": ParamSpec((d, n, h), ("embed", "heads", None), into),
    }
  return specs | {
    "q_down": ParamSpec((d, q), ("embed", None), into),
    "q_norm": ParamSpec((q,), (None,), ones),
    "q_up": ParamSpec((q, n, h), ("embed", "heads", None), normal(q**-0.5)),
  }


def _dense(cfg: ModelConfig) -> Specs:
  return {
    "norm": ParamSpec((cfg.d_model,), (None,), ones),
    **_mlp(cfg, cfg.d_ff),
  }


def _mlp(cfg: ModelConfig, f: int) -> Specs:
  d = cfg.d_model
  into = normal(d**-0.5)
  return {
    "gate": ParamSpec((d, f), ("embed", "ffn"), into),
    "up": ParamSpec((d, f), ("embed", "ffn"), into),
    "down": ParamSpec((f, d), ("ffn", "embed"), _residual(cfg, f)),
  }


def _experts(cfg: ModelConfig) -> Specs:
  d, e, f = cfg.d_model, cfg.num_experts, cfg.d_expert
  into = normal(d**-0.5)
  specs = {
    "norm": ParamSpec((d,), (None,), ones),
    "router": ParamSpec((d, e), ("embed", None), into, in_float32=True),
    "gate": ParamSpec((e, d, f), ("experts", "embed", "ffn"), into),
    "up": ParamSpec((e, d, f), ("experts", "embed", "ffn"), into),
    "down": ParamSpec(
      (e, f, d), ("experts", "ffn", "embed"), _residual(cfg, f)
    ),
  }
  if cfg.router == "sigmoid":
    specs["router_bias"] = ParamSpec((e,), (None,), zeros)
  if cfg.num_shared_experts:
    specs["shared"] = _mlp(cfg, cfg.num_shared_experts * f)
  return specs


def _residual(cfg: ModelConfig, fan_in: int) -> Initializer:
  return normal(fan_in**-0.5 * (2 * cfg.num_layers) ** -0.5)


def stack(specs: Specs, num_layers: int) -> Specs:
  """Returns the specs of `num_layers` equal layers in one leading axis."""

  def stacked(spec: ParamSpec) -> ParamSpec:
    def init(key, shape, dtype):
      keys = jax.random.split(key, shape[0])
      return jax.vmap(lambda k: spec.init(k, shape[1:], dtype))(keys)

    return dataclasses.replace(
      spec,
      shape=(num_layers, *spec.shape),
      axes=("layers", *spec.axes),
      init=init,
    )

  return jax.tree.map(stacked, specs, is_leaf=_is_spec)


def shardings(specs: Specs, mesh: Mesh) -> Any:
  """Returns each parameter's resting place, by the TRAIN table.

  Raises:
    ConfigError: an axis that its mesh axis does not divide.
  """

  def one(path: tuple[str, ...], spec: ParamSpec) -> NamedSharding:
    where = sharding.spec(spec.axes, sharding.TRAIN)
    for size, axis, mesh_axis in zip(spec.shape, spec.axes, where, strict=True):
      if mesh_axis and size % mesh.shape[mesh_axis]:
        raise ConfigError(
          f"Axis {axis!r} of parameter {'.'.join(path)} has size {size}, which"
          f" does not divide over the {mesh.shape[mesh_axis]} devices of mesh"
          f" axis {mesh_axis!r}{_nearest_mesh(specs, mesh)}."
        )
    return NamedSharding(mesh, where)

  flat = traverse_util.flatten_dict(specs)
  return traverse_util.unflatten_dict({p: one(p, s) for p, s in flat.items()})


def _nearest_mesh(specs: Specs, mesh: Mesh) -> str:
  """The part of a sentence that names a mesh on which parameters divide."""
  sizes = {
    (size, where)
    for spec in jax.tree.leaves(specs, is_leaf=_is_spec)
    for size, where in zip(
      spec.shape, sharding.spec(spec.axes, sharding.TRAIN), strict=True
    )
    if where
  }
  slices = sharding.num_slices(mesh.devices.flat)

  def divides(shape: dict[str, int]) -> bool:
    return shape["data"] % slices == 0 and all(
      size % shape[where] == 0 for size, where in sizes
    )

  asked = [mesh.shape[axis] for axis in sharding.MESH_AXES]
  free = {axis for axis, size in mesh.shape.items() if size > 1} | {"data"}
  found = sharding.nearest_mesh(asked, mesh.size, free, divides)
  return (
    f"; of {mesh.size} devices the nearest mesh that works is"
    f" {sharding.in_words(found or {})}"
  )


def init_params(key: jax.Array, specs: Specs, mesh: Mesh | None = None):
  """Returns float32 parameters, made where they rest.

  Each parameter's key is folded in from its path, so its value depends neither
  on the mesh nor on which other parameters there are.
  """

  def init():
    flat = traverse_util.flatten_dict(specs)
    return traverse_util.unflatten_dict(
      {
        path: spec.init(
          jax.random.fold_in(key, zlib.crc32("/".join(path).encode())),
          spec.shape,
          jnp.float32,
        )
        for path, spec in flat.items()
      }
    )

  where = None if mesh is None else shardings(specs, mesh)
  return jax.jit(init, out_shardings=where)()


def abstract_params(specs: Specs, mesh: Mesh, dtype: str = "float32") -> Any:
  """Returns the tree of shapes and shardings that a restore fills.

  Args:
    specs: of the parameters.
    mesh: to place them on.
    dtype: of what is cast to compute with; the rest is float32.
  """

  def one(spec: ParamSpec, where: NamedSharding) -> jax.ShapeDtypeStruct:
    kept = jnp.dtype(dtype if spec.is_cast else "float32")
    return jax.ShapeDtypeStruct(spec.shape, kept, sharding=where)

  return jax.tree.map(one, specs, shardings(specs, mesh), is_leaf=_is_spec)


def count(specs: Specs) -> int:
  """Returns the number of parameters."""
  leaves = jax.tree.leaves(specs, is_leaf=_is_spec)
  return sum(math.prod(leaf.shape) for leaf in leaves)


def _is_spec(x: Any) -> bool:
  return isinstance(x, ParamSpec)
