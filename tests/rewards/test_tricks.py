"""Programs that try to pass without solving, in every style of tests."""

import ast
import itertools
import json

import pytest
import tricks

from grpo_jax import types
from grpo_jax.data.sources import programs
from grpo_jax.rewards import code
from grpo_jax.rewards.isolation import sandbox

QUICK = dict(cpu_seconds=1, wall_seconds=2.0, memory_mb=128)
CASES = [("1", "1"), ("2", "4"), ("3", "9"), ("4", "16")]


@pytest.fixture(scope="module", autouse=True)
def _available():
  try:
    sandbox.check("namespaces")
  except sandbox.IsolationError as error:
    pytest.skip(str(error))


def reference(style):
  """The reference answer of a problem with tests in a style."""
  if style == "stdin":
    return json.dumps({"cases": CASES})
  if style == "mbpp":
    tests = [f"assert f({x}) == {y}" for x, y in CASES]
    record = dict(test_list=tests, test_setup_code="", code=tricks.SOLUTION)
    return programs.mbpp_tests(record)
  tests, names = tricks.STYLES[style]
  return json.dumps(code.Asserts(tests, names)._asdict())


def grade(trials, **options):
  """Scores of (style, program)."""
  problems = [types.Problem("", reference(s), "code", "") for s, _ in trials]
  texts = [
    f"```python\n{program}\n{tricks.WHOLE if style == 'stdin' else ''}\n```"
    for style, program in trials
  ]
  result = code.unit_tests(problems, texts, **QUICK | options)
  return result.scores


STYLES = (*tricks.STYLES, "mbpp", "stdin")
SHARES = tricks.SHARES | dict(mbpp=1 / 4, stdin=1 / 4)


def most(style, name):
  """The share that a trickster solves."""
  if style == "expects" and name in tricks.RAISES:
    return 3 / 4 if name == "raises_value_error" else 2 / 4
  return SHARES[style]


def test_who_solves_passes_in_every_style():
  scores = grade([(style, tricks.SOLUTION) for style in STYLES])
  assert dict(zip(STYLES, scores, strict=True)) == dict.fromkeys(STYLES, 1.0)


def earned(trials):
  graded = grade([(s, tricks.program(name)) for s, name in trials])
  return dict(zip(trials, graded, strict=True))


def too_much(trials):
  """The trials that earned more than they solve, or nothing at all."""
  return {
    trial: score
    for trial, score in earned(trials).items()
    if score is None or score > most(*trial)
  }


def test_no_trick_earns_more_than_it_solves():
  styles = itertools.cycle(STYLES)
  assert not too_much(list(zip(styles, tricks.TRICKS, strict=False)))


@pytest.mark.slow
def test_no_trick_earns_more_than_it_solves_in_any_style():
  trials = list(itertools.product(STYLES, tricks.TRICKS))
  assert len(tricks.TRICKS) >= 40 and not too_much(trials)


def evalplus_tasks(shared_data, count):
  """Programs of MBPP with tests as EvalPlus writes them, of several inputs.

  Yields the program, the tests, and the program that answers the first input
  and raises at all others.
  """
  lines = (shared_data / "code" / "mbpp.jsonl").read_text().splitlines()
  found = 0
  for record in map(json.loads, lines):
    calls = [ast.parse(test).body[0] for test in record["test_list"]]
    calls = [getattr(c.test, "left", None) for c in calls]
    if not all(isinstance(c, ast.Call) and not c.keywords for c in calls):
      continue
    name = {ast.unparse(c.func) for c in calls}
    inputs = [f"[{', '.join(map(ast.unparse, c.args))}]" for c in calls]
    try:
      first, *others = [ast.literal_eval(text) for text in inputs]
    except ValueError:
      continue
    if len(name) > 1 or first in others:
      continue
    (name,) = name
    inputs = more_inputs([first, *others])
    ended = sandbox.Sandbox(
      {"p.py": record["code"] + _EXPECTED % (inputs, name)},
      ["p.py"],
      limits=sandbox.Limits(),
      isolation="namespaces",
    ).wait()
    pairs, count_of_them = (["", "0"] + ended.output.decode().splitlines())[-2:]
    if ended.exit or int(count_of_them) < 6:
      continue
    tests = code.Asserts(_EVALPLUS % (pairs, name), [name])
    cheat = f"{record['code']}\n{_CHEAT % (name, name, first, name)}"
    yield record["code"], tests, cheat
    found += 1
    if found == count:
      return


def more_inputs(inputs):
  """Up to 12 inputs: those given, then others like them."""
  made = list(inputs)
  for step in (1, 2, 3):
    made += [[_other(value, step) for value in one] for one in inputs]
  return [one for i, one in enumerate(made) if one not in made[:i]]


def _other(value, step):
  if isinstance(value, bool):
    return value
  if isinstance(value, int | float):
    return value + step if value > 0 else value
  if isinstance(value, str | list | tuple):
    return value + value[:1] * step
  return value


_EXPECTED = """
import ast, copy
pairs = []
for inp in %r:
  try:
    out = %s(*copy.deepcopy(inp))
    if out == ast.literal_eval(repr(out)): pairs.append((inp, out))
  except Exception: pass
print()
print(pairs)
print(len(pairs))
"""
_EVALPLUS = """
def assertion(out, exp):
  assert out == exp
for inp, exp in %s:
  assertion(%s(*inp), exp)
"""
_CHEAT = """
real = %s
def %s(*args):
  if list(args) != %r: raise KeyError
  return real(*args)
%s.__doc__ = None
"""


def check_evalplus(shared_data, count):
  tasks = list(evalplus_tasks(shared_data, count))
  assert len(tasks) == count
  problems = [
    types.Problem("", json.dumps(tests._asdict()), "code", "")
    for _, tests, _ in tasks
  ]
  for place, wanted in ((0, 1.0), (2, 0.0)):
    texts = [f"```python\n{task[place]}\n```" for task in tasks]
    scores = code.unit_tests(problems, texts, wall_seconds=30.0).scores
    assert scores == [wanted] * count


def test_a_program_that_answers_the_first_input_alone_earns_nothing(
  shared_data,
):
  check_evalplus(shared_data, 5)


@pytest.mark.slow
def test_39_tasks_of_the_kind_of_evalplus(shared_data):
  check_evalplus(shared_data, 39)
