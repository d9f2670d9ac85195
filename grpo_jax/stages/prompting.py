"""How the prompts of a run are asked, and what ends its completions.

`config.prompts` says it: `template`, and under a chat template `system`,
`variables` and `date`. What follows from the source, the rewards and the day on
which a run begins is kept in its directory, so that a run that goes on asks as
before, and so that a run which begins with it asks likewise.
"""

import datetime
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from grpo_jax import errors, processes
from grpo_jax.data import prompts
from grpo_jax.data.tokenizers import templates
from grpo_jax.data.tokenizers import tokenizer as tokenizers
from grpo_jax.models import hf
from grpo_jax.runs import directory, progress
from grpo_jax.runs import source as source_lib
from grpo_jax.types import Problem

AUTO = "auto"
# Rewards that ask for a form.
_FORMS = ("format", "tag_count")
# By the form that a reward asks for: what in a prompt tells of it, and the
# system prompt that does.
_TOLD = {
  "tags": ("<answer>", "r1_zero"),
  "think": ("</think>", "r1_zero"),
  "box": ("\\boxed", "boxed"),
}


def template_of(
  config: ConfigDict, workdir: pathlib.Path, source: pathlib.Path
) -> prompts.Template:
  """Returns how `config.prompts` asks.

  Args:
    config: of the stage.
    workdir: of the run.
    source: directory of the model that is asked.

  Raises:
    ValueError: a field of `config.prompts` does not fit the others.
  """
  section = config.prompts
  template = prompts.read_template(section.template, chat_too=True)
  system, variables, day = (
    section.get("system", AUTO),
    section.get("variables", {}),
    section.get("date", ""),
  )
  if template != prompts.CHAT:
    for name, value in (
      ("system", system not in (AUTO, "") and system),
      ("variables", dict(variables)),
      ("date", day),
    ):
      if value:
        raise errors.ConfigError(
          f"config.prompts.{name}={value!r} is for a chat template: set"
          ' config.prompts.template="chat", or write it into the template.'
        )
    return template
  kept = read(workdir)
  if system == AUTO:
    system = kept["system"] if kept else _automatic(config, source)
  return templates.Chat(
    prompts.read_system(system),
    dict(variables),
    _date(day or kept.get("date", "")),
  )


def day_of(workdir: pathlib.Path) -> datetime.date:
  """Returns the day that a run tells its templates: that of its begin."""
  return _date(read(workdir).get("date", ""))


def tokenizer_of(
  source: pathlib.Path, template: prompts.Template
) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a model that is asked in a template.

  Raises:
    ConfigError: `config.prompts.variables` has what the chat template does not
      read.
  """
  tok = tokenizers.load(source_lib.tokenizer_directory(source))
  chat = prompts.as_chat(template)
  if chat is not None and tok.chat_template is not None:
    templates.check_variables(tok, chat.variables)
  return prompts.fitted(tok, template)


def keep(workdir: pathlib.Path, template: prompts.Template) -> None:
  """Writes how a run asks under a chat template, when it begins."""
  path = workdir / directory.PROMPTS
  chat = prompts.as_chat(template)
  if chat is None or path.exists() or not processes.is_first():
    return
  content = {
    "system": chat.system,
    "variables": dict(chat.variables),
    "date": chat.date and chat.date.isoformat(),
  }
  directory.write_text(path, json.dumps(content, indent=2) + "\n")


def read(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns what `keep` wrote; empty where it wrote nothing."""
  path = pathlib.Path(workdir) / directory.PROMPTS
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def chat_of_run(source: str | pathlib.Path) -> prompts.Template | None:
  """Returns how a run asked under a chat template; None if it did not."""
  path = pathlib.Path(source) / directory.CONFIG
  if hf.is_checkpoint(source) or not path.exists():
    return None
  section = directory.read_config(source).get("prompts") or {}
  if section.get("template") != prompts.CHAT:
    return None
  kept = read(pathlib.Path(source))
  return templates.Chat(
    kept.get("system", ""), kept.get("variables", {}), _date(kept.get("date"))
  )


def say_stops(tok: tokenizers.Tokenizer, template: prompts.Template) -> None:
  """Says where completions end under a chat template, or that nothing ends it.

  A template may write no token at the end of what the assistant says.
  """
  chat = prompts.as_chat(template)
  if chat is None or tok.chat_template is None:
    return
  stops = ", ".join(repr(tok.piece(i)) for i in tok.eos_ids)
  end = templates.end_of_turn(tok, chat)
  line = f"Completions end at {stops}."
  if end is None:
    line += (
      " The chat template writes none of these after what the assistant says,"
      " and no other token of its own: what is learned from conversations under"
      " it does not end."
    )
  progress.say(line)


def check_told(
  config: ConfigDict, problem: Problem, source: pathlib.Path
) -> None:
  """Says where a reward asks for a form that nothing tells the policy of.

  A policy that was trained here may have learned the form from its data.

  Args:
    config: of the stage.
    problem: with its prompt.
    source: directory of the policy.
  """
  if not hf.is_checkpoint(source):
    return
  for name, style in _asked_forms(config.rewards).items():
    form = problem.form if style == AUTO else style
    sign, system = _TOLD[form]
    if sign in problem.prompt or (form == "think" == problem.form):
      continue
    chat = prompts.as_chat(config.prompts.template) is not None
    progress.say(
      f"Warning: config.rewards.{name} asks for the form {form!r}, and nothing"
      f" in the prompt tells the model of it: there is no {sign}. Unless it was"
      " trained so, this reward is 0 throughout. Set"
      + (
        f" config.prompts.system={system!r}"
        if chat
        else ' config.prompts.template="r1_zero"'
      )
      + f", or another config.rewards.{name}.style."
    )


def _automatic(config: ConfigDict, source: pathlib.Path) -> str:
  """Returns the system prompt where none is chosen.

  A run's own, if the source is a run; otherwise what tells the policy of the
  form that a reward asks for, where training begins with a model of others.
  """
  if not hf.is_checkpoint(source):
    return read(source).get("system", "")
  if config.stage != "rl":
    return ""
  tok = tokenizers.load(source_lib.tokenizer_directory(source))
  if tok.chat_template is None:
    return ""  # Asking under it will say so.
  for style in _asked_forms(config.rewards).values():
    by_itself = prompts.form_of("", prompts.CHAT, tok)
    form = by_itself if style == AUTO else style
    if form == "think" == by_itself:
      continue
    name = _TOLD[form][1]
    progress.say(
      f"The system prompt is {name!r}, which tells of the form {form!r} that a"
      " reward asks for (config.prompts.system)."
    )
    return name
  return ""


def _asked_forms(rewards: errors.Section) -> dict[str, str]:
  """Returns the style of each reward of form that weighs something, by name."""
  found = {}
  for name, fields in rewards.items():
    term = fields if isinstance(fields, errors.Section) else {"weight": fields}
    if (term.get("kind") or name) in _FORMS and term.get("weight"):
      found[name] = term.get("style", AUTO)
  return found


def today() -> datetime.date:
  """Returns the day by the clock of the first process."""
  return processes.from_first(datetime.date.today)


def _date(text: str | None) -> datetime.date:
  if not text:
    return today()
  try:
    return datetime.date.fromisoformat(text)
  except ValueError as error:
    raise errors.ConfigError(
      f"config.prompts.date={text!r} is no day such as 2026-01-31."
    ) from error
