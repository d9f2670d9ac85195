"""A module imports from its own floor, without cycles, or from one below."""

import ast
import graphlib
import pathlib
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]

# From the ground up. A room imports from itself and from floors below its own.
FLOORS = (
  ("types", "errors", "losses"),
  ("schema", "sharding", "processes"),
  ("models", "configs"),
  ("data",),
  ("rewards", "sampling"),
  ("runs",),
  ("train", "evaluation", "reward_models"),
  ("rl", "curation"),
  ("stages",),
  ("main",),
)
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Another project can import these with JAX and jaxtyping alone.
STANDALONE = "grpo_jax.losses"


def module_name(path: pathlib.Path) -> str:
  parts = path.relative_to(REPOSITORY).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
  """The folder, or the loose file, of the package that holds a module."""
  return module.split(".")[1]


def imports(path: pathlib.Path, modules: set[str]) -> set[str]:
  """All modules that a file imports, those of ours by their full name."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path} has a relative import."
      for alias in node.names:
        # `from grpo_jax import types` names a module, `import Problem` none.
        full = f"{node.module}.{alias.name}"
        found.add(full if full in modules else node.module)
  return found


FILES = {
  module_name(path): path
  for path in sorted((REPOSITORY / "grpo_jax").rglob("*.py"))
}
# The method on one page reads no config: it is made of the rooms themselves.
ONE_PAGE = REPOSITORY / "experiments" / "one_page.py"
EXPERIMENTS = sorted(
  set((REPOSITORY / "experiments").rglob("*.py")) - {ONE_PAGE}
)
IMPORTS = {name: imports(path, set(FILES)) for name, path in FILES.items()}


@pytest.mark.parametrize("module", [name for name in FILES if "." in name])
def test_no_import_points_upwards(module):
  own = room(module)
  above = {
    name
    for name in IMPORTS[module]
    if name.startswith("grpo_jax.")
    and room(name) != own
    and ROOMS[room(name)] >= ROOMS[own]
  }
  assert not above, (
    f"{module}, on floor {ROOMS[own]}, imports {sorted(above)}, which is no"
    " floor below."
  )


def test_imports_have_no_cycles():
  # graphlib.CycleError names the modules of a cycle.
  ours = {name: found & set(FILES) for name, found in IMPORTS.items()}
  graphlib.TopologicalSorter(ours).prepare()


@pytest.mark.parametrize(
  "module", [name for name in FILES if name.startswith(STANDALONE)]
)
def test_losses_import_nothing_but_jax(module):
  allowed = {"jax", "jaxtyping", *sys.stdlib_module_names}
  foreign = {
    name
    for name in IMPORTS[module]
    if name.split(".")[0] not in allowed and not name.startswith(STANDALONE)
  }
  assert foreign <= {"grpo_jax"}, f"{module} imports {sorted(foreign)}."


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_experiments_import_configs_only(path):
  assert {
    name
    for name in imports(path, set(FILES))
    if name.split(".")[0] == "grpo_jax"
  } == {"grpo_jax.configs"}


def test_every_room_has_its_floor():
  assert {room(name) for name in FILES if "." in name} == set(ROOMS)
