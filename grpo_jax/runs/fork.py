"""A run that begins where another was: a fork.

The fork's directory holds what its parent's held after a step: that checkpoint,
and all that was logged up to it. It goes on from there as the parent would, to
the bit where nothing of the config changed. `parent.json` tells what it comes
from.
"""

import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Mapping
from typing import Any

from grpo_jax.runs import changes, directory, log

PARENT = "parent.json"
# What a run's directory holds beside checkpoints and lines by step.
_CONTENT = (
  directory.MODEL,
  directory.LORA,
  directory.PROMPTS,
  directory.FITTED,
  "tokenizer",
  "base",
  "tensorboard",
)
# Fields, or sections, that say what is trained, and of what.
_FIXED = ("stage", "pretrain", "tokenizer", "lora.rank", "lora.targets")
# Fields of `model` that say how it is computed.
_COMPUTED = ("dtype", "remat", "head_chunk")


def parse(text: str) -> tuple[pathlib.Path, int | None]:
  """Returns run and step of `RUN@STEP`; None for the newest, of `RUN`."""
  run, at, step = text.rpartition("@")
  if at and step.isdecimal():
    return pathlib.Path(run), int(step)
  return pathlib.Path(text), None


def fork(
  parent: str | os.PathLike,
  step: int | None,
  workdir: str | os.PathLike,
  config: dict[str, Any],
  *,
  complete: directory.Complete = lambda config: config,
) -> None:
  """Makes the directory of a run that goes on from another's checkpoint.

  It appears whole or not at all. One that is this fork already and has gone on
  stays as it is, so that the same command goes on where it was stopped; before
  the first checkpoint of its own it takes another config.

  Args:
    parent: directory of the other run, which stays as it is.
    step: a kept one; None for the newest.
    workdir: of the fork.
    config: of the fork, a tree of JSON: any field may differ that leaves the
      tree of parameters as it is.
    complete: as `directory.claim`.

  Raises:
    FileNotFoundError: `parent` holds no checkpoint.
    ValueError: that step is not kept; `workdir` holds something else; or a
      field differs that must not.
  """
  parent, workdir = pathlib.Path(parent).resolve(), pathlib.Path(workdir)
  exists = workdir.is_dir() and any(workdir.iterdir())
  if exists:
    step = _require_fork(workdir, parent, step)
    if directory.kept_steps(workdir) != [step]:
      return
  kept = directory.kept_steps(parent)
  if not ((parent / directory.CONFIG).exists() and (kept or exists)):
    raise FileNotFoundError(f"{parent} holds no run with a checkpoint.")
  step = kept[-1] if step is None else step
  if step not in kept and not exists:
    raise ValueError(
      f"{parent} keeps no checkpoint of step {step}, only of"
      f" {', '.join(map(str, kept))} (config.checkpoint.keep says how many)."
    )
  config = json.loads(json.dumps(config))
  old = directory.read_config(parent)
  found = changes.differences(complete(old), complete(changes.upgrade(config)))
  _check(found, parent)
  content = (parent / directory.CONFIG).read_bytes()
  origin = {
    "path": str(parent),
    "step": step,
    "config": hashlib.blake2b(content, digest_size=8).hexdigest(),
    "changes": found,
  }
  if exists:
    _write(workdir, config, origin)
    return
  # A name of its own, for processes of several hosts may share the folder.
  partial = workdir.absolute()
  partial = partial.with_name(f".{partial.name}.{uuid.uuid4().hex}.partial")
  try:
    _copy(parent, step, partial)
    _write(partial, config, origin)
    try:
      partial.rename(workdir)
    except OSError:
      _require_fork(workdir, parent, step)  # Another process was faster.
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def read(workdir: str | os.PathLike) -> dict[str, Any]:
  """Returns what a fork comes from, as `parent.json` tells it.

  `path` and `step` of the parent, a hash of its `config`, and `changes`: by
  name, the fields that differ, with the parent's value and the fork's.
  """
  return json.loads((pathlib.Path(workdir) / PARENT).read_text("utf-8"))


def _require_fork(
  workdir: pathlib.Path, parent: pathlib.Path, step: int | None
) -> int:
  """Returns the step of a fork; raises ValueError where it is another's."""
  if not (workdir / PARENT).exists():
    raise ValueError(
      f"{workdir} is not empty and holds no fork; give another --workdir."
    )
  origin = read(workdir)
  same = origin["path"] == str(parent) and step in (None, origin["step"])
  if not same:
    raise ValueError(
      f"{workdir} holds a fork of {origin['path']} at step {origin['step']};"
      " give another --workdir."
    )
  return origin["step"]


def _write(
  workdir: pathlib.Path, config: dict[str, Any], origin: dict[str, Any]
) -> None:
  """Writes which run a fork is, and what it comes from."""
  for name, content in ((directory.CONFIG, config), (PARENT, origin)):
    text = json.dumps(content, indent=2, sort_keys=True)
    directory.write_text(workdir / name, text + "\n")


def _check(found: Mapping[str, tuple[Any, Any]], parent: pathlib.Path) -> None:
  """Raises ValueError where a field differs that says what is trained."""
  for name, (old, new) in found.items():
    section, _, field = name.partition(".")
    fixed = name in _FIXED or section in _FIXED or name == "value"
    if fixed or (section == "model" and field not in _COMPUTED):
      raise ValueError(
        f"A fork cannot change config.{name}, from {old!r} to {new!r}: another"
        f" model is trained then; start a run with --config.source={parent}."
      )


def _copy(parent: pathlib.Path, step: int, to: pathlib.Path) -> None:
  """Copies what a run's directory held after a step."""
  name = pathlib.Path(directory.CHECKPOINTS, str(step))
  _link_tree(parent / name, to / name)
  for name in _CONTENT:
    if (parent / name).is_dir():
      _link_tree(parent / name, to / name)
    elif (parent / name).exists():
      shutil.copy2(parent / name, to / name)
  for path in parent.glob("*.jsonl"):
    shutil.copy2(path, to / path.name)
    log.JsonLines(to / path.name, restored=step).close()


def _link_tree(source: pathlib.Path, to: pathlib.Path) -> None:
  """Copies a folder; files of checkpoints, never written twice, are linked."""

  def copy(file: str, other: str) -> None:
    if directory.CHECKPOINTS in pathlib.Path(file).parts:
      try:
        os.link(file, other)
        return
      except OSError:
        pass  # Another file system, or one without links.
    shutil.copy2(file, other)

  shutil.copytree(source, to, copy_function=copy)
