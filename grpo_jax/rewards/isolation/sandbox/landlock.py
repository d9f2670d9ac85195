"""Files for programs that have no namespace of mounts, landlock(7).

The standard library alone: the launcher imports this file as its neighbor.
"""

import ctypes
import os
import stat
from collections.abc import Sequence

import kernel

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # The same on every architecture.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 0x1, 0x2, 0x4, 0x8
# How many rights each version of the kernel's interface knows.
_RIGHTS = (0, 13, 14, 15, 15, 16)
_BENEATH = 1


def supported() -> bool:
  """Whether the kernel has it."""
  return _version() >= 1


def restrict(visible: Sequence[str], devices: Sequence[str], scratch: str):
  """Leaves this process no files but these, for good.

  Args:
    visible: read and executed.
    devices: read and written.
    scratch: a folder for everything.
  """
  rights = (1 << _RIGHTS[min(_version(), len(_RIGHTS) - 1)]) - 1
  handled = ctypes.c_uint64(rights)
  ruleset = kernel.system_call(
    _CREATE,
    ctypes.byref(handled),
    ctypes.c_size_t(8),
    ctypes.c_uint(0),
    what="making rules for files",
  )
  read = _EXECUTE | _READ_FILE | _READ_DIR
  for path in visible:
    _allow(ruleset, path, read)
  for path in devices:
    _allow(ruleset, path, _READ_FILE | _WRITE_FILE)
  _allow(ruleset, scratch, rights)
  kernel.system_call(
    _RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint(0), what="keeping rules"
  )
  os.close(ruleset)


def _version() -> int:
  """The kernel's interface; below 1 where there is none."""
  return kernel.LIBC.syscall(
    ctypes.c_long(_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint(1)
  )


def _allow(ruleset, path, rights):
  try:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
  except OSError:
    return  # Not every system has each folder.
  if not stat.S_ISDIR(os.fstat(fd).st_mode):
    rights &= _EXECUTE | _WRITE_FILE | _READ_FILE
  rule = rights.to_bytes(8, "little") + fd.to_bytes(4, "little")
  kernel.system_call(
    _ADD,
    ctypes.c_int(ruleset),
    ctypes.c_int(_BENEATH),
    ctypes.c_char_p(rule),
    ctypes.c_uint(0),
    what=f"allowing {path}",
  )
  os.close(fd)
