"""The loop of every stage that trains: steps, log, evaluations, checkpoints.

What a stage is stands in its own file: its data, its loss, what it starts from.
`Loop` is what all share, `train` the walk of those that learn from given data:
one batch, one update a step.
"""

import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh

from grpo_jax import processes, sharding
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


class Schedule(NamedTuple):
  """How long a run is, and what happens every so many steps.

  Attributes:
    total_steps: where it ends.
    log_every: scalars are logged.
    checkpoint_every: all that a restart needs is saved; the last step always.
    keep: the newest so many checkpoints stay.
    evaluate_every: held-out results beside those at both ends; 0 for none.
  """

  total_steps: int
  log_every: int = 1
  checkpoint_every: int = 100
  keep: int = 1
  evaluate_every: int = 0


class Loop:
  """The steps of a run from where it stands to its last.

  Attributes:
    step: steps done.
    restored: the step of the checkpoint that the run goes on from; None where
      it begins.
    checkpointer: of the run's directory.
    timer: of the phases of a step.
    stopped: whether a signal asked to stop.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    schedule: Schedule,
    columns: Sequence[progress.Column] = progress.TEXT_COLUMNS,
  ):
    """Opens the run's checkpoints.

    Args:
      workdir: of the run, claimed already (`directory.claim`), with the model's
        description in it (`directory.save_model`).
      schedule: of the run.
      columns: of the progress table.
    """
    self._workdir = pathlib.Path(workdir)
    self._schedule = schedule
    self.checkpointer = checkpoint.Checkpointer(workdir, keep=schedule.keep)
    self.restored = processes.from_first(self.checkpointer.latest)
    self.step = self.restored or 0
    self.timer = progress.Timer()
    self.stopped = False
    self._table = progress.Progress(schedule.total_steps, columns)
    self._scalars: Mapping[str, Any] = {}
    self._tokens = 0

  @property
  def finished(self) -> bool:
    """Whether all steps are done, and nobody asked to stop."""
    return self.step >= self._schedule.total_steps and not self.stopped

  @property
  def due(self) -> bool:
    """Whether the scalars of the step under way will be logged."""
    step = self.step + 1
    last = step == self._schedule.total_steps
    return step % self._schedule.log_every == 0 or last

  def log(self, scalars: Mapping[str, Any], num_tokens: int) -> None:
    """Takes the scalars of the step under way, and its number of tokens."""
    self._scalars = scalars
    self._tokens += num_tokens

  def steps(
    self,
    save: Callable[[int], None],
    evaluate: Callable[[], Evaluations] | None = None,
    show: Callable[[int], None] | None = None,
  ) -> Iterator[int]:
    """Yields before each step how many are done; its body does it.

    After the body: evaluation where it is due, the log, the progress line, the
    checkpoint. Leaving early waits for what is being saved.

    Args:
      save: saves the state of that many steps with `checkpointer`.
      evaluate: by name, results as of now; before the first step too.
      show: prints or keeps more of a step, after its line.
    """
    writer = run_log.Writer(self._workdir, restored=self.restored)

    def evaluate_now() -> None:
      assert evaluate is not None
      with self.timer.phase("evaluate"):
        for name, results in evaluate().items():
          writer.write_evaluation(self.step, name, results)

    total, every = self._schedule.total_steps, self._schedule.evaluate_every
    try:
      if evaluate and self.restored is None:
        evaluate_now()
      with StopRequest() as stop:
        while self.step < total and not stop:
          due = self.due
          yield self.step
          self.step += 1
          scalars = sharding.to_host(self._scalars) if due else {}
          if due:
            require_finite(self.step, scalars)
          at = every and self.step % every == 0
          if evaluate and (at or self.step == total):
            evaluate_now()
          if due:
            self._write(writer, scalars)
          if show:
            show(self.step)
          # Last, so that a checkpoint never knows of a step that no file tells
          # of.
          if self.step % self._schedule.checkpoint_every == 0:
            save(self.step)
        self.stopped = bool(stop)
      save(self.step)
    finally:
      self.checkpointer.close()
      writer.close()
    # What comes next reads what the first process has written.
    processes.wait("end of the loop")

  def _write(self, writer: run_log.Writer, scalars: Mapping[str, Any]) -> None:
    seconds = processes.largest(self.timer.step() | process.memory())
    rate = {"time/tokens_per_second": self._tokens / seconds["time/step"]}
    self._tokens = 0
    scalars = {**scalars, **seconds, **rate}
    writer.write(self.step, scalars)
    self._table.show(self.step, scalars)


def require_finite(step: int, metrics: Mapping[str, Any]) -> None:
  """Raises FloatingPointError where the loss or the gradient has diverged."""
  for name in ("loss", "grad_norm"):
    if not math.isfinite(metrics[name]):
      raise FloatingPointError(
        f"{name} is {metrics[name]} at step {step}: lower the learning rate, or"
        " go on from an earlier checkpoint with another seed."
      )


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


class Task(NamedTuple):
  """What a stage that learns from given data does.

  Attributes:
    specs: of the trained parameters.
    start: makes them, where there is no checkpoint.
    tx: the optimizer.
    learning_rate: by update, from 0.
    update: what `update.make_update` returned.
    batches: on the host.
    rows: mesh axes of a batch's leading axis, as `sharding.place` takes them.
    frozen: given to `update` after the batch.
    columns: of the progress table.
    evaluate: by name, the results of parameters.
    num_tokens: of a batch.
  """

  specs: Specs
  start: Callable[[], Params]
  tx: Any
  learning_rate: Callable[[int], float]
  update: Callable[..., tuple[TrainState, Mapping[str, Any]]]
  batches: Batches
  rows: Sequence[Any]
  frozen: Sequence[Any] = ()
  columns: Sequence[progress.Column] = progress.TEXT_COLUMNS
  evaluate: Callable[[Params], Evaluations] | None = None
  num_tokens: Callable[[Any], int] = lambda batch: text_tokens(batch)


class Trained(NamedTuple):
  """What `train` came to.

  Attributes:
    state: after the last step that was done.
    finished: whether all steps were, and nobody asked to stop.
  """

  state: TrainState
  finished: bool


def train(
  workdir: str | os.PathLike, mesh: Mesh, schedule: Schedule, task: Task
) -> Trained:
  """Trains from the start, or from the newest checkpoint, to the last step.

  Args:
    workdir: of the run; see `Loop`.
    mesh: in force.
    schedule: of the run.
    task: what is learned, from what.
  """
  loop, batches = Loop(workdir, schedule, task.columns), task.batches
  if loop.restored is None:
    state = state_lib.init_state(task.start(), task.tx)
  else:
    abstract = params_lib.abstract_params(task.specs, mesh)
    state, _, kept = loop.checkpointer.restore(
      loop.restored, state_lib.abstract_state(abstract, task.tx)
    )
    batches.set_state(kept["batches"])
    progress.say(f"Going on after step {loop.restored}.")

  def save(step: int) -> None:
    kept = {"batches": batches.get_state()}
    loop.checkpointer.save(step, state, progress=kept)

  evaluate = None
  if task.evaluate:
    evaluate = lambda: task.evaluate(state.params)  # noqa: E731
  for step in loop.steps(save, evaluate):
    with loop.timer.phase("data"):
      batch = next(batches)
      if callable(batch):
        batch = batch(state.params)
      count = task.num_tokens(batch)
    placed = sharding.place(mesh, batch, task.rows)
    state, scalars = task.update(state, placed, *task.frozen)
    rate = task.learning_rate(step) if loop.due else 0.0
    loop.log({**scalars, "learning_rate": rate, "num_tokens": count}, count)
  return Trained(state, loop.finished)


def is_finished(workdir: str | os.PathLike, total_steps: int) -> bool:
  """Returns whether a run's directory holds the checkpoint of its last step."""
  if not (pathlib.Path(workdir) / directory.CHECKPOINTS).is_dir():
    return False
  checkpointer = checkpoint.Checkpointer(workdir)
  latest = processes.from_first(checkpointer.latest)
  checkpointer.close()
  return latest == total_steps


def text_tokens(batch: Any) -> int:
  """The tokens of a batch that has `segments`: 0 where there is padding."""
  return int(np.count_nonzero(batch.segments))
