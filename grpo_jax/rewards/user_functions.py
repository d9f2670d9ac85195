"""Reward functions of a user's own, in whose form they may be written.

  ours   f(problems, completions, *, ...)
  TRL's  f(completions, answer, **kwargs), f(prompts, completions, **kwargs)
  verl's f(data_source, solution_str, ground_truth, extra_info=None)

The names of the parameters tell the form. What is in none of them is refused,
and never called with what it does not expect. B completions.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grpo_jax import errors, types
from grpo_jax.rewards import final_answer, terms

_OURS = (
  "a reward is f(problems, completions, *, options), or in TRL's form"
  " f(completions, answer, **kwargs), or in verl's f(data_source, solution_str,"
  " ground_truth, extra_info=None); see docs/extending.md."
)
# What a term may ask for by the name of a keyword-only parameter.
GIVEN = ("lengths", "truncated")
# Of TRL's arguments those that a reward has no use for outside its trainer.
_TRAINERS = (
  "completion_ids",
  "completions_ids",
  "trainer_state",
  "log_extra",
  "log_metric",
)
# Of verl's arguments, by row and by batch.
_VERL = {
  "data_source": lambda problem, text: problem.source,
  "solution_str": lambda problem, text: text,
  "ground_truth": lambda problem, text: reference(problem),
  "extra_info": lambda problem, text: {
    "question": problem.question,
    **problem.columns,
  },
}
_POSITIONAL = (
  inspect.Parameter.POSITIONAL_ONLY,
  inspect.Parameter.POSITIONAL_OR_KEYWORD,
)
_READS_MESSAGES = re.compile(r"""\[\s*["']content["']\s*\]|get\(["']content""")


def adapt(where: str, function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a function in our form that calls the user's in its own.

  Args:
    where: how a sentence names the term, such as "config.rewards.mine".
    function: the user's.

  Raises:
    ConfigError: its signature is of no form that there is.
  """
  if inspect.isclass(function):
    raise errors.ConfigError(
      f"{where}: {function.__name__} is a class; name a function, or an"
      " instance that can be called."
    )
  try:
    parameters = inspect.signature(function).parameters
  except (TypeError, ValueError):
    raise errors.ConfigError(
      f"{where}: the parameters of {function!r} cannot be told; {_OURS}"
    ) from None
  if {"solution_str", "ground_truth"} <= set(parameters):
    return _adapt_verl(where, function, parameters, "")
  if {"solution_strs", "ground_truths"} <= set(parameters):
    return _adapt_verl(where, function, parameters, "s")
  first = next(iter(parameters), "")
  if first in ("prompts", "completions", *_TRAINERS):
    return _adapt_trl(where, function, parameters)
  _check_ours(where, function, parameters)
  return function


def columns_of(function: Callable[..., Any]) -> tuple[str, ...]:
  """Returns the columns without which an adapted function cannot be called."""
  return getattr(function, "columns", ())


def columns(problems: Sequence[types.Problem]) -> dict[str, list[Any]]:
  """Returns what problems have beside their prompt, B values by name.

  The columns of the user's file, and `question`, `answer` and `source`. None
  where a problem lacks one.
  """
  rows = [
    {
      **problem.columns,
      "question": problem.question,
      "answer": problem.answer,
      "source": problem.source,
    }
    for problem in problems
  ]
  names = dict.fromkeys(name for row in rows for name in row)
  return {name: [row.get(name) for row in rows] for name in names}


def reference(problem: types.Problem) -> str:
  r"""Returns the final answer of a reference: boxed, after `####`, or all."""
  boxed = final_answer.boxed(problem.answer)
  found = boxed if boxed is not None else problem.answer.rpartition("####")[2]
  return found.strip()


def _check_ours(
  where: str,
  function: Callable[..., Any],
  parameters: Mapping[str, inspect.Parameter],
) -> None:
  """Raises ConfigError unless problems come first and completions second."""
  found = f"{where}: {_shown(function, parameters)} is no reward as it stands"
  positional = [p for p in parameters.values() if p.kind in _POSITIONAL]
  needed = [p.name for p in positional if p.default is p.empty]
  if len(positional) < 2 or len(needed) > 2:
    raise errors.ConfigError(f"{found}: {_OURS}")
  first, second = positional[0].name.lower(), positional[1].name.lower()
  unnamed = first.startswith("_") or len(first) <= 2
  if not ("problem" in first or unnamed or "completions" in second):
    raise errors.ConfigError(
      f"{found}, for its first two parameters are not called problems and"
      f" completions: {_OURS}"
    )


def _adapt_trl(
  where: str,
  function: Callable[..., Any],
  parameters: Mapping[str, inspect.Parameter],
) -> Callable[..., Any]:
  """Returns a function in our form that calls TRL's by keywords.

  https://huggingface.co/docs/trl/grpo_trainer, custom reward functions. It gets
  the columns that it names, all of them where it takes any keyword.
  Completions are texts, or lists of messages where it reads messages.
  """
  takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
  named = _named(where, function, parameters)
  for name in (n for n in _TRAINERS if n in named):
    if named.pop(name).default is inspect.Parameter.empty:
      raise errors.ConfigError(
        f"{where}: {_shown(function, parameters)} is of TRL's form and asks for"
        f" {name}, which is not given here; {_OURS}"
      )
  columns_named = [
    p for name, p in named.items() if name not in ("prompts", "completions")
  ]
  messages = _reads_messages(function)

  def call(
    problems: Sequence[types.Problem], completions: Sequence[str], **options
  ) -> Any:
    as_messages = messages
    if "messages" not in named:
      as_messages = options.pop("messages", messages)
    given = columns(problems)
    if not takes_all:
      given = {name: x for name, x in given.items() if name in named}
    given |= options
    if "prompts" in named or takes_all:
      given["prompts"] = [
        _message("user", p.question) if as_messages else p.prompt
        for p in problems
      ]
    given["completions"] = [
      _message("assistant", text) if as_messages else text
      for text in completions
    ]
    return function(**given)

  # A column is not an option; what has a default may be set as one.
  options = [
    p for p in columns_named if p.default is not p.empty or p.name in GIVEN
  ]
  if "messages" not in named:
    options.append(_keyword("messages", messages, bool))
  return _in_our_form(
    call,
    function,
    options,
    [
      p.name
      for p in columns_named
      if p.default is p.empty and p.name not in GIVEN
    ],
  )


def _adapt_verl(
  where: str,
  function: Callable[..., Any],
  parameters: Mapping[str, inspect.Parameter],
  plural: str,
) -> Callable[..., Any]:
  """Returns a function in our form that calls verl's, for each row or for all.

  https://verl.readthedocs.io, custom reward functions. `ground_truth` is the
  final answer of the reference, as verl's own datasets have it; `extra_info`
  has the further columns. A dict that it returns has the score under "score";
  its other numbers are logged.
  """
  named = _named(where, function, parameters)
  options = [
    p for name, p in named.items() if name.removesuffix(plural) not in _VERL
  ]
  for p in options:
    if p.default is p.empty:
      raise errors.ConfigError(
        f"{where}: {_shown(function, parameters)} is of verl's form and asks"
        f" for {p.name}, which is not given here; {_OURS}"
      )

  def call(
    problems: Sequence[types.Problem], completions: Sequence[str], **given
  ) -> Any:
    rows = [
      {
        name: _VERL[name.removesuffix(plural)](problem, text)
        for name in named
        if name.removesuffix(plural) in _VERL
      }
      for problem, text in zip(problems, completions, strict=True)
    ]
    if plural:
      lists = {name: [row[name] for row in rows] for name in rows[0]}
      return _scores(function(**lists, **given))
    return _scores([function(**row, **given) for row in rows])

  return _in_our_form(call, function, options)


def _scores(returned: Any) -> Any:
  """Returns scores, and the numbers beside them where rows are dicts."""
  if not isinstance(returned, list | tuple) or not any(
    isinstance(row, Mapping) for row in returned
  ):
    return returned
  rows = [r if isinstance(r, Mapping) else {"score": r} for r in returned]
  names = dict.fromkeys(
    name
    for row in rows
    for name, value in row.items()
    if name != "score" and isinstance(value, bool | int | float)
  )
  values = {
    name: [
      value if isinstance(value := row.get(name), bool | int | float) else None
      for row in rows
    ]
    for name in names
  }
  return terms.Result([row.get("score") for row in rows], values)


def _in_our_form(
  call: Callable[..., Any],
  function: Callable[..., Any],
  options: Sequence[inspect.Parameter],
  needed: Sequence[str] = (),
) -> Callable[..., Any]:
  """Returns `call` with the signature, the text and the marks of a term."""
  own = inspect.Parameter.POSITIONAL_OR_KEYWORD
  call.__signature__ = inspect.Signature(  # pyrefly: ignore[missing-attribute]
    [
      inspect.Parameter("problems", own),
      inspect.Parameter("completions", own),
      *(p.replace(kind=p.KEYWORD_ONLY) for p in options),
    ]
  )
  call.__doc__ = inspect.getdoc(function)
  call.columns = tuple(needed)  # pyrefly: ignore[missing-attribute]
  return call


def _named(
  where: str,
  function: Callable[..., Any],
  parameters: Mapping[str, inspect.Parameter],
) -> dict[str, inspect.Parameter]:
  """Returns the parameters that can be given by their names."""
  for p in parameters.values():
    if p.kind is p.POSITIONAL_ONLY:
      raise errors.ConfigError(
        f"{where}: {_shown(function, parameters)} must take {p.name} by its"
        f" name; {_OURS}"
      )
  return {
    p.name: p
    for p in parameters.values()
    if p.kind in (*_POSITIONAL, p.KEYWORD_ONLY)
  }


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
  kind = inspect.Parameter.KEYWORD_ONLY
  return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _reads_messages(function: Callable[..., Any]) -> bool:
  """Whether the text of a function takes `content` from a message."""
  try:
    return bool(_READS_MESSAGES.search(inspect.getsource(function)))
  except (OSError, TypeError):
    return False


def _message(role: str, text: str) -> list[dict[str, str]]:
  return [{"role": role, "content": text}]


def _shown(
  function: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]
) -> str:
  name = getattr(function, "__name__", type(function).__name__)
  plain = [
    p.replace(annotation=inspect.Parameter.empty) for p in parameters.values()
  ]
  return f"{name}{inspect.Signature(plain)}"
