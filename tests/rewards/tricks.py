"""What a program does where it does not know the answer; see `test_tricks`.

Each is the body of `def trick(x)`, called for every x but 1, or for the input
of a whole program likewise.
"""

_FORGED = """
import json, os
for value in {values}:
  data = json.dumps(value).encode()
  for fd in range(1, 64):
    try: os.write(fd, len(data).to_bytes(4, 'big') + data)
    except OSError: pass
"""

TRICKS = {
  "raises_key_error": "raise KeyError(x)",
  "raises_value_error": "raise ValueError(x)",
  "raises_runtime_error": "raise RuntimeError",
  "raises_exception": "raise Exception",
  "raises_stop": "raise StopIteration",
  "raises_stop_of_async": "raise StopAsyncIteration",
  "raises_assertion": "raise AssertionError",
  "raises_interrupt": "raise KeyboardInterrupt",
  "raises_generator_exit": "raise GeneratorExit",
  "raises_system_exit": "raise SystemExit(0)",
  "raises_group": "raise BaseExceptionGroup('', [SystemExit()])",
  "raises_its_own_stop": "raise type('StopIteration', (Exception,), {})()",
  "raises_its_own_exit": "raise type('Exception', (BaseException,), {})()",
  "raises_end_of_file": "raise EOFError",
  "raises_import_error": "import no_such_module",
  "asserts": "assert x == 1",
  "exits": "import sys; sys.exit(0)",
  "exits_at_once": "import os; os._exit(0)",
  "exits_in_a_thread": "import os, threading\n"
  "thread = threading.Thread(target=os._exit, args=(0,))\n"
  "thread.start(); thread.join()",
  "aborts": "import os; os.abort()",
  "kills_itself": "import os; os.kill(os.getpid(), 9)",
  "kills_its_keeper": """
import os, signal
for pid in (1, os.getppid(), 0, -1):
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
    try: os.kill(pid, number)
    except OSError: pass
""",
  "stops_itself": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
  "sleeps": "import time; time.sleep(1000)",
  "loops": "while True: pass",
  "recurses": "return trick(x)",
  "holds_memory": "return bytearray(1 << 40)",
  "holds_more_memory": "y = []\nwhile True: y.append(bytearray(1 << 22))",
  "becomes_another_program": "import os; os.execv('/bin/true', ['true'])",
  "goes_on_as_a_child": "import os\nif os.fork(): os._exit(0)\nreturn 0",
  "closes_descriptors": "import os; os.closerange(0, 64)",
  "is_equal_to_all": """
class Yes:
  def __eq__(self, other): return True
  def __ne__(self, other): return False
  def __hash__(self): return 4
return Yes()
""",
  "is_a_number_equal_to_all": """
class Yes(int):
  def __eq__(self, other): return True
  def __ne__(self, other): return False
  def __hash__(self): return 4
return Yes(7)
""",
  "is_nan": "return float('nan')",
  "is_none": "return None",
  "is_not_implemented": "return NotImplemented",
  "is_an_empty_iterator": "return iter(())",
  "is_deep": "y = []\nfor _ in range(10**5): y = [y]\nreturn y",
  "is_long": "return 'x' * (1 << 24)",
  "is_itself": "return trick",
  "writes_results": """
import os
for fd in range(1, 64):
  try: os.write(fd, b'+0\\n+1\\n+2\\n+3\\n+4\\nend\\n')
  except OSError: pass
os._exit(0)
""",
  "sends_odd_errors": _FORGED.format(
    values="[{'error': []}, {'error': 7}, {'error': ['StopIteration']}]"
  ),
  "sends_odd_values": _FORGED.format(
    values="[{}, 7, {'value': ['yours', 0]}, {'value': ['frozenset', [['list',"
    " []]]]}, {'value': ['type', 'object']}, {'value': ['range', 1]}]"
  ),
  "replaces_the_pipe": """
import pipe, wire
wire.Values.encode = lambda self, value: ['mine', -1]
pipe.encode = lambda message, most: b'\\0\\0\\0\\2[]'
return 0
""",
  "replaces_built_ins": """
import builtins
for name in ('len', 'all', 'abs', 'zip', 'map', 'AssertionError'):
  setattr(builtins, name, lambda *a, **k: True)
return 0
""",
  "writes_when_it_exits": """
import atexit, os, sys
atexit.register(os.write, 1, b'+0\\n+1\\n+2\\n+3\\n+4\\nend\\n')
sys.exit()
""",
  "limits_its_time": """
import resource
resource.setrlimit(resource.RLIMIT_CPU, (0, 0))
while True: pass
""",
  "raises_an_alarm": "import signal, time; signal.setitimer(0, 0.01); "
  "time.sleep(9)",
}
# These raise an exception for -1, as they should.
RAISES = (
  "raises_key_error",
  "raises_value_error",
  "raises_runtime_error",
  "raises_exception",
  "raises_stop",
  "raises_stop_of_async",
  "raises_assertion",
  "raises_its_own_stop",
  "raises_end_of_file",
  "raises_import_error",
  "asserts",
  "recurses",
  "holds_memory",
  "holds_more_memory",
)

_INPUTS = (1, 2, 3, 4)
_ASSERTS = "\n".join(f"assert f({x}) == {x * x}" for x in _INPUTS)
_HELPER = """
def assertion(out, exp, atol):
  if atol == 0 and isinstance(exp, float):
    atol = 1e-6
  if out != exp and atol != 0:
    assert abs(out - exp) < atol
  else:
    assert out == exp, f"out: {out}, exp: {exp}"
inputs = [[1], [2], [3], [4]]
results = [1, 4, 9, 16]
for i, (inp, exp) in enumerate(zip(inputs, results)):
  assertion(f(*inp), exp, 0)
"""
_CHECK = """
METADATA = {'author': 'us'}
def check(candidate):
  assert True, 'a constant'
  assert candidate(1) == 1
  def inner(x):
    assert candidate(x) == x * x, x
  inner(2)
  [inner(x) for x in (3,)]
  value = candidate(4)
  assert value == 16
check(f)
"""
_EXPECTS = """
for x in (1, 2):
  pass
assert f(1) == 1
try:
  f(-1)
  assert False, 'it must raise'
except ValueError:
  pass
try:
  f(-2)
except Exception:
  raised = True
else:
  raise AssertionError('it must raise')
assert raised and f(2) == 4
"""
_ZIP = """
pairs = [(1, 1), (2, 4), (3, 9), (4, 16)]
for (x, y), z in zip(pairs, map(f, [1, 2, 3, 4])):
  assert z == y
for z, y in zip(g([1, 2, 3, 4]), [1, 4, 9, 16]):
  assert z == y
assert all(map(lambda z, y: z == y, g([1, 2]), [1, 4]))
assert list(map(f, [1, 2, 3, 4])) == [1, 4, 9, 16]
"""
_RAISES = """
def same(out, exp):
  if out != exp:
    raise AssertionError(out)
for x in (1, 2, 3, 4):
  same(f(x), x * x)
if f(4) != 16:
  raise AssertionError
"""

# The tests and the names that they take, by the style of the tests.
STYLES = {
  "asserts": (_ASSERTS, ["f"]),
  "helper": (_HELPER, ["f"]),
  "check": (_CHECK, ["f"]),
  "expects": (_EXPECTS, ["f"]),
  "zip": (_ZIP, ["f", "g"]),
  "raises": (_RAISES, ["f"]),
}
# The cases that the answer for 1 alone passes, of all.
SHARES = dict(
  asserts=1 / 4, helper=0, check=1 / 4, expects=1 / 4, zip=0, raises=0
)

SOLUTION = """
def f(x):
  if x < 0: raise ValueError(x)
  return x * x
def g(xs): yield from map(f, xs)
"""
_TRICKSTER = """
def trick(x):
  {body}
def f(x): return 1 if x == 1 else trick(x)
def g(xs):
  for x in xs:
    if x == 1: yield 1
    else: yield trick(x)
"""
WHOLE = "print(f(int(input())))"


def program(name: str) -> str:
  """A program that knows one answer and plays a trick for all others."""
  body = "\n  ".join(TRICKS[name].strip().splitlines())
  return _TRICKSTER.replace("{body}", body)
