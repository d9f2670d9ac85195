"""Doors that namespaces and limits leave, tried from inside in all four ways.

As root and as an ordinary user, in namespaces and under limits alone.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import uuid

import hostile_doors as doors
import hostile_programs as hostile
import pytest

from grpo_jax.rewards.isolation import sandbox

_NOBODY = 65534
# The process that runs programs: it tells how each ended and lives to its end.
_CALLER = """
import concurrent.futures, json, os, sys, time
import hostile_doors as doors, hostile_programs as hostile
from grpo_jax.rewards.isolation import sandbox
isolation, names, values, limits = json.load(sys.stdin)
try: sandbox.check(isolation)
except sandbox.IsolationError as error:
  print(json.dumps(["refused", str(error)]))
  raise SystemExit
programs = (doors.PROBES | doors.HARM | doors.MEMORY | hostile.BOMBS
            | hostile.ESCAPES)
values["{pid}"] = str(os.getpid())
values["{secret}"], values["{home}"], values["{port}"] = __file__, "/root", "9"
def run(name):
  program = programs[name]
  for key, value in values.items(): program = program.replace(key, value)
  program = program.replace("{{", "{").replace("}}", "}")
  ended = sandbox.Sandbox({"p.py": program}, ["p.py"], isolation=isolation,
                          limits=sandbox.Limits(**limits)).wait()
  return ended.exit, ended.timed_out, ended.output[-2000:].decode(
      errors="replace")
with concurrent.futures.ThreadPoolExecutor(4) as pool:
  print(json.dumps(list(pool.map(run, names))))
"""
SHORT = dict(cpu_seconds=2, wall_seconds=4.0, memory_mb=128, file_mb=4)


@contextlib.contextmanager
def copied_home():
  """A folder that everybody can read, with what the caller imports."""
  package = pathlib.Path(sandbox.__file__).parents[1]
  with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    copied = pathlib.Path(folder, "grpo_jax", "rewards", "isolation")
    shutil.copytree(
      package / "sandbox",
      copied / "sandbox",
      ignore=shutil.ignore_patterns("__pycache__"),
    )
    for module in (doors, hostile):
      shutil.copy(module.__file__, folder)
    path = pathlib.Path(folder, "caller.py")
    path.write_text(_CALLER, encoding="utf-8")
    yield folder


@pytest.fixture(scope="module")
def home():
  with copied_home() as folder:
    yield folder


@pytest.fixture
def older_kernel():
  """The same on a kernel that lacks a call."""

  def lack(module, old, new):
    path = sandboxes / module
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")

  with copied_home() as folder:
    sandboxes = pathlib.Path(folder, "grpo_jax/rewards/isolation/sandbox")
    yield folder, lack


@pytest.fixture(params=sandbox.ISOLATIONS)
def isolation(request):
  return request.param


@pytest.fixture(params=["ours", "nobody"])
def user(request):
  if request.param == "ours":
    return os.geteuid()
  if os.geteuid():
    pytest.skip("Only root can be another user.")
  return _NOBODY


def python():
  path = sandbox.PYTHON
  return "/usr/bin/python3" if path.startswith("/root/") else path


def run_all(home, user, isolation, names, limits=SHORT, **values):
  """What each program ended with; the caller itself ends well."""
  shutil.rmtree(pathlib.Path(home, "tmp"), ignore_errors=True)
  scratches = pathlib.Path(home, "tmp")
  scratches.mkdir()
  os.chmod(scratches, 0o1777)
  values = {f"{{{name}}}": value for name, value in values.items()}
  done = subprocess.run(
    [python(), f"{home}/caller.py"],
    cwd=home,
    user=user,
    group=user,
    extra_groups=[] if os.geteuid() == 0 else None,
    env=dict(
      PYTHONPATH=home, PYTHONDONTWRITEBYTECODE="1", TMPDIR=f"{home}/tmp"
    ),
    input=json.dumps([isolation, list(names), values, limits]),
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  ended = json.loads(done.stdout)
  if ended[0] == "refused":
    pytest.skip(ended[1])
  assert not list(scratches.iterdir())
  return dict(zip(names, ended, strict=True))


def left_behind():
  """Segments, keys, files and processes of which some may be a program's."""
  found = set()
  for name in ("shm", "sem", "msg"):
    path = pathlib.Path("/proc/sysvipc", name)
    if path.exists():
      lines = path.read_text().splitlines()[1:]
      found |= {(name, *line.split()[:2]) for line in lines}
  keys = pathlib.Path("/proc/keys")
  if keys.exists():
    lines = map(str.split, keys.read_text().splitlines())
    found |= {("key", *line[7:]) for line in lines if line[7] == "user"}
  for folder in ("/dev/shm", "/tmp", "/var/tmp", "/run/lock", "/dev/mqueue"):
    if os.path.isdir(folder):
      for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
          owner = entry.stat(follow_symlinks=False).st_uid
          if owner != 0 or "marker" in entry.name:
            found.add((folder, entry.name))
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):
      if folder.stat().st_uid == _NOBODY or folder.stat().st_uid >= 10**9:
        found.add(("process", folder.name))
  return found


def new_ones(before, seconds=20.0):
  """What is there now, was not before, and stays; others' programs end."""
  new = left_behind() - before
  end = time.monotonic() + seconds
  while new and time.monotonic() < end:
    time.sleep(0.1)
    new &= left_behind()
  return new


def test_no_door_is_open(home, user, isolation):
  marker, key = (f"marker_{uuid.uuid4().hex}" for _ in range(2))
  before = left_behind()
  for name, (code, timed_out, output) in run_all(
    home, user, isolation, doors.PROBES, marker=marker, key=key
  ).items():
    assert "LEAK" not in output, (name, output)
    # Calls of another width end the program.
    wanted = -signal.SIGSYS if name == "calls_of_32_bits" else 0
    assert code == wanted and not timed_out, (name, code, output)
  assert not new_ones(before)


def test_no_harm_is_done_and_nothing_stays(home, user, isolation):
  before = left_behind()
  marker = f"marker_{uuid.uuid4().hex}"
  ended = run_all(home, user, isolation, doors.HARM, marker=marker)
  # The caller lives, and its program has not ended the one that reports.
  assert ended["signals_to_all"][0] == 0
  assert not new_ones(before)


@pytest.mark.slow
def test_nothing_stays_of_200_programs(home, user, isolation):
  """In each of the four ways 50 or more."""
  before = left_behind()
  marker, key = (f"marker_{uuid.uuid4().hex}" for _ in range(2))
  names = [*doors.PROBES, *doors.HARM, *doors.MEMORY, *hostile.BOMBS]
  names += hostile.ESCAPES
  assert len(names) >= 50
  ended = run_all(home, user, isolation, names, marker=marker, key=key)
  leaks = {n for n, (_, _, output) in ended.items() if "LEAK" in output}
  assert not leaks
  assert not new_ones(before)


@pytest.mark.parametrize("name", doors.MEMORY)
def test_one_bound_holds_for_all_that_a_program_holds(
  home, user, isolation, name
):
  limits = SHORT | dict(cpu_seconds=10, wall_seconds=15.0)
  code, timed_out, output = run_all(home, user, isolation, [name], limits)[name]
  held = [int(line) for line in output.split() if line.isdigit()] or [0]
  # What can be touched between two looks comes on top.
  assert max(held) <= 2.5 * limits["memory_mb"], (name, max(held))
  assert not timed_out or max(held) < limits["memory_mb"]


def test_without_landlock_a_program_writes_no_file(older_kernel, user):
  home, lack = older_kernel
  lack("landlock.py", "= 444, 445, 446", "= 9999, 9999, 9999")
  before = left_behind()
  marker, key = (f"marker_{uuid.uuid4().hex}" for _ in range(2))
  names = [*doors.PROBES, *doors.HARM]
  ended = run_all(home, user, "limits", names, marker=marker, key=key)
  assert not {n for n, (_, _, output) in ended.items() if "LEAK" in output}
  # Ended by the bound on its processor time or by that on its time.
  assert list(ended["deleted_files"][1:]) == [True, ""]
  assert ended["much_scratch"][0] == 0
  assert not new_ones(before)


def test_without_a_filter_it_is_said_what_that_means(older_kernel):
  home, lack = older_kernel
  lack("seccomp.py", "_PR_SET_SECCOMP, _MODE", "_PR_SET_SECCOMP = 9999; _MODE")
  lack("seccomp.py", "_MODE_FILTER = 22, 2", "_MODE_FILTER = 2")
  program = """
import logging
from grpo_jax.rewards.isolation import sandbox
logging.basicConfig()
sandbox.check("limits")
try: sandbox.check("namespaces")
except sandbox.IsolationError as error: print(error)
"""
  done = subprocess.run(
    [python(), "-c", program],
    env=dict(PYTHONPATH=home),
    capture_output=True,
    text=True,
  )
  assert "This kernel filters no system calls (seccomp), so that" in done.stderr
  assert "this kernel filters no system calls, which needs" in done.stdout
  assert 'accept isolation="limits"' in done.stdout
