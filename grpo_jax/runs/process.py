"""The process of a run: the memory it keeps, and the memory it took.

XLA on a CPU allocates a step's temporaries anew at every call. By default
glibc's malloc takes such blocks from the system each time and returns them, and
the kernel clears every page again: a quarter of the CPU time of the embedded
default went there. Kept in the process instead, they are there for the next
step.
"""

import ctypes
import pathlib
import resource
import sys

import jax

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
  """Has malloc keep what is freed; returns whether the C library could.

  To be called before other threads allocate. Only glibc has these settings;
  elsewhere nothing changes.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return False
  return all(
    mallopt(option, value)
    for option, value in (
      (_M_ARENA_MAX, 1),
      (_M_MMAP_MAX, 0),
      (_M_TRIM_THRESHOLD, 2**31 - 1),
    )
  )


def memory() -> dict[str, float]:
  """Peak memory in GiB: this process, and its fullest device if known."""
  unit = 1 if sys.platform == "darwin" else 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  metrics = {"memory/host_peak_gib": peak / 2**30}
  stats = [device.memory_stats() for device in jax.local_devices()]
  peaks = [s["peak_bytes_in_use"] for s in stats if s]
  if peaks:
    metrics["memory/device_peak_gib"] = max(peaks) / 2**30
  return metrics


def keep_compiled_programs() -> None:
  """Lets later starts, and later stages of a chain, find what was compiled.

  JAX_COMPILATION_CACHE_DIR names another folder.
  """
  if not jax.config.jax_compilation_cache_dir:
    folder = pathlib.Path("~/.cache/grpo_jax/compiled").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(folder))
