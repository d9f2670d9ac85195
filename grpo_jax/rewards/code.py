"""The code reward: a completion's program against unit tests, in a sandbox.

Tests are asserts about functions that the program defines (HumanEval, MBPP) or
cases of input and output of a whole program. A problem's reference answer holds
them as JSON; see `parse_tests`.

A program cannot pass by what it does beside computing: the asserts run in a
process of their own, in another sandbox, and ask the program's process for
values through a pipe (see `sandbox.wire`); expected outputs never leave our
process. An `__eq__` that is always true, replaced built-ins, written results
and searched memory change nothing. Nor can it pass by ending the tests: it
passes where every case ran to its end and held (see `run`). What remains to a
program that does not solve the problem: to know the tests by heart, from a
prompt that shows them or from training data; and to pass tests that are weak.
"""

import concurrent.futures
import contextlib
import functools
import json
import os
import pathlib
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from grpo_jax import types
from grpo_jax.rewards import format, terms
from grpo_jax.rewards.isolation import sandbox
from grpo_jax.rewards.isolation.sandbox import asserts

OUTCOMES = ("passed", "failed", "timed_out", "no_program", "crashed")

# The files that lie beside each script, by their paths in `isolation`.
_ROLES = {
  "program.py": ("sandbox/program.py", "sandbox/wire.py", "pipe.py"),
  "examiner.py": (
    "sandbox/examiner.py",
    "sandbox/wire.py",
    "sandbox/asserts.py",
    "pipe.py",
  ),
}
_PARSING = threading.Lock()
_MAX_PROGRAM = 1_000_000  # Characters; what is longer is no program.
# The examiner outlives a program that uses up its time.
_EXAMINER_SECONDS = 2.0


class Asserts(NamedTuple):
  """Tests of functions.

  Attributes:
    asserts: Python source; each assert statement is one test.
    names: what the tests take from the program.
    preamble: source that the tests need, and that stands before the program,
      such as the start of the program in HumanEval.
    setup: source that runs after the program and may use what it defines.
  """

  asserts: str
  names: list[str]
  preamble: str = ""
  setup: str = ""


class Cases(NamedTuple):
  """Tests of a whole program: standard input and the output expected."""

  cases: list[tuple[str, str]]


class Result(NamedTuple):
  """What became of one program: one of `OUTCOMES`, and its tests."""

  outcome: str
  passed: int
  total: int


@terms.checked_empty
def unit_tests(
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  partial: bool = True,
  isolation: str = "namespaces",
  cpu_seconds: int = 5,
  wall_seconds: float | int = 10.0,
  total_seconds: float | int = 60.0,
  memory_mb: int = 512,
  workers: int = 0,
) -> terms.Result:
  """The share of unit tests that a completion's program passes, 0 to 1.

  None where a problem has no tests, and where a sandbox could not be started
  for once (outcome "crashed"). Each outcome is logged under its name.

  Args:
    problems: B problems; see `parse_tests` for their answers.
    completions: B texts; see `extract` for where the program is.
    partial: False for 1 where all tests pass and otherwise 0, as in
      DeepSeek-R1, https://arxiv.org/abs/2501.12948 section 2.2.
    isolation: "namespaces", or "limits" where that is enough; see `sandbox`.
    cpu_seconds: processor time of a program, for each case of input and output.
    wall_seconds: time of a program from start to end, likewise.
    total_seconds: time of a completion for all cases of input and output. After
      a case that timed out the others have `wall_seconds` together. Cases for
      which no time is left have failed.
    memory_mb: memory that a program and all that it starts hold, MiB.
    workers: programs that run at a time; 0 for two on each core, as much of
      the time goes to making and removing namespaces.

  Raises:
    ValueError: there is no such isolation, or a limit is not above 0.
    sandbox.IsolationError: this machine does not give the isolation.
  """
  ended = results(
    problems,
    completions,
    isolation=isolation,
    cpu_seconds=cpu_seconds,
    wall_seconds=wall_seconds,
    total_seconds=total_seconds,
    memory_mb=memory_mb,
    workers=workers,
  )

  def score(result):
    if result is None or result.outcome == "crashed":
      return None
    share = result.passed / result.total
    return share if partial else float(share == 1.0)

  outcomes = {
    outcome: [r.outcome == outcome if r else None for r in ended]
    for outcome in OUTCOMES
  }
  return terms.Result([score(result) for result in ended], outcomes)


def results(
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  isolation: str = "namespaces",
  cpu_seconds: int = 5,
  wall_seconds: float | int = 10.0,
  total_seconds: float | int = 60.0,
  memory_mb: int = 512,
  workers: int = 0,
) -> list[Result | None]:
  """What became of each program; None where a problem has no tests.

  For arguments and errors see `unit_tests`.
  """
  limits = sandbox.Limits(
    cpu_seconds=cpu_seconds, wall_seconds=wall_seconds, memory_mb=memory_mb
  )
  if not all(limit > 0 for limit in (*limits, total_seconds)) or workers < 0:
    raise ValueError(
      f"Limits must be above 0, not {limits}; {total_seconds=}, {workers=}."
    )
  sandbox.check(isolation)

  def grade(problem, tests, completion):
    if tests is None:
      return None
    program = extract(problem, completion)
    try:
      return run(
        program,
        tests,
        limits=limits,
        isolation=isolation,
        total_seconds=total_seconds,
      )
    except OSError:
      # It was given a moment ago: the machine is short of something.
      return Result("crashed", 0, 1)

  workers = workers or 2 * len(os.sched_getaffinity(0))
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    # Tests are parsed here, in one thread; see `_count`.
    tests = [parse_tests(problem.answer) for problem in problems]
    return list(pool.map(grade, problems, tests, completions))


def extract(problem: types.Problem, completion: str) -> str | None:
  """The program: the last fenced block of the answer, or the whole answer.

  The answer is what the answer tags hold; without such tags what follows the
  thinking. Blocks of another language than Python do not count. Without a
  fence the answer is the program where it stands in tags and is Python.
  """
  pieces = format.split_tags(problem, completion)
  tags = pieces[1::2]
  tagged = "<answer>" in tags or "</answer>" in tags
  if tagged:
    text = format.tagged_answer(problem, completion)
  else:
    text = None if tags[-1:] == ["<think>"] else pieces[-1]
  if text is None:
    return None
  blocks = _python_blocks(text)
  if blocks:
    return blocks[-1]
  if tagged and "```" not in text and text.strip():
    return text
  return None


def _python_blocks(text: str) -> list[str]:
  """What stands between fences, of the blocks that are closed."""
  blocks, language, lines = [], None, []
  for line in text.split("\n"):
    mark = line.strip()
    if language is None:
      if mark.startswith("```") and "`" not in mark[3:]:
        language, lines = mark[3:].strip().lower(), []
    elif mark == "```":
      if language in ("", "py", "python", "python3"):
        blocks.append("\n".join(lines) + "\n")
      language = None
    else:
      lines.append(line)
  return blocks


def parse_tests(reference: str) -> Asserts | Cases | None:
  """The tests in a reference answer; None where it holds none.

  Either {"asserts": "assert f(1) == 2", "names": ["f"]}, perhaps with
  "preamble" and "setup" (see `Asserts`), or {"cases": [["1 2", "3"], ...]}.
  """
  try:
    fields = json.loads(reference)
    if "cases" in fields:
      cases = [(str(given), str(wanted)) for given, wanted in fields["cases"]]
      return Cases(cases) if cases else None
    tests = Asserts(**fields)
    return tests if _count(tests.asserts, tests.preamble) else None
  except (TypeError, ValueError, SyntaxError, AttributeError):
    return None


def run(
  program: str | None,
  tests: Asserts | Cases,
  *,
  limits: sandbox.Limits,
  isolation: str = "namespaces",
  total_seconds: float | int = 60.0,
) -> Result:
  """Runs one program against its tests.

  A case of input and output passes where the program ends with status 0 and has
  written what is expected, blanks at the ends of lines and of the output aside.

  Of asserts, a case is a statement that tests something: each assert by itself;
  a loop, a `try` or a call of a function that has asserts, as a whole (see
  `sandbox.asserts`). It passes where it was run to its end, at least one assert
  of it was run, and none failed, nor did an `assert False` or `raise
  AssertionError`, also where the tests catch that. The program passes where
  all cases pass and the tests ran to their end. What fails outside of all cases
  counts as one more. A program that exits, dies or times out ends the tests, so
  that what is left has failed; StopIteration is passed on as another exception,
  and `zip` and `map` of the tests fail where the program's values are fewer, so
  that no loop of them ends early.

  Args:
    program: its source; None where there is none.
    tests: see `parse_tests`.
    limits: of each process that runs the program.
    isolation: see `sandbox`.
    total_seconds: see `unit_tests`.

  Returns:
    The outcome; how many cases passed; of how many.
  """
  if not program or "\0" in program or len(program) > _MAX_PROGRAM:
    cases = isinstance(tests, Cases)
    return Result(
      "no_program",
      0,
      len(tests.cases) if cases else _count(tests.asserts, tests.preamble),
    )
  if isinstance(tests, Cases):
    passed, total, timed_out = _run_cases(
      program, tests, limits, isolation, total_seconds
    )
  else:
    wall_seconds = min(limits.wall_seconds, total_seconds)
    limits = limits._replace(wall_seconds=wall_seconds)
    passed, total, timed_out = _run_asserts(program, tests, limits, isolation)
  if passed == total:
    return Result("passed", passed, total)
  return Result("timed_out" if timed_out else "failed", passed, total)


@functools.lru_cache(maxsize=4096)
def _count(source: str, preamble: str) -> int:
  # Threads that parse at the same time meet a SystemError in Python 3.11.
  with _PARSING:
    return asserts.number(source, preamble).count


def _run_cases(program, tests, limits, isolation, total_seconds):
  passed, timed_out = 0, False
  deadline = time.monotonic() + total_seconds
  for given, expected in tests.cases:
    left = deadline - time.monotonic()
    if left <= 0:
      timed_out = True
      break
    ended = sandbox.Sandbox(
      {"program.py": program},
      ["program.py"],
      stdin=given.encode(errors="surrogatepass"),
      limits=limits._replace(wall_seconds=min(limits.wall_seconds, left)),
      isolation=isolation,
    ).wait()
    output = ended.output.decode(errors="replace")
    passed += ended.exit == 0 and _lines(output) == _lines(expected)
    if ended.timed_out and not timed_out:
      timed_out = True
      deadline = min(deadline, time.monotonic() + limits.wall_seconds)
  return passed, len(tests.cases), timed_out


def _lines(text: str) -> list[str]:
  return [line.rstrip() for line in text.rstrip().splitlines()]


def _run_asserts(program, tests, limits, isolation):
  source = f"{tests.preamble}\n{program}"
  calls_r, calls_w = os.pipe()
  replies_r, replies_w = os.pipe()
  with contextlib.ExitStack() as stack:
    for fd in (calls_r, calls_w, replies_r, replies_w):
      stack.callback(os.close, fd)
    examined = _role(
      "program.py",
      {"program": source, "setup": tests.setup},
      (calls_r, replies_w),
      limits,
      isolation,
    )
    try:
      examiner = _role(
        "examiner.py",
        tests._asdict(),
        (replies_r, calls_w),
        limits._replace(wall_seconds=limits.wall_seconds + _EXAMINER_SECONDS),
        isolation,
      )
    except BaseException:
      examined.kill()
      raise
  ended = examiner.wait()
  timed_out = examined.kill().timed_out or ended.timed_out
  lines = ended.output.decode().splitlines()
  passed = sum(line.startswith("+") for line in lines)
  total = _count(tests.asserts, tests.preamble) - sum(
    line.startswith("?") for line in lines
  )
  # What failed outside of all cases is a case of its own.
  if passed == total and "end" not in lines:
    total += 1
  return passed, max(total, 1), timed_out


def _role(role, order, channel, limits, isolation):
  return sandbox.Sandbox(
    {pathlib.PurePath(path).name: _source(path) for path in _ROLES[role]},
    [role, *map(str, channel)],
    stdin=json.dumps(order).encode(),
    limits=limits,
    isolation=isolation,
    channel=channel,
  )


@functools.cache
def _source(path: str) -> str:
  folder = pathlib.Path(sandbox.__file__).parents[1]
  return (folder / path).read_text(encoding="utf-8")
