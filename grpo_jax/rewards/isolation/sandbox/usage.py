"""What a program and all that it started hold at one time.

No limit of a process bounds what all of them hold together, so they are looked
at, from outside, every few hundredths of a second.

The standard library alone: the launcher imports this file as its neighbor.
"""

import os
import stat
import time

import scratch as scratch_lib

# Seconds from one look to the next; in any case this many times what it took.
_PAUSE, _SHARE = 0.02, 20
# What the kernel keeps for a pipe or a socket, at most.
_BUFFER_BYTES = 212_992
_MEMORY = ("RssAnon:", "RssShmem:", "VmSwap:", "HugetlbPages:")
# The same, with a page that several processes share as their parts of it.
_SHARES = ("Pss_Anon:", "Pss_Shmem:", "SwapPss:", "Private_Hugetlb:")


class Watch:
  """Looks at the descendants of this process.

  Args:
    proc: a descriptor of the folder /proc.
    memory_bytes: what they may hold together; buffers of their descriptors
      count, at the most that the kernel gives.
    scratch: a folder that they write to on the machine's disk.
    scratch_bytes: what it may hold, deleted files that are still open included.
  """

  def __init__(
    self,
    proc: int,
    memory_bytes: int,
    scratch: str | None = None,
    scratch_bytes: int = 0,
  ):
    self._proc, self._memory = proc, memory_bytes
    self._scratch, self._scratch_bytes = scratch, scratch_bytes
    self._device = os.stat(scratch).st_dev if scratch else None
    self.pause = _PAUSE

  def exceeded(self) -> bool:
    """Whether they hold more than they may; sets `pause`, in seconds."""
    start = time.monotonic()
    pids = descendants(self._proc)
    opened = [self._opened(pid) for pid in pids]
    buffers = sum(count for count, _ in opened) * _BUFFER_BYTES
    left = self._memory - buffers
    over = sum(self._bytes(pid, "status", _MEMORY) or 0 for pid in pids) > left
    if over:  # Perhaps of pages that were counted several times.
      over = sum(map(self._share, pids)) > left
    if self._scratch and not over:
      deleted: dict[int, int] = {}
      for _, files in opened:
        deleted |= files
      try:
        kept = scratch_lib.size(self._scratch)
      except OSError:
        kept = 0.0
      over = kept + sum(deleted.values()) > self._scratch_bytes
    self.pause = max(_PAUSE, _SHARE * (time.monotonic() - start))
    return over

  def _share(self, pid):
    share = self._bytes(pid, "smaps_rollup", _SHARES)
    if share is None:  # Not for us to see.
      share = self._bytes(pid, "status", _MEMORY) or 0
    return share

  def _bytes(self, pid, name, fields) -> int | None:
    text = _read(self._proc, f"{pid}/{name}")
    if not text:
      return None
    lines = [line.split() for line in text.decode().splitlines()]
    return sum(int(x[1]) << 10 for x in lines if len(x) > 2 and x[0] in fields)

  def _opened(self, pid) -> tuple[int, dict[int, int]]:
    """How many descriptors, and bytes of deleted files by their numbers."""
    files = {}
    try:
      folder = os.open(f"{pid}/fd", os.O_RDONLY, dir_fd=self._proc)
    except OSError:
      return 0, files  # It has ended, or is not for us to see.
    try:
      names = os.listdir(folder)
      for name in names if self._scratch else ():
        try:
          about = os.stat(name, dir_fd=folder)
        except OSError:
          continue
        regular = stat.S_ISREG(about.st_mode) and not about.st_nlink
        if regular and about.st_dev == self._device:
          files[about.st_ino] = about.st_blocks * 512
      return len(names), files
    except OSError:
      return 0, files
    finally:
      os.close(folder)


def descendants(proc: int) -> list[int]:
  """The processes below this one."""
  parents = {}
  for name in filter(str.isdigit, os.listdir(proc)):
    text = _read(proc, f"{name}/stat")
    if text:
      # The name of a program, in parentheses, may hold anything.
      parents[int(name)] = int(text.rpartition(b")")[2].split()[1])
  found, me = [], os.getpid()
  for pid in parents:
    above = pid
    while above in parents and above != me:
      above = parents[above]
    if above == me and pid != me:
      found.append(pid)
  return found


def _read(proc, path) -> bytes:
  """What is in a file of /proc; nothing if its process has ended."""
  try:
    fd = os.open(path, os.O_RDONLY, dir_fd=proc)
  except OSError:
    return b""
  try:
    return os.read(fd, 1 << 16)
  except OSError:
    return b""
  finally:
    os.close(fd)
