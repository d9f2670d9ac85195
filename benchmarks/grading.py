"""Grading: all references of MATH and GSM8K, and a corpus of hostile text.

  python benchmarks/grading.py references   # disagreements, one by one
  python benchmarks/grading.py formulas     # digits of the answer in a formula
  python benchmarks/grading.py ways         # each answer in some 80 ways
  python benchmarks/grading.py hostile      # 10,000 completions

`formulas` and `ways` take a number of references for each dataset after them.

reads the folder of data at $GRPO_JAX_DATA, or ../shared/data.
"""

import collections
import os
import pathlib
import random
import re
import sys
import time

import numpy as np

_ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "tests" / "rewards")]

import hostile  # noqa: E402
import surface  # noqa: E402
import ways  # noqa: E402

from grpo_jax import types  # noqa: E402
from grpo_jax.rewards import answer  # noqa: E402
from grpo_jax.rewards.isolation import workers  # noqa: E402

_DATA = pathlib.Path(
  os.environ.get("GRPO_JAX_DATA", _ROOT.parent / "shared" / "data")
)


def references() -> None:
  """Prints what grades other than it should, and how long it took."""
  for source, all_of, forms_of, perturbed in (
    (
      "gsm8k",
      surface.gsm8k_references,
      surface.gsm8k_forms,
      surface.gsm8k_perturbed,
    ),
    (
      "math",
      surface.math_references,
      surface.math_forms,
      surface.math_perturbed,
    ),
  ):
    texts = all_of(_DATA)
    for expected in ("correct", "wrong"):
      cases = []
      for text in texts:
        if expected == "correct":
          pairs = forms_of(text).items()
        else:
          pairs = (
            (name, f"{surface.THOUGHT}<answer>{near}</answer>")
            for name, near in perturbed(text)
          )
        cases += [(text, name, completion) for name, completion in pairs]
      start = time.monotonic()
      grades = answer.grades(
        [types.Problem("", text, source, "") for text, _, _ in cases],
        [completion for _, _, completion in cases],
      )
      seconds = time.monotonic() - start
      bad = [
        (case, grade)
        for case, grade in zip(cases, grades, strict=True)
        if grade.outcome != expected
      ]
      print(
        f"{source}, {expected}: {len(texts)} references, {len(cases)} answers,"
        f" {len(bad)} disagree; {len(cases) / seconds:,.0f} per second"
      )
      print("  by form:", dict(collections.Counter(c[1] for c, _ in bad)))
      for (text, name, _), grade in bad:
        text = text.rpartition("####")[2].strip()
        print(f"  {text!r} | {name} | {grade.extracted!r} | {grade.outcome}")


def formulas(count: int = 0) -> None:
  """Prints which formulas with the digits of an answer pass for it."""
  for source, references in _sampled(count).items():
    numbers = [r for r in references if re.fullmatch(r"-?[0-9]+", r)]
    _print_ways(source, [(r, *w) for r in numbers for w in ways.formulas(r)])


def run_ways(count: int = 0) -> None:
  """Prints which ways of writing an answer are graded wrongly."""
  for source, references in _sampled(count).items():
    _print_ways(source, [(r, *w) for r in references for w in ways.of(r)])


def _sampled(count: int) -> dict[str, list[str]]:
  """References by dataset, so many of each or all."""
  chance = random.Random(0)
  found = {
    "gsm8k": [
      text.rpartition("####")[2].strip().replace(",", "")
      for text in surface.gsm8k_references(_DATA)
    ],
    "math": surface.math_references(_DATA),
  }
  return {
    name: chance.sample(all_of, count) if count else all_of
    for name, all_of in found.items()
  }


def _print_ways(source: str, cases: list[tuple[str, str, str, bool]]) -> None:
  start = time.monotonic()
  grades = answer.grades(
    [types.Problem("", case[0], source, "") for case in cases],
    [case[2] for case in cases],
  )
  seconds = time.monotonic() - start
  passed = [grade.outcome == "correct" for grade in grades]
  rows = list(zip(cases, passed, strict=True))
  print(
    f"{source}: {len({c[0] for c in cases})} answers in"
    f" {len({c[1] for c in cases})} ways, {len(cases)} completions,"
    f" {len(cases) / seconds:,.0f} per second"
  )
  for right, title in ((False, "false positives"), (True, "false negatives")):
    of = [case for case in cases if case[3] == right]
    bad = [c for c, passes in rows if c[3] == right and passes != right]
    print(f"  {title}: {len(bad)} of {len(of)}")
    print("  ", dict(collections.Counter(case[1] for case in bad)))
    for reference, name, text, _ in bad[:100]:
      print(f"    {reference!r} | {name} | {text!r}")


def run_hostile(count: int = 10_000, batch: int = 100) -> None:
  """Prints outcomes, rates, and the slowest percentile of hostile text."""
  cases = hostile.corpus(count, seed=0)
  good = [(r"\sqrt{2}", rf"\boxed{{\sqrt{{{k}}}}}") for k in range(2, 502)]

  def rate() -> float:
    start = time.monotonic()
    _grade(good)
    return len(good) / (time.monotonic() - start)

  _grade(good[:1])  # Starts the processes.
  print(f"before: {rate():,.0f} wrong answers with roots per second")
  seconds, outcomes = [], collections.Counter()
  start = time.monotonic()
  for case in cases:
    begin = time.monotonic()
    (grade,) = _grade([case], deadline=1.0)
    seconds.append(time.monotonic() - begin)
    outcomes[grade.outcome] += 1
  total = time.monotonic() - start
  print(f"{len(cases)} hostile completions in {total:.0f} s: {dict(outcomes)}")
  print(
    f"{len(cases) / total:,.0f} per second, one by one; milliseconds:",
    ", ".join(
      f"{p}% below {1e3 * np.percentile(seconds, p):.1f}"
      for p in (50, 90, 95, 99)
    ),
    f"slowest {1e3 * max(seconds):.0f}",
  )
  print(f"after: {rate():,.0f} per second")


def _grade(cases, deadline: float = 3.0):
  return answer.grades(
    [types.Problem("", reference, "math", "") for reference, _ in cases],
    [completion for _, completion in cases],
    deadline=deadline,
  )


if __name__ == "__main__":
  {
    "references": references,
    "formulas": formulas,
    "ways": run_ways,
    "hostile": run_hostile,
  }[sys.argv[1]](*map(int, sys.argv[2:]))
  workers.shared().close()
