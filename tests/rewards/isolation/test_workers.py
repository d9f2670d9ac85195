"""Worker processes: deadlines, limits, refusals, and how they end."""

import math
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from grpo_jax.rewards.isolation import worker, workers


@pytest.fixture(scope="module")
def pool():
  pool = workers.Pool(1, memory=1 << 28)
  yield pool
  pool.close()


def run(pool, function, *arguments, deadline=5.0):
  (outcome,) = pool.map(function, [arguments], deadline=deadline)
  return outcome


def wait_until(condition, seconds=10.0):
  end = time.monotonic() + seconds
  while not condition() and time.monotonic() < end:
    time.sleep(0.02)
  return condition()


def is_alive(pid):
  """False for a process that is gone or only waits to be reaped."""
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
  except OSError:
    return False


def test_values_come_back_in_order(pool):
  outcomes = pool.map("math:sqrt", [(k,) for k in range(300)], deadline=5.0)
  assert [o.value for o in outcomes] == [math.sqrt(k) for k in range(300)]
  assert {o.status for o in outcomes} == {"value"}


def test_text_that_is_no_utf8_survives_the_way(pool):
  text = "\ud800 \u202e \x00 \U0001d7d3"
  assert run(pool, "builtins:str", text).value == text


def test_what_exceeds_its_deadline_is_killed_at_it(pool):
  pid = run(pool, "os:getpid").value
  start = time.monotonic()
  outcome = run(pool, "time:sleep", 60, deadline=0.5)
  assert outcome.status == "timed_out" and outcome.value is None
  assert 0.5 <= time.monotonic() - start < 5.0
  assert not is_alive(pid)
  assert run(pool, "os:getpid").value != pid


def test_what_ignores_python_is_killed_too(pool):
  # One integer power holds the interpreter for longer than any signal waits.
  outcome = run(pool, "builtins:pow", 9, 9**9, deadline=0.5)
  assert outcome.status == "timed_out"


@pytest.mark.parametrize(
  "function, arguments",
  [
    ("os:abort", ()),
    ("os:_exit", (0,)),
    ("builtins:bytearray", (1 << 40,)),
    ("builtins:int", ("x",)),
    ("builtins:object", ()),
    ("builtins:bytes", (10,)),
    ("operator:mul", ("a", 2 << 20)),
    ("sys:exit", ()),
    ("builtins:no_such_name", ()),
  ],
  ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_dies_raises_or_returns_too_much_has_crashed(
  pool, function, arguments
):
  if function.endswith("no_such_name"):
    with pytest.raises(RuntimeError, match="no_such_name"):
      run(pool, function, *arguments)
  else:
    outcome = run(pool, function, *arguments)
    assert outcome.status == "crashed" and outcome.detail
  assert run(pool, "math:sqrt", 4).value == 2.0


@pytest.mark.parametrize(
  "function, arguments",
  [
    ("builtins:eval", ("1+1",)),
    ("builtins:exec", ("x = 1",)),
    ("builtins:compile", ("1", "<string>", "eval")),
    ("sympy:sympify", ("1+1",)),
    ("math_verify:parse", ("1/2+3",)),
    ("os:system", ("true",)),
    ("os:fork", ()),
    ("os:kill", (1, 0)),
    ("subprocess:call", (["true"],)),
    ("socket:create_connection", (("127.0.0.1", 9),)),
    ("os:mkdir", ("somewhere",)),
    ("os:remove", ("somewhere",)),
  ],
  ids=lambda value: value if isinstance(value, str) else "",
)
def test_code_programs_sockets_and_files_are_refused(pool, function, arguments):
  outcome = run(pool, function, *arguments)
  assert outcome.status == "crashed"
  assert outcome.detail.endswith("is refused.")


def test_no_file_is_opened_for_writing(pool, tmp_path):
  path = tmp_path / "x"
  path.write_text("kept")
  for mode in ("w", "a", "r+", "x"):
    assert run(pool, "builtins:open", str(path), mode).status == "crashed"
  assert path.read_text() == "kept" and len(list(tmp_path.iterdir())) == 1


def test_an_item_that_is_too_long_is_the_callers_mistake(pool):
  with pytest.raises(ValueError, match="too long"):
    run(pool, "builtins:len", "x" * worker.MAX_BYTES)
  assert run(pool, "builtins:len", "xx").value == 2


def test_a_pool_needs_a_worker():
  with pytest.raises(ValueError, match="at least 1"):
    workers.Pool(0)


def test_threads_share_a_pool(pool):
  results = {}

  def call(thread):
    items = [(thread, k) for k in range(50)]
    outcomes = pool.map("operator:add", items, deadline=5.0)
    results[thread] = [o.value for o in outcomes]

  threads = [threading.Thread(target=call, args=(t,)) for t in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert results == {t: [t + k for k in range(50)] for t in range(4)}


def test_outlives_the_thread_that_started_it():
  pool = workers.Pool(1)
  thread = threading.Thread(target=run, args=(pool, "os:getpid"))
  thread.start()
  thread.join()
  time.sleep(0.2)
  assert run(pool, "math:sqrt", 9).value == 3.0
  pool.close()


def test_a_helper_that_was_killed_is_replaced():
  pool = workers.Pool(1)
  first = run(pool, "os:getppid").value
  os.kill(first, signal.SIGKILL)
  assert wait_until(lambda: not is_alive(first))
  # The worker of before dies with it, perhaps in the middle of this.
  run(pool, "os:getppid")
  assert run(pool, "os:getppid").value != first
  pool.close()


def test_an_item_outlives_workers_that_others_kill():
  pool = workers.Pool(1)
  found = {}

  def call():
    found["outcome"] = run(pool, "time:sleep", 1.5, deadline=9.0)

  for kills, status in ((2, "value"), (3, "crashed")):
    helper = run(pool, "os:getppid").value
    thread = threading.Thread(target=call)
    thread.start()
    killed = set()
    children = pathlib.Path(f"/proc/{helper}/task/{helper}/children")
    while len(killed) < kills:
      time.sleep(0.3)  # The worker has the item by then.
      for pid in map(int, children.read_text().split()):
        if pid not in killed and is_alive(pid):
          os.kill(pid, signal.SIGKILL)
          killed.add(pid)
    thread.join()
    assert found["outcome"].status == status
  pool.close()


def test_right_answers_stay_right_while_workers_are_killed():
  pool = workers.Pool(2)
  helper = run(pool, "os:getppid").value
  children = pathlib.Path(f"/proc/{helper}/task/{helper}/children")
  done = threading.Event()
  kills = []

  def kill():
    while not done.wait(0.1):
      for pid in children.read_text().split()[-1:]:
        kills.append(os.kill(int(pid), signal.SIGKILL))

  thread = threading.Thread(target=kill)
  thread.start()
  outcomes = pool.map("time:sleep", [(0.02,)] * 100, deadline=9.0)
  done.set()
  thread.join()
  assert len(kills) >= 5
  assert {outcome.status for outcome in outcomes} == {"value"}
  pool.close()


def test_a_helper_that_is_killed_while_it_imports_is_replaced():
  pool = workers.Pool(1)
  seen = []

  def kill():
    while not seen:
      for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
          text = (folder / "cmdline").read_bytes()
          parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
          continue
        if b"isolation.worker" in text and int(parent) == os.getpid():
          os.kill(int(folder.name), signal.SIGKILL)
          seen.append(folder.name)
          return

  before = threading.Thread(target=kill)
  before.start()
  assert run(pool, "os:getppid").value not in (None, *map(int, seen))
  before.join()
  pool.close()


def test_closing_ends_all_processes_and_the_next_call_starts_new_ones():
  pool = workers.Pool(1)
  pids = [run(pool, "os:getpid").value, run(pool, "os:getppid").value]
  pool.close()
  assert wait_until(lambda: not any(map(is_alive, pids)))
  assert run(pool, "math:sqrt", 4).value == 2.0
  pool.close()


_PARENT = """
import sys, threading
from grpo_jax.rewards.isolation import workers
pool = workers.Pool(1)
for name in ("os:getppid", "os:getpid"):
  print(pool.map(name, [()], deadline=9.0)[0].value, flush=True)
pool.map("time:sleep", [(60,)], deadline=60.0)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_when_the_parent_is_killed(number):
  root = pathlib.Path(__file__).parents[3]
  parent = subprocess.Popen(
    [sys.executable, "-c", _PARENT], cwd=root, stdout=subprocess.PIPE, text=True
  )
  pids = [int(parent.stdout.readline()) for _ in range(2)]
  assert all(map(is_alive, pids))
  parent.send_signal(number)
  parent.wait(timeout=30)
  parent.stdout.close()
  assert wait_until(lambda: not any(map(is_alive, pids)))


def test_a_module_that_imports_jax_is_refused():
  pool = workers.Pool(1)
  with pytest.raises(RuntimeError, match="imports JAX"):
    run(pool, "grpo_jax.types:Problem", "a", "b", "c", "d")
  pool.close()


def test_the_environment_is_not_handed_on(monkeypatch):
  monkeypatch.setenv("A_SECRET", "1234")
  pool = workers.Pool(1)
  assert run(pool, "os:getenv", "A_SECRET").value is None
  assert run(pool, "os:getenv", "PYTHONPATH").value
  pool.close()
