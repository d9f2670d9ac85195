"""GSM8K: https://github.com/openai/grade-school-math, MIT licence."""

import hashlib
import os
import pathlib
import re
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from grpo_jax.data import prompts, recipes
from grpo_jax.data.sources import tasks, user_files

_URL = (
  "https://raw.githubusercontent.com/openai/grade-school-math/master/"
  "grade_school_math/data/{split}.jsonl"
)
_SHA256 = {
  "train": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
  "test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
}


def problems(*, path: str | None = None) -> recipes.Recipe:
  """Grade-school problems; the answer is the integer after `####`.

  Args:
    path: a folder with train.jsonl and test.jsonl; None looks in
      $GRPO_JAX_DATA/gsm8k and else downloads from the publisher.
  """
  key, files = _find(path)

  def splits(downloads: tfds.download.DownloadManager) -> recipes.Splits:
    return {
      split: (
        {"question": question, "answer": answer}
        for question, _, answer in _records(file)
      )
      for split, file in files(downloads).items()
    }

  return recipes.Recipe(
    key=key,
    origin="gsm8k",
    fields=("question", "answer"),
    splits=splits,
    convert=recipes.problem("gsm8k"),
  )


def corpus(
  *, path: str | None = None, template: str = "plain"
) -> recipes.Recipe:
  """GSM8K's training problems with their solutions as thinking.

  Calculator annotations (`<<48/2=24>>`) are removed.

  Args:
    path: as for gsm8k.
    template: name or file of the template before an answer.
  """
  text = prompts.read_template(template)
  key, files = _find(path)

  def documents(file: pathlib.Path) -> Iterator[Mapping[str, str]]:
    for question, thoughts, answer in _records(file):
      prompt = text.replace("{question}", question)
      completion = f"<think>{thoughts}</think><answer>{answer}</answer>"
      yield {"text": prompt + completion}

  return recipes.Recipe(
    key=f"{key}-{recipes.fingerprint(text)}",
    origin="gsm8k_corpus",
    fields=("text",),
    splits=lambda downloads: {"train": documents(files(downloads)["train"])},
    convert=str,
  )


def _find(
  path: str | None,
) -> tuple[str, Callable[[Any], dict[str, pathlib.Path]]]:
  """A name for the content, and where the files are once downloaded."""
  folder = pathlib.Path(path) if path else None
  if folder is None and "GRPO_JAX_DATA" in os.environ:
    beside = pathlib.Path(os.environ["GRPO_JAX_DATA"]) / "gsm8k"
    folder = beside if beside.is_dir() else None
  if folder is not None:
    files = {split: folder / f"{split}.jsonl" for split in tasks.SPLITS}
    key = f"local-{recipes.content_hash(files.values())}"
    return key, lambda downloads: files
  return "published", _download


def _download(
  downloads: tfds.download.DownloadManager,
) -> dict[str, pathlib.Path]:
  urls = {split: _URL.format(split=split) for split in tasks.SPLITS}
  try:
    # TFDS tries for minutes where there is no network; this fails at once.
    for url in urls.values():
      urllib.request.urlopen(url, timeout=30).close()
    files: Any = downloads.download(urls)
  except (OSError, tfds.download.DownloadError) as error:
    raise ConnectionError(
      f"GSM8K could not be downloaded from {urls['train']}; put train.jsonl "
      "and test.jsonl in a folder and name it with the option path, or set "
      f"GRPO_JAX_DATA to the folder that holds gsm8k/. ({error})"
    ) from error
  for split, file in files.items():
    content = pathlib.Path(file).read_bytes()
    if hashlib.sha256(content).hexdigest() != _SHA256[split]:
      raise ConnectionError(
        f"{urls[split]} gave another file than the one published (SHA-256)."
      )
  return {split: pathlib.Path(file) for split, file in files.items()}


def _records(file: pathlib.Path) -> Iterator[tuple[str, str, str]]:
  """Question, solution without annotations, and final answer of each line."""
  for line, record in user_files.read_jsonl(file, ("question", "answer")):
    thoughts, mark, answer = record["answer"].rpartition("####")
    if not mark:
      raise ValueError(f"{file}, line {line}: the answer has no '####'.")
    thoughts = re.sub(r"<<.*?>>", "", thoughts).strip()
    yield record["question"], thoughts, answer.strip().replace(",", "")
