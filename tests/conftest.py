"""Eight CPU devices for every test, and the folder of real data."""

import mmap
import os
import pathlib

import jax
import jaxlib
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")

_BESIDE = pathlib.Path(__file__).parents[2] / "shared" / "data"


def _patient_collectives() -> None:
  """Lets eight devices wait for each other on a machine of two busy cores.

  XLA's CPU backend ends the process when a collective stalls for 40 seconds. It
  also ends the process for a flag that it does not know, hence the look.
  """
  flag = "xla_cpu_collective_call_terminate_timeout_seconds"
  given = os.environ.get("XLA_FLAGS", "")
  for library in pathlib.Path(jaxlib.__file__).parent.glob("libjax_common*"):
    with (
      library.open("rb") as file,
      mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
      if flag not in given and content.find(flag.encode()) >= 0:
        os.environ["XLA_FLAGS"] = f"{given} --{flag}=1200".strip()


_patient_collectives()


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
  """The folder of real problems; the test is skipped where it is missing."""
  folder = pathlib.Path(os.environ.get("GRPO_JAX_DATA", _BESIDE))
  if not folder.is_dir():
    pytest.skip(f"No data at {folder}; set GRPO_JAX_DATA to the folder.")
  return folder
