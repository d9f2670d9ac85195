"""A run's directory: which run it holds, its checkpoints, where to go on.

A run's directory holds `config.json` (which run this is), `model.json` and
`tokenizer/` (what its parameters mean), `checkpoints/` and what the run prints
and measures.
"""

import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import orbax.checkpoint as ocp
from jax.sharding import Mesh

from grpo_jax.models import hf
from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params, Specs
from grpo_jax.state import TrainState

CHECKPOINTS = "checkpoints"


class Checkpointer:
  """Saves and restores all that a restart needs. Close it at the end.

  Each checkpoint is written in the background and appears at once or not at
  all; the newest `keep` stay.
  """

  def __init__(self, workdir: str | os.PathLike, *, keep: int = 2):
    """Opens, and makes where missing, the directory of checkpoints."""
    self._manager = ocp.CheckpointManager(
      pathlib.Path(workdir).absolute() / CHECKPOINTS,
      options=ocp.CheckpointManagerOptions(max_to_keep=keep),
    )

  def latest(self) -> int | None:
    """Returns the newest complete step; None where there is none."""
    return self._manager.latest_step()

  def save(
    self,
    step: int,
    state: TrainState,
    *,
    reference: Params | None = None,
    progress: dict[str, Any] | None = None,
  ) -> None:
    """Saves the state after `step` steps.

    Args:
      step: steps done.
      state: of training.
      reference: the reference policy, where it is no longer the source.
      progress: what else a restart reads, as JSON.
    """
    if step == self.latest():
      return
    items = {
      "params": ocp.args.StandardSave(state.params),
      "optimizer": ocp.args.StandardSave(
        {"step": state.step, "opt_state": state.opt_state}
      ),
      "progress": ocp.args.JsonSave(
        (progress or {}) | {"has_reference": reference is not None}
      ),
    }
    if reference is not None:
      items["reference"] = ocp.args.StandardSave(reference)
    self._manager.save(step, args=ocp.args.Composite(**items))

  def restore(
    self, step: int, state: TrainState
  ) -> tuple[TrainState, Params | None, dict[str, Any]]:
    """Returns the state, the reference where one was saved, and progress.

    Args:
      step: a saved one.
      state: shapes and shardings to restore into.
    """
    progress = self._manager.restore(
      step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())
    ).progress
    items = {
      "params": ocp.args.StandardRestore(state.params),
      "optimizer": ocp.args.StandardRestore(
        {"step": state.step, "opt_state": state.opt_state}
      ),
    }
    if progress["has_reference"]:
      items["reference"] = ocp.args.StandardRestore(state.params)
    restored = self._manager.restore(step, args=ocp.args.Composite(**items))
    state = TrainState(params=restored.params, **restored.optimizer)
    return state, restored.get("reference"), progress

  def close(self) -> None:
    """Waits until what was saved is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()


def claim(workdir: str | os.PathLike, config: dict[str, Any]) -> None:
  """Makes the directory this run's own, or finds that it already is.

  Raises:
    ValueError: it holds a run of another config, or files of something else.
  """
  workdir = pathlib.Path(workdir)
  path = workdir / "config.json"
  text = json.dumps(config, indent=2, sort_keys=True)
  if path.exists():
    differs = _difference(json.loads(path.read_text()), json.loads(text))
    if differs:
      raise ValueError(
        f"{workdir} holds another run: {differs}; give another --workdir, or"
        " remove it to start over."
      )
    return
  if workdir.is_dir() and any(workdir.iterdir()):
    raise ValueError(
      f"{workdir} is not empty and holds no run of ours; give another"
      " --workdir."
    )
  workdir.mkdir(parents=True, exist_ok=True)
  write_text(path, text + "\n")


def save_model(workdir: str | os.PathLike, cfg: ModelConfig) -> None:
  """Writes `model.json`, from which `load_policy` knows the parameters."""
  text = json.dumps(dataclasses.asdict(cfg), indent=2)
  write_text(pathlib.Path(workdir) / "model.json", text + "\n")


def is_source(path: str | os.PathLike) -> bool:
  """Returns whether there is a model: of a run, or one of Hugging Face."""
  return (pathlib.Path(path) / CHECKPOINTS).is_dir() or hf.is_checkpoint(path)


def tokenizer_directory(source: str | os.PathLike) -> pathlib.Path:
  """Returns where the tokenizer of a source is."""
  source = pathlib.Path(source)
  return source if hf.is_checkpoint(source) else source / "tokenizer"


def load_policy(
  source: str | os.PathLike,
  mesh: Mesh,
  *,
  specs: Callable[[ModelConfig], Specs] = params_lib.param_specs,
  **overrides: Any,
) -> tuple[ModelConfig, Params, int]:
  """Returns model, parameters and step of a run's newest checkpoint.

  A directory of Hugging Face is at step 0.

  Args:
    source: directory of a run, or one of Hugging Face.
    mesh: to place the parameters on.
    specs: the parameters of such a model, where it is no policy.
    **overrides: fields of ModelConfig that change how, not what, is computed:
      dtype, remat, head_chunk.

  Raises:
    FileNotFoundError: the directory holds no finished checkpoint.
    ValueError: as `hf.load`.
  """
  if hf.is_checkpoint(source):
    cfg, params = hf.load(source, mesh=mesh)
    return dataclasses.replace(cfg, **overrides), params, 0
  workdir = pathlib.Path(source).absolute()
  path = workdir / "model.json"
  step = None
  if path.exists() and (workdir / CHECKPOINTS).is_dir():
    manager = ocp.CheckpointManager(workdir / CHECKPOINTS)
    step = manager.latest_step()
  if step is None:
    raise FileNotFoundError(f"No checkpoint of a model in {workdir}.")
  cfg = ModelConfig(**json.loads(path.read_text()) | overrides)
  abstract = params_lib.abstract_params(specs(cfg), mesh)
  params = manager.restore(
    step,
    args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract)),
  ).params
  manager.close()
  return cfg, params, step


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file that is there whole or not at all."""
  with tempfile.NamedTemporaryFile(
    "w", dir=path.parent, delete=False, encoding="utf-8"
  ) as file:
    file.write(text)
  os.replace(file.name, path)


def _difference(old: Any, new: Any, where: str = "config") -> str:
  """Returns a phrase that names the first field that differs, or nothing."""
  if isinstance(old, dict) and isinstance(new, dict):
    for name in sorted(set(old) | set(new)):
      missing = "(absent)"
      phrase = _difference(
        old.get(name, missing), new.get(name, missing), f"{where}.{name}"
      )
      if phrase:
        return phrase
    return ""
  return "" if old == new else f"its {where} is {old!r} and not {new!r}"
