"""Safetensors files as they lie on disk, one tensor mapped at a time.

The format: the header's length in 8 bytes, the header in JSON, the numbers. The
`safetensors` library maps whole files and has no float8 in NumPy, so reading is
done here; writing is left to it.
"""

import dataclasses
import json
import math
import pathlib

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
    index = json.loads((directory / INDEX).read_text())["weight_map"]
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
    except ValueError as error:
      raise ValueError(f"{file} is not a safetensors file: {error}.") from error
  header.pop("__metadata__", None)
  found = {}
  for name, entry in header.items():
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
  return found


def copy(x: np.ndarray) -> np.ndarray:
  """Returns the numbers of a view side by side, in memory of their own."""
  # NumPy moves integers many times faster than numbers of ml_dtypes.
  bits = np.array(x.view(f"u{x.itemsize}"), order="C")
  return bits.view(x.dtype)
