"""A run's newest checkpoint as a directory of Hugging Face."""

import pathlib

import jax
from ml_collections import ConfigDict

from grpo_jax import configs, schema, sharding
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models import config as config_lib
from grpo_jax.models import hf, lora
from grpo_jax.runs import progress
from grpo_jax.runs import source as source_lib


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Writes the policy of `config.source` to `workdir`, with its tokenizer.

  Adapters are merged into their base, or written without it where
  `config.adapters_only` says so.

  Raises:
    ValueError: a field of the config is unknown, there is something in
      `workdir`, or no family of Hugging Face has such a model; or there are no
      adapters to write.
    FileNotFoundError: `config.source` holds no model.
  """
  check(config)
  hf.check_target(workdir)
  tok = tokenizer.load(source_lib.tokenizer_directory(config.source))
  mesh = sharding.make_mesh(config.mesh.to_dict())
  jax.set_mesh(mesh)
  if config.adapters_only:
    run = source_lib.load_adapters(config.source, mesh)
    cfg, step, what = run.cfg, run.step, "Adapters"
    lora.save(workdir, cfg, run.settings, run.adapters, base=str(run.base))
  else:
    cfg, params, step = source_lib.load_policy(config.source, mesh)
    what = "The policy"
    hf.save(workdir, cfg, params, tok, **config.save)
  progress.say(f"{what} after step {step} of {config.source}: in {workdir}.")


SCHEMA = schema.Fields(configs.export, {"save": schema.Options(hf.save)})


def check(config: ConfigDict) -> None:
  """Raises ValueError, in one sentence, if the config cannot be run."""
  schema.check(SCHEMA, config)
  if config.save.dtype not in (None, *config_lib.DTYPES):
    raise ValueError(
      f"config.save.dtype={config.save.dtype!r} must be one of"
      f" {config_lib.DTYPES}."
    )
