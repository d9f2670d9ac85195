"""Conversations to learn from: what a stage wrote, or a file of the user's."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from grpo_jax import errors
from grpo_jax.data import recipes, records
from grpo_jax.data.sources import user_files
from grpo_jax.types import Example

# Names under which files have the two sides; the first that is there counts.
_ASKED = "prompt", "question"
_ANSWERED = "completion", "answer"


def examples(*, path: str, source: str = "records") -> recipes.Recipe:
  """Conversations from records of a stage or from a file.

  A file is what `user_files.read_records` reads. A record has `messages`, of
  which one at least is the assistant's; or the two texts of one turn, as
  `prompt` or `question` and `completion` or `answer`.

  Args:
    path: a directory that a stage wrote (`data/records.py`), or a file.
    source: what `Example.source` says where a record has no `source`.
  """
  root = pathlib.Path(path)
  file = root / records.RECORDS if records.is_dataset(root) else root
  if not file.is_file():
    command = errors.run_behind(path)
    todo = f"run `{command}` first" if command else "give another path"
    raise FileNotFoundError(
      f"No conversations in {path!r}, neither a file nor a dataset that a stage"
      f" wrote; {todo}."
    )

  def texts() -> Iterator[Mapping[str, str]]:
    for where, record in user_files.read_records(file):
      messages = _messages(record, where)
      yield {
        "messages": json.dumps(messages, ensure_ascii=False),
        "source": str(record.get("source", source)),
      }

  return recipes.Recipe(
    key=f"{recipes.content_hash([file])}-{recipes.fingerprint(source)}",
    origin=path,
    fields=("messages", "source"),
    splits=lambda _: {"train": texts()},
    convert=lambda messages, source: Example(
      tuple(json.loads(messages)), source
    ),
  )


def _messages(record: dict[str, Any], where: str) -> list[dict[str, Any]]:
  if "messages" not in record:
    return [
      {"role": "user", "content": _text(record, _ASKED, where)},
      {"role": "assistant", "content": _text(record, _ANSWERED, where)},
    ]
  messages = record["messages"]
  if not isinstance(messages, list) or not all(
    isinstance(message, dict) and isinstance(message.get("role"), str)
    for message in messages
  ):
    raise ValueError(
      f"{where}: 'messages' must be a list of objects with a role, not"
      f" {messages!r}."
    )
  if all(message["role"] != "assistant" for message in messages):
    raise ValueError(f"{where}: no message is of the role 'assistant'.")
  return messages


def _text(record: dict[str, Any], names: tuple[str, ...], where: str) -> str:
  for name in names:
    if name in record:
      value = record[name]
      if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{where}: {name!r} must be text, not {value!r}.")
      if not str(value):
        raise ValueError(f"{where}: {name!r} is empty.")
      return str(value)
  present = ", ".join(map(repr, record)) or "none"
  raise ValueError(
    f"{where}: neither 'messages' nor {' nor '.join(map(repr, names))}; it has"
    f" {present}."
  )
