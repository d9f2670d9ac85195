"""What `--help` answers."""

import ast
import pathlib

_TEXT = """\
DeepSeek-R1's reinforcement learning recipe in pure JAX.

  python -m grpo_jax.main --config=experiments/NAME.py[:ARGUMENTS]

Experiments{found}
Flags

  --config=FILE[:ARGUMENTS]   the experiment. Its arguments are words and
                              key=value pairs between commas, such as
                              r1_zero.py:smoke,seed=3; --config=FILE --help
                              says which it has.
  --config.FIELD=VALUE        sets any field of its config, such as
                              --config.sampling.group_size=16 or
                              --config.objective=cispo, which brings its own
                              options. A section that is off is switched on by
                              setting a field of it or by =on, and off by =None.
  --workdir=DIR               all that the run writes; by default runs/NAME or
                              runs/NAME-ARGUMENTS. The same command goes on
                              where a run was stopped.
  --fork=RUN[@STEP]           begins as another run was after a step, by default
                              its newest; fields may differ from there on.
  --fields                    lists the fields of the experiment's config: what
                              they mean, their values and their defaults, also
                              of those that it does not set. Runs nothing.
  --dry_run                   checks the config, prints all of it and what it
                              takes. Runs and writes nothing.
"""


def help_text(
  experiment: str | None = None,
  folder: str = "experiments",
) -> str:
  """What the command line can do; of an experiment, what its file says.

  Args:
    experiment: `experiments/NAME.py[:ARGUMENTS]`, or None.
    folder: of the experiments to be listed.
  """
  if experiment:
    path = pathlib.Path(experiment.partition(":")[0])
    if path.is_file():
      return docstring(path)
  paths = [
    path
    for path in sorted(pathlib.Path(folder).glob("*.py"))
    if "\ndef get_config(" in path.read_text(encoding="utf-8")
  ]
  width = max((len(str(path)) for path in paths), default=0)
  lines = [
    f"  {str(path):{width}}  {docstring(path).partition(chr(10))[0]}"
    for path in paths
  ]
  listed = "\n\n" + "\n".join(lines)
  found = f"{listed if lines else f': none in {folder}/'}\n"
  return _TEXT.format(found=found).rstrip()


def docstring(path: pathlib.Path) -> str:
  """The docstring of a file, which is not run."""
  return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
