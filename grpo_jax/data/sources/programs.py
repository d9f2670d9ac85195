"""Programs to write, with unit tests: HumanEval and MBPP.

Answers hold the tests, see `rewards.code`.
"""

import ast
import gzip
import inspect
import json
import pathlib
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from grpo_jax.data import recipes
from grpo_jax.data.sources import local

_HUMANEVAL = (
  "Complete the following Python function. Answer with the whole function in"
  " one code block.\n\n```python\n{start}```"
)
_MBPP = (
  "{text} Answer with Python in one code block. It should pass these"
  " tests:\n\n```python\n{tests}\n```"
)
# Of MBPP: ten problems are for prompts and 90 for validation.
_MBPP_SPLITS = {"train": range(601, 975), "test": range(11, 511)}


def humaneval(*, path: str | None = None) -> recipes.Recipe:
  """HumanEval: 164 functions to complete; test split only.

  arXiv 2107.03374, https://github.com/openai/human-eval, MIT licence.

  Args:
    path: a folder with HumanEval.jsonl.gz; None looks in $GRPO_JAX_DATA/code.
  """
  name = "HumanEval.jsonl.gz"
  file = local.folder("HumanEval", path, "code", name) / name
  return _recipe(
    "humaneval",
    file,
    lambda: {
      "test": (
        {
          "question": _HUMANEVAL.replace("{start}", record["prompt"]),
          "answer": humaneval_tests(record),
        }
        for record in _records(file, ("prompt", "test", "entry_point"))
      )
    },
  )


def mbpp(*, path: str | None = None) -> recipes.Recipe:
  """MBPP: short programs from a sentence and three tests that are shown.

  arXiv 2108.07732, whose splits these are: 374 problems for training, 500 for
  testing. https://github.com/google-research/google-research, CC BY 4.0.

  Args:
    path: a folder with mbpp.jsonl; None looks in $GRPO_JAX_DATA/code.
  """
  file = local.folder("MBPP", path, "code", "mbpp.jsonl") / "mbpp.jsonl"
  fields = ("text", "code", "task_id", "test_list", "test_setup_code")

  def records(numbers: range) -> Iterator[Mapping[str, str]]:
    for record in _records(file, fields):
      if record["task_id"] in numbers:
        tests = "\n".join(record["test_list"])
        question = _MBPP.replace("{tests}", tests)
        yield {
          "question": question.replace("{text}", record["text"].strip()),
          "answer": mbpp_tests(record),
        }

  return _recipe(
    "mbpp",
    file,
    lambda: {split: records(chosen) for split, chosen in _MBPP_SPLITS.items()},
  )


def humaneval_tests(record: Mapping[str, Any]) -> str:
  """The reference answer for a line of HumanEval, arXiv 2107.03374.

  A completion may be the whole function or, as there, what follows its start.
  """
  name = record["entry_point"]
  return _asserts(
    f"{record['test']}\ncheck({name})", [name], record["prompt"], ""
  )


def mbpp_tests(record: Mapping[str, Any]) -> str:
  """The reference answer for a line of MBPP, arXiv 2108.07732.

  The tests take from the program the names that the reference program defines
  or the setup code assigns; modules that they name are imported for them.
  """
  asserts = "\n".join(record["test_list"])
  setup = record["test_setup_code"]
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Some programs have odd escapes.
    program = ast.parse(f"{record['code']}\n{setup}")
  defined = {
    name
    for node in ast.walk(program)
    for name in (
      [node.name]
      if isinstance(node, ast.FunctionDef | ast.ClassDef)
      else [node.id]
      if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
      else []
    )
  }
  used = {
    node.id
    for node in ast.walk(ast.parse(asserts))
    if isinstance(node, ast.Name)
  }
  imports = re.findall(r"^import \w+", record["code"], re.MULTILINE)
  imports = [line for line in imports if line.split()[1] in used]
  return _asserts(asserts, sorted(used & defined), "\n".join(imports), setup)


def _asserts(asserts: str, names: list[str], preamble: str, setup: str) -> str:
  """The fields of `rewards.code.Asserts` as JSON."""
  return json.dumps(
    dict(asserts=asserts, names=names, preamble=preamble, setup=setup)
  )


def _recipe(name, file, splits) -> recipes.Recipe:
  made = recipes.fingerprint(
    _HUMANEVAL,
    _MBPP,
    inspect.getsource(humaneval_tests),
    inspect.getsource(mbpp_tests),
  )
  return recipes.Recipe(
    key=f"{recipes.content_hash([file])}-{made}",
    origin=str(file),
    fields=("question", "answer"),
    splits=lambda _: splits(),
    convert=recipes.problem(name),
  )


def _records(
  file: pathlib.Path, fields: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
  """The objects of a file of JSON lines, perhaps compressed."""
  read = gzip.open if file.suffix == ".gz" else open
  with read(file, "rt", encoding="utf-8") as lines:
    for number, line in enumerate(lines, start=1):
      record = json.loads(line)
      for field in fields:
        if field not in record:
          raise ValueError(f"{file}, line {number}: no field {field!r}.")
      yield record
