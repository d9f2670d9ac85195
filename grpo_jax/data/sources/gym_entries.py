"""Entries of the tasks of the reasoning-gym package.

https://github.com/open-thought/reasoning-gym. An entry travels as text that
keeps tuples and numbers as they are, which plain JSON does not. The process
that runs a task's scorer (`rewards.gym`) imports this module, so it must not
import JAX.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import reasoning_gym
from reasoning_gym import factory

from grpo_jax import errors

# Their scorers run text as Python: the model's by `eval` or by sympy's parser,
# which calls it, and in the last two the problem's, which workers refuse too.
REFUSED = (
  "binary_matrix",
  "countdown",
  "intermediate_integration",
  "n_queens",
  "polynomial_multiplication",
  "puzzle24",
  "simple_integration",
  "spiral_matrix",
  "string_insertion",
  "bitwise_arithmetic",
  "number_sorting",
)
# Mixes other tasks, also refused ones.
_COMPOSITE = "composite"


def entries(
  task: str, *, count: int, seed: int, config: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
  """Question, reference answer and details of `count` problems, one by one.

  The reference answer is empty where a task has none, because many answers are
  right. `details` is what `rewards.gym.score` needs.

  Raises:
    ValueError: see `check`.
  """
  check(task, config)
  dataset = make(task, pack(config), seed=seed, size=count)
  for index in range(count):
    entry = dataset[index]
    details = pack({"task": task, "config": config, "entry": entry})
    yield entry["question"], str(entry["answer"] or ""), details


def check(task: str, config: Mapping[str, Any]) -> None:
  """Raises ValueError where there is no such task, or it does not fit."""
  allowed = set(factory.DATASETS) - {*REFUSED, _COMPOSITE}
  if task == "countdown":
    raise ValueError(
      "The scorer of reasoning_gym's countdown runs the model's text as code;"
      " use the dataset 'countdown' instead."
    )
  if task in REFUSED:
    raise ValueError(
      f"The scorer of reasoning_gym's task {task!r} runs text as code; it"
      " cannot be used."
    )
  if task not in allowed:
    raise ValueError(
      f"reasoning_gym has no task {task!r}; {errors.nearest(task, allowed)}"
    )
  fields = {f.name for f in dataclasses.fields(factory.DATASETS[task][1])}
  for field in config:
    if field in ("seed", "size") or field not in fields:
      known = errors.nearest(field, fields - {"seed", "size"})
      raise ValueError(
        f"The config of reasoning_gym's task {task!r} has no field {field!r};"
        f" {known}"
      )
  try:
    make(task, pack(config))
  except (AssertionError, TypeError, ValueError) as error:
    raise ValueError(
      f"reasoning_gym's task {task!r} refuses its config: {error}."
    ) from error


def pack(value: Any) -> str:
  """Plain data as JSON that `unpack` gives back, tuples and keys included."""
  return json.dumps(_tag(value))


def unpack(text: str) -> Any:
  """The data that `pack` was given."""
  return _untag(json.loads(text))


@functools.lru_cache(maxsize=16)
def make(task: str, config: str, seed: int = 0, size: int = 1) -> Any:
  """Returns a dataset of the package; `config` is what `pack` returned."""
  fields = unpack(config) | {"seed": seed, "size": size}
  return reasoning_gym.create_dataset(task, **fields)


def _tag(value: Any) -> Any:
  """JSON in which an object has one key, the type that it stands for."""
  if isinstance(value, Mapping):
    return {"dict": [[_tag(k), _tag(v)] for k, v in value.items()]}
  if isinstance(value, tuple):
    return {"tuple": [_tag(x) for x in value]}
  if isinstance(value, list):
    return [_tag(x) for x in value]
  if value is None or isinstance(value, bool | int | float | str):
    return value
  raise ValueError(f"Data of type {type(value).__name__} cannot be kept.")


def _untag(value: Any) -> Any:
  if isinstance(value, list):
    return [_untag(x) for x in value]
  if not isinstance(value, dict):
    return value
  if "tuple" in value:
    return tuple(_untag(x) for x in value["tuple"])
  return {_untag(k): _untag(v) for k, v in value["dict"]}
