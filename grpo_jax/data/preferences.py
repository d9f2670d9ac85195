"""Completions that people, rules or models judged: pairs, and labelled steps.

Read are datasets that a stage wrote (`data.records`), and JSON, JSON lines or
gzipped JSON lines of others. A pair has the fields `chosen` and `rejected`,
each a text or a message, and one of `question`, `prompt` (texts) and
`conversations` (messages). Without any of these both texts are dialogues, as
in https://github.com/anthropics/hh-rlhf, and what they have in common up to an
assistant's turn is the question.

A labelled completion has `question` and `completion`, and either one `label` or
`labels`, one for each step and null where nothing is known; labels are in
[0, 1]. A pair will do as well, for two completions: chosen 1 and rejected 0.
Traces of BIG-Bench-Mistake, https://arxiv.org/abs/2311.08516, have
`steps` and the `mistake_index` of the first wrong one. Steps before it are
right, it is wrong, and those after it have no label: nobody judged them, and
they may follow rightly from what is wrong. So has PRM800K, which stops there,
https://arxiv.org/abs/2305.20050 section 2.4.

A hash decides which split a question is in, so the splits share none; of a
dialogue it is the hash of its opening, so they share no dialogue either.
"""

import gzip
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from grpo_jax import errors
from grpo_jax.data import prompts, recipes, records
from grpo_jax.data.sources import tasks
from grpo_jax.types import Problem

_TURN = "\n\nAssistant:"
_QUESTION_FIELDS = ("question", "prompt", "conversations")
# Between the steps of a trace that has them apart; none holds one itself.
STEP_END = "\n"


class Pair(NamedTuple):
  """Two completions of one problem.

  Attributes:
    problem: without a prompt.
    chosen: the preferred one.
    rejected: the other.
    margin: by how much chosen was better, as the record says; 0 if it does not.
  """

  problem: Problem
  chosen: str
  rejected: str
  margin: float


class Labelled(NamedTuple):
  """A completion with what is known of its steps.

  Attributes:
    problem: without a prompt.
    completion: the text.
    labels: of each step, or one of the whole text: the probability that it is
      right (harmless); None where nothing is known.
  """

  problem: Problem
  completion: str
  labels: tuple[float | None, ...]


_Row = TypeVar("_Row", Pair, Labelled)


def pairs(path: str | os.PathLike[str], split: str) -> list[Pair]:
  """The pairs of one split; those of two equal texts are left out.

  Args:
    path: a dataset, a file, or a folder of JSON lines; environment variables
      such as $GRPO_JAX_DATA stand for their values.
    split: "train" or "test".

  Raises:
    FileNotFoundError: there is nothing at `path`.
    ValueError: a record is no pair, or there are none in the split.
  """
  found = _read(path, split, lambda record, where: [_pair(record, where)])
  return [pair for pair in found if pair.chosen != pair.rejected]


def labelled(path: str | os.PathLike[str], split: str) -> list[Labelled]:
  """The completions of one split of which some label is known.

  Args:
    path: as for `pairs`.
    split: as for `pairs`.

  Raises:
    FileNotFoundError: there is nothing at `path`.
    ValueError: a record has no labels, or there are none in the split.
  """
  found = _read(path, split, _labelled)
  return [row for row in found if any(x is not None for x in row.labels)]


def corpus(*, path: str, template: str = "bare") -> recipes.Recipe:
  """Training questions, answered well: what a small base model learns from.

  Of a pair it has the preferred text, of a labelled completion all of it.

  Args:
    path: as for `pairs`.
    template: name or file of the template before a completion.
  """
  text = prompts.read_template(template)

  def documents() -> Iterator[Mapping[str, str]]:
    # Of a pair the first one is the preferred.
    for row in _read(path, "train", lambda r, where: _labelled(r, where)[:1]):
      prompt = text.replace("{question}", row.problem.question)
      yield {"text": prompt + row.completion}

  key = recipes.content_hash(_files(path)), recipes.fingerprint(text)
  return recipes.Recipe(
    key="-".join(key),
    origin=path,
    fields=("text",),
    splits=lambda _: {"train": documents()},
    convert=str,
  )


def _read(
  path: str | os.PathLike[str],
  split: str,
  convert: Callable[[Mapping[str, Any], str], list[_Row]],
) -> list[_Row]:
  if split not in tasks.SPLITS:
    raise ValueError(f"{split=} must be one of {', '.join(tasks.SPLITS)}.")
  rows = [
    row
    for where, record in _records(path)
    for row in convert(record, where)
    if split_of(row.problem.question) == split
  ]
  if not rows:
    raise ValueError(f"{path} has no records for the split {split!r}.")
  return rows


def split_of(question: str) -> str:
  """The split that a question belongs to; nine in ten are for training."""
  return tasks.split_of((question.partition(_TURN)[0],))


def _records(
  path: str | os.PathLike[str],
) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """Each record, and where it stands."""
  for file in _files(path):
    yield from _records_of(file)


def _files(path: str | os.PathLike[str]) -> list[pathlib.Path]:
  """The files that a path stands for; at least one, and all are there."""
  root = pathlib.Path(os.path.expandvars(path)).expanduser()
  if records.is_dataset(root):
    files = [root / records.RECORDS]
  elif root.is_dir():
    files = sorted(root.glob("*.jsonl"))
  else:
    files = [root]
  if not files or not files[0].is_file():
    raise FileNotFoundError(
      f"There are no judged completions in {root}: name a file or a folder of"
      f" JSON lines, or run `{errors.made_by(root)}` first."
    )
  return files


def _records_of(
  file: pathlib.Path,
) -> Iterator[tuple[str, Mapping[str, Any]]]:
  try:
    if file.suffix == ".json":
      numbered = enumerate(json.loads(file.read_text("utf-8")), start=1)
      found = [(f"{file}, record {n}", record) for n, record in numbered]
    else:
      opened = gzip.open if file.suffix == ".gz" else open
      with opened(file, "rt", encoding="utf-8") as lines:
        found = [
          (f"{file}, line {number}", json.loads(line))
          for number, line in enumerate(lines, start=1)
          if line.strip()
        ]
  except ValueError as error:
    raise ValueError(f"{file} is no valid JSON: {error}.") from error
  for where, record in found:
    if not isinstance(record, dict):
      raise ValueError(f"{where}: a JSON object is needed, not {record!r}.")
    yield where, record


def _pair(record: Mapping[str, Any], where: str) -> Pair:
  if not ("chosen" in record and "rejected" in record):
    raise ValueError(
      f"{where}: a pair has the fields 'chosen' and 'rejected', not"
      f" {', '.join(record)}."
    )
  chosen, rejected = (_text(record[name], where) for name in _SIDES)
  question = _question(record, where)
  if question is None:
    question = _common_prompt(chosen, rejected, where)
    chosen, rejected = chosen[len(question) :], rejected[len(question) :]
  margin = float(record.get("margin", 0.0))
  return Pair(_problem(record, question), chosen, rejected, margin)


_SIDES = ("chosen", "rejected")


def _labelled(record: Mapping[str, Any], where: str) -> list[Labelled]:
  if "chosen" in record:
    pair = _pair(record, where)
    return [
      Labelled(pair.problem, pair.chosen, (1.0,)),
      Labelled(pair.problem, pair.rejected, (0.0,)),
    ]
  if "mistake_index" in record:
    steps, mistake = record["steps"], record["mistake_index"]
    labels = [1.0] * len(steps)
    if mistake is not None:
      unknown = [None] * (len(steps) - mistake - 1)
      labels = [*labels[:mistake], 0.0, *unknown]
    # A blank step is none.
    kept = [x for x in zip(steps, labels, strict=True) if x[0].strip()]
    completion = STEP_END.join(step for step, _ in kept)
    problem = _problem(record, record["input"])
    return [Labelled(problem, completion, tuple(x for _, x in kept))]
  question = _question(record, where)
  if question is None or "completion" not in record:
    raise ValueError(
      f"{where}: a labelled completion has the fields 'question', 'completion'"
      f" and 'label' or 'labels', not {', '.join(record)}."
    )
  labels = record["labels"] if "labels" in record else [record.get("label")]
  # A field of a record is no list of numbers, so these are JSON themselves.
  labels = json.loads(labels) if isinstance(labels, str) else labels
  for label in labels:
    if label is not None and not 0 <= label <= 1:
      raise ValueError(f"{where}: the label {label} must be in [0, 1].")
  labels = tuple(None if x is None else float(x) for x in labels)
  completion = _text(record["completion"], where)
  return [Labelled(_problem(record, question), completion, labels)]


def _problem(record: Mapping[str, Any], question: str) -> Problem:
  answer, source = record.get("answer", ""), record.get("source", "preferences")
  return Problem(question, str(answer), str(source), prompt="")


def _question(record: Mapping[str, Any], where: str) -> str | None:
  """The question of a record; several messages one after the other."""
  for name in _QUESTION_FIELDS:
    if name in record:
      value = record[name]
      if not isinstance(value, list):
        return _text(value, where)
      said = [(_speaker(m), _text(m, where)) for m in value]
      if len(said) == 1:
        return said[0][1]
      return "\n\n".join(f"{speaker}: {text}" for speaker, text in said)
  return None


def _text(value: Any, where: str) -> str:
  """A text, or that of a message."""
  if isinstance(value, dict):
    value = value.get("content", value.get("value"))
  if not isinstance(value, str):
    raise ValueError(f"{where}: a text or a message is needed, not {value!r}.")
  return value


def _speaker(message: Mapping[str, Any]) -> str:
  return str(message.get("role", message.get("from", ""))).capitalize()


def _common_prompt(chosen: str, rejected: str, where: str) -> str:
  common = os.path.commonprefix([chosen, rejected])
  end = common.rfind(_TURN)
  if end < 0:
    raise ValueError(
      f"{where}: there is no question, and the texts are no dialogues that"
      f" begin alike and have a turn {_TURN.strip()!r}."
    )
  return common[: end + len(_TURN)]
