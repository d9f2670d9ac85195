"""A run's directory: which run it holds, and what its parameters mean.

A run's directory holds `config.json` (which run this is), `model.json` and
`tokenizer/` (what its parameters mean), `checkpoints/` and what the run prints
and measures. Where it trains adapters, `lora.json` tells of them and of the
frozen model, which stays where it is.
"""

import dataclasses
import json
import os
import pathlib
import uuid
from typing import Any

from grpo_jax.models import lora
from grpo_jax.models.config import ModelConfig

CHECKPOINTS = "checkpoints"
MODEL, LORA = "model.json", "lora.json"


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
  write_text(pathlib.Path(workdir) / MODEL, text + "\n")


def save_lora(
  workdir: str | os.PathLike,
  settings: lora.LoraConfig,
  base: str | os.PathLike,
) -> None:
  """Writes `lora.json`: which adapters a run's parameters are, and of what.

  Args:
    workdir: of the run.
    settings: of the adapters.
    base: directory of the frozen model. One within the run's own directory
      moves with it.
  """
  workdir, base = pathlib.Path(workdir).resolve(), pathlib.Path(base).resolve()
  if base.is_relative_to(workdir):
    base = base.relative_to(workdir)
  content = {"base": str(base)} | dataclasses.asdict(settings)
  write_text(workdir / LORA, json.dumps(content, indent=2) + "\n")


def has_adapters(source: str | os.PathLike) -> bool:
  """Returns whether a source is a run that trained adapters."""
  return (pathlib.Path(source) / LORA).exists()


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file that is there whole or not at all."""
  # A name of its own, for processes of several hosts may share the folder; and
  # unlike a file of `tempfile` it can be read by whoever can read the folder.
  partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
  partial.write_text(text, encoding="utf-8")
  os.replace(partial, path)


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
