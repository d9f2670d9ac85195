"""A module imports from its own floor, without cycles, or from one below."""

import ast
import graphlib
import pathlib
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]

FLOORS = {
  "grpo_jax": 0,
  "grpo_jax.errors": 0,
  "grpo_jax.estimators": 0,
  "grpo_jax.losses.weighting": 0,
  "grpo_jax.runs.process": 0,
  "grpo_jax.runs.signals": 0,
  "grpo_jax.types": 0,
  "grpo_jax.configs": 1,
  "grpo_jax.losses": 1,
  "grpo_jax.losses.advantages": 1,
  "grpo_jax.models": 2,
  "grpo_jax.sharding": 2,
  "grpo_jax.data": 3,
  "grpo_jax.rewards": 3,
  "grpo_jax.sampling": 3,
  "grpo_jax.annotation": 4,
  "grpo_jax.asking": 4,
  "grpo_jax.dynamic_sampling": 4,
  "grpo_jax.experience": 4,
  "grpo_jax.metrics": 4,
  "grpo_jax.probes": 4,
  "grpo_jax.results": 4,
  "grpo_jax.reward_models": 4,
  "grpo_jax.runs": 4,
  "grpo_jax.runs.log": 4,
  "grpo_jax.runs.progress": 4,
  "grpo_jax.runs.report": 4,
  "grpo_jax.sampling.generate": 4,
  "grpo_jax.train": 4,
  "grpo_jax.train.loop": 4,
  "grpo_jax.train.optimizer": 4,
  "grpo_jax.train.state": 4,
  "grpo_jax.train.update": 4,
  "grpo_jax.value_model": 4,
  "grpo_jax.stages": 5,
  "grpo_jax.main": 6,
}
# Another project can import these with JAX and jaxtyping alone.
STANDALONE = "grpo_jax.losses"


def module_name(path: pathlib.Path) -> str:
  parts = path.relative_to(REPOSITORY).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(module: str) -> int:
  """The floor of a module, or that of the package which holds it."""
  names = module.split(".")
  for end in range(len(names), 1, -1):
    if ".".join(names[:end]) in FLOORS:
      return FLOORS[".".join(names[:end])]
  if module == "grpo_jax":
    return FLOORS[module]
  raise AssertionError(
    f"{module} has no floor; add it to FLOORS in {pathlib.Path(__file__).name}."
  )


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
EXPERIMENTS = sorted((REPOSITORY / "experiments").rglob("*.py"))
IMPORTS = {name: imports(path, set(FILES)) for name, path in FILES.items()}


@pytest.mark.parametrize("module", FILES)
def test_no_import_points_upwards(module):
  ours = {name for name in IMPORTS[module] if name.split(".")[0] == "grpo_jax"}
  above = {name for name in ours if floor(name) > floor(module)}
  assert not above, (
    f"{module} on floor {floor(module)} imports {sorted(above)} from above."
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


def test_every_floor_has_its_module():
  gone = {name for name in FLOORS if name not in FILES}
  assert not gone, f"FLOORS names {sorted(gone)}, which do not exist."
