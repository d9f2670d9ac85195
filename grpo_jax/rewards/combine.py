"""Several rewards weighed into one per completion, each kept for the log.

A term is a function of problems and completions that returns a number, or None,
for each. The config names terms with their weights and options:

  rewards = dict(
    accuracy=1.0,
    format=dict(weight=0.5, only_if=dict(accuracy=1.0)),
    politeness=dict(weight=1.0, only_for=("chat",), from_step=1300),
    mine=dict(weight=1.0, function="package.module:function", threshold=3),
  )

B completions, row b with its own problem; a term scores those R rows to which
it applies.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from grpo_jax import errors, processes, types
from grpo_jax.rewards import guard, user_functions
from grpo_jax.rewards import section as section_lib
from grpo_jax.rewards import terms as terms_lib


def check(section: errors.Section) -> None:
  """Raises ConfigError unless `section` is a config of rewards; see `score`.

  Functions that it names are imported, and those marked `terms.checked_empty`
  check their options.
  """
  for name, term in section_lib.read(section).items():
    if getattr(term.function.func, "checked_empty", False):
      try:
        term.function([], [], **dict.fromkeys(term.given))
      except (ValueError, OSError) as error:
        raise errors.ConfigError(f"config.rewards.{name}: {error}") from error


def check_sources(
  section: errors.Section, from_steps: Mapping[str, int]
) -> None:
  """Raises ConfigError where problems would be asked that nothing rewards.

  Args:
    section: of rewards; see `score`.
    from_steps: by source of the problems, the steps done before they are asked.
  """
  terms = section_lib.read(section)
  for name, term in terms.items():
    for source in term.only_for or ():
      if source not in from_steps:
        raise errors.ConfigError(
          f"config.rewards.{name}.only_for names {source!r}, and no problem is"
          f" of that source; {errors.nearest(source, from_steps)}"
        )
  for source, step in from_steps.items():
    if not any(t.weight and _applies(t, source, step) for t in terms.values()):
      raise errors.ConfigError(
        f"No term of config.rewards is for problems of source {source!r} after"
        f" {step} steps, when they are asked first; give them one, or let"
        " config.from_step begin with them later."
      )


def check_columns(
  section: errors.Section, problems: Sequence[types.Problem]
) -> None:
  """Raises ConfigError where a term asks for a column that problems lack.

  Args:
    section: of rewards; see `score`.
    problems: some of those that will be asked.
  """
  for name, term in section_lib.read(section).items():
    rows = [p for p in problems if _applies(term, p.source, None)]
    given = user_functions.columns(rows)
    for column in user_functions.columns_of(term.function.func):
      if rows and column not in given:
        raise errors.ConfigError(
          f"config.rewards.{name}: its function asks for the column"
          f" {column!r}, which the problems do not have;"
          f" {errors.nearest(column, given)}"
        )


def score(
  section: errors.Section,
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  lengths: Int[np.ndarray, " B"] | None = None,
  truncated: Bool[np.ndarray, " B"] | None = None,
  step: int | None = None,
) -> types.Rewards:
  """Weighs the rewards that `section` names: sum over terms of weight * value.

  DeepSeek-R1 adds accuracy and format with equal weight,
  https://arxiv.org/abs/2501.12948 section 2.2. A term of weight 0 is computed
  and logged, and changes no reward.

  Args:
    section: by the name of each term its weight, or a section with the fields
      `weight`; `only_if`, the least value of other terms without which this one
      adds nothing; `only_for`, the sources of the problems that it scores;
      `from_step`, how many steps are done before it scores any; `function`, a
      user's own as "package.module:function", for names that are not in
      `REWARDS`, with `deadline`, `attempts` and `backoff` (`guard.Limits`); and
      the options of the function, which are its keyword-only parameters. A
      term is not asked about rows to which it does not apply.
    problems: B problems, one for each completion.
    completions: B texts, without prompt and stop token.
    lengths: tokens of each completion, stop token included.
    truncated: which completions ran out of room before a stop token.
    step: steps done; None is after all that a term may wait for.

  Raises:
    ConfigError: the section names what does not exist or does not fit, or no
      term applies to a row.
    ValueError: the counts differ, or a reward returned a wrong count or
      something that is no finite number.
  """
  return begin(
    section,
    problems,
    completions,
    lengths=lengths,
    truncated=truncated,
    step=step,
  )()


def begin(
  section: errors.Section,
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  lengths: Int[np.ndarray, " B"] | None = None,
  truncated: Bool[np.ndarray, " B"] | None = None,
  step: int | None = None,
) -> Callable[[], types.Rewards]:
  """Starts to score; the function returned waits for the scores.

  Each term runs in a thread of its own, so that device work of the caller goes
  on beside it. Those marked `terms.on_device` run in the caller's thread, when
  it asks for the scores. Arguments and errors are those of `score`.

  Of several processes each scores its share of the problems, whole groups, and
  all have the scores of all: what depends on a clock or a server is asked once,
  and says the same everywhere. Terms on the devices see all rows in each.
  """
  terms = section_lib.read(section)
  if len(problems) != len(completions):
    raise ValueError(
      f"{len(completions)} completions do not match {len(problems)} problems."
    )
  asked = {name: _asked(term, problems, step) for name, term in terms.items()}
  for row, problem in enumerate(problems):
    if not any(rows[row] for rows in asked.values()):
      raise errors.ConfigError(
        "No term of config.rewards applies to problems of source"
        f" {problem.source!r}; give them one, or leave them out."
      )
  own, every = _own_rows(problems), slice(None)
  seen = {n: every if term.on_device else own for n, term in terms.items()}
  calls = {
    name: _call(
      name,
      term,
      asked[name][seen[name]],
      problems[seen[name]],
      completions[seen[name]],
      {
        "lengths": None if lengths is None else lengths[seen[name]],
        "truncated": None if truncated is None else truncated[seen[name]],
      },
    )
    for name, term in terms.items()
    if asked[name][seen[name]].any() or not len(problems)
  }
  threads = futures.ThreadPoolExecutor(len(terms), "reward")
  pending = {
    name: threads.submit(call)
    for name, call in calls.items()
    if not terms[name].on_device
  }
  threads.shutdown(wait=False)

  def finish() -> types.Rewards:
    returned = {
      name: pending[name].result() if name in pending else call()
      for name, call in calls.items()
    }
    values, metrics = {}, {}
    for name, rows in asked.items():
      found, more = _read(name, returned.get(name, ()), rows[seen[name]])
      cut = own if terms[name].on_device else every
      values[name] = found[cut]
      metrics |= {key: x[cut] for key, x in more.items()}
    mine = {name: rows[own] for name, rows in asked.items()}
    total, valid = _weigh(terms, mine, values)
    found = types.Rewards(total, valid, values, metrics)
    return types.join_rewards(processes.gather(found))

  return finish


def _own_rows(problems: Sequence[types.Problem]) -> slice:
  """The share of this process: of all completions of a problem, or of none."""
  count = processes.count()
  if count == 1:
    return slice(None)
  starts = [
    row
    for row, problem in enumerate(problems)
    if not row or problem[:4] != problems[row - 1][:4]
  ]
  starts.append(len(problems))
  groups, index = len(starts) - 1, processes.index()
  ends = (groups * index // count, groups * (index + 1) // count)
  return slice(*(starts[end] for end in ends))


def _applies(term: section_lib.Term, source: str, step: int | None) -> bool:
  begun = step is None or step >= term.from_step
  return begun and (term.only_for is None or source in term.only_for)


def _asked(
  term: section_lib.Term, problems: Sequence[types.Problem], step: int | None
) -> Bool[np.ndarray, " B"]:
  return np.array([_applies(term, p.source, step) for p in problems], bool)


def _call(
  name: str,
  term: section_lib.Term,
  asked: Bool[np.ndarray, " B"],
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  given: Mapping[str, np.ndarray | None],
) -> functools.partial:
  """The call of a term on the rows that it is asked about."""
  given = {key: given[key] for key in term.given}
  if not asked.all():
    problems = list(itertools.compress(problems, asked))
    completions = list(itertools.compress(completions, asked))
    given = {k: None if x is None else x[asked] for k, x in given.items()}
  args = term.function, problems, completions
  if term.limits is None:
    return functools.partial(*args, **given)
  return functools.partial(guard.call, name, *args, limits=term.limits, **given)


def _read(
  name: str, returned: Any, asked: Bool[np.ndarray, " B"]
) -> tuple[Float[np.ndarray, " B"], dict[str, Float[np.ndarray, " B"]]]:
  """The scores of one term, and by full name what it has to log besides."""
  metrics = {}
  if isinstance(returned, terms_lib.Result):
    for key, row_metrics in returned.metrics.items():
      full = f"{name}/{key}"
      metrics[full] = _values(full, row_metrics, asked)
    returned = returned.scores
  return _values(name, returned, asked), metrics


def _weigh(
  terms: Mapping[str, section_lib.Term],
  asked: Mapping[str, Bool[np.ndarray, " B"]],
  values: Mapping[str, Float[np.ndarray, " B"]],
) -> tuple[Float[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
  """The sum over terms of weight * value, and which rows have one."""
  count = len(next(iter(asked.values())))
  rewards = np.zeros(count, np.float64)
  valid = np.ones(count, bool)
  for name, term in terms.items():
    if not term.weight:
      continue
    counts = asked[name]
    for gate, least in term.only_if.items():
      # Whether a term counts cannot be told where its gate has no score.
      valid &= ~(asked[name] & asked[gate] & np.isnan(values[gate]))
      counts = counts & (values[gate] >= np.float32(least))
    valid &= ~(counts & np.isnan(values[name]))
    rewards += np.where(counts, term.weight * values[name].astype(float), 0.0)
  rewards = np.where(valid, rewards, 0.0)
  largest = np.abs(rewards).max(initial=0.0)
  if largest > np.finfo(np.float32).max:
    raise ValueError(
      f"The weighted sum of the rewards is {largest:.3g}, which is no finite"
      " float32: lower the weights, or scale the terms."
    )
  return rewards.astype(np.float32), valid


def _values(
  name: str, returned: Any, asked: Bool[np.ndarray, " B"]
) -> Float[np.ndarray, " B"]:
  """The scores of one term as float32, NaN for None; checks each of them.

  Also NaN where it was not asked.
  """
  rows = np.flatnonzero(asked).tolist()
  values = np.full(len(asked), np.nan, np.float32)
  listed = terms_lib.listed(name, returned, len(rows))
  for row, value in zip(rows, listed, strict=True):
    values[row] = terms_lib.number(name, value, row)
  return values
