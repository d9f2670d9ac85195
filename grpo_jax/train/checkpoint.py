"""Checkpoints: all that a restart needs, written in the background."""

import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from grpo_jax.models.params import Params
from grpo_jax.runs import directory
from grpo_jax.train.state import TrainState


class Checkpointer:
  """Saves and restores all that a restart needs. Close it at the end.

  Each checkpoint is written in the background and appears at once or not at
  all; the newest `keep` stay.
  """

  def __init__(self, workdir: str | os.PathLike, *, keep: int = 2):
    """Opens, and makes where missing, the directory of checkpoints."""
    self._manager = ocp.CheckpointManager(
      pathlib.Path(workdir).absolute() / directory.CHECKPOINTS,
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
    value: TrainState | None = None,
    progress: dict[str, Any] | None = None,
  ) -> None:
    """Saves the state after `step` steps.

    Args:
      step: steps done.
      state: of training.
      reference: the reference policy, where it is no longer the source.
      value: of the value model's training, where there is one.
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
    if value is not None:
      items["value"] = ocp.args.StandardSave(vars(value))
    self._manager.save(step, args=ocp.args.Composite(**items))

  def restore(
    self, step: int, state: TrainState
  ) -> tuple[TrainState, Params | None, dict[str, Any]]:
    """Returns the state, the reference where one was saved, and progress.

    Args:
      step: a saved one.
      state: shapes and shardings to restore into.

    Raises:
      ValueError: the saved parameters are those of another model.
    """
    self._require_same(step, state.params)
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

  def restore_value(self, step: int, value: TrainState) -> TrainState:
    """Returns the state of the value model's training.

    Args:
      step: a saved one.
      value: shapes and shardings to restore into.
    """
    args = ocp.args.Composite(value=ocp.args.StandardRestore(vars(value)))
    return TrainState(**self._manager.restore(step, args=args).value)

  def _require_same(self, step: int, params: Params) -> None:
    """Raises ValueError where other parameters were saved than are wanted."""
    path = pathlib.Path(self._manager.directory) / str(step) / "params"
    handler = ocp.StandardCheckpointHandler()
    saved = _shapes(handler.metadata(epath.Path(path)).tree)
    handler.close()
    wanted = _shapes(params)
    for name in sorted(saved.keys() | wanted.keys()):
      old, new = (of.get(name, "absent") for of in (saved, wanted))
      if old != new:
        raise ValueError(
          f"The checkpoint of step {step} in {path.parents[1].parent} is of"
          f" another model: its {name} is {old}, and {new} in this config. Undo"
          " what changed of the model, or begin with its parameters:"
          " --config.source."
        )

  def close(self) -> None:
    """Waits until what was saved is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each parameter by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {
    "/".join(str(key.key) for key in path): tuple(leaf.shape)
    for path, leaf in leaves
  }
