"""The few calls of Linux that Python has no function for.

The standard library alone: the launcher imports this file as its neighbor.
"""

import ctypes
import os

LIBC = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38


def call(function, *arguments, what: str | None = None) -> int:
  """What the function returns; OSError where that is below 0."""
  result = function(*arguments)
  if result < 0:
    error = ctypes.get_errno()
    raise OSError(error, os.strerror(error), what or function.__name__)
  return result


def prctl(option: int, value: int) -> None:
  """See prctl(2); raises OSError."""
  call(LIBC.prctl, option, ctypes.c_ulong(value), 0, 0, 0)


def system_call(number: int, *arguments, what: str) -> int:
  """A call that the C library has no function for; raises OSError."""
  return call(LIBC.syscall, ctypes.c_long(number), *arguments, what=what)


def write(path: str, text: str, dir_fd: int | None = None) -> None:
  """Writes to a file of the kernel; OSError names it."""
  fd = os.open(path, os.O_WRONLY, dir_fd=dir_fd)
  try:
    os.write(fd, text.encode())
  except OSError as error:
    raise OSError(error.errno, error.strerror, path) from None
  finally:
    os.close(fd)
