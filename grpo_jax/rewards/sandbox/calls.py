"""A program and its examiner, in two sandboxes, talk through a pair of pipes.

  python calls.py program READ WRITE     defines functions, answers calls
  python calls.py examiner READ WRITE    runs the tests, which make the calls

Run as a script with the standard library alone; its order is a JSON object on
standard input. Values cross as plain data: numbers, text, bytes and the built-in
containers of them. All else stays where it is and crosses as a handle, which is
equal to nothing but itself. So no test, and nothing that a test expects, is ever
in the process of a program that it examines; and nothing that the program
defines (an `__eq__`, a subclass, another `len`) is ever in the examiner's.
"""

import ast
import builtins
import collections
import contextlib
import json
import os
import sys
import types

_MAX_BYTES = 8 << 20  # Of one message.
_MAX_ITEMS = 100_000  # Of an iterator that crosses.


class Gone(Exception):
  """The other side has ended, or wrote what is no message."""


class Pipe:
  """Messages, each a JSON value behind its length in four bytes."""

  def __init__(self, read_fd: int, write_fd: int):
    self._in = os.fdopen(read_fd, "rb")
    self._out = os.fdopen(write_fd, "wb")

  def send(self, message) -> None:
    """Raises Gone if nobody reads, ValueError if the message is too long."""
    data = json.dumps(message).encode()
    if len(data) > _MAX_BYTES:
      raise ValueError("The value is too large.")
    try:
      self._out.write(len(data).to_bytes(4, "little") + data)
      self._out.flush()
    except OSError:
      raise Gone from None

  def receive(self):
    """Raises Gone where there is no further message."""
    size = int.from_bytes(self._in.read(4), "little")
    data = self._in.read(size) if 0 < size <= _MAX_BYTES else b""
    if not data or len(data) < size:
      raise Gone
    return json.loads(data)


class Values:
  """Translates values to JSON and back; keeps the objects behind handles."""

  def __init__(self, make_handle=None):
    self._objects = []
    self._make_handle = make_handle

  def encode(self, value):
    """Plain data by value, everything else as the number of a handle."""
    for kind in (bool, int, float, str):
      # A subclass is what it holds: none of its methods crosses.
      if isinstance(value, kind):
        if kind is int:
          return ["int", hex(int.__index__(value))]
        return kind(value) if kind is not str else str.__str__(value)
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
        return [kind.__name__, [self.encode(x) for x in kind.__iter__(value)]]
    if isinstance(value, range):
      return ["range", value.start, value.stop, value.step]
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
      case "mine":
        return self._make_handle(parts[0])
      case "yours":
        return self._objects[parts[0]]
    raise ValueError(f"Values of kind {kind!r} are unknown.")


class Remote:
  """A handle: an object of the program, in the hands of the examiner."""

  def __init__(self, ask, number: int):
    self._ask, self._number = ask, number

  def __call__(self, *args, **kwargs):
    return self._ask("call", self._number, list(args), kwargs)

  def __iter__(self):
    return iter(self._ask("iterate", self._number))


def program(pipe: Pipe, order) -> None:
  """Runs the program, then answers calls until the examiner has no more."""
  values = Values()
  module = types.ModuleType("program")
  sys.modules["program"] = module
  try:
    for source in (order["program"], order["setup"]):
      exec(compile(source, "program.py", "exec"), module.__dict__)
  except BaseException as error:
    pipe.send(_error(error))
    return
  pipe.send({"value": None})
  while True:
    verb, *operands = values.decode(pipe.receive())
    try:
      if verb == "get":
        value = getattr(module, operands[0])
      elif verb == "call":
        number, args, kwargs = operands
        value = values._objects[number](*args, **kwargs)
      else:
        value = []
        for item in values._objects[operands[0]]:
          value.append(item)
          if len(value) > _MAX_ITEMS:
            raise ValueError("The iterator has no end.")
      reply = {"value": values.encode(value)}
    except BaseException as error:
      reply = _error(error)
    try:
      pipe.send(reply)
    except ValueError as error:
      pipe.send(_error(error))


def _error(error: BaseException):
  kinds = [kind.__name__ for kind in type(error).__mro__]
  return {"error": kinds, "text": ""}


def examiner(pipe: Pipe, order) -> None:
  """Runs the tests; writes a line, +number or -number, where one held or failed.

  A test in a loop has held when the loop has ended, so its line comes last.
  """
  results = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # For what tests print.
  values = Values(lambda number: Remote(ask, number))

  def ask(*message):
    pipe.send(values.encode(list(message)))
    return answer()

  def answer():
    reply = pipe.receive()
    if "error" in reply:
      raise _exception(reply["error"])
    return values.decode(reply["value"])

  tree, in_loops = number_asserts(order["asserts"])
  held = set()

  @contextlib.contextmanager
  def test(number):
    try:
      yield
    except Exception:
      print(f"-{number}", file=results)
    else:
      held.add(number)
      if number not in in_loops:
        print(f"+{number}", file=results)

  namespace = {"__name__": "tests"}
  exec(compile(order["preamble"], "preamble.py", "exec"), namespace)
  answer()  # The program has run.
  for name in order["names"]:
    namespace[name] = ask("get", name)
  namespace[_TEST] = test
  exec(compile(tree, "tests.py", "exec"), namespace)
  for number in held & in_loops:
    print(f"+{number}", file=results)


def _exception(kinds) -> Exception:
  """An exception of the nearest built-in kind."""
  for name in kinds:
    kind = getattr(builtins, str(name), None)
    if isinstance(kind, type) and issubclass(kind, Exception):
      try:
        return kind()
      except TypeError:
        continue  # Such as UnicodeDecodeError, which needs arguments.
  return Exception()


_TEST = "__test__"


class _Numbering(ast.NodeTransformer):
  """Puts each assert into `with __test__(number):`."""

  def __init__(self):
    self.count, self.in_loops, self._loops = 0, set(), 0

  def visit_Assert(self, node):  # noqa: N802
    if isinstance(node.test, ast.Constant):
      return node  # It tests nothing.
    number, self.count = self.count, self.count + 1
    if self._loops:
      self.in_loops.add(number)
    call = ast.Call(ast.Name(_TEST, ast.Load()), [ast.Constant(number)], [])
    return ast.With([ast.withitem(call)], [node])

  def _visit_loop(self, node):
    self._loops += 1
    self.generic_visit(node)
    self._loops -= 1
    return node

  visit_For = visit_While = _visit_loop  # noqa: N815


def number_asserts(source: str) -> tuple[ast.Module, set[int]]:
  """The tests with numbered asserts; and the numbers of those in loops."""
  numbering = _Numbering()
  tree = numbering.visit(ast.parse(source))
  return ast.fix_missing_locations(tree), numbering.in_loops


def count_asserts(source: str) -> int:
  """How many asserts there are that test something."""
  numbering = _Numbering()
  numbering.visit(ast.parse(source))
  return numbering.count


def main() -> None:
  """Plays one of the two roles."""
  role, read_fd, write_fd = sys.argv[1:]
  order = json.load(sys.stdin)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  with contextlib.suppress(Gone):
    {"program": program, "examiner": examiner}[role](
      Pipe(int(read_fd), int(write_fd)), order
    )
  os._exit(0)


if __name__ == "__main__":
  main()
