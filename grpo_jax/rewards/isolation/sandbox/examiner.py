"""The examiner's side: runs the tests, which call the program.

  python examiner.py READ WRITE

Run as a script in a sandbox of its own; its order on standard input is a JSON
object. Writes a line, +number or -number, where a test has held or failed.
"""

import builtins
import contextlib
import os

import asserts
import pipe as pipe_lib
import wire


def main() -> None:
  """Runs the tests until they end or the program does."""
  pipe, order = wire.begin()
  with contextlib.suppress(pipe_lib.Gone):
    examine(pipe, order)
  os._exit(0)


def examine(pipe: wire.Pipe, order) -> None:
  """Runs the tests; writes +number or -number where one held or failed.

  A test in a loop has held when the loop has ended, so its line comes last.
  """
  results = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # For what tests print.
  values = wire.Values(lambda number: wire.Remote(ask, number))

  def ask(*message):
    pipe.send(values.encode(list(message)))
    return answer()

  def answer():
    reply = pipe.receive()
    if "error" in reply:
      raise _exception(reply["error"])
    return values.decode(reply["value"])

  tree, in_loops = asserts.number(order["asserts"])
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

  namespace: dict[str, object] = {"__name__": "tests"}
  exec(compile(order["preamble"], "preamble.py", "exec"), namespace)
  answer()  # The program has run.
  for name in order["names"]:
    namespace[name] = ask("get", name)
  namespace[asserts.TEST] = test
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


if __name__ == "__main__":
  main()
