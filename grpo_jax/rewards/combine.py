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
import importlib
import inspect
import itertools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from grpo_jax import errors, schema, types
from grpo_jax.rewards import terms as terms_lib

RewardFn = Callable[..., Sequence[float | None] | terms_lib.Result]

# Imported when a config names them.
REWARDS: dict[str, str] = {
  "accuracy": "grpo_jax.rewards.answer:accuracy",
  "format": "grpo_jax.rewards.format:well_formed",
  "tag_count": "grpo_jax.rewards.format:tag_count",
  "language": "grpo_jax.rewards.language:consistency",
  "overlong": "grpo_jax.rewards.length:overlong",
  "cosine": "grpo_jax.rewards.length:cosine",
  "repetition": "grpo_jax.rewards.length:repetition",
  "code": "grpo_jax.rewards.code:unit_tests",
  "harmless": "grpo_jax.rewards.small_talk:harmless",
  "politeness": "grpo_jax.rewards.small_talk:politeness",
  "judge": "grpo_jax.rewards.judges.judge_http:judge",
  # These load models of ours, so they stand on the floor of checkpoints.
  "model_judge": "grpo_jax.reward_models.terms:judge",
  "reward_model": "grpo_jax.reward_models.terms:outcome",
  "process_reward_model": "grpo_jax.reward_models.terms:process",
}
# What a term may ask for by the name of a keyword-only parameter.
GIVEN = ("lengths", "truncated")


class Term(NamedTuple):
  """One reward of a config.

  Attributes:
    function: what scores the completions, its options bound.
    weight: of its scores in the sum; any sign.
    only_if: terms and their least values. Where one is below, or does not
      apply, this term adds nothing.
    only_for: sources of the problems to which it applies; None for all.
    from_step: steps done before it applies to any.
    given: those of `GIVEN` that the function takes.
    on_device: whether it computes with JAX.
  """

  function: functools.partial
  weight: float
  only_if: Mapping[str, float]
  only_for: tuple[str, ...] | None
  from_step: int
  given: tuple[str, ...]
  on_device: bool


def check(section: errors.Section) -> None:
  """Raises ConfigError unless `section` is a config of rewards; see `score`.

  Functions that it names are imported, and those marked `terms.checked_empty`
  check their options.
  """
  for name, term in _terms(section).items():
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
  terms = _terms(section)
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
      `REWARDS`; and the options of the function, which are its keyword-only
      parameters. A term is not asked about rows to which it does not apply.
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
  """
  terms = _terms(section)
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
  calls = {
    name: _call(term, asked[name], problems, completions, lengths, truncated)
    for name, term in terms.items()
    if asked[name].any() or not len(problems)
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
    return _combine(terms, asked, returned)

  return finish


def _applies(term: Term, source: str, step: int | None) -> bool:
  begun = step is None or step >= term.from_step
  return begun and (term.only_for is None or source in term.only_for)


def _asked(
  term: Term, problems: Sequence[types.Problem], step: int | None
) -> Bool[np.ndarray, " B"]:
  return np.array([_applies(term, p.source, step) for p in problems], bool)


def _call(
  term: Term,
  asked: Bool[np.ndarray, " B"],
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  lengths: Int[np.ndarray, " B"] | None,
  truncated: Bool[np.ndarray, " B"] | None,
) -> functools.partial:
  """The call of a term on the rows that it is asked about."""
  given = {"lengths": lengths, "truncated": truncated}
  given = {key: given[key] for key in term.given}
  if not asked.all():
    problems = list(itertools.compress(problems, asked))
    completions = list(itertools.compress(completions, asked))
    given = {k: None if x is None else x[asked] for k, x in given.items()}
  return functools.partial(term.function, problems, completions, **given)


def _combine(
  terms: Mapping[str, Term],
  asked: Mapping[str, Bool[np.ndarray, " B"]],
  returned: Mapping[str, Any],
) -> types.Rewards:
  values, metrics = {}, {}
  for name, rows in asked.items():
    result = returned.get(name, ())
    if isinstance(result, terms_lib.Result):
      for key, row_metrics in result.metrics.items():
        full = f"{name}/{key}"
        metrics[full] = _values(full, row_metrics, rows)
      result = result.scores
    values[name] = _values(name, result, rows)
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
  rewards = np.where(valid, rewards, 0.0).astype(np.float32)
  return types.Rewards(rewards, valid, values, metrics)


def _terms(section: errors.Section) -> dict[str, Term]:
  if not section:
    raise errors.ConfigError(
      f"No rewards are given; there are {sorted(REWARDS)}."
    )
  return {name: _term(section, name) for name in section}


def _term(section: errors.Section, name: str) -> Term:
  """One term of the section, checked against its function's signature."""
  where = f"config.rewards.{name}"
  fields = section[name]
  if not isinstance(fields, errors.Section):
    fields = dict(weight=fields)
  fields = {key: _plain(value) for key, value in fields.items()}
  own = {key: fields.pop(key) for key in _FIELDS if key in fields}
  schema.check(schema.Options(_fields), own, where)
  if name in REWARDS and "function" in own:
    raise errors.ConfigError(
      f"{where} has a function, but {name!r} is a built-in reward; choose"
      " another name."
    )
  function = _load(name, own.get("function") or REWARDS.get(name))
  parameters = inspect.signature(function).parameters.values()
  asked = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
  given = tuple(key for key in GIVEN if key in asked)
  options = [key for key in asked if key not in given]
  for field in fields:
    if field not in options:
      raise errors.ConfigError(
        f"{where} has no field {field!r};"
        f" {errors.nearest(field, [*_FIELDS, *options])}"
      )
  if options:
    schema.check(schema.Options(function, given), fields, where)
  _check_number(f"The weight of reward {name!r}", own["weight"])
  only_if = own.get("only_if") or {}
  if not isinstance(only_if, Mapping):
    raise errors.ConfigError(
      f"{where}.only_if must name terms and their least values, not"
      f" {only_if!r}."
    )
  for gate, least in only_if.items():
    others = [other for other in section if other != name]
    if gate not in others:
      raise errors.ConfigError(
        f"{where}.only_if names {gate!r}, which is no other reward of this"
        f" config; {errors.nearest(gate, others)}"
      )
    _check_number(f"{where}.only_if.{gate}", least)
  only_for = own.get("only_for")
  if only_for is not None:
    if isinstance(only_for, str) or not only_for:
      raise errors.ConfigError(
        f"{where}.only_for must be a tuple of sources, such as ('gsm8k',), not"
        f" {only_for!r}."
      )
    only_for = tuple(only_for)
  from_step = own.get("from_step", 0)
  if not (isinstance(from_step, int) and from_step >= 0):
    raise errors.ConfigError(
      f"{where}.from_step must be a number of steps, not {from_step!r}."
    )
  return Term(
    functools.partial(function, **fields),
    own["weight"],
    only_if,
    only_for,
    from_step,
    given,
    getattr(function, "on_device", False),
  )


def _fields(
  *,
  weight: float,
  only_if: Mapping[str, float] | None = None,
  only_for: tuple[str, ...] | None = None,
  from_step: int = 0,
  function: str | None = None,
) -> None:
  """The fields that every term may have.

  Args:
    weight: of its scores in the sum; any sign. 0: computed and logged alone.
    only_if: other terms and their least values, without which it adds nothing.
    only_for: sources of the problems that it scores; None for all.
    from_step: steps done before it scores any.
    function: of the user's own, "package.module:function".
  """


_FIELDS = tuple(inspect.signature(_fields).parameters)


def _term_schema(name: str) -> schema.Node:
  """What a term may hold: what all may, and the options of its function."""

  def choose(fields: errors.Section) -> schema.Node:
    path = fields.get("function") or REWARDS.get(name)
    function = _load(name, path) if path else _fields
    only_if = {"only_if": schema.Optional(schema.Free())}
    return schema.Options(function, GIVEN, shared=_fields, nodes=only_if)

  return schema.Chosen(choose, scalars=(int, float), scalar="weight")


# What a section of rewards may hold. `check` checks it.
SCHEMA = schema.Named(_term_schema, known=tuple(REWARDS))


def _load(name: str, path: str | None) -> RewardFn:
  if path is None:
    raise errors.ConfigError(
      f"There is no reward {name!r}; {errors.nearest(name, REWARDS)} One of"
      " your own needs the field function='package.module:function'."
    )
  module, colon, attribute = str(path).partition(":")
  if not (module and colon and attribute):
    raise errors.ConfigError(
      f"config.rewards.{name}.function must be 'package.module:function', not"
      f" {path!r}."
    )
  try:
    function = getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError) as error:
    raise errors.ConfigError(
      f"The reward {name!r} cannot be imported from {path!r}: {error}."
    ) from error
  if not callable(function):
    raise errors.ConfigError(f"The reward {name!r}, {path}, is no function.")
  return function


def _plain(value: Any) -> Any:
  """The value as plain data: a section of a config becomes a dict."""
  if isinstance(value, errors.Section):
    return {key: _plain(part) for key, part in value.items()}
  return value


def _check_number(what: str, value: Any) -> None:
  if not (isinstance(value, numbers.Real) and math.isfinite(value)):
    raise errors.ConfigError(f"{what} must be a finite number, not {value!r}.")


def _values(
  name: str, returned: Any, asked: Bool[np.ndarray, " B"]
) -> Float[np.ndarray, " B"]:
  """The scores of one term as float32, NaN for None; checks each of them.

  Also NaN where it was not asked.
  """
  rows = np.flatnonzero(asked)
  try:
    len(returned)
  except TypeError:
    raise ValueError(
      f"Reward {name!r} returned {type(returned).__name__} instead of a"
      f" sequence of {len(rows)} numbers."
    ) from None
  if len(returned) != len(rows):
    raise ValueError(
      f"Reward {name!r} returned {len(returned)} values for {len(rows)}"
      " completions."
    )
  values = np.full(len(asked), np.nan, np.float32)
  for row, value in zip(rows, returned, strict=True):
    if value is None:
      continue
    number = np.asarray(value)
    if number.shape or number.dtype.kind not in "biuf":
      raise ValueError(
        f"Reward {name!r} returned {value!r} for completion {row}, which is"
        " not a number."
      )
    with np.errstate(over="ignore"):
      values[row] = number.astype(np.float32)
    if not np.isfinite(values[row]):
      raise ValueError(
        f"Reward {name!r} returned {value!r} for completion {row}; rewards"
        " must be finite."
      )
  return values
