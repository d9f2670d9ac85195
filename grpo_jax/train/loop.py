"""The loop of stages that learn from given data: one batch, one update a step.

What such a stage is stands in its own file: its data, its loss, what it starts
from. Here is what they share: checkpoints, going on where a run was stopped,
the log, the progress line.
"""

import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh

from grpo_jax import sharding
from grpo_jax.models import params as params_lib
from grpo_jax.models.params import Params, Specs
from grpo_jax.runs import directory, process, progress
from grpo_jax.runs import log as run_log
from grpo_jax.runs.signals import StopRequest
from grpo_jax.train import checkpoint
from grpo_jax.train import state as state_lib
from grpo_jax.train.state import TrainState

# By the name of each evaluation, its results.
Evaluations = Mapping[str, Mapping[str, Any]]


@runtime_checkable
class Batches(Protocol):
  """An endless iterator of batches on the host that can be resumed."""

  def __next__(self) -> Any:
    """The next batch: a tree of arrays whose leading axis is rows.

    Or a function of the parameters in training that makes it, where it is text
    of the policy itself.
    """

  def get_state(self) -> dict[str, Any]:
    """What `set_state` needs to go on from here, as JSON."""

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on where `get_state` was called, to the bit."""


class ByStep:
  """Batches that are a function of the step alone."""

  def __init__(self, batch: Callable[[int], Any]):
    """Begins with `batch(0)`."""
    self._batch = batch
    self._step = 0

  def __next__(self) -> Any:
    """See `Batches`."""
    batch = self._batch(self._step)
    self._step += 1
    return batch

  def get_state(self) -> dict[str, Any]:
    """See `Batches`."""
    return {"step": self._step}

  def set_state(self, state: dict[str, Any]) -> None:
    """See `Batches`."""
    self._step = state["step"]


class Trained(NamedTuple):
  """What `train` came to.

  Attributes:
    state: after the last step that was done.
    finished: whether all steps were, and nobody asked to stop.
  """

  state: TrainState
  finished: bool


def is_finished(workdir: str | os.PathLike, total_steps: int) -> bool:
  """Returns whether a run's directory holds the checkpoint of its last step."""
  if not (pathlib.Path(workdir) / directory.CHECKPOINTS).is_dir():
    return False
  checkpointer = checkpoint.Checkpointer(workdir)
  latest = checkpointer.latest()
  checkpointer.close()
  return latest == total_steps


def train(
  workdir: str | os.PathLike,
  mesh: Mesh,
  *,
  specs: Specs,
  start: Callable[[], Params],
  tx: Any,
  learning_rate: Callable[[int], float],
  update: Callable[..., tuple[TrainState, Mapping[str, Any]]],
  batches: Batches,
  rows: Sequence[Any],
  num_tokens: Callable[[Any], int],
  total_steps: int,
  log_every: int,
  checkpoint_every: int,
  keep: int = 1,
  frozen: Sequence[Any] = (),
  columns: Sequence[progress.Column] = progress.TEXT_COLUMNS,
  evaluate: Callable[[Params], Evaluations] | None = None,
  evaluate_every: int = 0,
) -> Trained:
  """Trains from the start, or from the newest checkpoint, to the last step.

  Scalars are logged every `log_every` steps: those of the step, and tokens per
  second over all since the last ones.

  Args:
    workdir: of the run, claimed already (`directory.claim`), with the model's
      description in it (`directory.save_model`).
    mesh: in force.
    specs: of the trained parameters.
    start: makes them, where there is no checkpoint.
    tx: the optimizer.
    learning_rate: by update, from 0.
    update: what `step.make_update` returned.
    batches: on the host.
    rows: mesh axes of a batch's leading axis, as `sharding.place` takes them.
    num_tokens: of a batch.
    total_steps: updates.
    log_every: steps.
    checkpoint_every: steps; the last one is always saved.
    keep: the newest so many checkpoints stay.
    frozen: given to `update` after the batch.
    columns: of the progress table.
    evaluate: by name, the results of parameters. Called before the first step,
      where `evaluate_every` says so, and after the last step.
    evaluate_every: steps; 0 for the two ends alone.
  """
  workdir = pathlib.Path(workdir)
  checkpointer = checkpoint.Checkpointer(workdir, keep=keep)
  restored = checkpointer.latest()
  if restored is None:
    state = state_lib.init_state(start(), tx)
  else:
    abstract = params_lib.abstract_params(specs, mesh)
    state, _, kept = checkpointer.restore(
      restored, state_lib.abstract_state(abstract, tx)
    )
    batches.set_state(kept["batches"])
    progress.say(f"Going on after step {restored}.")
  step = restored or 0
  writer = run_log.Writer(workdir, restored=restored)
  table = progress.Progress(total_steps, columns)
  timer = progress.Timer()
  tokens = 0

  def evaluate_now() -> None:
    assert evaluate is not None
    with timer.phase("evaluate"):
      for name, results in evaluate(state.params).items():
        writer.write_evaluation(step, name, results)

  def save() -> None:
    checkpointer.save(step, state, progress={"batches": batches.get_state()})

  if evaluate and restored is None:
    evaluate_now()
  with StopRequest() as stop:
    while step < total_steps and not stop:
      with timer.phase("data"):
        batch = next(batches)
        if callable(batch):
          batch = batch(state.params)
        tokens += num_tokens(batch)
      state, scalars = update(state, sharding.place(mesh, batch, rows), *frozen)
      step += 1
      due = evaluate_every and step % evaluate_every == 0
      if evaluate and (due or step == total_steps):
        evaluate_now()
      if step % log_every == 0 or step == total_steps:
        scalars = sharding.to_host(scalars)
        seconds = timer.step()
        scalars |= seconds | process.memory()
        scalars["learning_rate"] = learning_rate(step - 1)
        scalars["num_tokens"] = num_tokens(batch)
        scalars["time/tokens_per_second"] = tokens / seconds["time/step"]
        tokens = 0
        writer.write(step, scalars)
        table.show(step, scalars)
        require_finite(step, scalars)
      # Last, so that a checkpoint never knows of a step that no file tells of.
      if step % checkpoint_every == 0:
        save()
  save()
  checkpointer.close()
  writer.close()
  return Trained(state, step == total_steps and not stop)


def text_tokens(batch: Any) -> int:
  """The tokens of a batch that has `segments`: 0 where there is padding."""
  return int(np.count_nonzero(batch.segments))


def require_finite(step: int, metrics: Mapping[str, Any]) -> None:
  """Raises FloatingPointError where the loss or the gradient has diverged."""
  for name in ("loss", "grad_norm"):
    if not math.isfinite(metrics[name]):
      raise FloatingPointError(
        f"{name} is {metrics[name]} at step {step}: lower the learning rate, or"
        " go on from an earlier checkpoint with another seed."
      )
