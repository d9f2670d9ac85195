"""Experiments that are made of other experiments."""

import importlib.util
import os
import pathlib

from ml_collections import config_dict


def experiment(
  beside: str | os.PathLike, name: str, arg: str | None = None
) -> config_dict.ConfigDict:
  """The config of another experiment.

  Args:
    beside: a file in the same folder: `__file__` of the one that asks.
    name: of the other, without its ending.
    arg: its argument.
  """
  path = pathlib.Path(beside).parent / f"{name}.py"
  spec = importlib.util.spec_from_file_location(f"experiments.{name}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)
