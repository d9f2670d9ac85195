"""Stages in a row, each reading what the ones before it wrote.

The directory of a chain holds one directory per step. A step that is done is
skipped, one that was stopped goes on; at the end the results of the steps that
evaluate are laid side by side.
"""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from grpo_jax import configs, errors, processes, schema, stages
from grpo_jax.runs import directory, progress, report
from grpo_jax.runs import log as run_log
from grpo_jax.runs import source as source_lib
from grpo_jax.runs.signals import Outcome
from grpo_jax.stages import claim

_DONE = "done.jsonl"
_WORKDIR = "{workdir}"


def run(config: ConfigDict, workdir: pathlib.Path) -> Outcome:
  """Runs the steps of a chain in their order.

  `config.steps` holds the config of each step by its name, which is also its
  directory's; `config.order` says which come when. In their texts "{workdir}"
  stands for the directory of the chain. `config.table` is the table at the end,
  see `report.results_table`.

  Raises:
    ValueError: the chain names a step or a stage that does not exist.
    FileNotFoundError: a step reads a model that is not there, and no step of
      the chain is to write.
  """
  check(config)
  require_sources(config)
  claim.claim(config, workdir)
  done = processes.from_first(lambda: _done(workdir))
  seconds = {row["name"]: row["seconds"] for row in done}
  for number, name in enumerate(config.order, start=1):
    title = f"[{number}/{len(config.order)}] {name}"
    if name in seconds:
      progress.say(f"{title}: done, in {progress.duration(seconds[name])}.")
      continue
    progress.say(f"\n{title}:")
    step = filled(config.steps[name], workdir)
    began = time.monotonic()
    outcome = stages.load(step.stage).run(step, workdir / name)
    # What the first process has written of it, the next step reads in all.
    processes.wait(name)
    if outcome is Outcome.STOPPED:
      progress.say(f"Stopped in {name}; the same command goes on from there.")
      return Outcome.STOPPED
    seconds[name] = time.monotonic() - began
    # A step that was stopped in between counts its last start only.
    lines = run_log.JsonLines(workdir / _DONE, restored=number - 1)
    lines.append({"step": number, "name": name, "seconds": seconds[name]})
    lines.close()
  progress.say(
    f"\nAll steps took {progress.duration(sum(seconds.values()))}.\n"
  )
  text = report.results_table(workdir, **config.table.to_dict())
  directory.write_text(workdir / "table.txt", text + "\n")
  progress.say(text)
  return Outcome.FINISHED


def filled(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
  """The config of a step with the chain's directory in its texts."""

  def fill(value: Any) -> Any:
    if isinstance(value, str):
      return value.replace(_WORKDIR, str(workdir))
    if isinstance(value, Mapping):
      return {key: fill(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
      return type(value)(map(fill, value))
    return value

  # The texts of a chain within a chain are about its own directory.
  if config.stage == "chain":
    return config
  return ConfigDict(fill(config.to_dict()))


def _of_its_stage(step: Mapping[str, Any]) -> schema.Node:
  name = step.get("stage")
  return stages.load(name).SCHEMA if name in stages.NAMES else schema.Free()


SCHEMA = schema.Fields(
  configs.chain,
  {
    # Each step is checked when it comes, by its stage.
    "steps": schema.Named(schema.Chosen(_of_its_stage), closed=True),
    "table": schema.Options(report.results_table),
  },
)


def check(config: ConfigDict) -> None:
  """Raises an error of one sentence if the chain cannot be run, as `run`."""
  schema.check(SCHEMA, config)
  steps = set(config.steps)
  # A row of the table is a step, or within one that is a chain itself.
  within = tuple(f"{step}/" for step in steps)
  rows = (row[1] for row in config.table.rows)
  evaluated = (name for name in rows if not name.startswith(within))
  for name in (*config.order, *evaluated):
    if name not in steps:
      raise errors.ConfigError(
        f"The chain has no step {name!r}; {errors.nearest(name, steps)}"
      )
  for name in config.order:
    stage = config.steps[name].stage
    if stage not in stages.NAMES:
      raise errors.ConfigError(
        f"config.steps.{name}.stage={stage!r} is no stage;"
        f" {errors.nearest(stage, stages.NAMES)}"
      )


def require_sources(config: ConfigDict) -> None:
  """Raises FileNotFoundError if a model is missing that no step will write."""
  for name in config.order:
    for field in ("source", "teacher"):
      model = config.steps[name].get(field)
      if model and _WORKDIR not in model:
        source_lib.require_source(model, f"steps.{name}.{field}")


def _done(workdir: pathlib.Path) -> list[dict[str, Any]]:
  return run_log.read(workdir / _DONE)


def describe(config: ConfigDict) -> list[str]:
  """Returns a line on each step; FileNotFoundError for a missing model."""
  require_sources(config)
  return [
    f"step {number}: {name}, the stage {config.steps[name].stage}"
    for number, name in enumerate(config.order, start=1)
  ]
