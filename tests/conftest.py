"""Eight CPU devices for every test, and the folder of real data."""

import mmap
import os
import pathlib

import jax
import jaxlib
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")
# A test's program runs once or twice on a few numbers: what costs is compiling.
jax.config.update("jax_disable_most_optimizations", True)

_XLA_FLAGS = {
  # Together with the line above, a fifth of the time to compile a gradient.
  "xla_cpu_use_fusion_emitters": "false",
  # Eight devices wait for each other on two busy cores; after 40 seconds of it
  # XLA ends the process.
  "xla_cpu_collective_call_terminate_timeout_seconds": "1200",
}
_BESIDE = pathlib.Path(__file__).parents[2] / "shared" / "data"


def _set_xla_flags() -> None:
  """Sets flags that were not given, if this XLA has them: unknown ones abort.

  A flag's name is a text of its own in the library; what a removed one leaves
  there, its reserved field in a description of all, does not end in a zero.
  Processes that tests start inherit them.
  """
  given = os.environ.get("XLA_FLAGS", "")
  for library in pathlib.Path(jaxlib.__file__).parent.glob("libjax_common*"):
    with (
      library.open("rb") as file,
      mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
      for flag, value in _XLA_FLAGS.items():
        if flag not in given and content.find(b"\0%b\0" % flag.encode()) >= 0:
          given += f" --{flag}={value}"
  os.environ["XLA_FLAGS"] = given.strip()


_set_xla_flags()


_NO_MESH = jax.sharding.get_mesh()


@pytest.fixture(autouse=True)
def no_mesh_of_another_test():
  """A stage that runs in this process sets the mesh for good."""
  jax.set_mesh(_NO_MESH)
  yield
  jax.set_mesh(_NO_MESH)


@pytest.fixture(scope="session")
def _empty_folder(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("elsewhere")
  experiments = pathlib.Path(__file__).parents[1] / "experiments"
  (folder / "experiments").symlink_to(experiments)
  return folder


@pytest.fixture(autouse=True)
def no_runs_of_the_user(_empty_folder, monkeypatch):
  """Defaults such as runs/r1_zero must not find what a user has there."""
  monkeypatch.chdir(_empty_folder)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
  """The folder of real problems; the test is skipped where it is missing."""
  folder = pathlib.Path(os.environ.get("GRPO_JAX_DATA", _BESIDE))
  if not folder.is_dir():
    pytest.skip(f"No data at {folder}; set GRPO_JAX_DATA to the folder.")
  return folder
