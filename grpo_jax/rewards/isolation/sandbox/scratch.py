"""A folder that a hostile program writes to, on the machine's own disk.

The standard library alone: the launcher imports this file as its neighbor.
"""

import os
import stat

_MAX_NAMES = 1024
_MAX_DEPTH = 64
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def size(path: str) -> float:
  """Bytes of all files; infinite if there are too many or too deep ones."""
  total, names = 0, 0
  folders = [(os.open(path, _FOLDER), 0)]
  try:
    while folders:
      fd, depth = folders.pop()
      try:
        found = os.listdir(fd)
        names += len(found)
        if names > _MAX_NAMES or depth > _MAX_DEPTH:
          return float("inf")
        for name in found:
          try:
            about = os.stat(name, dir_fd=fd, follow_symlinks=False)
            total += about.st_blocks * 512
            if stat.S_ISDIR(about.st_mode):
              below = os.open(name, _FOLDER, dir_fd=fd)
              folders.append((below, depth + 1))
              if len(folders) > _MAX_DEPTH:
                return float("inf")
          except OSError:
            pass  # It is gone already.
      finally:
        os.close(fd)
  finally:
    for fd, _ in folders:
      os.close(fd)
  return total


def remove(path: str) -> None:
  """Removes a folder and all in it, however deep; raises nothing.

  A folder in the folder is emptied by moving its folders up, so that no path
  is long and no two folders are open beside the first.
  """
  try:
    top = os.open(path, _FOLDER)
  except OSError:
    return
  try:
    while _empty(top, top):
      for name in os.listdir(top):
        try:
          os.chmod(name, 0o700, dir_fd=top)  # Its owner may have closed it.
          fd = os.open(name, _FOLDER, dir_fd=top)
        except OSError:
          continue
        try:
          _empty(fd, top)
        finally:
          os.close(fd)
        os.rmdir(name, dir_fd=top)
    os.rmdir(path)
  except OSError:
    pass  # Somebody else removes it too.
  finally:
    os.close(top)


def _empty(fd, top) -> bool:
  """Removes files, and moves folders up; whether any folder was there."""
  folders = False
  for name in os.listdir(fd):
    about = os.stat(name, dir_fd=fd, follow_symlinks=False)
    if not stat.S_ISDIR(about.st_mode):
      os.unlink(name, dir_fd=fd)
      continue
    folders = True
    if fd != top:
      os.chmod(name, 0o700, dir_fd=fd)
      # A name that the program cannot have thought of.
      os.rename(name, os.urandom(16).hex(), src_dir_fd=fd, dst_dir_fd=top)
  return folders
