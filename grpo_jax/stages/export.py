"""A run's newest checkpoint as a directory of Hugging Face."""

import pathlib

from ml_collections import ConfigDict

from grpo_jax import configs, schema
from grpo_jax.data import prompts
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models import config as config_lib
from grpo_jax.models import hf, lora
from grpo_jax.runs import progress
from grpo_jax.runs import source as source_lib
from grpo_jax.runs.signals import Outcome
from grpo_jax.stages import describe as describe_lib
from grpo_jax.stages import prompting, setup


def run(config: ConfigDict, workdir: pathlib.Path) -> Outcome:
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
  tok = tokenizer_of(config.source)
  with setup.open_run(config, workdir) as run:
    if config.adapters_only:
      found = source_lib.load_adapters(config.source, run.mesh)
      cfg, step, what = found.cfg, found.step, "Adapters"
      base = str(found.base)
      lora.save(workdir, cfg, found.settings, found.adapters, tok, base=base)
    else:
      cfg, params, step = source_lib.load_policy(config.source, run.mesh)
      what = "The policy"
      hf.save(workdir, cfg, params, tok, **config.save)
  progress.say(f"{what} after step {step} of {config.source}: in {workdir}.")
  return Outcome.FINISHED


def tokenizer_of(source: str) -> tokenizer.Tokenizer:
  """Returns the tokenizer of a source, with all that ends its completions.

  A run that learned or asked under a chat template ends with what that writes
  at the end of a turn; runs of earlier versions did not save it.
  """
  directory = source_lib.tokenizer_directory(source)
  template = prompting.chat_of_run(source)
  if template is None:
    return tokenizer.load(directory)
  tok = prompts.fitted(tokenizer.load(directory), template)
  prompting.say_stops(tok, template)
  return tok


SCHEMA = schema.Fields(configs.export, {"save": schema.Options(hf.save)})


def check(config: ConfigDict) -> None:
  """Raises an error of one sentence if the config cannot be run.

  Raises:
    ValueError: a field is unknown or does not fit.
    FileNotFoundError: `config.source` holds no model.
  """
  schema.check(SCHEMA, config)
  source_lib.require_source(config.source)
  if config.save.dtype not in (None, *config_lib.DTYPES):
    raise ValueError(
      f"config.save.dtype={config.save.dtype!r} must be one of"
      f" {config_lib.DTYPES}."
    )


def describe(config: ConfigDict) -> list[str]:
  """Returns lines on what would be written."""
  cfg = source_lib.read_model(
    config.source, dtype=config.save.dtype or "float32"
  )
  return describe_lib.frozen(cfg, "the policy")
