"""Runs one stage: `python -m grpo_jax.main --config=experiments/r1_zero.py`.

A word after a colon chooses a variant (`experiments/r1_zero.py:smoke`), and any
field can be set (`--config.sampling.group_size=16`). Everything that the run
writes goes to `--workdir`; the same command goes on where it was stopped.
"""

import pathlib
import sys
import traceback

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from grpo_jax import configs, stages
from grpo_jax.runs import process
from grpo_jax.stages import claim

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Experiment, such as experiments/r1_zero.py[:ARGUMENT]."
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Directory of the run; by default runs/ and the experiment's name.",
)
_FORK = flags.DEFINE_string(
  "fork",
  None,
  "RUN@STEP: go on from another run's checkpoint; RUN: its newest.",
)


def main(argv: list[str]) -> None:
  """Runs the stage that the config names."""
  process.keep_freed_memory()
  keep_compiled_programs()
  if len(argv) > 1:
    sys.exit(f"Unknown argument {argv[1]!r}; see --help.")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # Libraries tell much at INFO.
  config = _CONFIG.value
  workdir = pathlib.Path(_WORKDIR.value or default_workdir())
  try:
    if _FORK.value:
      claim.fork(_FORK.value, config, workdir)
    stages.load(config.stage).run(config, workdir)
  except (ValueError, OSError) as error:
    if not _is_for_the_user(error):
      raise
    sys.exit(f"{type(error).__name__}: {error}")


def keep_compiled_programs() -> None:
  """Lets later starts, and later stages of a chain, find what was compiled.

  JAX_COMPILATION_CACHE_DIR names another folder.
  """
  if not jax.config.jax_compilation_cache_dir:
    folder = pathlib.Path("~/.cache/grpo_jax/compiled").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(folder))


def default_workdir() -> str:
  """Returns runs/NAME, or runs/NAME-ARGUMENT, for experiments/NAME.py."""
  path, _, argument = flags.FLAGS["config"].config_filename.partition(":")
  name = pathlib.Path(path).stem
  argument = argument.replace("/", "_")
  return f"runs/{name}-{argument}" if argument else f"runs/{name}"


def _is_for_the_user(error: BaseException) -> bool:
  """Whether our own code raised it: then the sentence says all there is."""
  frames = traceback.extract_tb(error.__traceback__)
  return (
    pathlib.Path(__file__).parent in pathlib.Path(frames[-1].filename).parents
  )


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main, flags_parser=configs.parse_flags)
