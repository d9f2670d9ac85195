"""Programs that nobody has read: real ones, in real sandboxes."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid

import hostile_programs as hostile
import pytest

from grpo_jax.rewards.isolation import sandbox

# What a hostile program gets; the deadline is met by all of them.
SHORT = sandbox.Limits(
  cpu_seconds=1, wall_seconds=2.0, memory_mb=256, file_mb=4
)
_SCRIPTS = (b"launcher.py", b"\0program.py", b"\0p.py", b"\0examiner.py")
DEADLINE = 8.0  # On a busy machine, with the time to start.


@pytest.fixture(params=sandbox.ISOLATIONS)
def isolation(request, monkeypatch):
  """Each isolation that this machine gives."""
  if request.param == "limits" and os.geteuid() == 0:
    # Nobody but root can read a Python in root's home folder.
    readable_python(monkeypatch)
  available(request.param)
  return request.param


@pytest.fixture
def namespaces():
  available("namespaces")
  return "namespaces"


def available(isolation):
  try:
    sandbox.check(isolation)
  except sandbox.IsolationError as error:
    pytest.skip(str(error))


def readable_python(monkeypatch):
  path = pathlib.Path("/usr/bin/python3")
  if "/root/" in sandbox.PYTHON and path.exists():
    monkeypatch.setattr(sandbox, "PYTHON", os.path.realpath(path))
    sandbox.check.cache_clear()


def run(program, isolation="namespaces", stdin=b"", limits=SHORT):
  return sandbox.Sandbox(
    {"program.py": program},
    ["program.py"],
    stdin=stdin,
    limits=limits,
    isolation=isolation,
  ).wait()


def processes_of_programs():
  """Processes of the spare users of programs, and those that run our files."""
  found = []
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):
      command = (folder / "cmdline").read_bytes()
      script = any(name in command for name in _SCRIPTS)
      if script or folder.stat().st_uid >= 1_000_000_000:
        found.append((folder.name, command))
  return found


def wait_for_none(seconds=30.0):
  """Those that are there now and stay; other workers' come and go."""
  left = processes_of_programs()
  end = time.monotonic() + seconds
  while left and time.monotonic() < end:
    time.sleep(0.02)
    now = processes_of_programs()
    left = [one for one in left if one in now]
  return left


@pytest.fixture
def caller(tmp_path):
  """What a program must not reach; asserts afterwards that it did not."""
  secret = tmp_path / "secret"
  secret.write_text("the secret of the caller", encoding="utf-8")
  home = pathlib.Path.home()
  marker = f"marker_{uuid.uuid4().hex}"
  reached = []
  with socket.create_server(("127.0.0.1", 0)) as server:

    def serve():
      with contextlib.suppress(OSError):
        while True:
          reached.append(server.accept()[1])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    values = {
      "{secret}": str(secret),
      "{home}": str(home),
      "{marker}": marker,
      "{port}": str(server.getsockname()[1]),
      "{pid}": str(os.getpid()),
    }

    def filled(program):
      for name, value in values.items():
        program = program.replace(name, value)
      return program

    yield filled
    server.shutdown(socket.SHUT_RDWR)
  thread.join(5)
  assert not reached
  assert secret.read_text(encoding="utf-8") == "the secret of the caller"
  folders = [home, tmp_path, *map(pathlib.Path, ("/", "/usr", "/etc", "/tmp"))]
  folders += map(pathlib.Path, ("/dev", "/dev/shm", "/var/tmp", "/root"))
  for folder in folders:
    with contextlib.suppress(PermissionError):
      assert not (folder / marker).exists()


def test_a_program_reads_input_and_writes_output(isolation):
  program = "print(input()[::-1])\nopen('note', 'w').write('mine')"
  ended = run(program, isolation, b"abc\n")
  assert ended == (0, False, b"cba\n")


def test_a_program_has_the_standard_library_and_a_scratch_folder(isolation):
  program = """
import collections, decimal, heapq, json, math, os, random, re, subprocess
assert os.getcwd() == os.environ['HOME'], os.getcwd()
os.mkdir('folder')
print(sorted(os.listdir('.')), subprocess.check_output(['/bin/echo', 'hi']))
"""
  assert run(program, isolation) == (
    0,
    False,
    b"['folder', 'program.py'] b'hi\\n'\n",
  )


def test_the_exit_status_is_told(isolation):
  assert run("raise SystemExit(7)", isolation).exit == 7
  assert run("1 / 0", isolation).exit == 1
  assert run("import os; os.kill(os.getpid(), 9)", isolation).exit == -9


def test_the_same_program_has_the_same_output_twice(isolation):
  program = "print({str(i) for i in range(99)}, hash('a'))"
  assert run(program, isolation).output == run(program, isolation).output


def test_nothing_of_the_caller_is_in_the_environment(isolation, monkeypatch):
  monkeypatch.setenv("SECRET_OF_THE_CALLER", "secret")
  output = run("import os; print(sorted(os.environ))", isolation).output
  assert output == b"['HOME', 'LANG', 'PATH', 'PYTHONHASHSEED']\n"


@pytest.mark.parametrize("name", hostile.BOMBS)
def test_bombs_end_within_the_deadline_and_leave_nothing(namespaces, name):
  before = len(os.listdir("/proc/self/fd"))
  start = time.monotonic()
  ended = run(hostile.BOMBS[name])
  assert time.monotonic() - start < DEADLINE
  assert len(ended.output) <= SHORT.file_mb << 20
  assert not wait_for_none()
  assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", hostile.HELD_BY_LIMITS)
def test_limits_alone_hold_bombs_too(isolation, name):
  start = time.monotonic()
  ended = run(hostile.BOMBS[name], isolation)
  assert time.monotonic() - start < DEADLINE + 4
  assert ended.exit != 0 or ended.timed_out
  assert not wait_for_none()


@pytest.mark.parametrize("name", hostile.ESCAPES)
def test_no_escape(namespaces, caller, name):
  start = time.monotonic()
  ended = run(caller(hostile.ESCAPES[name]))
  assert time.monotonic() - start < DEADLINE
  assert b"LEAK" not in ended.output
  assert b"the secret" not in ended.output
  assert not wait_for_none()


def test_a_fork_bomb_gets_no_more_processes_than_the_limit(namespaces):
  program = """
import os, time
children = 0
try:
  while True:
    if not os.fork(): time.sleep(100)
    children += 1
except OSError: print(children, flush=True)
"""
  limits = SHORT._replace(processes=5)
  children = int(run(program, limits=limits).output)
  # An ordinary user's keeper and launcher are allowed for.
  assert limits.processes - 1 <= children <= limits.processes + 1


def test_memory_is_limited(isolation):
  program = "x = bytearray({} << 20)\nprint('had it')"
  assert run(program.format(100), isolation).output == b"had it\n"
  assert run(program.format(300), isolation).exit == 1


def test_files_and_output_are_limited(namespaces):
  ended = run("import sys\nsys.stdout.write('x' * (5 << 20))")
  assert ended.exit != 0
  assert len(ended.output) == 4 << 20
  ended = run("open('f', 'wb').write(bytes(5 << 20))")
  assert ended.exit != 0


def test_times_are_told(isolation):
  patient = SHORT._replace(wall_seconds=60.0)  # Others may use the processor.
  ended = run("while True: pass", isolation, limits=patient)
  assert ended.timed_out and ended.exit is not None
  ended = run("import time; time.sleep(100)", isolation)
  assert ended.timed_out and ended.exit is None
  assert not run("1 / 0", isolation).timed_out


def test_a_killed_program_takes_its_children_with_it(isolation):
  box = sandbox.Sandbox(
    {"program.py": hostile.ESCAPES["stays_behind"] + "time.sleep(100)"},
    ["program.py"],
    limits=SHORT._replace(wall_seconds=50.0),
    isolation=isolation,
  )
  time.sleep(0.5)
  assert processes_of_programs()
  box.kill()
  assert not wait_for_none()


def test_programs_die_with_the_process_that_runs_them(namespaces, tmp_path):
  """The caller is killed, as by a job scheduler: nothing stays behind."""
  script = """
import sys
from grpo_jax.rewards.isolation import sandbox
box = sandbox.Sandbox({"p.py": sys.argv[1]}, ["p.py"], isolation="namespaces",
                      limits=sandbox.Limits(wall_seconds=60.0))
print("started", flush=True)
box.wait()
"""
  program = hostile.ESCAPES["stays_behind"] + "time.sleep(100)"
  caller = subprocess.Popen(
    [sys.executable, "-c", script, program], stdout=subprocess.PIPE
  )
  assert caller.stdout.readline() == b"started\n"
  time.sleep(0.5)
  assert processes_of_programs()
  caller.kill()
  caller.wait()
  caller.stdout.close()
  assert not wait_for_none()


def test_isolation_that_the_machine_does_not_give_is_refused(monkeypatch):
  monkeypatch.setattr(sandbox, "_SYSTEM", ())  # No loader: nothing can start.
  sandbox.check.cache_clear()
  try:
    with pytest.raises(sandbox.IsolationError) as error:
      sandbox.check("namespaces")
  finally:
    sandbox.check.cache_clear()
  message = str(error.value)
  assert message.startswith(
    "Programs cannot be run with isolation='namespaces'"
  )
  assert 'accept isolation="limits"' in message


def test_an_unknown_isolation_is_refused():
  with pytest.raises(ValueError, match="isolation='none' must be one of"):
    sandbox.check("none")


_AS_ORDINARY_USER = """
import concurrent.futures, os, time
import hostile_programs as hostile
from grpo_jax.rewards.isolation import sandbox
assert os.geteuid() == 65534
for isolation in sandbox.ISOLATIONS:
  try: sandbox.check(isolation)
  except sandbox.IsolationError as error:
    print("refused", error)
    continue
  programs = hostile.BOMBS | hostile.ESCAPES
  names = hostile.HELD_BY_LIMITS if isolation == "limits" else programs
  def run(name):
    start = time.monotonic()
    ended = sandbox.Sandbox(
      {"p.py": programs[name].replace("{pid}", str(os.getpid()))}, ["p.py"],
      isolation=isolation,
      limits=sandbox.Limits(1, 2.0, memory_mb=256, file_mb=4),
    ).wait()
    assert time.monotonic() - start < 8, (isolation, name)
    assert isolation == "limits" or b"LEAK" not in ended.output, ended
  with concurrent.futures.ThreadPoolExecutor(6) as pool:
    list(pool.map(run, names))
  print(isolation, "held")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="The other tests do this.")
def test_an_ordinary_user_has_the_same_isolation():
  python = "/usr/bin/python3" if "/root/" in sandbox.PYTHON else sandbox.PYTHON
  isolation = pathlib.Path(sandbox.__file__).parents[1]
  with tempfile.TemporaryDirectory() as folder:
    # A copy, for our own files may lie where only root can read.
    os.chmod(folder, 0o755)
    copied = pathlib.Path(folder, "grpo_jax", "rewards", "isolation")
    shutil.copytree(isolation / "sandbox", copied / "sandbox")
    shutil.copy(hostile.__file__, folder)
    done = subprocess.run(
      [python, "-c", _AS_ORDINARY_USER],
      cwd=folder,
      user=65534,
      group=65534,
      extra_groups=[],
      env={"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
      capture_output=True,
      text=True,
    )
  assert done.returncode == 0, done.stderr
  assert "limits held" in done.stdout
  if "refused" in done.stdout:
    pytest.skip(done.stdout)
  assert "namespaces held" in done.stdout
  assert not wait_for_none()
