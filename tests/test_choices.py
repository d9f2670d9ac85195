"""Whatever has a name in a table can be chosen on the command line."""

import importlib.util
import pathlib

import pytest

from grpo_jax import configs, schema, stages

REPOSITORY = pathlib.Path(__file__).parents[1]
EXPERIMENTS = [
  path
  for path in sorted((REPOSITORY / "experiments").glob("*.py"))
  if "\ndef get_config(" in path.read_text(encoding="utf-8")
]
# Values of options without a default.
NEEDED = {"k": 2, "ratio_min": 0.5, "ratio_max": 2.0, "threshold": 0.1}
# What a choice needs besides.
WITH = {
  "gae": ["config.value=on"],
  "gspo": [],
}


def all_choices(stage):
  node = stages.load(stage).SCHEMA
  return [
    pytest.param(stage, choice, id=f"{stage}-{choice.by}={choice.name}")
    for choice in configs.fields.choices(node)
    if not choice.by.endswith("data.name")
  ]


@pytest.mark.parametrize(
  "stage, choice",
  [choice for stage in stages.NAMES for choice in all_choices(stage)],
)
def test_every_name_of_every_table_can_be_chosen_with_its_options(
  stage, choice
):
  node = stages.load(stage).SCHEMA
  fields = [f"config.{choice.by}={choice.name}", *WITH.get(choice.name, [])]
  for name, option in choice.options.items():
    value = option.default
    if value is schema.REQUIRED:
      value = NEEDED[name]
    fields.append(f"config.{choice.section}.{name}={value}")
  plain = getattr(configs, stage)()
  for order in (fields, fields[::-1]):
    config = configs.override(plain, node, order)
    schema.check(node, config)
    section = config
    for part in choice.section.split("."):
      section = section[part]
    assert set(choice.options) <= set(section)
  # Without them, the row's own defaults hold.
  config = schema.completed(node, configs.override(plain, node, fields[:1]))
  for part in choice.section.split("."):
    config = config[part]
  for name, option in choice.options.items():
    assert config.get(name, schema.REQUIRED) == option.default


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_config_of_every_experiment_fits_its_schema(path):
  config = get_config(path)
  node = stages.load(config.stage).SCHEMA
  schema.check(node, config)
  whole = schema.completed(node, config)
  schema.check(node, whole)
  assert schema.completed(node, whole) == whole
  chained = config.steps if config.stage == "chain" else {}
  for name, step in chained.items():
    schema.check(stages.load(step.stage).SCHEMA, step, f"config.steps.{name}")


@pytest.mark.parametrize("stage", stages.NAMES)
def test_the_table_of_fields_has_every_field_of_a_stage(stage):
  rows = configs.fields.table(stages.load(stage).SCHEMA)
  paths = [row.path for row in rows]
  assert len(paths) == len(set(paths))

  def leaves(section, path=""):
    for name, value in section.items():
      yield path + name
      if isinstance(value, dict):
        yield from leaves(value, f"{path}{name}.")

  assert set(leaves(getattr(configs, stage)().to_dict())) <= set(paths)
  if stage == "rl":
    found = {row.path: row for row in rows}
    assert found["loss.kl_coef"].value == 1e-3
    assert found["loss.clip_low"].default == 0.2
    assert "reference" in found["ref_every"].comment


def get_config(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()
