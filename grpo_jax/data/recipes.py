"""How a dataset is made: what its own file says and `datasets.load` keeps."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from grpo_jax import errors
from grpo_jax.types import Example, Problem

Splits = Mapping[str, Iterator[Mapping[str, str]]]


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a dataset is made and read.

  Attributes:
    key: names all that the records depend on.
    origin: what they are made from, for messages.
    fields: names of a record's texts.
    splits: records per split, made or read when asked for.
    convert: a record's texts to what `load` returns.
  """

  key: str
  origin: str
  fields: tuple[str, ...]
  splits: Callable[[tfds.download.DownloadManager], Splits]
  convert: Callable[..., Problem | Example | str]


def problem(source: str) -> Callable[[str, str], Problem]:
  """What makes a question and an answer a problem of this source."""
  return functools.partial(Problem, source=source, prompt="")


def mix(kind: type, name: str, given: Mapping[str, Any] | None) -> Any:
  """The proportions of a corpus: a dataclass, with what differs filled in.

  Args:
    kind: the dataclass.
    name: of the corpus, for messages.
    given: fields that differ.

  Raises:
    ValueError: there is no such field.
  """
  fields = {field.name for field in dataclasses.fields(kind)}
  for field in given or {}:
    if field not in fields:
      raise ValueError(
        f"The mix of {name} has no field {field!r};"
        f" {errors.nearest(field, fields)}"
      )
  return kind(**(given or {}))


def fingerprint(*texts: str) -> str:
  """A short name for texts."""
  digest = hashlib.blake2b(digest_size=5)
  for text in texts:
    digest.update(text.encode() + b"\0")
  return digest.hexdigest()


def content_hash(files: Iterable[pathlib.Path]) -> str:
  """A short name for the content of files, which must exist."""
  digest = hashlib.blake2b(digest_size=8)
  for file in files:
    if not file.is_file():
      raise FileNotFoundError(f"{file} is not a file.")
    with file.open("rb") as content:
      digest.update(hashlib.file_digest(content, "sha256").digest())
  return digest.hexdigest()
