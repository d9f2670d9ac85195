"""Starts a program under its limits, waits for it, and ends what it leaves.

The standard library alone: the launcher imports this file as its neighbor.
"""

import marshal
import os
import resource
import signal
import time
from collections.abc import Callable

import kernel
import seccomp
import usage


def keep(
  order: dict,
  status_fd: int,
  prepare: Callable[[], None],
  processes: int,
  watch: usage.Watch | None = None,
) -> None:
  """Runs the program of an order to its end, and reports how it ended.

  Args:
    order: see `launcher`. Its channel stays open here, so that the other end
      sees that the program is gone when its end has been reported.
    status_fd: for the report.
    prepare: is called in the program's process, before its limits.
    processes: that its user may have.
    watch: where nobody else looks at what the program holds. This process then
      ends it, and all that is below it, also when it gets SIGTERM.
  """
  # No signal but these does anything; what a program may signal is its keeper.
  expected = {signal.SIGCHLD} | ({signal.SIGTERM} if watch else set())
  signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
  deadline = time.monotonic() + order["wall_seconds"]
  failed_r, failed_w = os.pipe()
  program = os.fork()
  if not program:
    try:
      os.setsid()
      prepare()
      die_with_parent()
      _limit(order, processes)
      signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
      for fd in order["channel"]:
        os.set_inheritable(fd, True)
      if order["filter"]:
        seccomp.install(confined=watch is None, writes=order["writes"])
      os.execve(order["argv"][0], order["argv"], order["environment"])
    except BaseException as error:
      os.write(failed_w, f"{type(error).__name__}: {error}".encode()[:2000])
    os._exit(1)
  os.close(failed_w)
  failure = os.read(failed_r, 4096).decode(errors="replace")
  if failure:
    report(status_fd, {"refused": failure})
    return
  look = time.monotonic() + (watch.pause if watch else float("inf"))
  while True:
    pid, status, usage_of_it = os.wait4(-1, os.WNOHANG)
    if pid == program:
      code = os.waitstatus_to_exitcode(status)
      used = usage_of_it.ru_utime + usage_of_it.ru_stime
      timed_out = code == -signal.SIGXCPU or used >= order["cpu_seconds"]
      report(status_fd, {"exit": code, "timed_out": timed_out})
      return
    if pid:
      continue
    now = time.monotonic()
    if now >= deadline:
      report(status_fd, {"timed_out": True})
      return
    if watch and now >= look:
      if watch.exceeded():
        report(status_fd, {"exit": -signal.SIGKILL})
        return
      look = time.monotonic() + watch.pause
    told = signal.sigtimedwait(expected, max(min(deadline, look) - now, 0))
    if told and told.si_signo == signal.SIGTERM:
      return


def end_below(proc: int, become: Callable[[], None] | None) -> None:
  """Kills what a program left behind, also where it left our session.

  Args:
    proc: a descriptor of the folder /proc.
    become: makes a process of ours one of the program's user, who has no other
      processes; None where it is our own user.
  """
  give_up = time.monotonic() + 5
  while time.monotonic() < give_up:
    if become is not None:
      killer = os.fork()
      if not killer:
        become()
        os.kill(-1, signal.SIGKILL)
        os._exit(0)
      os.waitpid(killer, 0)
    else:
      for pid in usage.descendants(proc):
        for kill, target in ((os.killpg, _group_of(pid)), (os.kill, pid)):
          try:
            kill(target, signal.SIGKILL)
          except OSError:
            pass  # It ended meanwhile.
    try:
      while os.waitpid(-1, os.WNOHANG)[0]:
        pass
    except ChildProcessError:
      return
    time.sleep(0.005)


def die_with_parent(by: int = signal.SIGKILL) -> None:
  """Has the kernel send us a signal when the process above us ends."""
  kernel.prctl(kernel.PR_SET_PDEATHSIG, by)


def report(status_fd: int, status: dict) -> None:
  """Tells the process that gave the order; the first report counts."""
  os.write(status_fd, marshal.dumps(status))


def _limit(order, processes):
  """Sets every limit that the program has; none can be raised again."""
  memory, size = order["memory_bytes"], order["file_bytes"]
  for what, limit in (
    (resource.RLIMIT_AS, memory),
    (resource.RLIMIT_FSIZE, size),
    (resource.RLIMIT_NPROC, processes),
    (resource.RLIMIT_NOFILE, 64),
    (resource.RLIMIT_SIGPENDING, 64),
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_MEMLOCK, 0),
    (resource.RLIMIT_MSGQUEUE, 0),
  ):
    hard = resource.getrlimit(what)[1]
    if hard != resource.RLIM_INFINITY:
      limit = min(limit, hard)
    resource.setrlimit(what, (limit, limit))
  # A signal that tells the cause, then one that cannot be ignored.
  seconds = order["cpu_seconds"]
  resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
  kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)


def _group_of(pid):
  """The process group, or the process itself where that is our own group."""
  try:
    group = os.getpgid(pid)
  except OSError:
    return pid
  return group if group != os.getpgrp() else pid
