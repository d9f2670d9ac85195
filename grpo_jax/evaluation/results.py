"""What an evaluation found: numbers, intervals, samples, a table.

P problems, N completions of each, B = P * N rows; row p * N + i answers problem
p. Everything here is on the host.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from grpo_jax.evaluation import consensus, estimators, metrics
from grpo_jax.runs import log as run_log
from grpo_jax.types import Completions

_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_BINS = 20


# What a term logs where it gave no score.
_REASONS = {
  "ungradable": "the reference answer cannot be read, of",
  "unreachable": "the judge did not reply, to",
  "unreadable": "the judge's reply holds no verdict, on",
  "failed": "the function raised, for",
  "timed_out": "the function did not return in time, for",
  "no_score": "the function returned None, for",
}


class Measured(NamedTuple):
  """A mean over problems with the ends of its 95 % interval."""

  value: float
  low: float
  high: float


def by_problem(answers: Completions, values: Any) -> Float[np.ndarray, " P"]:
  """The mean of B values over the completions of each problem.

  What is NaN does not count; NaN where there is nothing else.
  """
  return np.array([metrics.mean(row) for row in answers.groups(values)])


def scalars(answers: Completions) -> dict[str, float]:
  """The means of an evaluation, each under its name.

  `pass@1` is the mean over the N completions of each problem and over problems
  (DeepSeek-R1, arXiv 2501.12948, section 3), and `pass@1_stderr` its standard
  error over problems, where `accuracy` is among the terms. Other terms are
  means under their own names, `reward` the mean of their weighted sum, and
  `<term>/<name>` what they log besides, such as the share of each outcome of
  grading. What cannot be scored counts neither way.
  """
  earned = answers.rewards
  found = {name: metrics.mean(v) for name, v in earned.metrics.items()}
  for name, values in earned.terms.items():
    if name == "accuracy":
      solved = by_problem(answers, values)
      graded = np.count_nonzero(~np.isnan(solved))
      found["pass@1"] = metrics.mean(solved)
      found["pass@1_stderr"] = metrics.std(solved) / max(graded, 1) ** 0.5
    else:
      found[name] = metrics.mean(values)
  return found | {
    "reward": metrics.mean(rewards(answers)),
    "mean_length": float(np.mean(answers.lengths)),
    "reflection_words": metrics.mean_reflection_words(answers.texts),
    "truncated": float(np.mean(answers.truncated)),
    "problems": len(answers.problems) // answers.group_size,
    "samples": answers.group_size,
  }


def reason(found: Mapping[str, Any], name: str) -> str:
  """Why a mean of an evaluation is none.

  Args:
    found: as `scalars` returned it.
    name: of a term, or "pass@1" or "greedy" for accuracy.
  """
  term = "accuracy" if name in ("greedy", "reward") or "@" in name else name
  for cause, text in _REASONS.items():
    if found.get(f"{term}/{cause}") == 1.0:
      return f"{text} all {found['samples'] * found['problems']:,} completions"
  return "no completion has a score"


def rewards(answers: Completions) -> Float[np.ndarray, " B"]:
  """The weighted sums of the terms; NaN where there is none."""
  return np.where(answers.rewards.valid, answers.rewards.total, np.nan)


def details(
  answers: Completions, *, greedy: Completions | None = None, seed: int = 0
) -> dict[str, Any]:
  """`scalars`, and what takes longer to find out.

  `pass@k` and `cons@k` for k = 2, 4, 8, ... and N: expectations over subsets
  of k completions, means over problems (`estimators.pass_at_k`, `cons_at_k`;
  a program has no answer to vote for, so there cons@k is left out). `greedy`:
  the share of problems that the completion at temperature 0 solves.
  `intervals`: for these and for each term low and high ends, 95 %, of the mean
  over problems (`estimators.bootstrap`). `lengths`: percentiles and a
  histogram, in tokens.

  Args:
    answers: sampled.
    greedy: the same problems at temperature 0, one completion each.
    seed: of the intervals.
  """
  values = _per_problem(answers, greedy)
  ends = estimators.bootstrap(np.stack(list(values.values()), 1), seed=seed)
  return (
    {name: metrics.mean(v) for name, v in values.items()}
    | scalars(answers)
    | {
      "intervals": dict(zip(values, ends.tolist(), strict=True)),
      "lengths": _distribution(answers.lengths),
    }
  )


def _per_problem(
  answers: Completions, greedy: Completions | None
) -> dict[str, Float[np.ndarray, " P"]]:
  """Each metric of each problem, the mean over its completions."""
  terms = dict(answers.rewards.terms)
  values = {}
  if "accuracy" in terms:
    accuracy = terms.pop("accuracy")
    values["pass@1"] = by_problem(answers, accuracy)
    values |= _at_k(answers, answers.groups(accuracy))
    if greedy is not None:
      values["greedy"] = by_problem(greedy, greedy.rewards.terms["accuracy"])
  rows = terms | {
    "reward": rewards(answers),
    "mean_length": answers.lengths,
    "truncated": answers.truncated,
  }
  return values | {name: by_problem(answers, v) for name, v in rows.items()}


def _at_k(
  answers: Completions, accuracy: Float[np.ndarray, "P N"]
) -> dict[str, Float[np.ndarray, " P"]]:
  samples = answers.group_size
  sizes = [2**i for i in range(1, samples.bit_length()) if 2**i < samples]
  sizes += [samples] if samples > 1 else []
  # A grader may give a part of the score; a vote and a pass are whole.
  graded = (~np.isnan(accuracy)).sum(axis=1).tolist()
  right = (accuracy == 1).sum(axis=1).tolist()
  passed, agreed = {}, {}
  for k in sizes:
    passed[f"pass@{k}"] = np.array(
      [
        estimators.pass_at_k(c, n, k)
        for c, n in zip(right, graded, strict=True)
      ]
    )
  if sizes and consensus.is_possible(answers.problems):
    votes = consensus.wrong_votes(
      answers.problems, answers.texts, accuracy.ravel(), samples
    )
    for k in sizes:
      agreed[f"cons@{k}"] = np.array(
        [
          estimators.cons_at_k(c, wrong, n, k)
          for c, wrong, n in zip(right, votes, graded, strict=True)
        ]
      )
  return passed | agreed


def _distribution(lengths: Int[np.ndarray, " B"]) -> dict[str, Any]:
  shares = np.percentile(lengths, _PERCENTILES).tolist()
  longest = int(lengths.max())
  # Whole numbers fall between edges at halves, so bins are equally wide.
  width = -(-longest // _BINS)
  edges = 0.5 + width * np.arange(-(-longest // width) + 1)
  return {
    "percentiles": dict(zip(map(str, _PERCENTILES), shares, strict=True)),
    "shortest": int(lengths.min()),
    "longest": longest,
    "histogram": {
      "edges": edges.tolist(),
      "counts": np.histogram(lengths, edges)[0].tolist(),
    },
  }


def measure(
  values: Float[np.ndarray, " P"],
  *,
  weights: Float[np.ndarray, " P"] | None = None,
  seed: int = 0,
) -> Measured:
  """The mean of one value per problem, and its interval.

  Args:
    values: NaN where a problem has none.
    weights: of each value in the mean; by default equal.
    seed: of the interval.
  """
  known = ~np.isnan(values)
  mass = np.ones(len(values)) if weights is None else weights
  total = mass[known].sum()
  value = values[known] @ mass[known] / total if total > 0 else math.nan
  (ends,) = estimators.bootstrap(
    values[:, None], weights=mass[:, None], seed=seed
  )
  return Measured(float(value), *ends.tolist())


def win_rate(
  mine: Completions, theirs: Completions, *, seed: int = 0
) -> dict[str, Measured]:
  """How often a policy's completions earn more than another's.

  The share of prompts won: on each prompt over all pairs of completions, one
  of each policy, and a tie counts one half (`estimators.win_share`).

  Args:
    mine: of the policy.
    theirs: of the other one, for the same problems under the same rewards.
    seed: of the interval.
  """
  shares = estimators.win_share(
    *(answers.groups(rewards(answers)) for answers in (mine, theirs))
  )
  return {
    "win rate": measure(shares, seed=seed),
    "reward": measure(by_problem(mine, rewards(mine)), seed=seed),
    "reward of the other": measure(
      by_problem(theirs, rewards(theirs)), seed=seed
    ),
  }


def samples(
  name: str, answers: Completions, *, greedy: bool = False
) -> Iterator[dict[str, Any]]:
  """Each completion with what it earned, for `samples.jsonl`.

  Args:
    name: of the dataset.
    answers: to it.
    greedy: whether they were drawn at temperature 0.
  """
  records = run_log.completion_records(answers)
  for row, record in enumerate(records):
    problem, sample = divmod(row, answers.group_size)
    yield {
      "dataset": name,
      "problem": problem,
      "sample": sample,
      "greedy": greedy,
    } | record


_SHARES = ("pass@", "cons@", "greedy", "format", "language", "truncated")


def table(results: Mapping[str, Any]) -> str:
  """Results as Markdown: one line a dataset, then one a probe's number.

  Args:
    results: as in `results.json`: `datasets`, by name what `details` returned;
      `probes` and `against`, by name what was measured.
  """
  datasets = results["datasets"]
  columns = list(dict.fromkeys(n for d in datasets.values() for n in _shown(d)))
  lines = [["dataset", *(c.replace("_", " ") for c in columns)]]
  for name, found in datasets.items():
    lines.append([name, *(_with_interval(found, c) for c in columns)])
  text = _markdown(lines)
  for name, found in datasets.items():
    for column in (c for c in columns if c in found):
      if math.isnan(found[column]):
        text += f"\n\n{name}: no {column}, for {reason(found, column)}."
  probes = results["probes"] | (
    {"against": results["against"]} if results["against"] else {}
  )
  if probes:
    lines = [["probe", "", "value", "95 % interval"]]
    for name, rows in probes.items():
      for title, (value, low, high) in rows.items():
        ends = f"{_number(low)} to {_number(high)}"
        lines.append([name, title, _number(value), ends])
    text += "\n\n" + _markdown(lines)
  return text


def _shown(found: Mapping[str, Any]) -> list[str]:
  """The metrics in the table: all with an interval, pass@k of the largest k."""
  k = found["samples"]
  return [
    name
    for name in found["intervals"]
    if "@" not in name or name in ("pass@1", f"pass@{k}", f"cons@{k}")
  ]


def _with_interval(found: Mapping[str, Any], name: str) -> str:
  if name not in found["intervals"]:
    return "-"
  low, high = found["intervals"][name]
  if not name.startswith(_SHARES):
    return f"{_number(found[name])} ({_number(low)} to {_number(high)})"
  value, low, high = (
    "-" if math.isnan(x) else f"{100 * x:.1f}" for x in (found[name], low, high)
  )
  return f"{value} % ({low} to {high})"


def _number(value: float) -> str:
  return "-" if math.isnan(value) else f"{value:.4g}"


def _markdown(lines: list[list[str]]) -> str:
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  padded = [
    "| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines
  ]
  rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
  return "\n".join([padded[0], rule, *padded[1:]])


def plain(value: Any) -> Any:
  """The value as JSON has it: records as objects, null for NaN."""
  if isinstance(value, Measured):
    return plain({"value": value.value, "interval": [value.low, value.high]})
  if isinstance(value, Mapping):
    return {key: plain(part) for key, part in value.items()}
  if isinstance(value, list | tuple):
    return [plain(part) for part in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
