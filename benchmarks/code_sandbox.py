"""Programs graded per second, before and after programs that mean harm.

  python benchmarks/code_sandbox.py --data ../shared/data
  python benchmarks/code_sandbox.py --data ../shared/data --programs 1138

Reference solutions of HumanEval and MBPP run against their tests, then hostile
programs, then the reference solutions again: the two rates should be equal.
"""

import argparse
import gzip
import json
import os
import pathlib
import time

from grpo_jax import types
from grpo_jax.data.sources import programs
from grpo_jax.rewards import code

HOSTILE = (
  "while True: pass",
  "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
  "x = []\nwhile True: x.append(bytearray(10**7))",
  "while True: print('x' * 10**6)",
  "import time\ntime.sleep(1000)",
  "import os\nos._exit(0)",
)


def load(folder: pathlib.Path, count: int):
  """`count` problems with their solutions, evenly over both data sets."""
  with gzip.open(folder / "code" / "HumanEval.jsonl.gz", "rt") as file:
    solved = [
      (programs.humaneval_tests(record), record["canonical_solution"])
      for record in map(json.loads, file)
    ]
  with open(folder / "code" / "mbpp.jsonl", encoding="utf-8") as file:
    solved += [
      (programs.mbpp_tests(r), r["code"]) for r in map(json.loads, file)
    ]
  return solved[:: max(len(solved) // count, 1)][:count]


def grade(solved, **options) -> tuple[float, list[float]]:
  """Seconds, and the score of each program."""
  problems = [types.Problem("", tests, "code", "") for tests, _ in solved]
  texts = [f"```python\n{program}\n```" for _, program in solved]
  start = time.perf_counter()
  scores = code.unit_tests(problems, texts, **options).scores
  return time.perf_counter() - start, scores


def main() -> None:
  """Prints a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--data", type=pathlib.Path, required=True)
  parser.add_argument("--programs", type=int, default=100)
  parser.add_argument("--isolation", default="namespaces")
  args = parser.parse_args()
  solved = load(args.data, args.programs)
  tests = solved[0][0]
  hostile = [(tests, program) for program in HOSTILE]
  generous = dict(cpu_seconds=30, wall_seconds=60.0)
  strict = dict(cpu_seconds=1, wall_seconds=2.0)
  print(f"{len(os.sched_getaffinity(0))} cores, isolation {args.isolation}")
  print("| programs | number | passed | per second |")
  print("|---|---|---|---|")
  for name, some, options in (
    ("solutions", solved, generous),
    ("hostile", hostile, strict),
    ("solutions again", solved, generous),
  ):
    seconds, scores = grade(some, isolation=args.isolation, **options)
    passed = sum(score == 1.0 for score in scores)
    rate = len(some) / seconds
    print(f"| {name} | {len(some)} | {passed} | {rate:.1f} |", flush=True)


if __name__ == "__main__":
  main()
