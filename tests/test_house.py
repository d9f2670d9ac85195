"""What keeps the house in order beside its floors."""

import ast
import inspect
import pathlib
import pkgutil
import re
import typing

import pytest

from grpo_jax import losses, stages
from grpo_jax.losses import (
  advantages,
  correction,
  distill,
  kl,
  policy,
  preference,
  weighting,
)
from grpo_jax.runs.signals import Outcome

PACKAGE = pathlib.Path(__file__).parents[1] / "grpo_jax"
SOURCES = {
  str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8")
  for path in sorted(PACKAGE.rglob("*.py"))
}
MOST_LINES, MOST_OF_A_FUNCTION, MOST_ARGUMENTS = 450, 90, 10
# Rooms that may know what a config is.
OF_CONFIGS = ("stages/", "configs/", "main.py")
# Files of stages/ that are no stage.
BESIDE_STAGES = {
  path.stem
  for path in (PACKAGE / "stages").glob("*.py")
  if path.stem not in stages.NAMES
}


def functions(source: str) -> list[ast.FunctionDef]:
  nodes = ast.walk(ast.parse(source))
  return [n for n in nodes if isinstance(n, ast.FunctionDef)]


@pytest.mark.parametrize("name", SOURCES)
def test_files_and_functions_fit_on_a_few_pages(name):
  source = SOURCES[name]
  assert source.count("\n") <= MOST_LINES
  for function in functions(source):
    length = function.end_lineno - function.lineno + 1
    assert length <= MOST_OF_A_FUNCTION, f"{function.name}: {length} lines"
    # Options, which are keyword-only and have a default, are no burden.
    args = function.args
    given = [*args.posonlyargs, *args.args]
    needed = [
      k
      for k, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)
      if d is None
    ]
    count = len([a for a in given if a.arg != "self"]) + len(needed)
    assert count <= MOST_ARGUMENTS, f"{function.name}: {count} arguments"


@pytest.mark.parametrize(
  "name", [name for name in SOURCES if not name.startswith(OF_CONFIGS)]
)
def test_configs_stop_at_the_stages(name):
  imported = {
    alias.name
    for node in ast.walk(ast.parse(SOURCES[name]))
    if isinstance(node, ast.Import | ast.ImportFrom)
    for alias in node.names
  }
  assert not imported & {"ConfigDict", "config_dict", "configs"}


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_named_in_a_text_is_of_the_same_room(name):
  for node in ast.walk(ast.parse(SOURCES[name])):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
      found = re.fullmatch(r"grpo_jax\.(\w+)[\w.]*:\w+", node.value)
      # What moved is told by the names of before and of now.
      if found and name != "runs/changes.py":
        assert found.group(1) == name.split("/")[0], node.value


@pytest.mark.parametrize("name", stages.NAMES)
def test_a_stage_has_all_that_main_calls(name):
  stage = stages.load(name)
  assert stage.SCHEMA and stage.check and stage.run and stage.describe


@pytest.mark.parametrize("name", stages.NAMES)
def test_a_stage_imports_no_stage_and_says_how_it_ended(name):
  for node in ast.walk(ast.parse(SOURCES[f"stages/{name}.py"])):
    if isinstance(node, ast.ImportFrom) and node.module == "grpo_jax.stages":
      assert {alias.name for alias in node.names} <= BESIDE_STAGES
  hints = typing.get_type_hints(inspect.unwrap(stages.load(name).run))
  assert hints["return"] is Outcome


def places(pattern: str) -> list[str]:
  """Files in which code, no comment or docstring, matches."""
  found = []
  for name, source in SOURCES.items():
    tree = ast.parse(source)
    calls = [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Call)]
    if any(re.match(pattern, call) for call in calls):
      found.append(name)
  return found


def test_what_is_done_in_one_place():
  assert places(r"decode\.sample\(") == ["sampling/generate.py"]
  assert places(r"(checkpoint\.)?Checkpointer\(") == ["train/loop.py"]
  meshes = places(r"jax\.set_mesh\(")
  assert [name for name in meshes if name.startswith("stages/")] == [
    "stages/setup.py"
  ]
  for name in meshes:
    entered = [
      ast.unparse(item.context_expr)
      for node in ast.walk(ast.parse(SOURCES[name]))
      if isinstance(node, ast.With)
      for item in node.items
    ]
    calls = len(re.findall(r"jax\.set_mesh\(\w", SOURCES[name]))
    assert sum("set_mesh" in entry for entry in entered) == calls, name


TABLES = {
  "ADVANTAGES": advantages.ADVANTAGES,
  "CORRECTIONS": correction.CORRECTIONS,
  "DIVERGENCES": distill.DIVERGENCES,
  "ESTIMATORS": kl.ESTIMATORS,
  "LOSSES": policy.LOSSES,
  "OBJECTIVES": policy.OBJECTIVES,
  "PREFERENCES": preference.PREFERENCES,
  "WEIGHTINGS": weighting.WEIGHTINGS,
}


# For models of other code bases, which give logits and no last hidden states.
FOR_OTHERS = ("vocabulary.stats_from_logits", "distill.logits_divergence")


def test_every_loss_can_be_reached_from_a_run():
  """A public function of losses/ is in a table, or called outside of tests."""
  rows = {id(row) for table in TABLES.values() for row in table.values()}
  used = set()
  for source in SOURCES.values():
    for node in ast.walk(ast.parse(source)):
      if isinstance(node, ast.Attribute):
        used.add(node.attr)
      elif isinstance(node, ast.Name):
        used.add(node.id)
  unreachable = []
  for module in losses.__all__:
    source = SOURCES[f"losses/{module}.py"]
    for function in ast.parse(source).body:
      if not isinstance(function, ast.FunctionDef):
        continue
      name = function.name
      row = getattr(getattr(losses, module), name)
      if not (name.startswith("_") or id(row) in rows or name in used):
        unreachable.append(f"{module}.{name}")
  assert sorted(unreachable) == sorted(FOR_OTHERS)


ROOMS = {path.split("/")[0] for path in SOURCES if "/" in path}
NAMED = re.compile(rf"`((?:{'|'.join(sorted(ROOMS))})\.[\w.]*[A-Za-z_])`")
# Sections of a config that are called as a room is.
SECTIONS = ("sampling.", "data.", "rewards.")


@pytest.mark.parametrize("name", SOURCES)
def test_what_a_text_names_by_its_room_exists(name):
  for path in NAMED.findall(SOURCES[name]):
    if path.endswith((".json", ".jsonl", ".md", ".py")):
      continue
    try:
      found = pkgutil.resolve_name(f"grpo_jax.{path}")
    except (ImportError, AttributeError):
      found = (
        path if path.startswith(SECTIONS) and path.count(".") == 1 else None
      )
    assert found is not None, path
