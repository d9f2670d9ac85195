"""Safetensors files as they lie on disk, one tensor mapped at a time.

The format: the header's length in 8 bytes, the header in JSON, the numbers. The
`safetensors` library maps whole files and has no float8 in NumPy, so reading is
done here; writing is left to it.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_DTYPES = {
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
_LONGEST_HEADER = 100_000_000  # Bytes; the library's own limit.


@dataclasses.dataclass(frozen=True)
class Stored:
  """A tensor in a file.

  Attributes:
    file: that it is in.
    dtype: as the file names it, such as "BF16".
    shape: of the tensor.
    begin: first byte in the file.
    end: one after its last byte.
  """

  file: pathlib.Path
  dtype: str
  shape: tuple[int, ...]
  begin: int
  end: int

  @property
  def is_float8(self) -> bool:
    """Whether the numbers want a scale."""
    return self.dtype == "F8_E4M3"

  def map(self) -> np.ndarray:
    """Returns the numbers, read from the file where they are touched."""
    return np.memmap(
      self.file, _DTYPES[self.dtype], "r", offset=self.begin, shape=self.shape
    )


def read_headers(directory: pathlib.Path) -> dict[str, Stored]:
  """Returns all tensors of a directory's files by name.

  Those are the files of `model.safetensors.index.json`, else
  `model.safetensors`.

  Raises:
    FileNotFoundError: neither is there, or a file that the index names is not.
    ValueError: a file is not a whole safetensors file, or lacks a tensor that
      the index says it has, or holds numbers of an unsupported type.
  """
  if (directory / INDEX).exists():
    index = _read_index(directory / INDEX)
  elif (directory / SINGLE).exists():
    index = dict.fromkeys(read_header(directory / SINGLE), SINGLE)
  else:
    raise FileNotFoundError(
      f"No weights in {directory}: neither {INDEX} nor {SINGLE}. Other formats"
      " are not read; `save_pretrained` of transformers writes safetensors."
    )
  found = {}
  for name in sorted(set(index.values())):
    if pathlib.PurePath(name).name != name:
      raise ValueError(f"{directory / INDEX} names {name!r}, which is no file.")
    if not (directory / name).exists():
      raise FileNotFoundError(
        f"{directory / INDEX} names {name}, which is not there."
      )
    found |= read_header(directory / name)
  for name, file in index.items():
    if name not in found or found[name].file.name != file:
      raise ValueError(
        f"{directory / INDEX} says that {file} holds {name!r}, and it does not."
      )
  return found


def read_header(file: pathlib.Path) -> dict[str, Stored]:
  """Returns the tensors of one file by name; raises as `read_headers`."""
  size = file.stat().st_size
  with file.open("rb") as stream:
    length = int.from_bytes(stream.read(8), "little")
    if length > min(size - 8, _LONGEST_HEADER):
      raise ValueError(f"{file} is not a whole safetensors file.")
    try:
      header = json.loads(stream.read(length))
    except (ValueError, RecursionError) as error:
      raise ValueError(f"{file} is not a safetensors file: {error}.") from error
  if not isinstance(header, dict):
    raise ValueError(
      f"{file} is not a safetensors file: its header is a"
      f" {type(header).__name__} and no object."
    )
  header.pop("__metadata__", None)
  found = {}
  for name, entry in header.items():
    if not _is_entry(entry):
      raise ValueError(
        f"{file} is broken at tensor {name!r}: its header has {entry!r} in the"
        " place of dtype, shape and data_offsets."
      )
    begin, end = (8 + length + offset for offset in entry["data_offsets"])
    tensor = Stored(file, entry["dtype"], tuple(entry["shape"]), begin, end)
    if tensor.dtype not in _DTYPES:
      raise ValueError(
        f"Tensor {name!r} in {file} is of type {tensor.dtype}; supported are"
        f" {', '.join(_DTYPES)}."
      )
    wanted = math.prod(tensor.shape) * _DTYPES[tensor.dtype].itemsize
    if end - begin != wanted or not 8 + length <= begin <= end <= size:
      raise ValueError(f"{file} is cut off or broken at tensor {name!r}.")
    found[name] = tensor
  _check_cover(file, found, 8 + length, size)
  return found


def _read_index(path: pathlib.Path) -> dict[str, str]:
  """Returns the file of each tensor, as the index says it."""
  try:
    index = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is not JSON: {error}.") from error
  found = index.get("weight_map") if isinstance(index, dict) else None
  if not isinstance(found, dict) or not all(
    isinstance(file, str) for file in found.values()
  ):
    raise ValueError(
      f"{path} has no weight_map, an object of each tensor's file."
    )
  return found


def _is_entry(entry: Any) -> bool:
  """Whether an entry of a header has what tells of a tensor."""
  if not (isinstance(entry, dict) and isinstance(entry.get("dtype"), str)):
    return False
  shape, offsets = entry.get("shape"), entry.get("data_offsets")
  return (
    isinstance(shape, list)
    and isinstance(offsets, list)
    and len(offsets) == 2
    and all(type(x) is int and x >= 0 for x in (*shape, *offsets))
  )


def _check_cover(
  file: pathlib.Path, tensors: Mapping[str, Stored], begin: int, end: int
) -> None:
  """Raises ValueError unless tensors lie side by side and fill the file.

  As the `safetensors` library demands it: then no bytes are two tensors', and
  none are hidden.
  """
  for name, tensor in sorted(
    tensors.items(), key=lambda item: (item[1].begin, item[1].end)
  ):
    if tensor.begin != begin:
      how = "overlaps another" if tensor.begin < begin else "leaves a gap"
      raise ValueError(
        f"{file} is broken at tensor {name!r}, which {how} in the file."
      )
    begin = tensor.end
  if begin != end:
    raise ValueError(
      f"{file} is broken: {end - begin:,} bytes after its tensors are no"
      " tensor's."
    )


def require_finite(name: str, file: pathlib.Path, x: np.ndarray) -> None:
  """Raises ValueError where a number of a tensor is NaN or infinite.

  Args:
    name: of the tensor.
    file: that it is from.
    x: the numbers, or a part of them.
  """
  if x.dtype == ml_dtypes.bfloat16:
    # Many times faster than by ml_dtypes: all ones in the exponent.
    bits = x.view(np.uint16) & np.uint16(0x7F80)
    finite = not x.size or bits.max() < 0x7F80
  else:
    finite = bool(np.isfinite(x).all())
  if not finite:
    raise ValueError(
      f"Tensor {name!r} in {file} has numbers that are NaN or infinite: the"
      " file is spoilt, or the training that wrote it had diverged."
    )


def copy(x: np.ndarray) -> np.ndarray:
  """Returns the numbers of a view side by side, in memory of their own."""
  # NumPy moves integers many times faster than numbers of ml_dtypes.
  bits = np.array(x.view(f"u{x.itemsize}"), order="C")
  return bits.view(x.dtype)
