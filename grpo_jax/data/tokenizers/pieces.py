"""Text cut at tokens that are written in it, and encoded between them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
  """A pattern that splits at any of the texts; at none if there are none."""
  # Longer ones first, so that one may begin with another.
  ordered = sorted(texts, key=len, reverse=True)
  return re.compile("(" + ("|".join(map(re.escape, ordered)) or "(?!)") + ")")


def encode_between(
  text: str,
  special_ids: Mapping[str, int],
  encode: Callable[[str], tuple[list[int], list[int]]],
) -> tuple[list[int], list[int]]:
  """Ids of special tokens and of the text between; where each begins."""
  ids, starts, offset = [], [], 0
  for part in re.split(any_of(special_ids), text):
    if part in special_ids:
      ids.append(special_ids[part])
      starts.append(offset)
    elif part:
      more, begins = encode(part)
      ids += more
      starts += [offset + begin for begin in begins]
    offset += len(part)
  return ids, starts


def characters(text: str, begins: Sequence[int]) -> list[int]:
  """The characters to which bytes of the text's UTF-8 belong."""
  of_byte = []
  for i, character in enumerate(text):
    of_byte += [i] * len(character.encode("utf-8", "replace"))
  return [of_byte[min(b, len(of_byte) - 1)] for b in begins]
