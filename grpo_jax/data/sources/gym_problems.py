"""Problems of the reasoning-gym package, the extra `gym`."""

import importlib.metadata
import inspect
from collections.abc import Mapping
from typing import Any

import tensorflow_datasets as tfds

from grpo_jax.data import recipes
from grpo_jax.data.sources import tasks
from grpo_jax.types import Problem


def problems(
  *,
  task: str,
  train_size: int = 1_000,
  test_size: int = 100,
  seed: int = 0,
  config: Mapping[str, Any] | None = None,
) -> recipes.Recipe:
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
    from grpo_jax.data.sources import gym_entries
  except ImportError as error:
    raise ValueError(
      "The dataset reasoning_gym needs a package that is not installed: pip"
      f" install 'grpo_jax[gym]'. ({error})"
    ) from error
  if min(train_size, test_size) < 1:
    raise ValueError(f"{train_size=} and {test_size=} must be at least 1.")
  config = dict(config or {})
  gym_entries.check(task, config)
  sizes = {"train": train_size, "test": test_size}
  # One question in ten is for testing; some tasks repeat questions.
  most = 1_000 + 2 * max(train_size, 10 * test_size)
  code = recipes.fingerprint(
    importlib.metadata.version("reasoning-gym"),
    inspect.getsource(gym_entries),
    gym_entries.pack(config),
  )

  def splits(_: tfds.download.DownloadManager) -> recipes.Splits:
    found = {split: {} for split in sizes}
    for question, answer, details in gym_entries.entries(
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

  return recipes.Recipe(
    key=f"{task}-train{train_size}-test{test_size}-seed{seed}-{code}",
    origin=f"reasoning_gym's {task}",
    fields=("question", "answer", "details"),
    splits=splits,
    convert=lambda question, answer, details: Problem(
      question, answer, "reasoning_gym", "", details
    ),
  )
