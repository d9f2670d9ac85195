"""Where a run begins: the newest checkpoint of another, or of Hugging Face."""

import dataclasses
import json
import os
import pathlib
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
from grpo_jax.runs import directory


def is_source(path: str | os.PathLike) -> bool:
  """Returns whether there is a model: of a run, or one of Hugging Face."""
  return (
    pathlib.Path(path) / directory.CHECKPOINTS
  ).is_dir() or hf.is_checkpoint(path)


def require_source(path: str | os.PathLike, field: str = "source") -> None:
  """Raises an error that says what to do if there is no model.

  Args:
    path: what the config names.
    field: its field.

  Raises:
    FileNotFoundError: there is none; what to run first.
    ValueError: its `config.json` is no model's, or it is an address of an
      object store.
  """
  errors.check_local(f"config.{field}", path)
  if not is_source(path):
    fault = hf.fault(path)
    if fault:
      raise ValueError(
        f"No model in {str(path)!r}: {fault}; give --config.{field}=DIRECTORY,"
        " of a run or of Hugging Face."
      )
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
  if directory.has_adapters(source):
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
  if not directory.has_adapters(source):
    raise ValueError(f"{source} is no run that trained adapters.")
  cfg, step = _newest(source)
  workdir = pathlib.Path(source).resolve()
  content = json.loads((workdir / directory.LORA).read_text())
  base = workdir / content.pop("base")
  settings = lora.LoraConfig(**content)
  specs = lora.adapter_specs(cfg, settings)
  adapters = _restore_params(source, step, specs, mesh)
  return Adapters(cfg, settings, adapters, base, step)


def _newest(source: str | os.PathLike) -> tuple[ModelConfig, int]:
  """Returns the model and the newest step of a run."""
  workdir = pathlib.Path(source).absolute()
  path, step = workdir / directory.MODEL, None
  if path.exists() and (workdir / directory.CHECKPOINTS).is_dir():
    with ocp.CheckpointManager(workdir / directory.CHECKPOINTS) as manager:
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
  path = pathlib.Path(source).absolute() / directory.CHECKPOINTS
  with ocp.CheckpointManager(path) as manager:
    return manager.restore(step, args=args).params
