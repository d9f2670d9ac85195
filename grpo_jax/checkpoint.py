"""A run's directory: which run it holds, its checkpoints, where to go on.

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
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from grpo_jax import errors
from grpo_jax.models import hf, lora
from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params, Specs
from grpo_jax.train.state import TrainState

CHECKPOINTS = "checkpoints"
_MODEL, _LORA = "model.json", "lora.json"


class Checkpointer:
  """Saves and restores all that a restart needs. Close it at the end.

  Each checkpoint is written in the background and appears at once or not at
  all; the newest `keep` stay.
  """

  def __init__(self, workdir: str | os.PathLike, *, keep: int = 2):
    """Opens, and makes where missing, the directory of checkpoints."""
    self._manager = ocp.CheckpointManager(
      pathlib.Path(workdir).absolute() / CHECKPOINTS,
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
    """
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

  def close(self) -> None:
    """Waits until what was saved is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()


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
  write_text(pathlib.Path(workdir) / _MODEL, text + "\n")


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
  write_text(workdir / _LORA, json.dumps(content, indent=2) + "\n")


def has_adapters(source: str | os.PathLike) -> bool:
  """Returns whether a source is a run that trained adapters."""
  return (pathlib.Path(source) / _LORA).exists()


def is_source(path: str | os.PathLike) -> bool:
  """Returns whether there is a model: of a run, or one of Hugging Face."""
  return (pathlib.Path(path) / CHECKPOINTS).is_dir() or hf.is_checkpoint(path)


def require_source(path: str | os.PathLike, field: str = "source") -> None:
  """Raises FileNotFoundError, with what to run first, if there is no model.

  Args:
    path: what the config names.
    field: its field.
  """
  if not is_source(path):
    raise FileNotFoundError(
      f"No model in {str(path)!r}: run `{errors.made_by(path)}` first, or give"
      f" --config.{field}=DIRECTORY, of a run or of Hugging Face."
    )


def source_step(source: str | os.PathLike) -> int:
  """Returns the step of a run's newest checkpoint; 0 for Hugging Face's.

  Raises:
    FileNotFoundError: the directory holds no finished checkpoint.
  """
  return 0 if hf.is_checkpoint(source) else _newest(source)[1]


def tokenizer_directory(source: str | os.PathLike) -> pathlib.Path:
  """Returns where the tokenizer of a source is."""
  source = pathlib.Path(source)
  return source if hf.is_checkpoint(source) else source / "tokenizer"


def read_model(source: str | os.PathLike, **overrides: Any) -> ModelConfig:
  """Returns the model that `load_policy` would, without its parameters."""
  if hf.is_checkpoint(source):
    cfg = hf.read_config(source)
  else:
    cfg, _ = _newest(source)
  return dataclasses.replace(cfg, **overrides)


def load_policy(
  source: str | os.PathLike,
  mesh: Mesh,
  *,
  specs: Callable[[ModelConfig], Specs] = params_lib.param_specs,
  frozen: bool = False,
  **overrides: Any,
) -> tuple[ModelConfig, Params, int]:
  """Returns model, parameters and step of a run's newest checkpoint.

  A directory of Hugging Face is at step 0. Where a run trained adapters they
  are merged into their base.

  Args:
    source: directory of a run, or one of Hugging Face.
    mesh: to place the parameters on.
    specs: the parameters of such a model, where it is no policy.
    frozen: matrices are of the model's dtype, as is enough for what is never
      updated; by default all is float32.
    **overrides: fields of ModelConfig that change how, not what, is computed:
      dtype, remat, head_chunk.

  Raises:
    FileNotFoundError: the directory holds no finished checkpoint.
    ValueError: as `hf.load`.
  """
  if hf.is_checkpoint(source):
    dtype = overrides.get("dtype", "float32") if frozen else "float32"
    cfg, params = hf.load(source, dtype=dtype, mesh=mesh)
    return dataclasses.replace(cfg, **overrides), params, 0
  if has_adapters(source):
    cfg, settings, adapters, base, step = load_adapters(source, mesh)
    cfg = dataclasses.replace(cfg, **overrides)
    _, params, _ = load_policy(base, mesh)
    params = lora.merge(params, adapters, settings.scale)
    if frozen:
      abstract = params_lib.abstract_params(specs(cfg), mesh, cfg.dtype)
      params = jax.tree.map(lambda x, a: x.astype(a.dtype), params, abstract)
    return cfg, params, step
  cfg, step = _newest(source)
  cfg = dataclasses.replace(cfg, **overrides)
  dtype = cfg.dtype if frozen else "float32"
  return cfg, _restore_params(source, step, specs(cfg), mesh, dtype), step


class Adapters(NamedTuple):
  """The newest checkpoint of a run that trained adapters.

  Attributes:
    cfg: the model.
    settings: of the adapters.
    adapters: their tree.
    base: directory of the frozen model.
    step: of the checkpoint.
  """

  cfg: ModelConfig
  settings: lora.LoraConfig
  adapters: Params
  base: pathlib.Path
  step: int


def load_adapters(source: str | os.PathLike, mesh: Mesh) -> Adapters:
  """Returns the adapters of a run's newest checkpoint.

  Raises:
    FileNotFoundError: the directory holds no finished checkpoint.
    ValueError: the run did not train adapters.
  """
  if not has_adapters(source):
    raise ValueError(f"{source} is no run that trained adapters.")
  cfg, step = _newest(source)
  workdir = pathlib.Path(source).resolve()
  content = json.loads((workdir / _LORA).read_text())
  base = workdir / content.pop("base")
  settings = lora.LoraConfig(**content)
  specs = lora.adapter_specs(cfg, settings)
  adapters = _restore_params(source, step, specs, mesh)
  return Adapters(cfg, settings, adapters, base, step)


def _newest(source: str | os.PathLike) -> tuple[ModelConfig, int]:
  """Returns the model and the newest step of a run."""
  workdir = pathlib.Path(source).absolute()
  path, step = workdir / _MODEL, None
  if path.exists() and (workdir / CHECKPOINTS).is_dir():
    with ocp.CheckpointManager(workdir / CHECKPOINTS) as manager:
      step = manager.latest_step()
  if step is None:
    raise FileNotFoundError(f"No checkpoint of a model in {workdir}.")
  return ModelConfig(**json.loads(path.read_text())), step


def _restore_params(
  source: str | os.PathLike,
  step: int,
  specs: Specs,
  mesh: Mesh,
  dtype: str = "float32",
) -> Params:
  abstract = params_lib.abstract_params(specs, mesh, dtype)
  args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
  directory = pathlib.Path(source).absolute() / CHECKPOINTS
  with ocp.CheckpointManager(directory) as manager:
    return manager.restore(step, args=args).params


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
