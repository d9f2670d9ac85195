"""Runs one stage: `python -m grpo_jax.main --config=experiments/r1_zero.py`.

A word after a colon chooses a variant (`experiments/r1_zero.py:smoke`), and any
field can be set (`--config.sampling.group_size=16`). Everything that the run
writes goes to `--workdir`; the same command goes on where it was stopped.
"""

import pathlib
import sys
import traceback

from absl import app, flags, logging

from grpo_jax import configs, errors, schema, stages

# JAX and the stages, which take seconds, are imported when they are needed.

_CONFIG = flags.DEFINE_string(
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
_FIELDS = flags.DEFINE_bool(
  "fields", False, "Lists the fields of the config, and runs nothing."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of the first of several processes."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes",
  None,
  "Processes of the run; asked of SLURM, Open MPI, Kubernetes or a TPU's"
  " metadata where it is not given.",
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Number of this process, from 0."
)
_JOIN_TIMEOUT = flags.DEFINE_integer(
  "join_timeout", 1800, "Seconds for all processes to come.", lower_bound=1
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Checks the config, says what it takes, and runs nothing."
)


def parse_flags(argv: list[str]) -> list[str]:
  """Parses the command line, or answers a question for help and ends."""
  asked = [a for a in argv[1:] if a in ("-h", "-help", "--help")]
  if asked or len(argv) == 1:
    experiment = next((a for a in argv if a.startswith("--config=")), None)
    print(configs.help_text(experiment and experiment.partition("=")[2]))
    sys.exit()
  return configs.parse_flags(argv)


def main(argv: list[str]) -> None:
  """Runs the stage that the config names."""
  other = [argument for argument in argv[1:] if argument[:7] != "config."]
  if other:
    sys.exit(f"Unknown argument {other[0]!r}; see --help.")
  if not _CONFIG.value:
    sys.exit("--config=experiments/NAME.py is missing; see --help.")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # Libraries tell much at INFO.
  try:
    _run(argv[1:])
  except (ValueError, OSError) as error:
    sentence = _sentence(error)
    if sentence is None:
      raise
    sys.exit(sentence)


def _run(fields: list[str]) -> None:
  given = _WORKDIR.value or ""
  errors.check_local("--workdir", given)
  config = configs.load(_CONFIG.value)
  name = configs.stage_of(config, fields)
  errors.check_choice("config.stage", name, stages.NAMES)
  from grpo_jax.runs import process

  process.keep_freed_memory()
  process.keep_compiled_programs()
  stage = stages.load(name)
  config = configs.override(config, stage.SCHEMA, fields)
  if _FIELDS.value:
    print(configs.fields.text(stage.SCHEMA, config, stage.SCHEMA.opened(None)))
  elif _DRY_RUN.value:
    from grpo_jax.stages import describe

    lines = describe.describe(stage, config)
    print(configs.fields.resolved(schema.completed(stage.SCHEMA, config)))
    print(*lines, "All checks passed; nothing was run.", sep="\n")
  else:
    from grpo_jax.processes import launch

    workdir = pathlib.Path(given or default_workdir(_CONFIG.value))
    others = launch.Launch(
      _COORDINATOR.value,
      _NUM_PROCESSES.value,
      _PROCESS_ID.value,
      timeout=_JOIN_TIMEOUT.value,
    )
    with launch.joined(others, _sentence):
      if _FORK.value:
        from grpo_jax.stages import claim

        claim.fork(_FORK.value, config, workdir)
      stage.run(config, workdir)


def default_workdir(experiment: str) -> str:
  """Returns runs/NAME, or runs/NAME-ARGUMENT, for experiments/NAME.py."""
  path, _, argument = experiment.partition(":")
  name = pathlib.Path(path).stem
  argument = argument.replace("/", "_")
  return f"runs/{name}-{argument}" if argument else f"runs/{name}"


def _sentence(error: BaseException) -> str | None:
  """What to print of an error; None where its traceback tells more."""
  if not isinstance(error, ValueError | OSError):
    return None
  frames = traceback.extract_tb(error.__traceback__)
  # Where our own code raised it, the sentence says all there is.
  if (
    pathlib.Path(__file__).parent
    not in pathlib.Path(frames[-1].filename).parents
  ):
    return None
  # A mistake in a config needs no name.
  kind = type(error).__name__
  return str(error) if kind == "ConfigError" else f"{kind}: {error}"


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
