"""Writes the pages of docs/ that are made from the code.

  python docs/generate.py

losses.md comes from the tables of `grpo_jax.losses` and the docstrings of their
functions, configuration.md from the schema of each stage, the comments above
the fields of `grpo_jax/configs/stages.py`, and the docstrings of what reads a
section.
`tests/test_docs.py` fails where a page is not what this writes.
"""

import inspect
import pathlib
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from grpo_jax import configs, stages
from grpo_jax.configs import fields
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
    given: parameters that a config does not set.
    each: whether rows are functions with docstrings of their own; otherwise
      the module's docstring tells of them all.
  """

  title: str
  module: Any
  name: str
  choose: str
  options: str = ""
  shared: Callable[..., Any] | None = None
  given: tuple[str, ...] = ()
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
    given=("kind", "chunk_size"),
    each=False,
  ),
  Table(
    "Preferences",
    preference,
    "PREFERENCES",
    'c.loss = dict(kind="{name}")',
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
      chapters.append(f"Options of every row:\n\n{items}")
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
    if p.kind is p.KEYWORD_ONLY and p.name not in table.given
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

Every field of every stage, with its value as `grpo_jax/configs/stages.py` sets
it; an experiment says what differs. A value in brackets is the default of the
function that reads the section: the config does not mention it, and it can be
set all the same.

Any field can be set on the command line, `--config.sampling.group_size=16`, and
what a field chooses by its name has options of its own:

```
--config.objective=cispo --config.loss.ratio_max=4
```

The tables below have the options of the default choice; [losses.md](losses.md)
has those of the others, [rewards](../grpo_jax/rewards/README.md) those of
rewards. `--fields` lists the fields of a command, with what it sets, and runs
nothing.
"""


def configuration_page() -> str:
  """The text of configuration.md."""
  return "\n".join([_CONFIGURATION, *map(_stage, stages.NAMES)])


def _stage(name: str) -> str:
  """The chapter of a stage."""
  title = inspect.getdoc(getattr(configs, name)).partition("\n\n")[0]
  lines = [f"## {name}\n", f"{_in_table(title)}\n"]
  lines += ["| field | value | |", "|---|---|---|"]
  for row in fields.table(stages.load(name).SCHEMA):
    # A base model that is made on the way has the fields of its own stage.
    if row.path == "stage" or row.path.startswith("pretrain."):
      continue
    about = [_in_table(row.comment)] if row.comment else []
    # Held-out problems, say, may be of the same datasets.
    again = row.path.endswith(".data.name")
    if row.choices and not again:
      about.append(f"One of {', '.join(f'`{c}`' for c in row.choices)}.")
    lines.append(f"| `{row.path}` | {_value(row)} | {' '.join(about)} |")
  return "\n".join(lines) + "\n"


def _value(row: fields.Row) -> str:
  if row.is_section and isinstance(row.value, Mapping):
    return ""
  value = row.default if row.value is fields.ABSENT else row.value
  if value is fields.ABSENT:
    return ""
  shown = f"`{value!r}`".replace("|", r"\|")
  return f"({shown})" if row.value is fields.ABSENT else shown


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
