"""Several datasets as one, mixed by counts or by weights."""

import dataclasses
import fractions
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grpo_jax import errors

_AMOUNTS = "count", "weight"


@dataclasses.dataclass(frozen=True)
class Part:
  """One dataset of a mixture; either `count` or `weight` is given.

  Attributes:
    data: keyword arguments of `datasets.load`; without a `split`, that of the
      mixture.
    count: how many records an epoch has of it.
    weight: its share of an epoch, relative to the other weights.
  """

  data: errors.Section
  count: int | None = None
  weight: int | float | None = None


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Which datasets to mix, and how."""

  parts: Mapping[str, Part]
  seed: int

  def mix(self, loaded: Mapping[str, Sequence]) -> Sequence:
    """The mixture's records in an order of its own.

    Args:
      loaded: the records of each part.

    Raises:
      ValueError: parts of different types, or a weight too small for a record.
    """
    types = {
      name: type(records[0]).__name__ for name, records in loaded.items()
    }
    if len(set(types.values())) > 1:
      raise ValueError(f"A mixture needs records of one type, not {types}.")
    counts = self._counts({name: len(part) for name, part in loaded.items()})
    rng = random.Random(f"mixture {self.seed}")
    places = []
    for number, (name, records) in enumerate(loaded.items()):
      again, more = divmod(counts[name], len(records))
      chosen = [*range(len(records))] * again
      chosen += rng.sample(range(len(records)), more)
      places += [(number, index) for index in chosen]
    rng.shuffle(places)
    return _Mixed(list(loaded.values()), np.asarray(places))

  def _counts(self, sizes: Mapping[str, int]) -> dict[str, int]:
    counts = {
      name: part.count
      for name, part in self.parts.items()
      if part.count is not None
    }
    if len(counts) == len(self.parts):
      return counts
    weights = {
      name: fractions.Fraction(part.weight)
      for name, part in self.parts.items()
      if part.weight is not None
    }
    # The part that is used up first says how large the epoch is.
    unit = min(sizes[name] / weight for name, weight in weights.items())
    counts = {name: round(unit * weight) for name, weight in weights.items()}
    for name, count in counts.items():
      if not count:
        raise ValueError(
          f"In the mixture, the weight of {name} is so small that its share is"
          f" no record; the parts have {dict(sizes)}."
        )
    return counts


def mixture(*, parts: errors.Section, seed: int = 0) -> Mixture:
  """Several datasets of one type.

  With counts, an epoch has exactly that many records of each part: all of them
  equally often, up to one, where more are asked for than there are; else some,
  the same in every epoch. With weights, it is the largest epoch in these shares
  in which no record comes twice.

  Args:
    parts: by a name, `data` with the keyword arguments of `datasets.load`, and
      either `count`, a number of records, or `weight`.
    seed: of the choice and the order.
  """
  if not parts:
    raise ValueError("A mixture needs parts.")
  for name, part in parts.items():
    _check(name, part)
  if len({("count" in part) for part in parts.values()}) > 1:
    raise ValueError(
      "A mixture has a count for each part or a weight for each."
    )
  return Mixture({name: Part(**part) for name, part in parts.items()}, seed)


def _check(name: str, part: errors.Section) -> None:
  given = [amount for amount in _AMOUNTS if amount in part]
  if "data" not in part or len(given) != 1 or len(part) != 2:
    raise ValueError(
      f"Part {name} of a mixture needs data and either count or weight, not"
      f" {', '.join(part) or 'nothing'}."
    )
  if "name" not in part["data"]:
    raise ValueError(f"The data of part {name} of a mixture need a name.")
  amount = part[given[0]]
  if amount <= 0 or (given == ["count"] and not isinstance(amount, int)):
    raise ValueError(f"Part {name} of a mixture has {given[0]}={amount!r}.")


class _Mixed(Sequence):
  """Records at random access: of which part, and which of it."""

  def __init__(self, parts: list[Sequence], places: np.ndarray):
    self._parts = parts
    self._places = places

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> Any:
    if not -len(self) <= index < len(self):
      raise IndexError(f"{index=} of {len(self)} records.")
    part, record = self._places[index]
    return self._parts[part][record]
