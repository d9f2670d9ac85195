"""Problems and documents by name, kept as TFDS datasets of ArrayRecord files.

`load` prepares a dataset once and reads it at random access ever after; no
TensorFlow is involved. What a dataset is made from is part of the name it is
kept under: another seed or size, an edited file of the user's, or a new
version of the generating code is another dataset, so nothing stale is read.
An interrupted preparation is done again.

To add a dataset, write a function that returns a `Recipe` and name it in
`DATASETS`; its keyword arguments are the dataset's options.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import io
import json
import os
import pathlib
import re
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from grpo_jax import configs
from grpo_jax.data import countdown, prompts, storage, tasks
from grpo_jax.types import Problem

_GSM8K_URL = (
  "https://raw.githubusercontent.com/openai/grade-school-math/master/"
  "grade_school_math/data/{split}.jsonl"
)
_GSM8K_SHA256 = {
  "train": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
  "test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
}
_IN_MEMORY = 1 << 28  # Bytes; one read from a file costs about 0.4 ms.

_Splits = Mapping[str, Iterator[Mapping[str, str]]]


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
  splits: Callable[[tfds.download.DownloadManager], _Splits]
  convert: Callable[..., Problem | str]


def load(
  name: str, split: str, *, data_dir: str | os.PathLike[str], **options: Any
) -> Sequence[Problem] | Sequence[str]:
  """One split of a dataset, prepared first where that has not been done.

  Args:
    name: a name in `DATASETS`.
    split: "train" or "test"; a corpus has "train" only.
    data_dir: where datasets are kept; several processes may share it.
    **options: keyword arguments of the dataset's function.

  Returns:
    `Problem`s whose `prompt` is empty, or, for a corpus, texts; by index.

  Raises:
    ValueError: an unknown name, split or option; bad or missing records.
    FileNotFoundError: a file that the dataset is read from does not exist.
    ConnectionError: a download failed.
  """
  if name not in DATASETS:
    raise ValueError(f"No dataset {name!r}; {configs.nearest(name, DATASETS)}")
  make = DATASETS[name]
  known = inspect.signature(make).parameters
  for option in options:
    if option not in known:
      raise ValueError(
        f"Dataset {name} has no option {option!r};"
        f" {configs.nearest(option, known)}"
      )
  for option, parameter in known.items():
    if parameter.default is parameter.empty and option not in options:
      raise ValueError(f"Dataset {name} needs the option {option!r}.")
  recipe = make(**options)
  builder = storage.prepare(lambda: _builder(name, recipe, os.fspath(data_dir)))
  if split not in builder.info.splits:
    raise ValueError(
      f"Dataset {name} has no split {split!r}, only "
      f"{', '.join(builder.info.splits)}."
    )
  with storage.quiet():
    source = builder.as_data_source(split)
  records = _Records(source, recipe)
  if builder.info.splits[split].num_bytes > _IN_MEMORY:
    return records
  return records.read_all()


class _Records(Sequence):
  """Records of one split, read one by one."""

  def __init__(self, source: Any, recipe: Recipe):
    self._source = source
    self._recipe = recipe

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Problem | str:
    if not -len(self) <= index < len(self):
      raise IndexError(f"{index=} of {len(self)} records.")
    return self._convert(self._source[index % len(self)])

  def read_all(self) -> list[Problem | str]:
    return list(map(self._convert, self._source.__getitems__(range(len(self)))))

  def _convert(self, record: Mapping[str, bytes]) -> Problem | str:
    texts = (record[field].decode() for field in self._recipe.fields)
    return self._recipe.convert(*texts)


# The built-in tasks.


def task_problems(
  task: str,
  *,
  train_size: int | None = None,
  test_size: int | None = None,
  seed: int = 0,
) -> Recipe:
  """Problems of a built-in task, see `tasks.problems`.

  Args:
    task: its name.
    train_size: number of training problems; None takes the task's own.
    test_size: number of test problems; None takes the task's own.
    seed: which ones.
  """
  sizes = {
    "train": tasks.TASKS[task].train_size if train_size is None else train_size,
    "test": tasks.TASKS[task].test_size if test_size is None else test_size,
  }
  code = _fingerprint(inspect.getsource(tasks))

  def records(split: str) -> Iterator[Mapping[str, str]]:
    for p in tasks.problems(task, split, size=sizes[split], seed=seed):
      yield {"question": p.question, "answer": p.answer}

  return Recipe(
    key=f"train{sizes['train']}-test{sizes['test']}-seed{seed}-{code}",
    origin=task,
    fields=("question", "answer"),
    splits=lambda _: {split: records(split) for split in sizes},
    convert=_problem(task),
  )


def task_corpus(
  task: str,
  *,
  size: int = 100_000,
  seed: int = 0,
  template: str = "plain",
  mix: Mapping[str, Any] | None = None,
) -> Recipe:
  """Documents about a built-in task, see `tasks.corpus`.

  Args:
    task: its name.
    size: number of documents.
    seed: which ones.
    template: name or file of the template before an answer.
    mix: fields of the task's mix that differ from its default.
  """
  text = prompts.read_template(template)
  fields = {f.name for f in dataclasses.fields(tasks.TASKS[task].mix)}
  for field in mix or {}:
    if field not in fields:
      raise ValueError(
        f"The mix of {task} has no field {field!r};"
        f" {configs.nearest(field, fields)}"
      )
  proportions = tasks.TASKS[task].mix(**(mix or {}))
  code = _fingerprint(inspect.getsource(tasks), text, repr(proportions))
  return Recipe(
    key=f"{size}-seed{seed}-{code}",
    origin=f"{task}_corpus with {size=}",
    fields=("text",),
    splits=lambda _: {
      "train": (
        {"text": document}
        for document in tasks.corpus(
          task, size=size, seed=seed, template=text, mix=proportions
        )
      )
    },
    convert=str,
  )


def countdown_problems(
  *,
  train_size: int = 20_000,
  test_size: int = 1_000,
  seed: int = 0,
  num_numbers: int = 4,
  largest_number: int = 99,
  largest_target: int = 99,
) -> Recipe:
  """Problems of Countdown, see `countdown.problems`.

  Args:
    train_size: number of training problems.
    test_size: number of test problems.
    seed: which ones.
    num_numbers: how many numbers a problem has.
    largest_number: numbers are from 1 to this.
    largest_target: targets are from 1 to this.
  """
  sizes = {"train": train_size, "test": test_size}
  kind = dict(
    seed=seed,
    num_numbers=num_numbers,
    largest_number=largest_number,
    largest_target=largest_target,
  )
  # Asking for few problems and not for many finds bad options at once.
  countdown.problems("test", **kind | {"size": 1})
  code = _fingerprint(inspect.getsource(countdown))

  def records(split: str) -> Iterator[Mapping[str, str]]:
    for p in countdown.problems(split, size=sizes[split], **kind):
      yield {"question": p.question, "answer": p.answer}

  return Recipe(
    key=f"train{train_size}-test{test_size}"
    f"-{'-'.join(map(str, kind.values()))}-{code}",
    origin="countdown",
    fields=("question", "answer"),
    splits=lambda _: {split: records(split) for split in sizes},
    convert=_problem("countdown"),
  )


def reasoning_gym(
  *,
  task: str,
  train_size: int = 1_000,
  test_size: int = 100,
  seed: int = 0,
  config: Mapping[str, Any] | None = None,
) -> Recipe:
  """Problems of a task of the reasoning-gym package (the extra `gym`).

  A hash of the question decides its split, so no question is in both. Tasks
  whose scorer runs text as code are refused, see `rewards.gym`.

  Args:
    task: its name there.
    train_size: number of training problems.
    test_size: number of test problems.
    seed: which ones.
    config: fields of the task's config that differ from its default.
  """
  try:
    from grpo_jax.rewards import gym
  except ImportError as error:
    raise ValueError(
      "The dataset reasoning_gym needs a package that is not installed: pip"
      f" install 'grpo_jax[gym]'. ({error})"
    ) from error
  if min(train_size, test_size) < 1:
    raise ValueError(f"{train_size=} and {test_size=} must be at least 1.")
  config = dict(config or {})
  gym.check(task, config)
  sizes = {"train": train_size, "test": test_size}
  # One question in ten is for testing; some tasks repeat questions.
  most = 1_000 + 2 * max(train_size, 10 * test_size)
  code = _fingerprint(
    importlib.metadata.version("reasoning-gym"),
    inspect.getsource(gym),
    gym.pack(config),
  )

  def splits(_: tfds.download.DownloadManager) -> _Splits:
    found = {split: {} for split in sizes}
    for question, answer, details in gym.entries(
      task, count=most, seed=seed, config=config
    ):
      split = tasks.split_of((question,))
      if len(found[split]) < sizes[split]:
        found[split].setdefault(question, (answer, details))
      elif all(len(found[s]) == sizes[s] for s in sizes):
        break
    for split, size in sizes.items():
      if len(found[split]) < size:
        raise ValueError(
          f"The {split} split of reasoning_gym's {task} got"
          f" {len(found[split])} different questions from {most}; {size} were"
          " asked for."
        )
    fields = "question", "answer", "details"
    return {
      split: (
        dict(zip(fields, (question, *rest), strict=True))
        for question, rest in found[split].items()
      )
      for split in sizes
    }

  return Recipe(
    key=f"{task}-train{train_size}-test{test_size}-seed{seed}-{code}",
    origin=f"reasoning_gym's {task}",
    fields=("question", "answer", "details"),
    splits=splits,
    convert=lambda question, answer, details: Problem(
      question, answer, "reasoning_gym", "", details
    ),
  )


# GSM8K: https://github.com/openai/grade-school-math, MIT licence.


def gsm8k(*, path: str | None = None) -> Recipe:
  """Grade-school problems; the answer is the integer after `####`.

  Args:
    path: a folder with train.jsonl and test.jsonl; None looks in
      $GRPO_JAX_DATA/gsm8k and else downloads from the publisher.
  """
  key, files = _gsm8k_files(path)

  def splits(downloads: tfds.download.DownloadManager) -> _Splits:
    return {
      split: (
        {"question": question, "answer": answer}
        for question, _, answer in _gsm8k_records(file)
      )
      for split, file in files(downloads).items()
    }

  return Recipe(
    key=key,
    origin="gsm8k",
    fields=("question", "answer"),
    splits=splits,
    convert=_problem("gsm8k"),
  )


def gsm8k_corpus(*, path: str | None = None, template: str = "plain") -> Recipe:
  """GSM8K's training problems with their solutions as thinking.

  Calculator annotations (`<<48/2=24>>`) are removed.

  Args:
    path: as for gsm8k.
    template: name or file of the template before an answer.
  """
  text = prompts.read_template(template)
  key, files = _gsm8k_files(path)

  def documents(file: pathlib.Path) -> Iterator[Mapping[str, str]]:
    for question, thoughts, answer in _gsm8k_records(file):
      prompt = text.replace("{question}", question)
      completion = f"<think>{thoughts}</think><answer>{answer}</answer>"
      yield {"text": prompt + completion}

  return Recipe(
    key=f"{key}-{_fingerprint(text)}",
    origin="gsm8k_corpus",
    fields=("text",),
    splits=lambda downloads: {"train": documents(files(downloads)["train"])},
    convert=str,
  )


def _gsm8k_files(
  path: str | None,
) -> tuple[str, Callable[[Any], dict[str, pathlib.Path]]]:
  """A name for the content, and where the files are once downloaded."""
  folder = pathlib.Path(path) if path else None
  if folder is None and "GRPO_JAX_DATA" in os.environ:
    beside = pathlib.Path(os.environ["GRPO_JAX_DATA"]) / "gsm8k"
    folder = beside if beside.is_dir() else None
  if folder is not None:
    files = {split: folder / f"{split}.jsonl" for split in tasks.SPLITS}
    return f"local-{_content_hash(files.values())}", lambda downloads: files
  return "published", _download_gsm8k


def _download_gsm8k(
  downloads: tfds.download.DownloadManager,
) -> dict[str, pathlib.Path]:
  urls = {split: _GSM8K_URL.format(split=split) for split in tasks.SPLITS}
  try:
    # TFDS tries for minutes where there is no network; this fails at once.
    for url in urls.values():
      urllib.request.urlopen(url, timeout=30).close()
    files = downloads.download(urls)
  except (OSError, tfds.download.DownloadError) as error:
    raise ConnectionError(
      f"GSM8K could not be downloaded from {urls['train']}; put train.jsonl "
      "and test.jsonl in a folder and name it with the option path, or set "
      f"GRPO_JAX_DATA to the folder that holds gsm8k/. ({error})"
    ) from error
  for split, file in files.items():
    content = pathlib.Path(file).read_bytes()
    if hashlib.sha256(content).hexdigest() != _GSM8K_SHA256[split]:
      raise ConnectionError(
        f"{urls[split]} gave another file than the one published (SHA-256)."
      )
  return {split: pathlib.Path(file) for split, file in files.items()}


def _gsm8k_records(file: pathlib.Path) -> Iterator[tuple[str, str, str]]:
  """Question, solution without annotations, and final answer of each line."""
  for line, record in _read_jsonl(file, ("question", "answer")):
    thoughts, mark, answer = record["answer"].rpartition("####")
    if not mark:
      raise ValueError(f"{file}, line {line}: the answer has no '####'.")
    thoughts = re.sub(r"<<.*?>>", "", thoughts).strip()
    yield record["question"], thoughts, answer.strip().replace(",", "")


# MATH: https://github.com/hendrycks/math, MIT licence.


def math(*, path: str | None = None) -> Recipe:
  """Competition problems with final answers: MATH's, tested on MATH-500.

  Training problems that are also in MATH-500, repeat an earlier one or have no
  answer are left out.

  Args:
    path: a folder with train.json, a list of objects with "problem" and
      "answer", and math500.jsonl, one such object per line; None looks in
      $GRPO_JAX_DATA/math.
  """
  if path is None and "GRPO_JAX_DATA" not in os.environ:
    raise FileNotFoundError(
      "MATH is not downloaded; name a folder that holds train.json and "
      "math500.jsonl with the option path, or set GRPO_JAX_DATA to the folder "
      "that holds math/."
    )
  folder = pathlib.Path(path or f"{os.environ['GRPO_JAX_DATA']}/math")
  files = {"train": folder / "train.json", "test": folder / "math500.jsonl"}
  key = f"local-{_content_hash(files.values())}"

  def records(split: str) -> Iterator[Mapping[str, str]]:
    test = [
      record for _, record in _read_jsonl(files["test"], ("problem", "answer"))
    ]
    if split == "test":
      chosen = test
    else:
      chosen = json.loads(files["train"].read_text(encoding="utf-8"))
    seen = set() if split == "test" else {r["problem"].strip() for r in test}
    for record in chosen:
      if record["answer"] and record["problem"].strip() not in seen:
        seen.add(record["problem"].strip())
        yield {"question": record["problem"], "answer": record["answer"]}

  return Recipe(
    key=key,
    origin=str(folder),
    fields=("question", "answer"),
    splits=lambda _: {split: records(split) for split in files},
    convert=_problem("math"),
  )


# Files of the user's.


def jsonl(
  *,
  path: str,
  question: str = "question",
  answer: str = "answer",
  source: str = "jsonl",
  test_share: float = 0.0,
) -> Recipe:
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
  content = _content_hash(files.values())
  options = _fingerprint(*files, question, answer, str(test_share))

  def records(split: str) -> Iterator[Mapping[str, str]]:
    file = files.get(split, root)
    for _, record in _read_jsonl(file, (question, answer)):
      text = record[question]
      held_out = test_share and _unit_hash(text) < test_share
      if not test_share or held_out == (split == "test"):
        yield {"question": text, "answer": record[answer]}

  names = tasks.SPLITS if test_share else tuple(files)
  return Recipe(
    key=f"{content}-{options}",
    origin=path,
    fields=("question", "answer"),
    splits=lambda _: {split: records(split) for split in names},
    convert=_problem(source),
  )


def text_files(*, path: str, unit: str = "paragraph") -> Recipe:
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
  content = _content_hash(files)

  def documents() -> Iterator[Mapping[str, str]]:
    for file in files:
      try:
        with file.open(encoding="utf-8") as lines:
          for document in units[unit](lines):
            yield {"text": document}
      except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}.") from error

  return Recipe(
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


def _read_jsonl(
  file: pathlib.Path, fields: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, str]]]:
  """Line numbers, from 1, and the fields of each line as text."""
  try:
    # utf-8-sig also takes files that begin with a byte order mark.
    with file.open(encoding="utf-8-sig") as lines:
      for number, line in enumerate(lines, start=1):
        if line.strip():
          yield number, _fields_of(line, fields, f"{file}, line {number}")
  except UnicodeDecodeError as error:
    raise ValueError(f"{file} is not UTF-8 text: {error}.") from error


def _fields_of(
  line: str, fields: tuple[str, ...], where: str
) -> dict[str, str]:
  try:
    record = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f"{where}: no valid JSON ({error}).") from error
  if not isinstance(record, dict):
    raise ValueError(f"{where}: a JSON object is needed, not {line.strip()!r}.")
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


# Keeping.


def _builder(name: str, recipe: Recipe, data_dir: str) -> storage.Builder:
  return storage.Builder(
    name,
    data_dir,
    features={field: tfds.features.Text() for field in recipe.fields},
    splits=recipe.splits,
    origin=recipe.origin,
    key=recipe.key,
  )


def _problem(source: str) -> Callable[[str, str], Problem]:
  return functools.partial(Problem, source=source, prompt="")


def _fingerprint(*texts: str) -> str:
  digest = hashlib.blake2b(digest_size=5)
  for text in texts:
    digest.update(text.encode() + b"\0")
  return digest.hexdigest()


def _content_hash(files: Any) -> str:
  """A short name for the content of files, which must exist."""
  digest = hashlib.blake2b(digest_size=8)
  for file in files:
    if not file.is_file():
      raise FileNotFoundError(f"{file} is not a file.")
    with file.open("rb") as content:
      digest.update(hashlib.file_digest(content, "sha256").digest())
  return digest.hexdigest()


def _unit_hash(text: str) -> float:
  digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
  return int.from_bytes(digest, "big") / 2**64


DATASETS: dict[str, Callable[..., Recipe]] = {
  **{t: functools.partial(task_problems, t) for t in tasks.TASKS},
  **{f"{t}_corpus": functools.partial(task_corpus, t) for t in tasks.TASKS},
  "countdown": countdown_problems,
  "reasoning_gym": reasoning_gym,
  "gsm8k": gsm8k,
  "gsm8k_corpus": gsm8k_corpus,
  "jsonl": jsonl,
  "math": math,
  "text": text_files,
}
