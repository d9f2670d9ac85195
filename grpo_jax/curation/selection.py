"""Which sampled completions become records, and why the others do not.

Host text in, rows out: each row is a completion with what it scored and, in
`dropped`, the first reason against it, or None. Reasons come in this order:

  not_rewritten    the model that rewrites gave no text
  a filter's name  `curation.filters`, those that see one completion alone
  contaminated     it shares wording with a test set
  a term's name    its score is below its threshold, or it is `NAME_unscored`
  a filter's name  duplicates of what is kept of the same question
  max_per_prompt   enough is kept of the same question

B completions.
"""

import collections
import dataclasses
import numbers
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from grpo_jax import errors, processes
from grpo_jax.curation import decontamination, filters, rewriting
from grpo_jax.rewards import combine
from grpo_jax.rewards import section as section_lib
from grpo_jax.types import Completions, Problem

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Rules:
  """What a completion must pass.

  Attributes:
    filters: what `filters.read` returned.
    rewards: sections of terms by their names.
    keep: the least score of each term; asked in this order.
    max_per_prompt: completions kept of one question; 0 for all.
    tests: wording that must not be in a completion; None for any.
  """

  filters: Sequence[filters.Filter]
  rewards: Mapping[str, Any]
  keep: Mapping[str, float]
  max_per_prompt: int
  tests: decontamination.Index | None = None


def read_rules(config: errors.Section) -> Rules:
  """Returns the rules of a config of the rejection stage, without test sets.

  Terms are asked one after the other, cheap ones first as in
  `rewards.section.REWARDS`, each about what is left: a judge about nothing that
  a rule drops.

  Raises:
    ConfigError: a filter or a term does not fit, or has no threshold.
  """
  known = list(section_lib.REWARDS)
  keep, rewards = config["keep"], config["rewards"]
  most = config["max_per_prompt"]
  names = sorted(
    keep, key=lambda name: known.index(name) if name in known else -1
  )
  for name in keep:
    if name not in rewards:
      raise errors.ConfigError(
        f"config.keep names {name!r}, which is no reward of this config;"
        f" {errors.nearest(name, rewards)}"
      )
  for name in rewards:
    if name not in keep:
      raise errors.ConfigError(
        f"config.rewards.{name} is scored for nothing: give config.keep.{name},"
        " the least score of what is kept, or leave it out."
      )
    if not isinstance(keep[name], numbers.Real):
      raise errors.ConfigError(
        f"config.keep.{name} must be a number, not {keep[name]!r}."
      )
    _check_term(name, rewards[name])
  if most < 0:
    raise errors.ConfigError(
      f"config.max_per_prompt={most} must not be negative."
    )
  return Rules(
    filters.read(config["filters"]),
    {name: rewards[name] for name in names},
    {name: float(keep[name]) for name in names},
    most,
  )


def _check_term(name: str, fields: Any) -> None:
  if isinstance(fields, errors.Section):
    for gate in ("only_if", "from_step"):
      if fields.get(gate):
        raise errors.ConfigError(
          f"config.rewards.{name}.{gate} gates a reward in training; here every"
          " term of config.keep must reach its threshold."
        )
  combine.check({name: fields})


def check_sources(rules: Rules, sources: Iterable[str]) -> None:
  """Raises ConfigError if a source of problems has no term that scores it."""
  for source in sorted(set(sources)):
    if not any(_applies(fields, source) for fields in rules.rewards.values()):
      raise errors.ConfigError(
        f"No term of config.rewards is for problems of source {source!r}: all"
        " of their completions would be kept; give them one."
      )


class Selection:
  """Selects batch by batch, and knows what is kept already.

  Attributes:
    counts: by the name of each way of asking, how many completions were
      sampled ("asked"), kept, and dropped by each reason.
  """

  def __init__(self, rules: Rules, again: Collection[str] = ()):
    """Nothing is kept yet.

    Args:
      rules: what a completion must pass.
      again: questions that come in more than one batch; what is kept of the
        others is forgotten after theirs, so that a large run fits in memory.
    """
    self._rules = rules
    self._again = frozenset(again)
    self._kept = collections.defaultdict(list)
    self.counts: dict[str, dict[str, Any]] = {}

  def select(
    self,
    way: str,
    completions: Completions,
    rewrite: Mapping[str, Any],
  ) -> list[Row]:
    """Returns a row for each completion, in their order.

    Completions of one question stand together, in one batch.

    Args:
      way: how they were asked.
      completions: of one batch, as they were sampled.
      rewrite: keyword arguments of `rewriting.rewrite`.
    """
    problems = completions.problems
    # A server may write, and is asked once.
    rewritten = processes.from_first(
      lambda: rewriting.rewrite(problems, completions.texts, **rewrite)
    )
    rows = [
      {
        "way": way,
        "question": problem.question,
        "answer": problem.answer,
        "source": problem.source,
        "completion": text if new is None else new,
        # As it came, where that is something else.
        **({} if new in (None, text) else {"sampled": text}),
        "length": int(length),
        "truncated": bool(cut),
        "terms": {},
        "dropped": "not_rewritten" if new is None else None,
      }
      for problem, text, new, length, cut in zip(
        problems,
        completions.texts,
        rewritten,
        completions.lengths,
        completions.truncated,
        strict=True,
      )
    ]
    alone = [f for f in self._rules.filters if "kept" not in f.given]
    for problem, row in zip(problems, rows, strict=True):
      text, given = row["completion"], {"truncated": row["truncated"]}
      row["dropped"] = row["dropped"] or filters.dropped_by(
        alone, problem, text, given
      )
      if self._rules.tests and not row["dropped"]:
        if decontamination.find(self._rules.tests, text):
          row["dropped"] = "contaminated"
    for name, least in self._rules.keep.items():
      self._threshold(name, least, problems, rows)
    among = [f for f in self._rules.filters if "kept" in f.given]
    for problem, row in zip(problems, rows, strict=True):
      if row["dropped"] is None:
        row["dropped"] = self._surplus(among, problem, row)
      if row["dropped"] is None:
        self._kept[row["question"]].append(row["completion"])
      self._count(row)
    self._forget()
    return rows

  def add(self, row: Row) -> None:
    """Takes in a row that was selected before a run was stopped."""
    if row["dropped"] is None and row["question"] in self._again:
      self._kept[row["question"]].append(row["completion"])
    self._count(row)

  def _forget(self) -> None:
    for question in [q for q in self._kept if q not in self._again]:
      del self._kept[question]

  def _count(self, row: Row) -> None:
    counts = self.counts.setdefault(
      row["way"], {"asked": 0, "kept": 0, "dropped": {}}
    )
    counts["asked"] += 1
    if row["dropped"] is None:
      counts["kept"] += 1
    else:
      dropped = counts["dropped"]
      dropped[row["dropped"]] = dropped.get(row["dropped"], 0) + 1

  def total(self) -> dict[str, Any]:
    """The counts of all ways together, the most frequent reason first."""
    dropped = collections.Counter()
    for counts in self.counts.values():
      dropped.update(counts["dropped"])
    return {
      "asked": sum(counts["asked"] for counts in self.counts.values()),
      "kept": sum(counts["kept"] for counts in self.counts.values()),
      "dropped": dict(sorted(dropped.items(), key=lambda x: (-x[1], x[0]))),
    }

  def _threshold(
    self,
    name: str,
    least: float,
    problems: Sequence[Problem],
    rows: Sequence[Row],
  ) -> None:
    """Drops what a term scores below its threshold, and does not score."""
    fields = self._rules.rewards[name]
    left = [
      i
      for i, row in enumerate(rows)
      if row["dropped"] is None and _applies(fields, row["source"])
    ]
    if not left:
      return
    scores = combine.score(
      {name: fields},
      [problems[i] for i in left],
      [rows[i]["completion"] for i in left],
      lengths=np.array([rows[i]["length"] for i in left]),
      truncated=np.array([rows[i]["truncated"] for i in left]),
    )
    for i, value in zip(left, scores.terms[name].tolist(), strict=True):
      if np.isnan(value):
        rows[i]["dropped"] = f"{name}_unscored"
        continue
      rows[i]["terms"][name] = value
      if value < np.float32(least):
        rows[i]["dropped"] = name

  def _surplus(
    self, among: Sequence[filters.Filter], problem: Problem, row: Row
  ) -> str | None:
    kept = self._kept.get(row["question"], [])
    given = {"truncated": row["truncated"], "kept": kept}
    reason = filters.dropped_by(among, problem, row["completion"], given)
    most = self._rules.max_per_prompt
    if reason is None and most and len(kept) >= most:
      return "max_per_prompt"
    return reason


def _applies(fields: Any, source: str) -> bool:
  if not isinstance(fields, errors.Section):
    return True
  only_for = fields.get("only_for")
  return only_for is None or source in only_for


def record(row: Row) -> Row:
  """A kept row as a record of a dataset (`data.records`)."""
  return {
    "messages": [
      {"role": "user", "content": row["question"]},
      {"role": "assistant", "content": row["completion"]},
    ],
    **{
      name: row[name]
      for name in ("question", "answer", "source", "completion", "way")
    },
    "length": row["length"],
  }
