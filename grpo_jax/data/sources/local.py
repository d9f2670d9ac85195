"""Folders of benchmarks that are not downloaded."""

import os
import pathlib


def folder(title: str, path: str | None, name: str, files: str) -> pathlib.Path:
  """The folder of a benchmark: the one given, or $GRPO_JAX_DATA/<name>.

  Args:
    title: of the benchmark, for messages.
    path: a folder, or None.
    name: of the folder under $GRPO_JAX_DATA.
    files: what it has to hold, for messages.

  Raises:
    FileNotFoundError: no path is given and the variable is not set.
  """
  if path:
    return pathlib.Path(path)
  if "GRPO_JAX_DATA" not in os.environ:
    raise FileNotFoundError(
      f"{title} is not downloaded; name a folder that holds {files} with the"
      " option path, or set GRPO_JAX_DATA to the folder that holds"
      f" {name}/."
    )
  return pathlib.Path(os.environ["GRPO_JAX_DATA"]) / name
