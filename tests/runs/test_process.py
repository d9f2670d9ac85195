"""What is freed stays in the process, so that no page is cleared twice."""

import subprocess
import sys

import pytest

SIZE = 64 << 20
FREE = f"""
import ctypes, pathlib, resource, sys
from grpo_jax.runs import process

def resident():
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * resource.getpagesize()

if sys.argv[1] == "keep" and not process.keep_freed_memory():
  sys.exit("no glibc")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
before = resident()
block = libc.malloc({SIZE})
ctypes.memset(block, 1, {SIZE})
libc.free(block)
print(resident() - before)
"""


def kept(how: str) -> int:
  done = subprocess.run(
    [sys.executable, "-c", FREE, how], capture_output=True, text=True
  )
  if "no glibc" in done.stderr:
    pytest.skip("The C library is not glibc.")
  return int(done.stdout)


def test_large_blocks_stay_in_the_process():
  assert kept("keep") > 0.9 * SIZE
  assert kept("default") < 0.1 * SIZE
