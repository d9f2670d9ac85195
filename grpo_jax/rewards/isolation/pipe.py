"""Messages between two processes: each a JSON value behind its length.

The length is four bytes, the highest first. The standard library alone: this
file is also copied into sandboxes, where it is a script's neighbor.
"""

import json
from collections.abc import Callable
from typing import Any

_LENGTH_BYTES = 4


class Gone(EOFError):
  """The other side has ended, or wrote what is no message."""


def encode(message: Any, max_bytes: int) -> bytes:
  """The bytes of one message; ValueError if there are more than that."""
  data = json.dumps(message).encode()
  if len(data) > max_bytes:
    raise ValueError(f"A message of {len(data)} bytes is too long.")
  return len(data).to_bytes(_LENGTH_BYTES, "big") + data


def receive(read: Callable[[int], bytes], max_bytes: int) -> Any:
  """The next message.

  Args:
    read: returns as many bytes as it is asked for or fewer; none at the end.
    max_bytes: that a message may have.

  Raises:
    Gone: there is none, or it is not what `encode` makes.
  """
  length = int.from_bytes(_exactly(read, _LENGTH_BYTES), "big")
  if length > max_bytes:
    raise Gone
  try:
    return json.loads(_exactly(read, length))
  except (ValueError, RecursionError) as error:
    raise Gone from error


def _exactly(read: Callable[[int], bytes], count: int) -> bytes:
  data = bytearray()
  while len(data) < count:
    part = read(count - len(data))
    if not part:
      raise Gone
    data += part
  return bytes(data)
