"""The command line, whose mistakes end the program in one sentence."""

import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from grpo_jax import errors


def parse_flags(
  argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS
) -> list[str]:
  """Parses the command line; a mistake in it ends the program in one sentence.

  For `absl.app.run(main, flags_parser=configs.parse_flags)`. By itself
  ml_collections 1.1 answers a misspelt `--config.loss.kl_coef` with three
  chained tracebacks, and a missing file not before the config is read.

  Args:
    argv: the command line, program name first.
    flag_values: flags among which `--config` names a config file, without a
      default.

  Returns:
    What remains of the command line, program name first.
  """
  try:
    _check_overrides(argv, _load(argv))
    return flag_values(argv)
  except (errors.ConfigError, flags.Error) as error:
    sys.exit(_sentence(error))


def _load(argv: Sequence[str]) -> Any:
  """The config that `--config` names, before fields are overridden."""
  probe = flags.FlagValues()
  flag = config_flags.DEFINE_config_file(
    "config", flag_values=probe, lock_config=False, sys_argv=[]
  )
  probe(argv, known_only=True)
  if not probe["config"].present:
    return None
  path = pathlib.Path(probe["config"].config_filename.partition(":")[0])
  if not path.is_file():
    others = [str(other) for other in path.parent.glob("*.py")]
    raise errors.ConfigError(
      f"There is no config file {str(path)!r};"
      f" {errors.nearest(str(path), others)}"
    )
  return flag.value


def _check_overrides(argv: Sequence[str], config: Any) -> None:
  for argument in argv:
    override = re.match(r"--?config\.([^=]+)", argument)
    section, path = config, "config"
    for field in override.group(1).split(".") if override else ():
      # An index into a list, such as `betas[0]`, is left to ml_collections.
      name = field.partition("[")[0]
      if isinstance(section, errors.Section):
        errors.check_names(path, [name], section)
        section, path = section[name], f"{path}.{name}"


def _sentence(error: BaseException) -> str:
  """The mistake in a config that led to the error, or the error's own text."""
  origin = error
  while origin is not None:
    # ml_collections raises the error anew with a traceback for its text.
    if isinstance(origin, errors.ConfigError) and "Traceback" not in str(
      origin
    ):
      return str(origin)
    origin = origin.__cause__ or origin.__context__
  return str(error)
