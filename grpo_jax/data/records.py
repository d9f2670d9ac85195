"""Datasets that a stage writes: records that other stages and people read.

A directory holds

  records.jsonl  one JSON object per record
  tfds/          the same records for TFDS, without TensorFlow:
                 `tfds.builder_from_directory(DIR / "tfds")`, split "train"
  dataset.json   where they came from, and what was left out

A field of a record is a str, an int, a float, a bool or a list of messages,
each with a `role` and a `content`. TFDS keeps floats in 32 bits, and gives
messages back as a list of roles and one of contents. All records have the same
fields.
"""

import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from grpo_jax.data import storage

RECORDS, TFDS, PROVENANCE = "records.jsonl", "tfds", "dataset.json"
_MESSAGE = {"role", "content"}
_FEATURES = {
  "str": tfds.features.Text,
  "int": lambda: tfds.features.Scalar(np.int64),
  "float": lambda: tfds.features.Scalar(np.float32),
  "bool": lambda: tfds.features.Scalar(np.bool_),
  "messages": lambda: tfds.features.Sequence(
    {"role": tfds.features.Text(), "content": tfds.features.Text()}
  ),
}


def write(
  directory: str | os.PathLike[str],
  rows: Iterable[Mapping[str, Any]],
  provenance: Mapping[str, Any],
) -> None:
  """Writes a dataset, which appears whole or not at all.

  Args:
    directory: of the dataset; must not exist.
    rows: records, read once.
    provenance: for `dataset.json`: stage, config, source, tokenizer, counts,
      seed. It is read after the rows, so their generator may still count; the
      number of records and their fields are added.

  Raises:
    ValueError: the directory exists; there are no rows; or a row has other
      fields than those before it, or a value of another kind.
  """
  directory = pathlib.Path(directory).absolute()
  if directory.exists():
    raise ValueError(
      f"{directory} is already there; remove it to write the dataset again."
    )
  directory.parent.mkdir(parents=True, exist_ok=True)
  partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir()
  try:
    count, kinds = _write_jsonl(partial / RECORDS, rows)
    if not count:
      told = f" Counts: {c}." if (c := provenance.get("counts")) else ""
      raise ValueError(f"No record is left to write to {directory}.{told}")
    content = dict(provenance) | {"num_records": count, "fields": kinds}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (partial / PROVENANCE).write_text(text + "\n", encoding="utf-8")
    _write_tfds(partial, kinds)
    partial.rename(directory)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def read(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The records of a dataset, in the order in which they were written.

  Raises:
    FileNotFoundError: the directory holds no dataset.
  """
  return list(_read_jsonl(_file(directory, RECORDS)))


def provenance(directory: str | os.PathLike[str]) -> dict[str, Any]:
  """What `write` was told of a dataset, with `num_records` and `fields`.

  Raises:
    FileNotFoundError: the directory holds no dataset.
  """
  return json.loads(_file(directory, PROVENANCE).read_text(encoding="utf-8"))


def is_dataset(directory: str | os.PathLike[str]) -> bool:
  """Returns whether a directory holds what `write` writes."""
  return (pathlib.Path(directory) / PROVENANCE).is_file()


def _file(directory: str | os.PathLike[str], name: str) -> pathlib.Path:
  if not is_dataset(directory):
    raise FileNotFoundError(f"{directory} holds no dataset ({PROVENANCE}).")
  return pathlib.Path(directory) / name


def _write_jsonl(
  path: pathlib.Path, rows: Iterable[Mapping[str, Any]]
) -> tuple[int, dict[str, str]]:
  """The number of rows written, and the kind of each field."""
  kinds: dict[str, str] = {}
  count = 0
  with path.open("w", encoding="utf-8") as file:
    for row in rows:
      found = {name: _kind(name, value) for name, value in row.items()}
      kinds = kinds or found
      if found != kinds:
        raise ValueError(
          f"Record {count} has the fields {found}, the first one {kinds}."
        )
      file.write(json.dumps(row, ensure_ascii=False) + "\n")
      count += 1
  return count, kinds


def _kind(name: str, value: Any) -> str:
  if isinstance(value, list):
    if value and all(_is_message(message) for message in value):
      return "messages"
  elif isinstance(value, bool | int | str):
    return type(value).__name__
  elif isinstance(value, float) and math.isfinite(value):
    return "float"
  raise ValueError(
    f"A record's field {name!r} must be a str, an int, a finite float, a bool"
    f" or a list of messages with role and content, not {value!r}."
  )


def _is_message(message: Any) -> bool:
  return (
    isinstance(message, dict)
    and message.keys() == _MESSAGE
    and all(isinstance(text, str) for text in message.values())
  )


def _read_jsonl(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  with path.open(encoding="utf-8") as lines:
    yield from map(json.loads, lines)


def _write_tfds(directory: pathlib.Path, kinds: Mapping[str, str]) -> None:
  building = directory / f"{TFDS}.building"
  builder = storage.prepare(
    lambda: storage.Builder(
      "records",
      building,
      features={name: _FEATURES[kind]() for name, kind in kinds.items()},
      splits=lambda _: {"train": _read_jsonl(directory / RECORDS)},
      origin=str(directory),
    )
  )
  # The dataset alone, without TFDS's folders for its name and version.
  pathlib.Path(builder.data_dir).rename(directory / TFDS)
  shutil.rmtree(building)
