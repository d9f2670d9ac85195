"""The files of a run: scalars, evaluations, completions.

A run's directory holds

  metrics.jsonl      one object per step: `step`, then the metrics by name;
  evaluations.jsonl  one object per evaluation: `step`, `name`, its results;
  completions.jsonl  every completion with what it earned;
  warnings.jsonl     what a run was warned of, where it was: `step`, `until`,
                     `name`, `text`;
  tensorboard/       the scalars once more.

On several processes the first one writes, the others do not.

Names that begin with `time/` or `memory/` differ between two runs of the same
command; all the others are equal to the bit. A run that goes on from a
checkpoint first drops what was written after it, so that histories join.

B completions.
"""

import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorboardX

from grpo_jax import processes, types
from grpo_jax.runs import directory

METRICS, WARNINGS = "metrics.jsonl", "warnings.jsonl"
_VOLATILE = ("time/", "memory/")


class JsonLines:
  """A file of one JSON object per line and step that only grows.

  Args:
    path: created with its folder where missing.
    restored: the step of the checkpoint that the run goes on from; lines of
      later steps, and a last line cut short by a kill, are dropped. None
      starts the file anew.
  """

  def __init__(self, path: str | os.PathLike, restored: int | None = None):
    if not processes.is_first():
      self._file = open(os.devnull, "wb")
      return
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    self._file = path.open("a+b")
    self._file.truncate(self._length_to_keep(restored))

  def _length_to_keep(self, restored: int | None) -> int:
    if restored is None:
      return 0
    length = 0
    self._file.seek(0)
    for line in self._file:
      try:
        step = json.loads(line)["step"]
      except ValueError:
        break
      if step > restored or not line.endswith(b"\n"):
        break
      length += len(line)
    return length

  def append(self, *records: Mapping[str, Any]) -> None:
    """Writes each record on a line of its own, then flushes."""
    lines = (
      json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
      for record in records
    )
    # A stray surrogate in a model's text must not stop a run.
    self._file.write("".join(lines).encode("utf-8", "replace"))
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def rows(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
  """Yields the objects of a file of JSON lines; none where it is missing.

  A last line that a kill cut short does not count.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return
  with path.open(encoding="utf-8") as lines:
    for line in lines:
      if line.endswith("\n"):
        yield json.loads(line)


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """All that `rows` yields."""
  return list(rows(path))


def history(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """The metrics of a run without those that no second run would repeat."""
  return [
    {k: v for k, v in row.items() if not k.startswith(_VOLATILE)}
    for row in read(pathlib.Path(workdir) / METRICS)
  ]


class Writer:
  """Writes scalars to `metrics.jsonl`, `evaluations.jsonl` and TensorBoard.

  Args:
    workdir: the run's directory.
    restored: as for `JsonLines`.
  """

  def __init__(self, workdir: str | os.PathLike, restored: int | None = None):
    workdir = pathlib.Path(workdir)
    self._metrics = JsonLines(workdir / METRICS, restored)
    self._evaluations = JsonLines(workdir / "evaluations.jsonl", restored)
    # TensorBoard hides the events of an earlier start from this step on.
    self._tensorboard = tensorboardX.SummaryWriter(
      str(workdir / "tensorboard"),
      purge_step=0 if restored is None else restored + 1,
      # Two starts within a second must not share a file.
      filename_suffix=f".{time.time_ns()}",
      write_to_disk=processes.is_first(),
    )

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Logs one step's metrics: numbers, or arrays of one number.

    A number that is not finite is written as null.
    """
    scalars = {name: _scalar(metrics[name]) for name in sorted(metrics)}
    self._metrics.append(metrics_row(step, metrics))
    self._to_tensorboard(step, scalars)

  def write_evaluation(
    self, step: int, name: str, results: Mapping[str, Any]
  ) -> None:
    """Logs the results of one evaluation, such as those on the test split."""
    scalars = {key: _scalar(results[key]) for key in sorted(results)}
    self._evaluations.append(
      {"step": int(step), "name": name} | _finite(scalars)
    )
    self._to_tensorboard(
      step, {f"{name}/{key}": value for key, value in scalars.items()}
    )

  def _to_tensorboard(
    self, step: int, scalars: Mapping[str, int | float]
  ) -> None:
    for name, value in scalars.items():
      if not math.isfinite(value):
        continue  # A term without a score in this step: a gap in its curve.
      # TensorBoard allows no @ in a name.
      name = name.replace("@", "_at_")
      self._tensorboard.add_scalar(name, value, int(step))
    self._tensorboard.flush()

  def close(self) -> None:
    """Closes all files."""
    self._metrics.close()
    self._evaluations.close()
    self._tensorboard.close()


def metrics_row(step: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a step's metrics as `metrics.jsonl` has them."""
  scalars = {name: _scalar(metrics[name]) for name in sorted(metrics)}
  return {"step": int(step)} | _finite(scalars)


def write_warnings(
  workdir: str | os.PathLike, records: Sequence[Mapping[str, Any]]
) -> None:
  """Writes `warnings.jsonl` anew; without warnings there is none."""
  if not processes.is_first():
    return
  path = pathlib.Path(workdir) / WARNINGS
  if not records:
    path.unlink(missing_ok=True)
    return
  lines = (json.dumps(each, ensure_ascii=False) + "\n" for each in records)
  text = "".join(lines).encode("utf-8", "replace").decode()
  directory.write_text(path, text)


def _scalar(value: Any) -> int | float:
  value = np.asarray(value).reshape(())[()]
  if isinstance(value, (np.integer, np.bool_)):
    return int(value)
  # The shortest decimal that reads back as the same float32 (0.1, not
  # 0.10000000149): exact, and easier on the eye.
  return float(str(value))


def _finite(
  scalars: Mapping[str, int | float],
) -> dict[str, int | float | None]:
  return {k: v if math.isfinite(v) else None for k, v in scalars.items()}


def completion_records(
  completions: types.Completions,
) -> Iterator[dict[str, Any]]:
  """Yields a record for each that was scored; a missing reward is null."""
  rewards = completions.rewards
  for row, (problem, text) in enumerate(
    zip(completions.problems, completions.texts, strict=True)
  ):
    yield {
      "question": problem.question,
      "answer": problem.answer,
      "completion": text,
      "reward": _scalar(rewards.total[row]) if rewards.valid[row] else None,
      "terms": _finite({k: _scalar(v[row]) for k, v in rewards.terms.items()}),
      # Of what terms log besides, such as outcomes, what is not 0.
      "metrics": {
        k: _scalar(v[row])
        for k, v in rewards.metrics.items()
        if v[row] and not np.isnan(v[row])
      },
      "length": int(completions.lengths[row]),
      "truncated": bool(completions.truncated[row]),
    }


class CompletionsLog:
  """Keeps every completion, with what it earned, in `completions.jsonl`.

  Args:
    workdir: the run's directory.
    restored: as for `JsonLines`.
  """

  def __init__(self, workdir: str | os.PathLike, restored: int | None = None):
    path = pathlib.Path(workdir) / "completions.jsonl"
    self._lines = JsonLines(path, restored)

  def write(self, step: int, completions: types.Completions) -> None:
    """Appends a line for each, see `completion_records`."""
    if not processes.is_first():
      return
    records = completion_records(completions)
    self._lines.append(*({"step": int(step)} | record for record in records))

  def close(self) -> None:
    """Closes the file."""
    self._lines.close()
