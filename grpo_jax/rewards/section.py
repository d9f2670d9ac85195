"""What a section of rewards may hold, and the terms that it names."""

import functools
import importlib
import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from grpo_jax import errors, schema
from grpo_jax.rewards import guard, user_functions
from grpo_jax.rewards import terms as terms_lib
from grpo_jax.rewards.user_functions import GIVEN

RewardFn = Callable[..., Sequence[float | None] | terms_lib.Result]


# Imported when a config names them. Rooms above this one add theirs.
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
}


# By the name of a built-in reward its best value: to stay there is no fault.
BEST = {
  "accuracy": 1.0,
  "format": 1.0,
  "tag_count": 1.0,
  "language": 1.0,
  "overlong": 0.0,
  "repetition": 0.0,
  "code": 1.0,
  "harmless": 1.0,
  "politeness": 1.0,
  "judge": 1.0,
}


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
    limits: of a user's function; None for those that are built in or compute
      with JAX, whose errors end the run.
    kind: of a built-in reward; None for a function of the user's own.
  """

  function: functools.partial
  weight: float
  only_if: Mapping[str, float]
  only_for: tuple[str, ...] | None
  from_step: int
  given: tuple[str, ...]
  on_device: bool
  limits: guard.Limits | None
  kind: str | None

  @property
  def best(self) -> float | None:
    """The best of its values; None where that is not known."""
    return BEST.get(self.kind or "") if self.weight > 0 else None


def read(section: errors.Section) -> dict[str, Term]:
  """Returns the terms of a section by name; ConfigError where one is amiss."""
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
  kind = own.get("kind") or name
  if "kind" in own:
    errors.check_choice(f"{where}.kind", kind, REWARDS)
  function = load(name, own.get("function") or REWARDS.get(kind))
  on_device = getattr(function, "on_device", False)
  limits = None
  if "function" in own and not on_device:
    function = user_functions.adapt(where, function)
    limits = _limits(where, function, fields)
  parameters = inspect.signature(function).parameters.values()
  asked = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
  given = tuple(key for key in GIVEN if key in asked)
  options = [key for key in asked if key not in given]
  for field in fields:
    if field not in options:
      known = [*_FIELDS, *options]
      known += guard.Limits._fields if limits else ()
      raise errors.ConfigError(
        f"{where} has no field {field!r}; {errors.nearest(field, known)}"
      )
  if options:
    schema.check(schema.Options(function, given), fields, where)
  _check_number(f"The weight of reward {name!r}", own["weight"])
  only_for = _sources(where, own.get("only_for"))
  only_if = _gates(where, own.get("only_if") or {}, section, name)
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
    on_device,
    limits,
    None if "function" in own else kind,
  )


def _limits(
  where: str, function: RewardFn, fields: dict[str, Any]
) -> guard.Limits:
  """Takes the limits of a user's function out of the fields of its term.

  An option of the function that has the name of one is the function's.
  """
  options = inspect.signature(function).parameters
  names = [n for n in guard.Limits._fields if n in fields and n not in options]
  limits = guard.Limits(**{name: fields.pop(name) for name in names})
  try:
    limits.check(where)
  except ValueError as error:
    raise errors.ConfigError(str(error)) from None
  return limits


def _gates(
  where: str, only_if: Any, section: errors.Section, name: str
) -> Mapping[str, float]:
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
  return only_if


def _sources(where: str, only_for: Any) -> tuple[str, ...] | None:
  if only_for is None:
    return None
  if isinstance(only_for, str) or not only_for:
    raise errors.ConfigError(
      f"{where}.only_for must be a tuple of sources, such as ('gsm8k',), not"
      f" {only_for!r}."
    )
  return tuple(only_for)


def _fields(
  *,
  weight: float,
  only_if: Mapping[str, float] | None = None,
  only_for: tuple[str, ...] | None = None,
  from_step: int = 0,
  kind: str | None = None,
  function: str | None = None,
) -> None:
  """The fields that every term may have.

  Args:
    weight: of its scores in the sum; any sign. 0: computed and logged alone.
    only_if: other terms and their least values, without which it adds nothing.
    only_for: sources of the problems that it scores; None for all.
    from_step: steps done before it scores any.
    kind: a built-in reward, where the term has a name of its own: then two
      terms may be of one kind.
    function: of the user's own, "package.module:function".
  """


def _users_fields(
  *,
  weight: float,
  only_if: Mapping[str, float] | None = None,
  only_for: tuple[str, ...] | None = None,
  from_step: int = 0,
  kind: str | None = None,
  function: str | None = None,
  deadline: float | int = guard.Limits().deadline,
  attempts: int = guard.Limits().attempts,
  backoff: float | int = guard.Limits().backoff,
) -> None:
  """The fields that a term with a function of the user's own may have.

  Args:
    weight: of its scores in the sum; any sign. 0: computed and logged alone.
    only_if: other terms and their least values, without which it adds nothing.
    only_for: sources of the problems that it scores; None for all.
    from_step: steps done before it scores any.
    kind: of built-in rewards.
    function: "package.module:function".
    deadline: seconds for the scores of 256 completions, attempts and waits
      included, in proportion for more; rows without a score by then have none.
    attempts: calls where it raises, before each row is asked about alone.
    backoff: seconds before the second attempt; doubled before each further one.
  """


_FIELDS = tuple(inspect.signature(_fields).parameters)


def _term_schema(name: str) -> schema.Node:
  """What a term may hold: what all may, and the options of its function."""

  def choose(fields: errors.Section) -> schema.Node:
    own = fields.get("function")
    path = own or REWARDS.get(fields.get("kind") or name)
    function, shared = load(name, path) if path else _fields, _fields
    if own and not getattr(function, "on_device", False):
      function = user_functions.adapt(f"config.rewards.{name}", function)
      shared = _users_fields
    only_if = {"only_if": schema.Optional(schema.Free())}
    return schema.Options(function, GIVEN, shared=shared, nodes=only_if)

  return schema.Chosen(choose, scalars=(int, float), scalar="weight")


# What a section of rewards may hold. `check` checks it.
SCHEMA = schema.Named(_term_schema, known=REWARDS)


def load(name: str, path: str | None) -> RewardFn:
  """Returns the function of a term; ConfigError where there is none."""
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
