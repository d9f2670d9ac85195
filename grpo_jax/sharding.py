"""One explicit mesh; tables from logical axes to mesh axes; rows to arrays.

The mesh has four axes: `data` replicates parameters, `fsdp` shards them and
gathers each layer where it is used, `tensor` splits heads, feed-forward and
vocabulary, `expert` splits the experts of a mixture. Rows of a batch are split
over `data` and `fsdp` together. Every function here also works with no mesh
set, on one device: a spec is then None.
"""

import math
from collections.abc import (
  Callable,
  Collection,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)

from grpo_jax.errors import ConfigError

MESH_AXES = ("data", "fsdp", "tensor", "expert")
BATCH_AXES = ("data", "fsdp")

# Where a parameter rests, and where it is used.
TRAIN = {
  "embed": "fsdp",
  "heads": "tensor",
  "kv_heads": "tensor",
  "ffn": "tensor",
  "vocab": "tensor",
  "experts": "expert",
}
SAMPLE = {axis: where for axis, where in TRAIN.items() if where != "fsdp"}


def make_mesh(
  sizes: Mapping[str, int] | None = None,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """Returns a mesh with explicit axes, those of MESH_AXES.

  On TPUs an axis may take a part of a torus's dimension. Several slices,
  between which the network is slower, are split by `data` alone.

  Args:
    sizes: devices along each axis; 1 where absent. One axis may be -1 and takes
      what the others leave; by default that is `data`.
    devices: of the mesh; all there are by default.

  Raises:
    ConfigError: an unknown axis, sizes whose product is not the device count,
      or `data` that the slices do not divide.
  """
  asked = dict(sizes or {"data": -1})
  unknown = sorted(set(asked) - set(MESH_AXES))
  if unknown:
    raise ConfigError(
      f"Unknown mesh axis {unknown[0]!r}; the axes are {MESH_AXES}."
    )
  devices = list(jax.devices() if devices is None else devices)
  shape = [int(asked.get(axis, 1)) for axis in MESH_AXES]
  if shape.count(-1) > 1 or min(shape) < -1 or 0 in shape:
    raise ConfigError(
      f"Mesh sizes must be positive, and one of them may be -1: got {asked}."
    )
  known = math.prod(size for size in shape if size != -1)
  rest = max(len(devices) // known, 1)
  full = [rest if size == -1 else size for size in shape]
  needed, slices = math.prod(full), num_slices(devices)
  if needed != len(devices):
    raise ConfigError(
      f"Mesh {_sizes(full)} needs {needed} devices, and there"
      f" {'is' if len(devices) == 1 else 'are'} {len(devices)}"
      f" ({devices[0].device_kind});{_nearest(shape, devices)}"
      f"{_more_devices(needed, devices)}."
    )
  if full[0] % slices:
    raise ConfigError(
      f"Mesh {_sizes(full)} needs {needed} devices, and there are"
      f" {len(devices)} in {slices} slices: data={full[0]} must divide by"
      " these, since the other axes stay within a slice;"
      f"{_nearest(shape, devices)}."
    )
  return Mesh(
    _arranged(full, devices, slices),
    MESH_AXES,
    axis_types=(AxisType.Explicit,) * len(MESH_AXES),
  )


def num_slices(devices: Iterable[Any]) -> int:
  """Returns the number of slices of TPUs among devices; 1 elsewhere.

  Hosts of GPUs have numbers of slices too; there the order of devices puts the
  inner axes within a host.
  """
  return len(
    {getattr(d, "slice_index", 0) for d in devices if d.platform == "tpu"}
    or {0}
  )


def _arranged(
  shape: Sequence[int], devices: Sequence[Any], slices: int
) -> np.ndarray:
  """Returns devices in the mesh's shape, neighbors along its inner axes."""
  if slices == 1:
    return mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  return mesh_utils.create_hybrid_device_mesh(
    (shape[0] // slices, *shape[1:]),
    (slices, *(1 for _ in shape[1:])),
    devices,
    allow_split_physical_axes=True,
  )


def nearest_mesh(
  asked: Sequence[int],
  count: int,
  free: Collection[str],
  accepts: Callable[[dict[str, int]], bool],
) -> dict[str, int] | None:
  """Returns the mesh of `count` devices that differs least from another one.

  Args:
    asked: sizes in the order of MESH_AXES; -1 has no wish.
    count: devices.
    free: axes that may differ from what was asked.
    accepts: whether a mesh will do.

  Returns:
    The sizes by axis; None where no mesh will do.
  """

  def distance(sizes: Sequence[int]) -> float:
    pairs = zip(sizes, asked, strict=True)
    return sum(abs(math.log2(a / b)) for a, b in pairs if b > 0)

  def fits(sizes: Sequence[int]) -> bool:
    named = dict(zip(MESH_AXES, sizes, strict=True))
    kept = all(
      axis in free or size == max(wish, 1)
      for (axis, size), wish in zip(named.items(), asked, strict=True)
    )
    return kept and accepts(named)

  found = [sizes for sizes in _factors(count, len(MESH_AXES)) if fits(sizes)]
  if not found:
    return None
  return dict(zip(MESH_AXES, min(found, key=distance), strict=True))


def in_words(sizes: Mapping[str, int]) -> str:
  """Returns a mesh as a user writes it, without the axes of one device."""
  return (
    ", ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
    or "data=1"
  )


def _sizes(shape: Sequence[int]) -> str:
  return in_words(dict(zip(MESH_AXES, shape, strict=True)))


def _nearest(asked: Sequence[int], devices: Sequence[Any]) -> str:
  """The part of a sentence that names a mesh of all devices."""
  slices = num_slices(devices)
  wished = {
    axis for axis, size in zip(MESH_AXES, asked, strict=True) if size != 1
  }

  def accepts(sizes: dict[str, int]) -> bool:
    return sizes["data"] % slices == 0

  found = nearest_mesh(asked, len(devices), wished | {"data"}, accepts)
  # `data` alone takes any number of devices.
  return f" the nearest mesh that works is {in_words(found or {})}"


def _more_devices(needed: int, devices: Sequence[Any]) -> str:
  """The part of a sentence that says how to get more devices of a CPU."""
  if devices[0].platform != "cpu" or needed <= len(devices):
    return ""
  return (
    f", and JAX_NUM_CPU_DEVICES={needed} (or"
    f" XLA_FLAGS=--xla_force_host_platform_device_count={needed}) in the"
    f" environment makes {needed} devices of a CPU"
  )


def _factors(count: int, parts: int) -> Iterator[tuple[int, ...]]:
  """Yields all ways to write a number as a product of `parts` factors."""
  if parts == 1:
    yield (count,)
    return
  for first in range(1, count + 1):
    if count % first == 0:
      for rest in _factors(count // first, parts - 1):
        yield first, *rest


def has_mesh() -> bool:
  """Whether `jax.set_mesh` is in force here."""
  return not jax.sharding.get_abstract_mesh().empty


def spec(axes: Sequence[str | None], rules: Mapping[str, str]) -> PartitionSpec:
  """Returns the mesh axes of an array with these logical axes."""
  return PartitionSpec(*(rules.get(axis) if axis else None for axis in axes))


def row_spec(x: jax.Array, ndim: int = 1) -> tuple[Any, ...] | None:
  """Returns how the leading `ndim` axes of x are split; None with no mesh."""
  if not has_mesh():
    return None
  split = tuple(jax.typeof(x).sharding.spec)[:ndim]
  return split + (None,) * (ndim - len(split))


def out(rows: tuple[Any, ...] | None, *axes: str | None):
  """Returns an `out_sharding`: rows as given, then logical axes under SAMPLE.

  None, which leaves the choice to JAX, where `rows` is None (no mesh).
  """
  if rows is None:
    return None
  return PartitionSpec(*rows, *spec(axes, SAMPLE))


def to_use(x: jax.Array, axes: Sequence[str | None], dtype=None) -> jax.Array:
  """Returns a parameter cast and gathered over `fsdp`, ready to compute with.

  The cast comes first, so that a gather in bf16 moves half the bytes. In the
  backward pass the transpose scatters the gradient over `fsdp` again.
  """
  x = x if dtype is None else x.astype(dtype)
  return jax.reshard(x, spec(axes, SAMPLE)) if has_mesh() else x


def reshard(x: jax.Array, axes: Sequence[Any]) -> jax.Array:
  """Returns x split over the given mesh axes; x itself with no mesh."""
  return jax.reshard(x, PartitionSpec(*axes)) if has_mesh() else x


def reshard_like(x: jax.Array, other: jax.Array) -> jax.Array:
  """Returns x split as another array of its rank is."""
  return jax.reshard(x, jax.typeof(other).sharding.spec) if has_mesh() else x


def merge_pairs(x: jax.Array) -> jax.Array:
  """Returns [B, 2, ...] as [2 B, ...]: row 2 b + i is entry i of pair b."""
  split = row_spec(x, x.ndim)
  return jax.lax.reshape(
    x,
    (2 * x.shape[0], *x.shape[2:]),
    out_sharding=split and PartitionSpec(split[0], *split[2:]),
  )


def split_pairs(x: jax.Array) -> jax.Array:
  """Returns [2 B], as `merge_pairs` has them, as [B, 2]."""
  split = row_spec(x)
  return jax.lax.reshape(
    x,
    (x.shape[0] // 2, 2),
    out_sharding=split and PartitionSpec(split[0], None),
  )


def split_rows(
  mesh: Mesh | AbstractMesh, num_prompts: int, group_size: int = 1
) -> tuple[Any, Any]:
  """Returns the mesh axes of the P and G axes of [P, G, ...] rows.

  Prompts are split over `data` and `fsdp`. Where there are fewer prompts than
  devices on those axes, the completions of a group are spread over the rest.
  Where `group_parts` is more than 1, the axes are those of rows whose groups
  are cut: [P * parts, G / parts, ...].

  Raises:
    ConfigError: no such split divides evenly.
  """
  return _layout(mesh, num_prompts, group_size)[1]


def group_parts(
  mesh: Mesh | AbstractMesh, num_prompts: int, group_size: int
) -> int:
  """Returns into how many parts each group is cut so that rows divide evenly.

  1 wherever P prompts x G completions divide as they are. A mesh axis cannot
  be split over P and G together; so 4 prompts x 16 completions on fsdp=32 are
  32 x 2 rows: each part has its prompt with it, computes it, and row numbers
  stay as they are.

  Raises:
    ConfigError: no number of parts divides evenly.
  """
  return _layout(mesh, num_prompts, group_size)[0]


def _layout(
  mesh: Mesh | AbstractMesh, num_prompts: int, group_size: int
) -> tuple[int, tuple[Any, Any]]:
  """Returns the parts of a group, and the mesh axes of its rows."""
  data, fsdp = (mesh.shape[axis] for axis in BATCH_AXES)
  for parts in range(1, group_size + 1):
    if group_size % parts:
      continue
    for prompts, group, over_prompts, over_group in (
      (BATCH_AXES, None, data * fsdp, 1),
      ("data", "fsdp", data, fsdp),
      ("fsdp", "data", fsdp, data),
      (None, BATCH_AXES, 1, data * fsdp),
    ):
      divides = num_prompts * parts % over_prompts == 0
      if divides and group_size // parts % over_group == 0:
        return parts, (prompts, group)
  rows, count = num_prompts * group_size, math.prod(mesh.shape.values())
  found = nearest_mesh(
    [mesh.shape.get(axis, 1) for axis in MESH_AXES],
    count,
    ("data", "fsdp", "tensor"),
    lambda sizes: rows % (sizes["data"] * sizes["fsdp"]) == 0,
  )
  nearest = (
    f"; the nearest mesh for these rows is {in_words(found)}" if found else ""
  )
  raise ConfigError(
    f"{num_prompts} prompts x {group_size} completions do not divide over"
    f" the mesh's {data} (data) x {fsdp} (fsdp) devices: make them a multiple"
    f" of {data * fsdp} at a time, by more prompts or fewer microbatches, or"
    f" change the mesh{nearest}."
  )


def place(mesh: Mesh, tree: Any, axes: Sequence[Any]) -> Any:
  """Returns host arrays as global ones, split over `axes` from the first on."""
  sharding = NamedSharding(mesh, PartitionSpec(*axes))

  def put(x: Any) -> jax.Array:
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(put, tree)


def gather(x: jax.Array) -> np.ndarray:
  """Returns all of an array, whatever devices hold it, in every process."""
  if isinstance(getattr(x, "sharding", None), NamedSharding):
    x = jax.device_put(x, NamedSharding(x.sharding.mesh, PartitionSpec()))
    x = x.addressable_data(0)
  return np.asarray(x)


def to_host(tree: Any) -> Any:
  """Returns global arrays as NumPy, all rows of them, in every process."""

  def whole(x: Any) -> Any:
    far = isinstance(x, jax.Array) and not (
      x.is_fully_addressable or x.is_fully_replicated
    )
    return gather(x) if far else x

  return jax.device_get(jax.tree.map(whole, tree))
