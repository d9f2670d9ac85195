"""A folder that a hostile program writes to, on the machine's own disk.

The standard library alone: the launcher imports this file as its neighbor.
"""

import os
import stat

_MAX_NAMES = 256  # Some disks take milliseconds to remove a folder.
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

  One folder is open at a time, and no path is longer than a name.
  """
  try:
    fd = os.open(path, _FOLDER)
  except OSError:
    return
  entered: list[str] = []
  try:
    folders = [_empty(fd)]
    while True:
      if folders[-1]:
        entered.append(folders[-1].pop())
        os.chmod(entered[-1], 0o700, dir_fd=fd)  # Its owner may have shut it.
        fd = _exchange(fd, entered[-1])
        folders.append(_empty(fd))
      elif entered:
        folders.pop()
        fd = _exchange(fd, "..")
        os.rmdir(entered.pop(), dir_fd=fd)
      else:
        os.rmdir(path)
        return
  except OSError:
    pass  # Somebody else removes it too.
  finally:
    os.close(fd)


def _empty(fd) -> list[str]:
  """Removes the files of a folder; the names of its folders."""
  folders = []
  for name in os.listdir(fd):
    about = os.stat(name, dir_fd=fd, follow_symlinks=False)
    if stat.S_ISDIR(about.st_mode):
      folders.append(name)
    else:
      os.unlink(name, dir_fd=fd)
  return folders


def _exchange(fd, name) -> int:
  """Opens a folder beside this one and closes this."""
  other = os.open(name, _FOLDER, dir_fd=fd)
  os.close(fd)
  return other
