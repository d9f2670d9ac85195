"""What a run prints while it goes: a line per step, completions, times.

On several processes the first one prints, the others do not.
"""

import collections
import contextlib
import math
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grpo_jax import processes, types


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


def say(line: str) -> None:
  """Prints a line at once, on the first process alone."""
  if processes.is_first():
    print(line, flush=True)


def warn(texts: Iterable[Any]) -> None:
  """Prints each as a warning."""
  for text in texts:
    say(f"Warning: {text}")


class Progress:
  """Prints one line for a step, in columns that stay put as it scrolls by.

      step   reward accuracy   length tokens/s   left
     12/40    0.871    0.734     48.1   13,204  01:06

  Args:
    total_steps: where the run ends.
    columns: what to show of the metrics, "-" where there is no number.
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
    out: Callable[[str], Any] = say,
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
      value = np.asarray(metrics.get(column.metric, math.nan)).item()
      if math.isfinite(value):
        cells.append(format(value, column.format))
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


def render(
  completions: types.Completions,
  *,
  rows: Sequence[int] = (0,),
  max_characters: int = 2000,
) -> str:
  """Some completions as text to print, each under its question and rewards."""
  rewards, blocks = completions.rewards, []
  for row in rows:
    terms = ", ".join(f"{k} {v[row]:g}" for k, v in rewards.terms.items())
    reward = f"{rewards.total[row]:g}" if rewards.valid[row] else "none"
    problem = completions.problems[row]
    answer = problem.answer.rpartition("####")[2].strip()
    blocks.append(
      f"question: {problem.question}\nreference: {answer}\n"
      f"reward: {reward} ({terms})\n"
      f"{quote(completions.texts[row], max_characters)}"
    )
  return "\n\n".join(blocks)


def quote(text: str, max_characters: int = 2000) -> str:
  """A text to print, marked at the left; the middle of a long one left out."""
  if len(text) > max_characters:
    half = max_characters // 2
    text = f"{text[:half]}\n[...]\n{text[-half:]}"
  text = "".join(c if _printable(c) else "\ufffd" for c in text)
  return textwrap.indent(text, "  | ")


def _printable(character: str) -> bool:
  """False for characters that would steer a terminal."""
  return character.isprintable() or character == "\n"
