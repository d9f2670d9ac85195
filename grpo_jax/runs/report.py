"""A run's directory in, a picture and a table out."""

import itertools
import json
import math
import os
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from grpo_jax import processes
from grpo_jax.runs import log as run_log

_TRAINING, _INK, _GRID = "#3b6fb6", "#333333", "#e6e6e6"
_HELD_OUT = ("#d9642c", "#3f8f5b", "#8a5aa8", "#b08a1e")


class Panel(NamedTuple):
  """One small picture: a metric of the training steps, one of the evaluations.

  Attributes:
    title: what is shown, with its unit.
    metric: a name in `metrics.jsonl`.
    evaluation: a name in `evaluations.jsonl`, or None.
    percent: shown as a percentage, from 0 to 100.
  """

  title: str
  metric: str
  evaluation: str | None = None
  percent: bool = False


PANELS = (
  Panel("Reward", "reward"),
  Panel("Right answers (pass@1)", "rewards/accuracy/mean", "pass@1", True),
  Panel("Completion length, tokens", "completions/mean_length", "mean_length"),
  Panel(
    "Reflection words per completion",
    "completions/reflection_words",
    "reflection_words",
  ),
  Panel("KL to the reference, nats per token", "kl"),
  Panel("Entropy, nats per token", "entropy"),
)


def write_report(
  workdir: str | os.PathLike,
  *,
  title: str = "",
  panels: Sequence[Panel] = PANELS,
) -> pathlib.Path:
  """Draws a run against its steps, as `report.png` in its directory.

  Of several processes the first one does.

  Each step's value is a faint line under its running mean; evaluations are
  points. A panel that the run has no numbers for is left out. What the run was
  warned of (`warnings.jsonl`) stands above them.

  Returns:
    The path of the picture.

  Raises:
    ValueError: the directory holds no metrics.
  """
  workdir = pathlib.Path(workdir)
  path = workdir / "report.png"
  if not processes.is_first():
    return path
  steps = run_log.read(workdir / "metrics.jsonl")
  evaluations = run_log.read(workdir / "evaluations.jsonl")
  shown = [
    panel
    for panel in panels
    if _series(steps, panel.metric)[0].size
    or _series(evaluations, panel.evaluation)[0].size
  ]
  if not shown:
    raise ValueError(f"There are no metrics of a run in {workdir}.")
  columns = min(3, len(shown))
  rows = -(-len(shown) // columns)
  warnings = run_log.read(workdir / run_log.WARNINGS)
  lines = [title] * bool(title) + [_warning(each, columns) for each in warnings]
  height = 2.7 * rows + 0.13 * "\n".join(lines).count("\n")
  figure = Figure(figsize=(3.9 * columns, height), layout="constrained")
  FigureCanvasAgg(figure)
  figure.get_layout_engine().set(hspace=0.06, wspace=0.04)
  grid = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
  for axes, panel in zip(grid[: len(shown)], shown, strict=True):
    _draw(axes, panel, steps, evaluations)
  for axes in grid[len(shown) :]:
    axes.set_visible(False)
  # The lowest panel of each column says what its numbers are.
  for axes in grid[max(0, len(shown) - columns) : len(shown)]:
    axes.set_xlabel("step", color=_INK, fontsize=9)
    axes.tick_params(labelbottom=True)
  if lines:
    figure.suptitle(
      "\n".join(lines),
      x=0.01,
      ha="left",
      color=_HELD_OUT[0] if warnings else _INK,
      fontsize=8 if warnings else 12,
    )
  figure.savefig(path, dpi=150, facecolor="white")
  return path


def _draw(
  axes: Axes,
  panel: Panel,
  steps: Sequence[Mapping[str, Any]],
  evaluations: Sequence[Mapping[str, Any]],
) -> None:
  x, y = _series(steps, panel.metric)
  axes.plot(x, y, color=_TRAINING, alpha=0.3, linewidth=1)
  axes.plot(x, _running_mean(y), color=_TRAINING, linewidth=2, label="training")
  names = list(dict.fromkeys(r["name"] for r in evaluations))
  for name, color in zip(names, itertools.cycle(_HELD_OUT), strict=False):
    x, y = _series(
      [r for r in evaluations if r["name"] == name], panel.evaluation
    )
    if x.size:
      axes.plot(
        x,
        y,
        color=color,
        linewidth=1.2,
        marker="o",
        markersize=5,
        label=name if len(names) > 1 else "held out",
      )
      axes.legend(frameon=False, fontsize=8, labelcolor=_INK)
  axes.set_title(panel.title, loc="left", color=_INK, fontsize=10)
  axes.xaxis.set_major_locator(
    matplotlib.ticker.MaxNLocator(5, integer=True, min_n_ticks=1)
  )
  if panel.percent:
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
  axes.grid(color=_GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color("#b0b0b0")
  axes.tick_params(colors=_INK, labelsize=8, length=0)


def _warning(record: Mapping[str, Any], columns: int) -> str:
  """A warning as lines that the picture has room for."""
  steps = f"Steps {record['step']} to {record['until']}: "
  text = f"Warning: {steps if record['until'] else ''}{record['text']}"
  # Mathtext would read dollars.
  return textwrap.fill(text.replace("$", "\\$"), 58 * columns)


def _series(
  records: Sequence[Mapping[str, Any]], name: str | None
) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values of one metric, where it was written and finite."""
  pairs = [
    (r["step"], r[name]) for r in records if name and r.get(name) is not None
  ]
  x, y = zip(*pairs, strict=True) if pairs else ((), ())
  return np.array(x), np.array(y, np.float64)


def _running_mean(values: np.ndarray) -> np.ndarray:
  """The mean over a window of a tenth of the run, narrower at both ends."""
  last = len(values) - 1
  means = []
  for i in range(len(values)):
    half = min(len(values) // 20, i, last - i)
    means.append(values[i - half : i + half + 1].mean())
  return np.array(means)


_ROWS = (
  ("pass@1", "pass@1", "{:.1%}"),
  ("well formed", "format", "{:.1%}"),
  ("length, tokens", "mean_length", "{:.1f}"),
  ("reflection words", "reflection_words", "{:.2f}"),
  ("truncated", "truncated", "{:.1%}"),
)


def table(base: Mapping[str, Any], trained: Mapping[str, Any]) -> str:
  """The results of two evaluations beside each other, as text.

  Args:
    base: as in `evaluations.jsonl`: shares `pass@1`, `format`, `truncated`,
      and means `mean_length` and `reflection_words` of a completion.
    trained: the same; what only one of them has is shown as "-".
  """
  lines = [f"{'':<18}{'base':>10}{'trained':>10}"]
  for title, key, layout in _ROWS:
    cells = (_cell(results.get(key), layout) for results in (base, trained))
    lines.append(f"{title:<18}" + "".join(f"{cell:>10}" for cell in cells))
  return "\n".join(lines)


def compare(workdir: str | os.PathLike) -> str:
  """The table of a run's first evaluation against its last, one per name."""
  path = pathlib.Path(workdir) / "evaluations.jsonl"
  runs = {}
  for results in run_log.read(path):
    runs.setdefault(results["name"], []).append(results)
  return "\n\n".join(
    f"{name}, steps {results[0]['step']} and {results[-1]['step']}\n"
    + table(results[0], results[-1])
    for name, results in runs.items()
  )


def results_table(
  workdir: str | os.PathLike,
  *,
  rows: Sequence[tuple[str, str]],
  columns: Sequence[tuple[str, str, str]],
) -> str:
  """What several evaluations found, a row for each, as text.

  Args:
    workdir: directory that holds those of the evaluations.
    rows: title of each row, and the directory with its `results.json`.
    columns: title of each column, the path of its value in the results, with
      slashes, and its format; "-" stands where results have no such value.

  Raises:
    FileNotFoundError: a directory holds no results.
  """
  titles = [title for title, _, _ in columns]
  first = max(len(title) for title, _ in rows)
  widths = [max(len(title), 8) for title in titles]
  lines = [
    " " * first
    + "".join(
      f"  {title:>{width}}" for title, width in zip(titles, widths, strict=True)
    )
  ]
  for title, name in rows:
    path = pathlib.Path(workdir) / name / "results.json"
    if not path.is_file():
      raise FileNotFoundError(
        f"{path} does not exist: the table's row {title!r} must name an"
        " evaluation."
      )
    results = json.loads(path.read_text(encoding="utf-8"))
    cells = [
      f"  {_cell(_value(results, where), layout):>{width}}"
      for (_, where, layout), width in zip(columns, widths, strict=True)
    ]
    lines.append(f"{title:<{first}}" + "".join(cells))
  return "\n".join(lines)


def _value(results: Mapping[str, Any], path: str) -> float | int | None:
  """What stands at a path of keys, themselves perhaps with slashes in them."""
  if path in results:
    value = results[path]
    return None if isinstance(value, Mapping) else value
  for key, inner in results.items():
    if path.startswith(f"{key}/") and isinstance(inner, Mapping):
      value = _value(inner, path[len(key) + 1 :])
      if value is not None:
        return value
  return None


def _cell(value: float | int | None, layout: str) -> str:
  if value is None or not math.isfinite(value):
    return "-"
  return layout.format(value)
