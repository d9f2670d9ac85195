"""One explicit mesh; tables from logical axes to mesh axes; rows to arrays.

The mesh has four axes: `data` replicates parameters, `fsdp` shards them and
gathers each layer where it is used, `tensor` splits heads, feed-forward and
vocabulary, `expert` splits the experts of a mixture. Rows of a batch are split
over `data` and `fsdp` together. Every function here also works with no mesh
set, on one device: a spec is then None.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

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
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns a mesh with explicit axes, those of MESH_AXES.

  Args:
    sizes: devices along each axis; 1 where absent. One axis may be -1 and takes
      what the others leave; by default that is `data`.
    devices: of the mesh; all there are by default.

  Raises:
    ValueError: an unknown axis, or sizes whose product is not the device count.
  """
  sizes = dict(sizes or {"data": -1})
  unknown = sorted(set(sizes) - set(MESH_AXES))
  if unknown:
    raise ValueError(
      f"Unknown mesh axis {unknown[0]!r}; the axes are {MESH_AXES}."
    )
  devices = jax.devices() if devices is None else devices
  shape = [int(sizes.get(axis, 1)) for axis in MESH_AXES]
  known = int(np.prod([size for size in shape if size != -1]))
  if shape.count(-1) > 1 or min(shape) < -1 or 0 in shape:
    raise ValueError(
      f"Mesh sizes must be positive, and one of them may be -1: got {sizes}."
    )
  shape = [len(devices) // known if size == -1 else size for size in shape]
  if int(np.prod(shape)) != len(devices):
    raise ValueError(
      f"Mesh {dict(zip(MESH_AXES, shape, strict=True))} needs"
      f" {int(np.prod(shape))} devices, and there are {len(devices)}."
    )
  return jax.make_mesh(tuple(shape), MESH_AXES, devices=devices)


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

  Raises:
    ValueError: no such split divides evenly.
  """
  data, fsdp = (mesh.shape[axis] for axis in BATCH_AXES)
  for prompts, group, over_prompts, over_group in (
    (BATCH_AXES, None, data * fsdp, 1),
    ("data", "fsdp", data, fsdp),
    ("fsdp", "data", fsdp, data),
    (None, BATCH_AXES, 1, data * fsdp),
  ):
    if num_prompts % over_prompts == 0 and group_size % over_group == 0:
      return prompts, group
  raise ValueError(
    f"{num_prompts} prompts x {group_size} completions do not divide over"
    f" the mesh's {data} (data) x {fsdp} (fsdp) devices; change one of them."
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
