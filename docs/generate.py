"""Writes the pages of docs/ that are made from the code.

  python docs/generate.py

losses.md comes from the tables of `grpo_jax.losses` and the docstrings of their
functions, configuration.md from the builders of `grpo_jax/configs/stages.py`
and the comments above their fields. `tests/test_docs.py` fails where a page is
not what this writes.
"""

import ast
import inspect
import io
import pathlib
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import config_dict

from grpo_jax import configs
from grpo_jax.configs import stages
from grpo_jax.losses import (
  advantages,
  correction,
  distill,
  kl,
  policy,
  preference,
  weighting,
)

DOCS = pathlib.Path(__file__).parent


class Table(NamedTuple):
  """A table of losses, as the page shows it.

  Attributes:
    title: of its chapter.
    module: where it is.
    name: of the table in the module.
    choose: the line of a config that chooses a row, with {name} in it.
    options: the section that holds a row's options; empty for none.
    shared: a function that reads the table, whose options every row has.
    each: whether rows are functions with docstrings of their own; otherwise
      the module's docstring tells of them all.
  """

  title: str
  module: Any
  name: str
  choose: str
  options: str = ""
  shared: Callable[..., Any] | None = None
  each: bool = True

  @property
  def rows(self) -> Mapping[str, Any]:
    """What it has by name."""
    return getattr(self.module, self.name)


TABLES = (
  Table(
    "Advantages",
    advantages,
    "ADVANTAGES",
    'c.advantages = dict(kind="{name}")',
    options="advantages",
  ),
  Table(
    "Objectives",
    policy,
    "OBJECTIVES",
    'c.objective = "{name}"',
    options="loss",
    shared=policy.policy_loss,
  ),
  Table(
    "Corrections",
    correction,
    "CORRECTIONS",
    'c.correction = dict(kind="{name}")',
    options="correction",
  ),
  Table("Weightings", weighting, "WEIGHTINGS", 'c.weighting = "{name}"'),
  Table(
    "Estimators of the KL",
    kl,
    "ESTIMATORS",
    'c.loss.kl_estimator = "{name}"',
    each=False,
  ),
  Table(
    "Divergences",
    distill,
    "DIVERGENCES",
    'c.divergence = dict(kind="{name}")',
    options="divergence",
    shared=distill.full_divergence,
    each=False,
  ),
  Table(
    "Preferences",
    preference,
    "PREFERENCES",
    'c.objective = "{name}"',
    options="loss",
  ),
)

_LOSSES = """\
# Losses

<!-- Written by docs/generate.py from the code; do not edit. -->

Every row of a table in `grpo_jax/losses/`: what it computes, where it comes
from, and the line of a config that chooses it. Options are the keyword-only
parameters of the function. In another project call the functions themselves:
they take arrays and import JAX and jaxtyping alone (see
[models.md](models.md#losses-in-your-own-code)).
"""


def losses_page() -> str:
  """The text of losses.md."""
  chapters = [_LOSSES]
  for table in TABLES:
    chapters += [f"## {table.title}\n", _idea(table.module), _index(table)]
    if table.shared:
      items = _options(table, table.shared)
      chapters.append(f"Options of every row:\n\n{items}\n")
    if table.each:
      chapters += [_row(table, *row) for row in table.rows.items()]
  return "\n".join(chapters)


def _idea(module: Any) -> str:
  """What a module is for: its docstring, without the key of dimensions."""
  paragraphs = inspect.getdoc(module).split("\n\n")[1:]
  kept = [p for p in paragraphs if not p.startswith("Dimension key")]
  return _markdown("\n\n".join(kept)) + "\n"


def _index(table: Table) -> str:
  if not table.each:
    lines = [f"- `{table.choose.format(name=name)}`" for name in table.rows]
    return "\n".join(lines) + "\n"
  lines = ["| name | what | source |", "|---|---|---|"]
  for name, function in table.rows.items():
    doc = inspect.getdoc(function)
    title = doc.partition("\n\n")[0]
    lines.append(
      f"| [`{name}`](#{name}) | {_in_table(title)} |"
      f" {', '.join(map(_link, _sources(doc)))} |"
    )
  return "\n".join(lines) + "\n"


def _row(table: Table, name: str, function: Callable[..., Any]) -> str:
  parts = [f"### {name}\n", f"`{table.choose.format(name=name)}`\n"]
  first = next(n for n, other in table.rows.items() if other is function)
  if first != name:
    return "\n".join([*parts, f"Another name of [`{first}`](#{first}).\n"])
  parts.append(_markdown(_split(inspect.getdoc(function))[0]) + "\n")
  options = _options(table, function)
  return "\n".join([*parts, options] if options else parts)


def _options(table: Table, function: Callable[..., Any]) -> str:
  """The options of a function as a list, with what each means."""
  items = [
    f"- `{table.options}.{p.name}`{_default(p)}:"
    f" {_meaning(function, p.name, table.module)}"
    for p in inspect.signature(function).parameters.values()
    if p.kind is p.KEYWORD_ONLY
  ]
  return "".join(_wrapped_item(item) + "\n" for item in items)


def _meaning(function: Callable[..., Any], name: str, module: Any) -> str:
  """What a docstring says of an argument, also where it names another's."""
  text = _split(inspect.getdoc(function))[1][name]
  other = re.match(r"as in `(\w+)`(.*)", text)
  if other and hasattr(module, other[1]):
    told = _meaning(getattr(module, other[1]), name, module)
    return told.rstrip(".") + other[2]
  return text


def _default(parameter: inspect.Parameter) -> str:
  if parameter.default is parameter.empty:
    return " (needed)"
  return f" = `{parameter.default!r}`"


def _split(doc: str) -> tuple[str, dict[str, str]]:
  """A docstring before its sections, and the text of each argument."""
  body, _, rest = doc.partition("\nArgs:\n")
  body = re.split(r"\n(?:Returns|Raises):\n", body)[0]
  arguments = re.split(r"\n(?:Returns|Raises):\n", rest)[0]
  found = {}
  for item in re.split(r"\n(?=  \S)", "\n" + arguments):
    name, colon, text = item.strip().partition(":")
    if colon:
      found[name] = " ".join(text.split())
  return body.strip(), found


def _sources(doc: str) -> list[str]:
  """Links to papers, in their order and once each."""
  found = re.findall(r"https?://[^\s,;)]+", doc)
  return list(dict.fromkeys(link.rstrip(".:") for link in found))


def _link(url: str) -> str:
  paper = re.search(r"arxiv\.org/abs/([0-9.]+)", url)
  title = f"arXiv {paper[1]}" if paper else re.sub(r"^https?://", "", url)
  return f"[{title}]({url})"


def _markdown(text: str) -> str:
  """A docstring's text, whose indented lines stay as they are."""
  return re.sub(r"^  ", "    ", text, flags=re.MULTILINE)


def _in_table(text: str) -> str:
  return " ".join(text.split()).replace("|", r"\|")


def _wrapped_item(item: str) -> str:
  return textwrap.fill(
    item,
    80,
    subsequent_indent="  ",
    break_long_words=False,
    break_on_hyphens=False,
  )


_CONFIGURATION = """\
# Configuration

<!-- Written by docs/generate.py from the code; do not edit. -->

The fields of each stage as its builder in `grpo_jax/configs/stages.py` returns
them; an experiment says what differs. Any of them can be set on the command
line: `--config.sampling.group_size=16`. A section holds the options of one
function, so what that function takes beyond the fields below can be set too;
[losses.md](losses.md) has the options of losses,
[rewards](../grpo_jax/rewards/README.md) those of rewards.
"""
_BUILDERS = (
  *("rl", "value", "pretrain", "sft", "distill", "preferences"),
  *("reward_model", "rejection", "collect", "evaluate", "export", "chain"),
)


def configuration_page() -> str:
  """The text of configuration.md."""
  source = inspect.getsource(stages)
  comments = {
    function.name: _comments(function, source)
    for function in ast.parse(source).body
    if isinstance(function, ast.FunctionDef)
  }
  chapters = [_CONFIGURATION]
  for name in _BUILDERS:
    builder = getattr(configs, name)
    text = {**comments["_common"], **comments["_optimizer"], **comments[name]}
    title = " ".join(inspect.getdoc(builder).split("\n\n")[0].split())
    lines = [f"## {name}\n", f"{title}\n", "| field | default | |"]
    lines.append("|---|---|---|")
    for path, value in _fields(builder()):
      what = _in_table(text.get(path, ""))
      shown = "" if value is _SECTION else f"`{value!r}`".replace("|", r"\|")
      lines.append(f"| `{path}` | {shown} | {what} |")
    chapters.append("\n".join(lines) + "\n")
  return "\n".join(chapters)


_SECTION = object()


def _fields(
  section: config_dict.ConfigDict, path: str = ""
) -> Iterator[tuple[str, Any]]:
  """The fields of a config by their paths, sections before what they hold."""
  for name, value in section.items():
    if isinstance(value, config_dict.ConfigDict) and len(value):
      yield path + name, _SECTION
      yield from _fields(value, f"{path}{name}.")
    else:
      plain = isinstance(value, config_dict.ConfigDict)
      yield path + name, value.to_dict() if plain else value


def _comments(function: ast.FunctionDef, source: str) -> dict[str, str]:
  """What the comments of a builder say, by the field's path.

  A comment belongs to the assignment below it, or on whose line it stands.
  """
  above, beside = {}, {}
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      own_line = not token.line[: token.start[1]].strip()
      which = above if own_line else beside
      which[token.start[0]] = token.string.lstrip("# ")
  found = {}

  def note(path: str, first: int, last: int) -> None:
    lines = []
    while first - 1 in above:
      first -= 1
      lines.insert(0, above[first])
    if last in beside:
      lines.append(beside[last])
    if lines:
      found[path] = " ".join(lines)

  for node in function.body:
    if not isinstance(node, ast.Assign):
      continue
    path = ast.unparse(node.targets[0]).partition(".")[2]
    if not path:
      continue
    note(path, node.lineno, node.lineno)
    for call in ast.walk(node.value):
      if isinstance(call, ast.Call):
        for keyword in call.keywords:
          if keyword.lineno > node.lineno:
            note(f"{path}.{keyword.arg}", keyword.lineno, keyword.end_lineno)
  return found


PAGES = {
  "losses.md": losses_page,
  "configuration.md": configuration_page,
}


def main() -> None:
  """Writes every page."""
  for name, page in PAGES.items():
    (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
  main()
