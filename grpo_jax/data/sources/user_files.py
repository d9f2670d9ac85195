"""Files of the user's: problems from JSON or CSV, documents from text."""

import csv
import hashlib
import io
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from grpo_jax.data import recipes
from grpo_jax.data.sources import tasks
from grpo_jax.types import Problem


def jsonl(
  *,
  path: str,
  question: str = "question",
  answer: str = "answer",
  source: str = "jsonl",
  test: str = "",
  test_share: float = 0.0,
) -> recipes.Recipe:
  """Problems from JSON lines, from a list in a .json file, or from .csv.

  What a file has besides question and answer is in `Problem.columns`, where
  reward functions read it by its name: values of JSON, or the texts of CSV.

  Args:
    path: a file, which is the training split; or a folder with train.jsonl,
      test.jsonl or both.
    question: name of the field with the question, a text.
    answer: name of the field with the reference answer, a text or a number.
    source: what `Problem.source` says; it chooses the rule that grades, such as
      "math", "number", "choice" or "text". By default each problem is graded by
      what its reference answer is.
    test: a file beside `path`, which is the test split.
    test_share: of a single file, the share of questions that a hash of the
      question puts in the test split instead; in [0, 1).

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: options that exclude each other; a record lacks a field or has
      something else in it than text; or no question is in the test share.
  """
  files = _files(path, test, test_share)
  content = recipes.content_hash(files.values())
  options = question, answer, str(test_share), "columns"

  def records(split: str) -> Iterator[Mapping[str, str]]:
    found = False
    for where, record in read_records(files.get(split, pathlib.Path(path))):
      for field, name in (("question", question), ("answer", answer)):
        if name not in record:
          raise ValueError(
            f"{where}: no field {name!r}; it has {_names(record)}. Name yours"
            f" with {field}=NAME."
          )
      texts = _texts_of(record, (question, answer), where)
      text = texts[question]
      held_out = test_share and _unit_hash(text) < test_share
      if test_share and held_out != (split == "test"):
        continue
      found = True
      columns = {k: record[k] for k in record if k not in (question, answer)}
      yield {
        "question": text,
        "answer": texts[answer],
        "columns": json.dumps(columns, ensure_ascii=False),
      }
    if test_share and not found:
      raise ValueError(
        f"{path} has no question for the {split} split at {test_share=}: give"
        " another share, or a file with test=FILE."
      )

  names = tasks.SPLITS if test_share else tuple(files)
  return recipes.Recipe(
    key=f"{content}-{recipes.fingerprint(*files, *options)}",
    origin=path,
    fields=("question", "answer", "columns"),
    splits=lambda _: {split: records(split) for split in names},
    convert=lambda question, answer, columns: Problem(
      question, answer, source, prompt="", columns=json.loads(columns)
    ),
  )


def _files(path: str, test: str, test_share: float) -> dict[str, pathlib.Path]:
  """The files of `jsonl` by split; of a test share, the training file alone."""
  root = pathlib.Path(path)
  if not 0 <= test_share < 1:
    raise ValueError(f"{test_share=} must be at least 0 and below 1.")
  if test and test_share:
    raise ValueError(f"{test=} and {test_share=} exclude each other.")
  if not root.is_dir():
    return {"train": root} | ({"test": pathlib.Path(test)} if test else {})
  for name, value in (("test", test), ("test_share", test_share)):
    if value:
      raise ValueError(f"{name}={value!r} needs a file; {path} is a folder.")
  files = {split: root / f"{split}.jsonl" for split in tasks.SPLITS}
  files = {split: file for split, file in files.items() if file.exists()}
  if not files:
    raise FileNotFoundError(f"{path} has no train.jsonl and no test.jsonl.")
  return files


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


def read_records(file: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Where each record is, for messages, and its fields.

  Args:
    file: `.json`, a list of objects; `.csv`, whose first line has the names; of
      any other ending, JSON lines.
  """
  readers = {".json": _list, ".csv": _table}
  if file.suffix in readers:
    yield from readers[file.suffix](file)
    return
  for number, record in read_objects(file):
    yield f"{file}, line {number}", record


def _list(file: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  try:
    content = json.loads(file.read_text(encoding="utf-8-sig"))
  except ValueError as error:
    raise ValueError(f"{file}: no valid JSON ({error}).") from error
  if not isinstance(content, list):
    raise ValueError(f"{file}: a list of JSON objects is needed.")
  for number, record in enumerate(content, start=1):
    where = f"{file}, record {number}"
    if not isinstance(record, dict):
      raise ValueError(f"{where}: a JSON object is needed, not {record!r}.")
    yield where, record


def _table(file: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  try:
    with file.open(encoding="utf-8-sig", newline="") as lines:
      reader = csv.DictReader(lines)
      for record in reader:
        where = f"{file}, line {reader.line_num}"
        if None in record or None in record.values():
          raise ValueError(
            f"{where}: as many cells are needed as names in the first line."
          )
        yield where, record
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
      raise ValueError(f"{where}: no field {field!r}; it has {_names(record)}.")
    value = record[field]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
      raise ValueError(
        f"{where}: {field!r} must be text or a number, not {value!r}."
      )
    texts[field] = str(value)
    if not texts[field].strip():
      raise ValueError(f"{where}: {field!r} is empty.")
  return texts


def _names(record: Mapping[str, Any]) -> str:
  return ", ".join(map(repr, record)) or "none"


def _unit_hash(text: str) -> float:
  digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
  return int.from_bytes(digest, "big") / 2**64
