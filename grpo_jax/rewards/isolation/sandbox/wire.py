"""What a program and its examiner, in two sandboxes, say to each other.

Values cross as plain data: numbers, text, bytes and built-in containers. All
else stays where it is and crosses as a handle, equal to nothing but itself. So
no test, and nothing that a test expects, is ever in the process of a program
that it examines; and nothing that the program defines (an `__eq__`, a subclass,
another `len`) is ever in the examiner's.

The standard library alone: this file is copied into sandboxes.
"""

import builtins
import collections
import json
import os
import sys

import pipe

_MAX_BYTES = 8 << 20  # Of one message.


class Pipe:
  """Messages of the two sides, see `pipe`."""

  def __init__(self, read_fd: int, write_fd: int):
    self._in = os.fdopen(read_fd, "rb")
    self._out = os.fdopen(write_fd, "wb")

  def send(self, message) -> None:
    """Raises Gone if nobody reads, ValueError if the message is too long."""
    data = pipe.encode(message, _MAX_BYTES)
    try:
      self._out.write(data)
      self._out.flush()
    except OSError:
      raise pipe.Gone from None

  def receive(self):
    """Raises Gone where there is no further message."""
    return pipe.receive(self._in.read, _MAX_BYTES)


class Values:
  """Translates values to JSON and back; keeps the objects behind handles."""

  def __init__(self, make_handle=None):
    self._objects = []
    self._make_handle = make_handle

  def encode(self, value):
    """Plain data by value, everything else as the number of a handle."""
    # A subclass is what it holds: none of its methods crosses.
    if isinstance(value, bool):
      return value
    if isinstance(value, int):
      return ["int", hex(int.__index__(value))]
    if isinstance(value, float):
      return float(value)
    if isinstance(value, str):
      return str.__str__(value)
    if value is None:
      return None
    if isinstance(value, complex):
      return ["complex", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
      return [type(value).__name__, bytes(value).hex()]
    if isinstance(value, dict):
      items = dict.items(value)
      return ["dict", [[self.encode(k), self.encode(v)] for k, v in items]]
    for kind in (list, tuple, set, frozenset, collections.deque):
      if isinstance(value, kind):
        # pyrefly: ignore[bad-argument-type]
        return [kind.__name__, [self.encode(x) for x in kind.__iter__(value)]]
    if isinstance(value, range):
      return ["range", value.start, value.stop, value.step]
    if isinstance(value, type) and value is _built_in_type(value.__name__):
      return ["type", value.__name__]
    if isinstance(value, Remote):
      return ["yours", value._number]
    self._objects.append(value)
    return ["mine", len(self._objects) - 1]

  def decode(self, value):
    """The inverse, of whatever the other side may send."""
    if not isinstance(value, list):
      return value
    kind, *parts = value
    match kind:
      case "int":
        return int(parts[0], 16)
      case "complex":
        return complex(*parts)
      case "bytes" | "bytearray":
        return getattr(builtins, kind).fromhex(parts[0])
      case "dict":
        return {self.decode(k): self.decode(v) for k, v in parts[0]}
      case "list" | "tuple" | "set" | "frozenset":
        return getattr(builtins, kind)(self.decode(x) for x in parts[0])
      case "deque":
        return collections.deque(self.decode(x) for x in parts[0])
      case "range":
        return range(*parts)
      case "type":
        return _built_in_type(parts[0])
      case "mine" if self._make_handle is not None:
        return self._make_handle(parts[0])
      case "yours":
        return self._objects[parts[0]]
    raise ValueError(f"Values of kind {kind!r} are unknown.")


def _built_in_type(name: str) -> type | None:
  kind = getattr(builtins, name, None)
  return kind if isinstance(kind, type) else None


class Remote:
  """A handle: an object of the program, in the hands of the examiner."""

  def __init__(self, ask, number: int):
    self._ask, self._number = ask, number

  def __call__(self, *args, **kwargs):
    """What the object returns in the program's process."""
    return self._ask("call", self._number, list(args), kwargs)

  def __iter__(self):
    return iter(self._ask("iterate", self._number))


def begin() -> tuple[Pipe, dict]:
  """The pipe that the command line names, and the order on standard input."""
  order = json.load(sys.stdin)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  return Pipe(*map(int, sys.argv[1:])), order
