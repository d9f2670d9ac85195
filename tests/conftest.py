"""Eight CPU devices for every test, and the folder of real data if it is here."""

import os
import pathlib

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")

_BESIDE = pathlib.Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
  """The folder of real problems; the test is skipped where it is missing."""
  folder = pathlib.Path(os.environ.get("GRPO_JAX_DATA", _BESIDE))
  if not folder.is_dir():
    pytest.skip(f"No data at {folder}; set GRPO_JAX_DATA to the folder.")
  return folder
