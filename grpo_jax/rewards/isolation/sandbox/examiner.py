"""The examiner's side: runs the tests, which call the program.

  python examiner.py READ WRITE

Run as a script in a sandbox of its own; its order on standard input is a JSON
object. Writes a line for each case that ended: +number where it held, -number
where it failed, ?number where it turned out to test nothing; and `end` where
the tests ran to theirs and nothing failed outside of a case.
"""

import builtins
import collections
import itertools
import os

import asserts
import pipe as pipe_lib
import wire

_MAX_RETURNED = 10_000  # Values that are known to be the program's.
_ENDLESS = (itertools.count, itertools.cycle, itertools.repeat)
_END = object()


class Stopped(Exception):
  """The program raised StopIteration, which would end loops of the tests."""


def main() -> None:
  """Runs the tests until they end or the program does."""
  pipe, order = wire.begin()
  examine(pipe, order)
  os._exit(0)


def examine(pipe: wire.Pipe, order) -> None:
  """Runs the tests and writes what became of each case.

  A program that leaves, by whatever way, takes the examiner with it: no test
  that catches exceptions can mistake that for one.
  """
  progress = _Progress()
  values = wire.Values(lambda number: wire.Remote(ask, number))
  program = _Program(progress.fail)

  def ask(*message):
    request = values.encode(list(message))
    try:
      pipe.send(request)
      return answer()
    except pipe_lib.Gone:
      os._exit(0)

  def answer():
    reply = pipe.receive()
    try:
      error = None
      if "error" in reply:
        error = _exception(reply["error"])
      else:
        value = values.decode(reply["value"])
    except Exception:
      raise pipe_lib.Gone from None  # Not what our side of a program says.
    if error is not None:
      if "lost" in reply:
        progress.fail()  # A value that cannot cross is no error to expect.
      raise error
    program.keep(value)
    return value

  tests = asserts.number(order["asserts"], order["preamble"])
  namespace: dict[str, object] = {
    "__name__": "__main__",
    "map": program.map,
    "zip": program.zip,
    **progress.names(),
  }
  exec(compile(tests.preamble, "preamble.py", "exec"), namespace)
  try:
    answer()  # The program has run.
  except pipe_lib.Gone:
    os._exit(0)
  for name in order["names"]:
    namespace[name] = ask("get", name)
  exec(compile(tests.tree, "tests.py", "exec"), namespace)
  progress.end()


class _Progress:
  """What became of the tests so far."""

  def __init__(self):
    self._results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What tests print goes where errors go, nowhere.
    self.in_case = False
    self.ran = self.failed = False  # In the case that runs.
    self.clean = True

  def names(self) -> dict[str, object]:
    """What `asserts` has the tests call."""
    return {
      asserts.CASE: lambda *about: _Case(self, *about),
      asserts.GROUP: lambda: _Group(self),
      asserts.TEST: _Test(self),
      asserts.FAILURE: _Failure(self),
      asserts.RAN: self.run,
      asserts.STOPPED: Stopped,
    }

  def write(self, line: str) -> None:
    print(line, file=self._results)

  def run(self) -> None:
    self.ran = True

  def fail(self) -> None:
    """Something failed, whatever the tests make of it."""
    if self.in_case:
      self.failed = True
    else:
      self.clean = False

  def end(self) -> None:
    if self.clean:
      self.write("end")


class _Case:
  """A case, see `asserts.Cases`."""

  def __init__(self, progress, number, goes_on, idle):
    self._progress, self._number = progress, number
    self._goes_on, self._idle = goes_on, idle

  def __enter__(self):
    self._progress.in_case = True
    self._progress.ran = self._progress.failed = False

  def __exit__(self, kind, error, trace):
    progress = self._progress
    progress.in_case = False
    sign = "+" if progress.ran else self._idle
    if kind is not None or progress.failed:
      sign = "-"
    progress.write(f"{sign}{self._number}")
    return self._goes_on and kind is not None and issubclass(kind, Exception)


class _Group:
  """The call of a function that has cases; those that it lost do not hold."""

  def __init__(self, progress):
    self._progress = progress

  def __enter__(self):
    pass

  def __exit__(self, kind, error, trace):
    if kind is not None:
      self._progress.fail()
    return kind is not None and issubclass(kind, Exception)


class _Test:
  """An assert, which has failed if it raises, whoever catches that."""

  def __init__(self, progress):
    self._progress = progress

  def __enter__(self):
    self._progress.run()

  def __exit__(self, kind, error, trace):
    if kind is not None:
      self._progress.fail()


class _Failure(_Test):
  """A statement that fails when it is run."""

  def __enter__(self):
    self._progress.fail()


class _Program:
  """Knows the program's values again where they would cut a loop short."""

  def __init__(self, fail):
    self._fail = fail
    self._returned = collections.OrderedDict()

  def keep(self, value) -> None:
    """Remembers a value of the program."""
    if isinstance(value, list | tuple | set | dict | str | collections.deque):
      self._returned[id(value)] = value
      if len(self._returned) > _MAX_RETURNED:
        self._returned.popitem(last=False)

  def zip(self, *iterables, strict=False):
    """`zip` that fails where the program's values end before the others."""
    if strict or not iterables:
      return zip(*iterables, strict=strict)
    return self._rows(iterables, list(map(iter, iterables)))

  def map(self, function, *iterables):
    """`map` that takes several iterables as `zip` does."""
    if len(iterables) < 2:
      return map(function, *iterables)
    return itertools.starmap(function, self.zip(*iterables))

  def _rows(self, iterables, iterators):
    endless = [isinstance(iterable, _ENDLESS) for iterable in iterables]
    while True:
      row = []
      for place, iterator in enumerate(iterators):
        value = next(iterator, _END)
        if value is not _END:
          row.append(value)
          continue
        ended = iterables[place]
        if isinstance(ended, wire.Remote) or id(ended) in self._returned:
          later = range(place + 1, len(iterators))
          if not all(endless[:place]) or any(
            not endless[i] and next(iterators[i], _END) is not _END
            for i in later
          ):
            self._fail()
            raise AssertionError("The program's values end before the others.")
        return
      yield tuple(row)


def _exception(kinds) -> Exception:
  """An exception of the nearest built-in kind."""
  for name in kinds:
    kind = getattr(builtins, str(name), None)
    if isinstance(kind, type) and issubclass(kind, Exception):
      if issubclass(kind, StopIteration | StopAsyncIteration):
        return Stopped()
      try:
        return kind()
      except TypeError:
        continue  # Such as UnicodeDecodeError, which needs arguments.
  return Exception()


if __name__ == "__main__":
  main()
