"""What a run writes and prints while it goes: scalars, texts, a line per step.

A run's directory holds

  metrics.jsonl      one object per step: `step`, then the metrics by name;
  evaluations.jsonl  one object per evaluation: `step`, `name`, its results;
  completions.jsonl  every completion with what it earned;
  tensorboard/       the scalars once more.

On several processes the first one writes and prints, the others do not.

Names that begin with `time/` or `memory/` differ between two runs of the same
command; all the others are equal to the bit. A run that goes on from a
checkpoint first drops what was written after it, so that histories join.

P prompts, G completions each, N completion slots; B = P * G rows.
"""

import collections
import contextlib
import json
import math
import os
import pathlib
import resource
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorboardX
from jaxtyping import Bool, Float, Shaped

from grpo_jax import types
from grpo_jax.rewards import combine
from grpo_jax.rewards import format as reward_format

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
    if jax.process_index() > 0:
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


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The objects of a file of JSON lines; none where the file is missing."""
  path = pathlib.Path(path)
  if not path.exists():
    return []
  with path.open(encoding="utf-8") as lines:
    return [json.loads(line) for line in lines]


def history(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """The metrics of a run without those that no second run would repeat."""
  return [
    {k: v for k, v in row.items() if not k.startswith(_VOLATILE)}
    for row in read(pathlib.Path(workdir) / "metrics.jsonl")
  ]


class Writer:
  """Writes scalars to `metrics.jsonl`, `evaluations.jsonl` and TensorBoard.

  Args:
    workdir: the run's directory.
    restored: as for `JsonLines`.
  """

  def __init__(self, workdir: str | os.PathLike, restored: int | None = None):
    workdir = pathlib.Path(workdir)
    self._metrics = JsonLines(workdir / "metrics.jsonl", restored)
    self._evaluations = JsonLines(workdir / "evaluations.jsonl", restored)
    # TensorBoard hides the events of an earlier start from this step on.
    self._tensorboard = tensorboardX.SummaryWriter(
      str(workdir / "tensorboard"),
      purge_step=0 if restored is None else restored + 1,
      # Two starts within a second must not share a file.
      filename_suffix=f".{time.time_ns()}",
      write_to_disk=jax.process_index() == 0,
    )

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Logs one step's metrics: numbers, or arrays of one number.

    A number that is not finite is written as null.
    """
    scalars = {name: _scalar(metrics[name]) for name in sorted(metrics)}
    self._metrics.append({"step": int(step)} | _finite(scalars))
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
      # TensorBoard allows no @ in a name.
      name = name.replace("@", "_at_")
      self._tensorboard.add_scalar(name, value, int(step))
    self._tensorboard.flush()

  def close(self) -> None:
    """Closes all files."""
    self._metrics.close()
    self._evaluations.close()
    self._tensorboard.close()


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


class CompletionsLog:
  """Keeps every completion, with what it earned, in `completions.jsonl`.

  Args:
    workdir: the run's directory.
    restored: as for `JsonLines`.
  """

  def __init__(self, workdir: str | os.PathLike, restored: int | None = None):
    path = pathlib.Path(workdir) / "completions.jsonl"
    self._lines = JsonLines(path, restored)

  def write(
    self,
    step: int,
    problems: Sequence[types.Problem],
    completions: Sequence[str],
    scores: combine.Scores,
    lengths: Shaped[np.ndarray, " B"],
    truncated: Bool[np.ndarray, " B"],
  ) -> None:
    """Appends B lines; lengths are in tokens, a missing reward is null."""
    self._lines.append(
      *(
        {
          "step": int(step),
          "question": problem.question,
          "answer": problem.answer,
          "completion": completion,
          "reward": _scalar(reward) if valid else None,
          "terms": _finite(
            {k: _scalar(v[row]) for k, v in scores.terms.items()}
          ),
          # Of what terms log besides, such as outcomes, what is not 0.
          "metrics": {
            k: _scalar(v[row])
            for k, v in scores.metrics.items()
            if v[row] and not np.isnan(v[row])
          },
          "length": int(length),
          "truncated": bool(cut),
        }
        for row, (problem, completion, reward, valid, length, cut) in (
          enumerate(
            zip(
              problems,
              completions,
              scores.rewards,
              scores.valid,
              lengths,
              truncated,
              strict=True,
            )
          )
        )
      )
    )

  def close(self) -> None:
    """Closes the file."""
    self._lines.close()


def render(
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  scores: combine.Scores,
  *,
  rows: Sequence[int] = (0,),
  max_characters: int = 2000,
) -> str:
  """Some completions as text to print, each under its question and rewards."""
  blocks = []
  for row in rows:
    terms = ", ".join(f"{k} {v[row]:g}" for k, v in scores.terms.items())
    reward = f"{scores.rewards[row]:g}" if scores.valid[row] else "none"
    text = completions[row]
    if len(text) > max_characters:
      half = max_characters // 2
      text = f"{text[:half]}\n[...]\n{text[-half:]}"
    text = "".join(c if _printable(c) else "\ufffd" for c in text)
    problem = problems[row]
    answer = problem.answer.rpartition("####")[2].strip()
    blocks.append(
      f"question: {problem.question}\nreference: {answer}\n"
      f"reward: {reward} ({terms})\n{textwrap.indent(text, '  | ')}"
    )
  return "\n\n".join(blocks)


def _printable(character: str) -> bool:
  """False for characters that would steer a terminal."""
  return character.isprintable() or character == "\n"


class Column(NamedTuple):
  """One column of the progress table: its title, metric and number format."""

  title: str
  metric: str
  format: str


RL_COLUMNS = (
  Column("reward", "reward", "8.3f"),
  Column("accuracy", "rewards/accuracy/mean", "8.3f"),
  Column("length", "completions/mean_length", "8.1f"),
  Column("tokens/s", "time/tokens_per_second", "8,.0f"),
)
TEXT_COLUMNS = (
  Column("loss", "loss", "8.4f"),
  Column("lr", "learning_rate", "8.1e"),
  Column("tokens/s", "time/tokens_per_second", "8,.0f"),
)


def _print(line: str) -> None:
  if jax.process_index() == 0:
    print(line, flush=True)


class Progress:
  """Prints one line for a step, in columns that stay put as it scrolls by.

      step   reward accuracy   length tokens/s   left
     12/40    0.871    0.734     48.1   13,204  01:06

  Args:
    total_steps: where the run ends.
    columns: what to show of the metrics, "-" where one is missing.
    header_every: lines between two headers.
    out: takes a line; prints and flushes by default.
    clock: seconds that only grow. The time left follows from the last 20 lines.
  """

  def __init__(
    self,
    total_steps: int,
    columns: Sequence[Column] = RL_COLUMNS,
    *,
    header_every: int = 20,
    out: Callable[[str], Any] = _print,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._total_steps = total_steps
    self._columns = columns
    self._header_every = header_every
    self._out = out
    self._clock = clock
    self._lines = 0
    self._recent = collections.deque(maxlen=20)
    self._step_width = max(6, 2 * len(str(total_steps)) + 1)

  def show(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Prints the line of one step (or of every n-th)."""
    self._recent.append((step, self._clock()))
    if self._lines % self._header_every == 0:
      titles = [f"{c.title:>{_width(c)}}" for c in self._columns]
      self._out(" ".join([f"{'step':>{self._step_width}}", *titles, "   left"]))
    self._lines += 1
    cells = [f"{f'{step}/{self._total_steps}':>{self._step_width}}"]
    for column in self._columns:
      if column.metric in metrics:
        cells.append(format(_scalar(metrics[column.metric]), column.format))
      else:
        cells.append(f"{'-':>{_width(column)}}")
    self._out(" ".join([*cells, f"{self._left(step):>7}"]))

  def _left(self, step: int) -> str:
    (first_step, first), (_, last) = self._recent[0], self._recent[-1]
    if step == first_step:
      # The first step compiles; its time says nothing about the others.
      return "-"
    seconds = (last - first) / (step - first_step)
    return duration(seconds * (self._total_steps - step))


def _width(column: Column) -> int:
  return max(len(column.title), len(format(0.0, column.format)))


def duration(seconds: float | int) -> str:
  """Seconds as `mm:ss`, or `h:mm:ss` from an hour on."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}:{minutes:02}:{seconds:02}"
  return f"{minutes:02}:{seconds:02}"


class Timer:
  """Adds up the seconds that each phase of a step takes.

  `with timer.phase("sample"): ...` must contain the wait for the result
  (`jax.block_until_ready` or a copy to the host), because JAX returns before
  the device has finished.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    self._clock = clock
    self._seconds = collections.defaultdict(float)
    self._start = clock()

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Adds the time that the block takes to `time/<name>`."""
    start = self._clock()
    try:
      yield
    finally:
      self._seconds[f"time/{name}"] += self._clock() - start

  def step(self) -> dict[str, float]:
    """Seconds per phase, and `time/step`, since the last call; starts anew."""
    now = self._clock()
    seconds = dict(self._seconds) | {"time/step": now - self._start}
    self._seconds.clear()
    self._start = now
    return seconds


def memory() -> dict[str, float]:
  """Peak memory in GiB: this process, and its fullest device if known."""
  unit = 1 if sys.platform == "darwin" else 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  metrics = {"memory/host_peak_gib": peak / 2**30}
  stats = [device.memory_stats() for device in jax.local_devices()]
  peaks = [s["peak_bytes_in_use"] for s in stats if s]
  if peaks:
    metrics["memory/device_peak_gib"] = max(peaks) / 2**30
  return metrics


def reward_metrics(
  scores: combine.Scores, group_size: int, *, tolerance: float = 1e-6
) -> dict[str, float]:
  """What B = P * G completions earned, row b in group b // G.

  `reward`: mean over the valid rows. `reward_std`: standard deviation in a
  group (ddof 1), mean over the groups of two valid rows or more.
  `frac_reward_zero_std`: share of all P groups that teach nothing, because the
  deviation is at most `tolerance` or fewer than two rows are valid.
  `rewards/<name>/mean|std`: each term before its weight, over the rows that it
  scored. `rewards/<name>/<metric>`: the mean of what a term logs besides, such
  as the share of each outcome of grading. `frac_reward_invalid`: share of rows
  without a reward.

  Where nothing is left to average, the mean is NaN.
  """
  rewards = np.where(scores.valid, scores.rewards.astype(np.float64), np.nan)
  groups = rewards.reshape(-1, group_size)
  stds = np.array([std(group) for group in groups])
  metrics = {
    "reward": mean(rewards),
    "reward_std": mean(stds),
    "frac_reward_zero_std": float(np.mean(~(stds > tolerance))),
    "frac_reward_invalid": float(np.mean(~scores.valid)),
  }
  for name, values in scores.terms.items():
    metrics[f"rewards/{name}/mean"] = mean(values)
    metrics[f"rewards/{name}/std"] = std(values)
  for name, values in scores.metrics.items():
    metrics[f"rewards/{name}"] = mean(values)
  return metrics


def mean(values: np.ndarray) -> float:
  """The mean over values that are not NaN; NaN where there are none."""
  values = values[~np.isnan(values)].astype(np.float64)
  return float(values.mean()) if values.size else math.nan


def std(values: np.ndarray) -> float:
  """The standard deviation (ddof 1) over values that are not NaN.

  NaN where there are fewer than two.
  """
  values = values[~np.isnan(values)].astype(np.float64)
  return float(values.std(ddof=1)) if values.size > 1 else math.nan


def mean_reflection_words(completions: Sequence[str]) -> float:
  """Words of reflection in a completion, the mean over all of them."""
  words = [reward_format.reflection_words(text) for text in completions]
  return float(np.mean(words))


def completion_metrics(
  completions: Sequence[str],
  completion_mask: Bool[types.Array, "P G N"],
  truncated: Bool[types.Array, "P G"],
) -> dict[str, float]:
  """Lengths in tokens, stop token included, and words of reflection.

  `completions/{mean,min,max}_length` and `completions/reflection_words` (the
  mean number in a completion) are over all P * G completions;
  `completions/clipped_ratio` is the share of those that ran out of room.
  """
  lengths = np.asarray(completion_mask).sum(axis=-1)
  return {
    "completions/mean_length": float(lengths.mean()),
    "completions/min_length": float(lengths.min()),
    "completions/max_length": float(lengths.max()),
    "completions/clipped_ratio": float(np.asarray(truncated).mean()),
    "completions/reflection_words": mean_reflection_words(completions),
  }


def sampler_gap(
  old_logprobs: Float[types.Array, "P G N"],
  sampler_logprobs: Float[types.Array, "P G N"],
  completion_mask: Bool[types.Array, "P G N"],
) -> dict[str, float]:
  """How far the trainer's log-probabilities are from the sampler's.

  With d = log pi_old - log mu per token of a completion, mu the sampler:

    sampling/sampling_logp_difference/{mean,max}: |d| in nats;
    sampling/importance_sampling_ratio/{min,mean,max}: w = exp(d);
    sampling/kl: mean of exp(d) - 1 - d, the k3 estimate of KL(mu || pi_old),
      http://joschu.net/blog/kl-approx.html;
    sampling/effective_sample_size: (sum w)^2 / (n sum w^2), from 1/n to 1.

  All are over the n tokens of all completions; d is held within +-20 before
  the exp. At least one token must be inside the mask.
  """
  inside = np.asarray(completion_mask)
  old = np.asarray(old_logprobs)[inside].astype(np.float64)
  gap = old - np.asarray(sampler_logprobs)[inside].astype(np.float64)
  clamped = np.clip(gap, -20.0, 20.0)
  ratio = np.exp(clamped)
  return {
    "sampling/sampling_logp_difference/mean": float(np.abs(gap).mean()),
    "sampling/sampling_logp_difference/max": float(np.abs(gap).max()),
    "sampling/importance_sampling_ratio/min": float(ratio.min()),
    "sampling/importance_sampling_ratio/mean": float(ratio.mean()),
    "sampling/importance_sampling_ratio/max": float(ratio.max()),
    "sampling/kl": float((np.expm1(clamped) - clamped).mean()),
    "sampling/effective_sample_size": float(
      ratio.sum() ** 2 / (ratio.size * (ratio**2).sum())
    ),
  }


def mean_over_updates(
  updates: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
  """The mean of each metric over the optimizer updates of one step."""
  return {
    name: float(np.mean([update[name] for update in updates]))
    for name in updates[0]
  }


def require_finite(step: int, metrics: Mapping[str, Any]) -> None:
  """Raises FloatingPointError where the loss or the gradient has diverged."""
  for name in ("loss", "grad_norm"):
    if not math.isfinite(metrics[name]):
      raise FloatingPointError(
        f"{name} is {metrics[name]} at step {step}: lower the learning rate, or"
        " go on from an earlier checkpoint with another seed."
      )
