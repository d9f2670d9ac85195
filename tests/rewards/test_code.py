"""Unit tests of programs: real solutions, mutated ones, and cheats."""

import gzip
import json
import time

import hostile_programs as hostile
import mutations
import pytest

from grpo_jax import types
from grpo_jax.data.sources import programs
from grpo_jax.rewards import code, combine
from grpo_jax.rewards.isolation import sandbox

SQUARE = code.Asserts(
  "assert f(2) == 4\nassert f(3) == 9\nassert f(4) == 16", ["f"]
)
QUICK = sandbox.Limits(cpu_seconds=2, wall_seconds=4.0)
SOLUTION = "def f(x):\n  return x * x\n"


@pytest.fixture(scope="module", autouse=True)
def _available():
  try:
    sandbox.check("namespaces")
  except sandbox.IsolationError as error:
    pytest.skip(str(error))


def problem(tests, prompt=""):
  answer = tests if isinstance(tests, str) else json.dumps(tests._asdict())
  return types.Problem("q", answer, "code", prompt)


def run(program, tests=SQUARE, limits=QUICK):
  return code.run(program, tests, limits=limits)


def scores(tests, *programs, **options):
  completions = [f"<answer>\n```python\n{p}\n```\n</answer>" for p in programs]
  problems = [problem(tests)] * len(programs)
  return code.unit_tests(problems, completions, **options)


@pytest.fixture(scope="module")
def solved(shared_data):
  """Names, reference programs and tests of HumanEval and MBPP."""
  folder = shared_data / "code"
  with gzip.open(folder / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
    records = list(map(json.loads, file))
  found = [
    (
      r["task_id"],
      r["prompt"] + r["canonical_solution"],
      programs.humaneval_tests(r),
    )
    for r in records
  ]
  text = (folder / "mbpp.jsonl").read_text(encoding="utf-8")
  for record in map(json.loads, text.splitlines()):
    name = f"MBPP/{record['task_id']}"
    found.append((name, record["code"], programs.mbpp_tests(record)))
  assert len(found) == 164 + 974
  return found


def grade(solved, programs, **options):
  """Scores of programs, each in a fence, for the tests beside them."""
  return code.unit_tests(
    [problem(tests) for _, _, tests in solved],
    [f"```python\n{program}\n```" for program in programs],
    **options,
  ).scores


def survivors(solved):
  """Mutated programs that pass all tests, and how many there were."""
  trials = [
    (item, mutant)
    for item in solved
    for mutant in mutations.mutants(item[1], 2)
  ]
  graded = grade(*zip(*trials, strict=True), cpu_seconds=2, wall_seconds=6.0)
  names = [
    item[0]
    for (item, _), score in zip(trials, graded, strict=True)
    if score == 1
  ]
  return names, len(trials)


def test_reference_programs_pass(solved):
  some = solved[::38]
  assert grade(some, [program for _, program, _ in some]) == [1.0] * len(some)


def test_most_mutated_programs_fail(solved):
  names, count = survivors(solved[::38])
  assert count > 30
  # Those that pass are equivalent, or their tests are weak.
  assert len(names) < 0.35 * count, names


@pytest.mark.slow
def test_all_reference_programs_pass(solved):
  graded = grade(
    solved, [p for _, p, _ in solved], cpu_seconds=30, wall_seconds=60.0
  )
  bad = [
    item[0] for item, score in zip(solved, graded, strict=True) if score != 1
  ]
  assert not bad


@pytest.mark.slow
def test_most_mutated_programs_of_all_problems_fail(solved):
  for name, part in (("HumanEval", solved[:164]), ("MBPP", solved[164:])):
    names, count = survivors(part)
    print(f"{name}: {len(names)} of {count} mutants pass all tests.")
    assert len(names) < 0.25 * count


def test_a_completion_may_go_on_from_the_start_of_the_function(solved):
  _, _, tests = solved[0]
  body = (
    "    return any(\n        abs(a - b) < threshold\n"
    "        for i, a in enumerate(numbers) for b in numbers[:i]\n    )\n"
  )
  assert grade(solved[:1], [body]) == [1.0]
  assert grade(solved[:1], [body.replace("any", "all")]) != [1.0]


def test_the_score_is_the_share_of_tests_that_pass():
  programs = [
    SOLUTION,
    "def f(x): return x + x",
    "def f(x): return {3: 9}[x]",
    "def f(x): return x * x if x < 4 else f(x)",
    "def f(x):\n  while x == 4: pass\n  return x * x",
    "def g(x): return x",
    "def f(x) return",
  ]
  thirds = [1.0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 0.0, 0.0]
  result = scores(SQUARE, *programs, cpu_seconds=1, wall_seconds=3.0)
  assert result.scores == pytest.approx(thirds)
  assert result.metrics["passed"] == [True] + [False] * 6
  assert result.metrics["timed_out"] == [False] * 4 + [True] + [False] * 2
  whole = scores(SQUARE, *programs, partial=False, cpu_seconds=1)
  assert whole.scores == [1.0] + [0.0] * 6


@pytest.mark.parametrize("name", hostile.CHEATS)
def test_no_cheat_passes(name):
  start = time.monotonic()
  result = run(hostile.CHEATS[name])
  assert time.monotonic() - start < 12
  assert result.outcome != "passed"

  assert result.passed <= 1


@pytest.mark.parametrize(
  "name", ["endless_loop", "fork_bomb", "memory_by_pages"]
)
def test_a_bomb_in_a_function_fails_its_tests(name):
  body = "\n  ".join(hostile.BOMBS[name].strip().splitlines())
  result = run(f"def f(x):\n  {body}\n", limits=QUICK._replace(cpu_seconds=1))
  assert result.outcome in ("failed", "timed_out")
  assert result.passed == 0


def test_a_test_in_a_loop_holds_if_it_holds_every_time():
  tests = code.Asserts(
    "for x in range(5):\n  assert f(x) == x * x\nassert f(9) == 81", ["f"]
  )
  assert run(SOLUTION, tests) == ("passed", 2, 2)
  wrong_once = "def f(x): return 0 if x == 2 else x * x"
  assert run(wrong_once, tests) == ("failed", 1, 2)
  stuck_once = "def f(x):\n  while x == 2: pass\n  return x * x"
  limits = QUICK._replace(cpu_seconds=1)
  assert run(stuck_once, tests, limits) == ("timed_out", 0, 2)


def test_an_assert_of_a_constant_is_no_test():
  tests = code.Asserts("assert True, 'hi'\nassert f(1) == 1", ["f"])
  assert run("def f(x): return 2", tests) == ("failed", 0, 1)
  only = problem(code.Asserts("assert True", ["f"]))
  assert code.unit_tests([only], ["```\nx\n```"]).scores == [None]


@pytest.mark.parametrize(
  "value",
  [
    *("0", "-1", "10**40", "1.5", "float('inf')", "True", "None", "2j"),
    *("'a'", "'\\ud800\\u202e'", "b'\\x00\\xff'", "bytearray(b'a')"),
    *("[]", "[1, [2.0, (3,)]]", "(1,)", "{1, 2}", "frozenset('ab')"),
    *("{'a': [1], 2: None, (1, 2): {3}}", "range(3)", "int", "dict"),
  ],
)
def test_plain_values_cross_unchanged(value):
  tests = code.Asserts(
    f"assert f({value}) == {value}\nassert type(f({value})) is type({value})",
    ["f"],
  )
  assert run("def f(x): return x", tests).outcome == "passed"


def test_values_keep_their_types_on_the_way():
  tests = code.Asserts("assert f(1, b=(2.0,)) == 'int tuple float'", ["f"])
  program = (
    "def f(a, b):\n  kinds = a, b, b[0]\n"
    "  return ' '.join(type(x).__name__ for x in kinds)"
  )
  assert run(program, tests).outcome == "passed"


def test_objects_stay_with_the_program_and_come_back_as_they_were():
  tests = code.Asserts(
    "assert total([Pair(1, 2), Pair(3, 4)]) == 10\n"
    "assert list(count(3)) == [0, 1, 2]\nassert Pair(1, 2) != Pair(1, 2)",
    ["Pair", "total", "count"],
  )
  program = """
class Pair:
  def __init__(self, a, b): self.a, self.b = a, b
def total(pairs): return sum(p.a + p.b for p in pairs)
def count(n): yield from range(n)
"""
  assert run(program, tests).outcome == "passed"


def test_exceptions_cross_by_the_name_of_a_built_in_kind():
  tests = code.Asserts(
    "try:\n  f(-1)\nexcept ValueError:\n  kind = 'value'\n"
    "assert kind == 'value'",
    ["f"],
  )
  own = "class Mine(ValueError): pass\ndef f(x): raise Mine('no')"
  assert run(own, tests).outcome == "passed"
  assert run("def f(x): raise KeyError", tests).outcome == "failed"


def test_setup_may_use_what_the_program_defines():
  tests = code.Asserts(
    "assert f(node) == 7", ["f", "node"], "", "node = Node(7)"
  )
  program = (
    "class Node:\n  def __init__(self, x): self.x = x\ndef f(n): return n.x"
  )
  assert run(program, tests).outcome == "passed"


def test_helpers_of_the_tests_are_not_those_of_the_program():
  helper = "def close(a, b):\n  return abs(a - b) < 1e-6\n"
  tests = code.Asserts("assert close(f(2), 4)", ["f"], helper)
  cheat = "def close(a, b): return True\ndef f(x): return 0"
  assert run(cheat, tests).outcome == "failed"
  assert run(SOLUTION, tests).outcome == "passed"


CASES = code.Cases([("1 2\n", "3\n"), ("5 7", "12"), ("-1 1", "0\n\n")])


def test_cases_compare_what_a_program_writes():
  adds = "print(sum(map(int, input().split())))"
  assert run(adds, CASES) == ("passed", 3, 3)
  assert run("print(3, '  ')", CASES) == ("failed", 1, 3)
  assert run("print('3.0')", CASES) == ("failed", 0, 3)
  assert run(adds + "\nraise SystemExit(1)", CASES) == ("failed", 0, 3)
  main = f"if __name__ == '__main__':\n  {adds}"
  assert run(main, CASES).outcome == "passed"
  limits = QUICK._replace(cpu_seconds=1)
  assert run("while True: pass", CASES, limits).outcome == "timed_out"


def test_a_completion_has_a_bound_on_its_time_and_not_its_cases_alone():
  naps = "import time\nwhile True: time.sleep(100)"
  sleeps_once = "import time\nif input() == '1': time.sleep(100)\nprint('ok')"
  cases = code.Cases([("", "")] * 200)
  start = time.monotonic()
  limits = QUICK._replace(wall_seconds=1.0)
  assert run(naps, cases, limits) == ("timed_out", 0, 200)
  assert time.monotonic() - start < 12
  limits = QUICK._replace(wall_seconds=3.0)
  once = code.Cases([("1", "ok"), ("2", "ok"), ("3", "ok")])
  assert run(sleeps_once, once, limits) == ("timed_out", 2, 3)


def test_the_bound_holds_where_no_case_times_out():
  slow = "import time\ntime.sleep(0.5)\nprint(input())"
  answer = json.dumps({"cases": [["1", "1"]] * 40})
  start = time.monotonic()
  result = code.unit_tests(
    [problem(answer)], [f"```\n{slow}\n```"], total_seconds=4.0
  )
  assert time.monotonic() - start < 12
  assert 0 < result.scores[0] < 0.25 and result.metrics["timed_out"] == [True]
  combine.check({"code": dict(weight=1.0, total_seconds=4.0)})
  with pytest.raises(ValueError, match="total_seconds=0"):
    code.unit_tests([], [], total_seconds=0)


@pytest.mark.parametrize(
  "tests,counts",
  [
    # What is right passes; what answers 1 alone passes so many, of so many.
    ("for x in (1, 2): same(f(x), x * x)", (0, 1)),
    ("[same(f(x), x * x) for x in (1, 2)]", (0, 1)),
    ("same(f(1), 1)\nsame(f(2), 4)", (1, 2)),
    ("def t():\n  y = f(2)\n  assert y == 4\nassert f(1) == 1\nt()", (1, 2)),
    ("assert f(1) == 1\nf(2)", (1, 2)),
    ("assert f(1) == 1\ny = f(2)\nassert y == 4", (1, 2)),
    ("done = [same(f(x), x * x) for x in (1, 2)]\nassert done", (0, 2)),
    ("import functools\nc = functools.partial(same, exp=4)\nc(f(2))", (0, 1)),
    ("def never():\n  assert f(1) == 5\nassert f(1) == 1\nf(2)", (1, 2)),
    ("if __name__ == '__main__':\n  assert f(2) == 4", (0, 1)),
    ("def t():\n  with a: pass\ntry: t()\nexcept NameError:\n  f(2)\n"
     "  assert f(1) == 1", (0, 1)),
    ("try: assert f(2) == 4\nexcept KeyError: pass", (0, 1)),
    ("class T:\n  def go(self): assert f(2) == 4\nt = T()\nt.go()", (0, 1)),
    ("done = [same(f(1), 1)]\nprint(done)\nsame(f(2), 4)", (1, 2)),
    ("def g(): same(f(1), 2)\ndef g(): same(f(2), 4)\ng()", (0, 1)),
    ("try: assert f(2) == 5\nexcept AssertionError: pass\nelse: assert False\n"
     "assert f(1) == 1", None),
    ("for x in []: assert f(x)\nassert f(1) == 1", None),
  ],
)  # fmt: skip
def test_cases_are_statements_that_test(tests, counts):
  helper = "def same(out, exp):\n  assert out == exp"
  tests = code.Asserts(tests, ["f"], helper)
  if counts is None:  # A test that nothing passes, for it runs no assert.
    assert run(SOLUTION, tests).outcome == "failed"
    return
  assert run(SOLUTION, tests).outcome == "passed"
  result = run("def f(x): return {1: 1}[x]", tests)
  assert result == ("failed", *counts)


@pytest.mark.parametrize(
  "completion,program",
  [
    ("```python\na = 1\n```", "a = 1\n"),
    ("text\n```py\na\n```\nmore\n```\nb\n```\nend", "b\n"),
    ("```python\na\n```\n```bash\nls\n```", "a\n"),
    ("<think>```\na\n```</think>```\nb\n```", "b\n"),
    ("<think>t</think><answer>```python\nb\n```</answer>", "b\n"),
    ("<think>t</think><answer>b = 1</answer>", "b = 1"),
    ("```python\nx = '```'\n```", "x = '```'\n"),
    ("  ```python\n  a\n  ```", "  a\n"),
    ("a = 1", None),
    ("", None),
    ("```python\na = 1", None),
    ("<think>```\na\n```", None),
    ("<answer>```\na\n```</answer><answer>```\nb\n```</answer>", None),
    ("<answer></answer>", None),
    ("```bash\nls\n```", None),
  ],
)
def test_the_program_is_the_last_block_of_the_answer(completion, program):
  assert code.extract(problem(SQUARE), completion) == program


def test_without_a_program_the_score_is_zero():
  result = code.unit_tests([problem(SQUARE)], ["It cannot be done."])
  assert result.scores == [0.0]
  assert result.metrics["no_program"] == [True]


def test_a_sandbox_that_cannot_be_started_for_once_is_no_zero(monkeypatch):
  monkeypatch.setattr(sandbox, "_LAUNCHER", "/nowhere/launcher.py")
  monkeypatch.setattr(sandbox, "check", lambda isolation: None)
  result = code.unit_tests([problem(SQUARE)], [f"```\n{SOLUTION}\n```"])
  assert result.scores == [None]
  assert result.metrics["crashed"] == [True]


@pytest.mark.parametrize("program", ["#" * 10**7, "x = 1\0", "x = '\ud800'"])
def test_what_cannot_be_a_program_scores_zero(program):
  result = code.unit_tests([problem(SQUARE)], [f"```\n{program}\n```"])
  assert result.scores == [0.0]


@pytest.mark.parametrize(
  "answer",
  [
    "",
    "42",
    "[]",
    "{}",
    '{"cases": []}',
    '{"asserts": "x = 1", "names": []}',
    '{"asserts": "assert (", "names": []}',
    '{"cases": [["1"]]}',
    "null",
  ],
)
def test_a_problem_without_tests_cannot_be_scored(answer):
  assert code.unit_tests([problem(answer)], [SOLUTION]).scores == [None]


def test_extraction_takes_time_in_proportion_to_the_text():
  for piece in ("```\n", "```x\n", "`", "<answer>", "```python x```\n", "\n"):
    start = time.process_time()
    code.extract(problem(SQUARE), piece * (10**6 // len(piece)))
    assert time.process_time() - start < 5


def test_options_are_checked_also_for_an_empty_batch():
  combine.check({"code": 1.0})
  with pytest.raises(ValueError, match="config.rewards.code: isolation='jail'"):
    combine.check({"code": dict(weight=1.0, isolation="jail")})
  with pytest.raises(ValueError, match="isolation='jail' must be one of"):
    code.unit_tests([], [], isolation="jail")
  with pytest.raises(ValueError, match="isolation='jail' must be one of"):
    code.unit_tests([problem(SQUARE)], ["x"], isolation="jail")
  with pytest.raises(ValueError, match="Limits must be above 0"):
    code.unit_tests([problem(SQUARE)], ["x"], memory_mb=0)


def test_a_run_is_refused_where_the_isolation_is_not_given(monkeypatch):
  monkeypatch.setattr(sandbox, "_SYSTEM", ())  # No loader: nothing can start.
  sandbox.check.cache_clear()
  try:
    with pytest.raises(
      ValueError, match="config.rewards.code: Programs cannot"
    ):
      combine.check({"code": 1.0})
  finally:
    sandbox.check.cache_clear()


def test_programs_are_graded_through_a_config_of_rewards():
  completions = [f"```python\n{SOLUTION}```", "```python\ndef f(x): pass\n```"]
  section = {"code": 2.0, "tag_count": 1.0}
  scores = combine.score(section, [problem(SQUARE)] * 2, completions)
  assert scores.total.tolist() == [2.0, 0.0]
