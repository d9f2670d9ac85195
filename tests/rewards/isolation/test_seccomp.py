"""The filter of system calls as a program: what it says to each call."""

import errno
import importlib
import pathlib
import re
import sys

import pytest

from grpo_jax.rewards.isolation import sandbox

ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
MARKS = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
HEADERS = {
  "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
  "aarch64": "/usr/include/asm-generic/unistd.h",
}
OWN = 4321


@pytest.fixture(scope="module")
def seccomp():
  folder = str(pathlib.Path(sandbox.__file__).parent)
  sys.path.insert(0, folder)  # Scripts in a sandbox import their neighbors.
  yield importlib.import_module("seccomp")
  sys.path.remove(folder)
  for name in ("seccomp", "kernel"):
    del sys.modules[name]


@pytest.fixture(params=MARKS)
def ask(seccomp, request):
  """What the filter says of a call by its name."""
  machine = request.param
  column = list(MARKS).index(machine)
  tables = (seccomp._REFUSED, seccomp._OF_OWNERS, seccomp._OF_WRITERS)
  numbers = seccomp._DECIDED.copy()
  for table in tables:
    numbers |= table

  def answer(name, *arguments, confined=True, writes=True, mark=None):
    number = numbers[name][column] if isinstance(name, str) else name
    if number < 0:
      pytest.skip(f"{machine} has no {name}.")
    code = seccomp.rules(machine, confined, writes, OWN)
    return interpret(code, number, mark or MARKS[machine], arguments)

  return answer


def interpret(code, number, mark, arguments):
  """Classic BPF as the kernel runs it, for the instructions that there are."""
  data = {0: number, 4: mark}
  data |= {16 + 8 * i: value & 0xFFFFFFFF for i, value in enumerate(arguments)}
  place = value = 0
  while True:
    kind, then, otherwise, k = code[place]
    place += 1
    if kind == 0x06:
      return k
    if kind == 0x20:
      value = data.get(k, 0)
      continue
    holds = {0x15: value == k, 0x25: value > k, 0x45: bool(value & k)}[kind]
    place += then if holds else otherwise


def test_calls_are_refused_by_name(ask, seccomp):
  for name in seccomp._REFUSED:
    try:
      assert ask(name) == ERROR | errno.EPERM, name
    except pytest.skip.Exception:
      pass
  assert ask("fchmod") == ask("mkdirat") == ALLOW
  assert ask("fchmod", confined=False) == ERROR | errno.EPERM
  assert ask("mkdirat", writes=False) == ERROR | errno.EPERM


def test_other_widths_and_newer_calls_do_not_pass(ask):
  assert ask("keyctl", mark=0x40000003) == KILL
  assert ask(0x40000000 + 39) == ask(463) == ERROR | errno.ENOSYS
  assert ask("clone3") == ask("openat2") == ERROR | errno.ENOSYS


def test_arguments_decide(ask):
  refused, no_family = ERROR | errno.EPERM, ERROR | errno.EAFNOSUPPORT
  for family in range(60):
    known = family in (1, 2, 10)
    assert ask("socket", family) == (ALLOW if known else no_family)
    assert ask("socket", family, confined=False) == no_family
    pair = ALLOW if family == 1 else no_family
    assert ask("socketpair", family, confined=False) == pair
  assert ask("clone", 0x003D0F00) == ask("clone", 17) == ALLOW  # As threads do.
  for bit in (0x20000, 0x2000000, 0x4000000, 0x10000000, 0x40000000):
    assert ask("clone", bit | 17) == refused
  assert ask("prlimit64", 0) == ALLOW != ask("prlimit64", 1)
  assert ask("fcntl", 3, 4) == ALLOW != ask("fcntl", 3, 8)
  assert ask("ioctl", 3, 0x5401) == ALLOW != ask("ioctl", 3, 0x5412)
  assert ask("kill", 1, 9) == ask("kill", OWN, 9, confined=False) == ALLOW
  for pid in (1, -1, OWN + 1, -OWN):
    assert ask("kill", pid, 9, confined=False) == refused
  assert ask("openat", -100, 0, 0o2000000, writes=False) == ALLOW
  for flags in (1, 2, 0o100, 0o1000, 0o20200001):
    assert ask("openat", -100, 0, flags, writes=False) == refused


def test_numbers_are_those_of_the_headers(seccomp):
  tables = (seccomp._REFUSED, seccomp._OF_OWNERS)
  tables += (seccomp._OF_WRITERS, seccomp._DECIDED)
  found = 0
  for column, path in enumerate(HEADERS.values()):
    if not pathlib.Path(path).exists():
      continue
    text = pathlib.Path(path).read_text(encoding="utf-8")
    pattern = r"#define __NR(?:3264)?_(\w+)\s+(\d+)"
    known = {m[1]: int(m[2]) for m in re.finditer(pattern, text)}
    for table in tables:
      for name, numbers in table.items():
        if name in known:
          found += 1
          assert numbers[column] == known[name], name
  if not found:
    pytest.skip("There are no headers of the kernel here.")
