"""The program's side: defines what is to be tested, then answers calls.

  python program.py READ WRITE

Run as a script in a sandbox; its order on standard input is a JSON object.
"""

import itertools
import os
import sys
import types

import pipe as pipe_lib
import wire

_MAX_ITEMS = 100_000  # Of an iterator that crosses.


def main() -> None:
  """Runs the program, then answers until the examiner asks no more."""
  pipe, order = wire.begin()
  try:
    serve(pipe, order)
  except pipe_lib.Gone:
    pass
  os._exit(0)


def serve(pipe: wire.Pipe, order) -> None:
  """Runs the program, then answers calls until the examiner has no more."""
  values = wire.Values()
  module = types.ModuleType("program")
  sys.modules["program"] = module
  try:
    for source in (order["program"], order["setup"]):
      exec(compile(source, "program.py", "exec"), module.__dict__)
  except BaseException:
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
        iterator = iter(values._objects[operands[0]])
        value = list(itertools.islice(iterator, _MAX_ITEMS + 1))
    except Exception as error:
      pipe.send(_error(error))
      continue
    except BaseException:
      return  # It leaves, as it would leave any other caller.
    try:
      if verb == "iterate" and len(value) > _MAX_ITEMS:
        raise ValueError("The iterator has no end.")
      pipe.send({"value": values.encode(value)})
    except pipe_lib.Gone:
      raise
    except BaseException:
      # No exception that a test expects, for the program raised none.
      pipe.send({"error": ["Exception"], "lost": True})


def _error(error: Exception):
  kinds = [kind.__name__ for kind in type(error).__mro__]
  return {"error": kinds}


if __name__ == "__main__":
  main()
