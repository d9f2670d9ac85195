"""The program's side: defines what is to be tested, then answers calls.

  python program.py READ WRITE

Run as a script in a sandbox; its order on standard input is a JSON object.
"""

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


if __name__ == "__main__":
  main()
