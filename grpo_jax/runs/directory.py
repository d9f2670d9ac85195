"""A run's directory: which run it holds, and what its parameters mean.

A run's directory holds `config.json` (which run this is), `model.json` and
`tokenizer/` (what its parameters mean), `checkpoints/` and what the run prints
and measures. Where fields changed while it went on, `changes.jsonl` tells of
them. `prompts.json` tells how it asks under a chat template: with which system
prompt, and of which day; `fitted.json`, of sizes that its config left to the
machine. Where it trains adapters, `lora.json` tells of them
and of the frozen model, which stays where it is.
"""

import dataclasses
import json
import os
import pathlib
import uuid
from collections.abc import Callable
from typing import Any

import orbax.checkpoint as ocp

from grpo_jax import processes
from grpo_jax.models import lora
from grpo_jax.models.config import ModelConfig
from grpo_jax.runs import changes

CONFIG, CHANGES = "config.json", "changes.jsonl"
CHECKPOINTS = "checkpoints"
MODEL, LORA = "model.json", "lora.json"
PROMPTS, FITTED = "prompts.json", "fitted.json"

# A config with the defaults of all that it lacks.
Complete = Callable[[dict[str, Any]], dict[str, Any]]


def claim(
  workdir: str | os.PathLike,
  config: dict[str, Any],
  *,
  complete: Complete = lambda config: config,
) -> None:
  """Makes the directory this run's own, or finds that it already is.

  The fields of `changes.MUTABLE` may differ from those that the run began with:
  `config.json` then has the new ones, and a line of `changes.jsonl` tells which
  changed, and after which step.

  Args:
    workdir: the run's directory.
    config: its config, a tree of JSON.
    complete: fills in what a config leaves to its defaults, for one of an
      earlier version lacks what is new since.

  Raises:
    ValueError: it holds a run of another config, or files of something else; or
      the run ends elsewhere now, and its learning rate was to fall until then.
  """
  workdir = pathlib.Path(workdir)
  path = workdir / CONFIG
  text = _text(config)
  if path.exists():
    # As it would be read: tuples are lists.
    _come_back(workdir, json.loads(text), complete)
    return
  if workdir.is_dir() and any(workdir.iterdir()):
    raise ValueError(
      f"{workdir} is not empty and holds no run of ours; give another"
      " --workdir."
    )
  workdir.mkdir(parents=True, exist_ok=True)
  write_text(path, text)


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
  """Returns the config of a run, with the names of today."""
  path = pathlib.Path(workdir) / CONFIG
  return changes.upgrade(json.loads(path.read_text(encoding="utf-8")))


def kept_steps(workdir: str | os.PathLike) -> list[int]:
  """Returns the steps of a run whose checkpoints are there, in order."""
  path = pathlib.Path(workdir).absolute() / CHECKPOINTS
  return sorted(ocp.utils.checkpoint_steps(path)) if path.is_dir() else []


def save_model(workdir: str | os.PathLike, cfg: ModelConfig) -> None:
  """Writes `model.json`, from which `load_policy` knows the parameters."""
  text = json.dumps(dataclasses.asdict(cfg), indent=2)
  write_text(pathlib.Path(workdir) / MODEL, text + "\n")


def save_lora(
  workdir: str | os.PathLike,
  settings: lora.LoraConfig,
  base: str | os.PathLike,
) -> None:
  """Writes `lora.json`: which adapters a run's parameters are, and of what.

  Args:
    workdir: of the run.
    settings: of the adapters.
    base: directory of the frozen model. One within the run's own directory
      moves with it.
  """
  workdir, base = pathlib.Path(workdir).resolve(), pathlib.Path(base).resolve()
  if base.is_relative_to(workdir):
    base = base.relative_to(workdir)
  content = {"base": str(base)} | dataclasses.asdict(settings)
  write_text(workdir / LORA, json.dumps(content, indent=2) + "\n")


def has_adapters(source: str | os.PathLike) -> bool:
  """Returns whether a source is a run that trained adapters."""
  return (pathlib.Path(source) / LORA).exists()


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file that is there whole or not at all; the first process does."""
  if not processes.is_first():
    return
  # A name of its own, for processes of several hosts may share the folder; and
  # unlike a file of `tempfile` it can be read by whoever can read the folder.
  partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
  partial.write_text(text, encoding="utf-8")
  os.replace(partial, path)


def _come_back(
  workdir: pathlib.Path,
  config: dict[str, Any],
  complete: Complete,
) -> None:
  """Finds that the directory is the run's, and notes what of it changed."""
  old, new = read_config(workdir), changes.upgrade(config)
  found = changes.differences(complete(old), complete(new))
  for name, (before, now) in found.items():
    if name not in changes.MUTABLE:
      raise ValueError(
        f"{workdir} holds another run: its config.{name} is {before!r} and not"
        f" {now!r}; give another --workdir, or remove it to start over."
      )
  if not found:
    return
  done = max(kept_steps(workdir), default=0)
  if "total_steps" in found and done:
    _require_extensible(workdir, old, *found["total_steps"], done)
  if processes.is_first():
    record = {"step": done, "changes": found}
    with (workdir / CHANGES).open("a", encoding="utf-8") as lines:
      lines.write(json.dumps(record) + "\n")
  write_text(workdir / CONFIG, _text(config))


def _require_extensible(
  workdir: pathlib.Path, config: dict[str, Any], old: int, new: int, done: int
) -> None:
  """Raises ValueError where a run cannot end at another step than it was to."""
  falling = changes.falling_rate(config)
  if falling:
    raise ValueError(
      f"{workdir} cannot go on to config.total_steps={new}: the learning rate"
      f" of config.{falling} falls until the last step, by total_steps={old}."
      f" Keep that, or start another run from it: --fork={workdir}@{done} with"
      " another --workdir."
    )
  if new < done:
    raise ValueError(
      f"{workdir} is after step {done} already, beyond"
      f" config.total_steps={new}; start another run from an earlier step, of"
      f" {', '.join(map(str, kept_steps(workdir)))}: --fork={workdir}@STEP."
    )


def _text(config: dict[str, Any]) -> str:
  return json.dumps(config, indent=2, sort_keys=True) + "\n"
