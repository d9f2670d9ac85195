"""Files of the user's: problems from JSON lines, documents from text."""

import hashlib
import io
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from grpo_jax.data import recipes
from grpo_jax.data.sources import tasks


def jsonl(
  *,
  path: str,
  question: str = "question",
  answer: str = "answer",
  source: str = "jsonl",
  test_share: float = 0.0,
) -> recipes.Recipe:
  """Problems from JSON lines.

  Args:
    path: a file, which is the training split; or a folder with train.jsonl,
      test.jsonl or both.
    question: name of the field with the question, a text.
    answer: name of the field with the reference answer, a text or a number.
    source: what `Problem.source` says; it chooses the verifier.
    test_share: of a single file, the share of questions that a hash of the
      question puts in the test split instead; in [0, 1).
  """
  root = pathlib.Path(path)
  if not 0 <= test_share < 1:
    raise ValueError(f"{test_share=} must be at least 0 and below 1.")
  if root.is_dir():
    if test_share:
      raise ValueError(f"{test_share=} needs a file; {path} is a folder.")
    files = {split: root / f"{split}.jsonl" for split in tasks.SPLITS}
    files = {split: file for split, file in files.items() if file.exists()}
    if not files:
      raise FileNotFoundError(f"{path} has no train.jsonl and no test.jsonl.")
  else:
    files = {"train": root}
  content = recipes.content_hash(files.values())
  options = recipes.fingerprint(*files, question, answer, str(test_share))

  def records(split: str) -> Iterator[Mapping[str, str]]:
    file = files.get(split, root)
    for _, record in read_jsonl(file, (question, answer)):
      text = record[question]
      held_out = test_share and _unit_hash(text) < test_share
      if not test_share or held_out == (split == "test"):
        yield {"question": text, "answer": record[answer]}

  names = tasks.SPLITS if test_share else tuple(files)
  return recipes.Recipe(
    key=f"{content}-{options}",
    origin=path,
    fields=("question", "answer"),
    splits=lambda _: {split: records(split) for split in names},
    convert=recipes.problem(source),
  )


def text_files(*, path: str, unit: str = "paragraph") -> recipes.Recipe:
  """Documents from text files.

  Args:
    path: a file, or a folder of which all .txt files are read, also deeper.
    unit: what one document is: a "paragraph", which blank lines separate, or a
      "file".
  """
  units = {"paragraph": _paragraphs, "file": _whole}
  if unit not in units:
    raise ValueError(f"{unit=} must be one of {', '.join(units)}.")
  root = pathlib.Path(path)
  files = sorted(root.rglob("*.txt")) if root.is_dir() else [root]
  if not files:
    raise FileNotFoundError(f"{path} holds no .txt file.")
  content = recipes.content_hash(files)

  def documents() -> Iterator[Mapping[str, str]]:
    for file in files:
      try:
        with file.open(encoding="utf-8") as lines:
          for document in units[unit](lines):
            yield {"text": document}
      except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}.") from error

  return recipes.Recipe(
    key=f"{unit}-{content}",
    origin=path,
    fields=("text",),
    splits=lambda _: {"train": documents()},
    convert=str,
  )


def _paragraphs(lines: io.TextIOBase) -> Iterator[str]:
  paragraph = []
  for line in lines:
    if line.strip():
      paragraph.append(line)
    elif paragraph:
      yield "".join(paragraph).rstrip("\n")
      paragraph = []
  if paragraph:
    yield "".join(paragraph).rstrip("\n")


def _whole(lines: io.TextIOBase) -> Iterator[str]:
  text = lines.read()
  if text.strip():
    yield text


def read_jsonl(
  file: pathlib.Path, fields: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, str]]]:
  """Line numbers, from 1, and the fields of each line as text."""
  for number, record in read_objects(file):
    yield number, _texts_of(record, fields, f"{file}, line {number}")


def read_objects(
  file: pathlib.Path,
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Line numbers, from 1, and the JSON object of each line."""
  try:
    # utf-8-sig also takes files that begin with a byte order mark.
    with file.open(encoding="utf-8-sig") as lines:
      for number, line in enumerate(lines, start=1):
        if line.strip():
          yield number, _object(line, f"{file}, line {number}")
  except UnicodeDecodeError as error:
    raise ValueError(f"{file} is not UTF-8 text: {error}.") from error


def _object(line: str, where: str) -> dict[str, Any]:
  try:
    record = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f"{where}: no valid JSON ({error}).") from error
  if not isinstance(record, dict):
    raise ValueError(f"{where}: a JSON object is needed, not {line.strip()!r}.")
  return record


def _texts_of(
  record: dict[str, Any], fields: tuple[str, ...], where: str
) -> dict[str, str]:
  texts = {}
  for field in fields:
    if field not in record:
      present = ", ".join(map(repr, record)) or "none"
      raise ValueError(f"{where}: no field {field!r}; it has {present}.")
    value = record[field]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
      raise ValueError(
        f"{where}: {field!r} must be text or a number, not {value!r}."
      )
    texts[field] = str(value)
    if not texts[field].strip():
      raise ValueError(f"{where}: {field!r} is empty.")
  return texts


def _unit_hash(text: str) -> float:
  digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
  return int.from_bytes(digest, "big") / 2**64
