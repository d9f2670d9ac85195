"""Records of HumanEval and MBPP become the tests that the reward reads."""

from grpo_jax.data.sources import programs
from grpo_jax.rewards import code


def test_humaneval_s_check_is_called_with_the_function():
  record = dict(
    entry_point="double",
    prompt='def double(x):\n  """Twice x."""\n',
    test="def check(f):\n  assert f(2) == 4",
  )
  tests = code.parse_tests(programs.humaneval_tests(record))
  assert tests == code.Asserts(
    "def check(f):\n  assert f(2) == 4\ncheck(double)",
    ["double"],
    'def double(x):\n  """Twice x."""\n',
  )


def test_mbpp_s_tests_take_what_the_program_defines_and_import_the_rest():
  record = dict(
    code="import math\nimport re\ndef area(r):\n  return math.pi * r",
    test_list=["assert area(1) == math.pi * ONE"],
    test_setup_code="ONE = 1",
  )
  tests = code.parse_tests(programs.mbpp_tests(record))
  assert tests == code.Asserts(
    "assert area(1) == math.pi * ONE",
    ["ONE", "area"],
    "import math",
    "ONE = 1",
  )
