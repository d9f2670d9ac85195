"""Problems and documents by name, kept as TFDS datasets of ArrayRecord files.

`load` prepares a dataset once and reads it at random access ever after; no
TensorFlow is involved. What a dataset is made from is part of the name it is
kept under: another seed or size, an edited file of the user's, or a new
version of the generating code is another dataset, so nothing stale is read.
An interrupted preparation is done again.

To add a dataset, write a function that returns a `recipes.Recipe`, in a file of
its own, and name it in `DATASETS`; its keyword arguments are the dataset's
options.
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from grpo_jax import errors, processes
from grpo_jax.data import mixtures, preferences, prompts, recipes, storage
from grpo_jax.data.sources import (
  aime,
  countdown,
  examples,
  gsm8k,
  gym_problems,
  math_problems,
  mgsm,
  miniature,
  programs,
  tasks,
  user_files,
)
from grpo_jax.types import Example, Problem

_IN_MEMORY = 1 << 28  # Bytes; one read from a file costs about 0.4 ms.


def load(
  name: str, split: str, *, data_dir: str | os.PathLike[str], **options: Any
) -> Sequence[Problem] | Sequence[Example] | Sequence[str]:
  """One split of a dataset, prepared first where that has not been done.

  Args:
    name: a name in `DATASETS`.
    split: "train" or "test"; a corpus has "train" only.
    data_dir: where datasets are kept; several processes may share it.
    **options: keyword arguments of the dataset's function.

  Returns:
    `Problem`s whose `prompt` is empty; for a corpus, texts; for conversations
    to learn from, `Example`s; by index.

  Raises:
    ValueError: an unknown name, split or option; bad or missing records.
    FileNotFoundError: a file that the dataset is read from does not exist.
    ConnectionError: a download failed.
  """
  if name not in DATASETS:
    raise ValueError(f"No dataset {name!r}; {errors.nearest(name, DATASETS)}")
  make = DATASETS[name]
  known = inspect.signature(make).parameters
  for option in options:
    if option not in known:
      raise ValueError(
        f"Dataset {name} has no option {option!r};"
        f" {errors.nearest(option, known)}"
      )
  for option, parameter in known.items():
    if parameter.default is parameter.empty and option not in options:
      raise ValueError(f"Dataset {name} needs the option {option!r}.")
  recipe = make(**options)
  if isinstance(recipe, mixtures.Mixture):
    parts = recipe.parts.items()
    return recipe.mix(
      {
        part: load(**{"split": split, **settings.data}, data_dir=data_dir)
        for part, settings in parts
      }
    )
  builder = processes.first(
    "dataset",
    lambda: storage.prepare(
      lambda: _builder(name, recipe, os.fspath(data_dir))
    ),
  )
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


def _builder(
  name: str, recipe: recipes.Recipe, data_dir: str
) -> storage.Builder:
  return storage.Builder(
    name,
    data_dir,
    features={field: tfds.features.Text() for field in recipe.fields},
    splits=recipe.splits,
    origin=recipe.origin,
    key=recipe.key,
  )


class _Records(Sequence):
  """Records of one split, read one by one."""

  def __init__(self, source: Any, recipe: recipes.Recipe):
    self._source = source
    self._recipe = recipe

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Problem | Example | str:
    if not -len(self) <= index < len(self):
      raise IndexError(f"{index=} of {len(self)} records.")
    return self._convert(self._source[index % len(self)])

  def read_all(self) -> Sequence:
    return list(map(self._convert, self._source.__getitems__(range(len(self)))))

  def _convert(self, record: Mapping[str, bytes]) -> Problem | Example | str:
    texts = (record[field].decode() for field in self._recipe.fields)
    return self._recipe.convert(*texts)


# The built-in tasks.


def task_problems(
  task: str,
  *,
  train_size: int | None = None,
  test_size: int | None = None,
  seed: int = 0,
) -> recipes.Recipe:
  """Problems of a built-in task, see `data.sources.tasks.problems`.

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
  code = recipes.fingerprint(inspect.getsource(tasks))

  def records(split: str) -> Iterator[Mapping[str, str]]:
    for p in tasks.problems(task, split, size=sizes[split], seed=seed):
      yield {"question": p.question, "answer": p.answer}

  return recipes.Recipe(
    key=f"train{sizes['train']}-test{sizes['test']}-seed{seed}-{code}",
    origin=task,
    fields=("question", "answer"),
    splits=lambda _: {split: records(split) for split in sizes},
    convert=recipes.problem(task),
  )


def task_corpus(
  task: str,
  *,
  size: int = 100_000,
  seed: int = 0,
  template: str = "plain",
  mix: Mapping[str, Any] | None = None,
) -> recipes.Recipe:
  """Documents about a built-in task, see `tasks.corpus`.

  Args:
    task: its name.
    size: number of documents.
    seed: which ones.
    template: name or file of the template before an answer.
    mix: fields of the task's mix that differ from its default.
  """
  text = prompts.read_template(template)
  proportions = recipes.mix(tasks.TASKS[task].mix, task, mix)
  code = recipes.fingerprint(inspect.getsource(tasks), text, repr(proportions))
  return recipes.Recipe(
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
) -> recipes.Recipe:
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
  code = recipes.fingerprint(inspect.getsource(countdown))

  def records(split: str) -> Iterator[Mapping[str, str]]:
    for p in countdown.problems(split, size=sizes[split], **kind):
      yield {"question": p.question, "answer": p.answer}

  return recipes.Recipe(
    key=f"train{train_size}-test{test_size}"
    f"-{'-'.join(map(str, kind.values()))}-{code}",
    origin="countdown",
    fields=("question", "answer"),
    splits=lambda _: {split: records(split) for split in sizes},
    convert=recipes.problem("countdown"),
  )


DATASETS: dict[str, Callable[..., recipes.Recipe | mixtures.Mixture]] = {
  **{t: functools.partial(task_problems, t) for t in tasks.TASKS},
  **{f"{t}_corpus": functools.partial(task_corpus, t) for t in tasks.TASKS},
  "miniature_corpus": miniature.corpus,
  "chat": miniature.problems,
  "chat_examples": miniature.examples,
  "countdown": countdown_problems,
  "reasoning_gym": gym_problems.problems,
  "gsm8k": gsm8k.problems,
  "gsm8k_corpus": gsm8k.corpus,
  "jsonl": user_files.jsonl,
  "math": math_problems.problems,
  "mgsm": mgsm.problems,
  "humaneval": programs.humaneval,
  "mbpp": programs.mbpp,
  "aime": aime.problems,
  "mixture": mixtures.mixture,
  "records": examples.examples,
  "preference_corpus": preferences.corpus,
  "text": user_files.text_files,
}
