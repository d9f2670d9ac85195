"""How the process keeps host memory between steps.

XLA on a CPU allocates a step's temporaries anew at every call. By default
glibc's malloc takes such blocks from the system each time and returns them, and
the kernel clears every page again: a quarter of the CPU time of the embedded
default went there. Kept in the process instead, they are there for the next
step.
"""

import ctypes

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
