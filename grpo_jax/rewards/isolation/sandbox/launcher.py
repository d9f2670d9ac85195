"""Shuts itself in and becomes a program: the first process of a sandbox.

Run as a script, with the standard library alone, by `sandbox.start`:

  python -I -S -B launcher.py ORDER STATUS

ORDER is a file descriptor with a dict that says what to run under which limits;
on STATUS goes a dict that says how it ended. (In the format of `marshal`, which
is there without an import of Python code.) Three processes follow:

  launcher   makes the namespaces, waits, and dies with the process above it;
  keeper     process 1 of the new namespace: waits for the program no longer
             than its wall-clock limit; with it ends all that is left inside;
  program    unprivileged, under the limits, with no descriptor but its own.

Without namespaces the launcher is the keeper.
"""

import ctypes
import marshal
import os
import resource
import signal
import sys
import time

_LIBC = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_APART = (
  _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET
)

_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC = 0x2, 0x4, 0x1000, 0x4000
_MS_PRIVATE = 0x40000
_MNT_DETACH = 2
_SYS_MOUNT_SETATTR = 442  # The same number on every architecture.
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID = 0x1, 0x2

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38

_DEVICES = ("null", "zero", "full", "random", "urandom")
# Far from the ids that people and services have. With the process's own id
# added, sandboxes that run at the same time have different users.
_SPARE_USER = 1_000_000_000
_SCRATCH = "/tmp"


def main(order_fd: int, status_fd: int) -> None:
  """Carries out the order; never returns to the caller's code."""
  _die_with_parent()
  os.set_inheritable(status_fd, False)
  with os.fdopen(order_fd, "rb") as file:
    order = marshal.load(file)
  if os.getppid() != order["parent"]:
    os._exit(1)  # The parent went before we could be bound to it.
  try:
    _write("/proc/self/oom_score_adj", "1000")  # The first to go, if any must.
    if order["isolation"] == "namespaces":
      _in_namespaces(order, status_fd)
    else:
      _under_limits_alone(order, status_fd)
  except OSError as error:
    _report(status_fd, {"refused": str(error)})
  os._exit(0)


def _in_namespaces(order, status_fd):
  proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
  user, group = _user()
  if os.geteuid() == 0:
    _unshare(_APART, "namespaces of its own")
  else:
    _unshare(_APART | _CLONE_NEWUSER, "a user namespace")
    _map_user(proc, user, group)
  _make_root(order)
  keeper = os.fork()
  if keeper:
    os.waitpid(keeper, 0)
    return
  _die_with_parent()
  _prctl(_PR_SET_DUMPABLE, 0)

  def prepare():
    if os.geteuid() == 0:
      _become(user, group)
      # Back in a namespace of users, where no further one can be made.
      _prctl(_PR_SET_DUMPABLE, 1)
      _unshare(_CLONE_NEWUSER, "a user namespace")
      _map_user(proc, user, group)
    _write("sys/user/max_user_namespaces", "0", proc)

  # The keeper and, for an ordinary user, the launcher count as processes too.
  _keep(order, status_fd, prepare, order["processes"] + 2)
  os._exit(0)


def _under_limits_alone(order, status_fd):
  user, group = _user()
  root = os.geteuid() == 0
  _die_with_parent(signal.SIGTERM)  # Which leaves time to kill the others.
  _prctl(_PR_SET_CHILD_SUBREAPER, 1)
  if root:
    os.chown(order["scratch"], user, group)
  else:
    _prctl(_PR_SET_DUMPABLE, 0)
  os.chdir(order["scratch"])
  _write_files(order)
  # The limit counts all processes of the user, so an ordinary one's are added.
  processes = order["processes"] + (0 if root else _threads_of(user))
  _keep(
    order,
    status_fd,
    (lambda: _become(user, group)) if root else None,
    processes,
  )
  _kill_descendants(user if root else None)


def _keep(order, status_fd, prepare, processes):
  """Starts the program, waits for it, and reports how it ended."""
  signals = {signal.SIGCHLD, signal.SIGTERM}
  signal.pthread_sigmask(signal.SIG_BLOCK, signals)
  deadline = time.monotonic() + order["wall_seconds"]
  failed_r, failed_w = os.pipe()
  program = os.fork()
  if not program:
    try:
      os.setsid()
      if prepare is not None:
        prepare()
      _die_with_parent()
      _limit(order, processes)
      signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
      for fd in order["channel"]:
        os.set_inheritable(fd, True)
      os.execve(order["argv"][0], order["argv"], order["environment"])
    except BaseException as error:
      os.write(failed_w, f"{type(error).__name__}: {error}".encode()[:2000])
    os._exit(1)
  os.close(failed_w)
  for fd in order["channel"]:
    os.close(fd)  # So that the other end sees when the program is gone.
  failure = os.read(failed_r, 4096).decode(errors="replace")
  if failure:
    _report(status_fd, {"refused": failure})
    return
  while True:
    pid, status, usage = os.wait4(-1, os.WNOHANG)
    if pid == program:
      code = os.waitstatus_to_exitcode(status)
      used = usage.ru_utime + usage.ru_stime
      timed_out = code == -signal.SIGXCPU or used >= order["cpu_seconds"]
      _report(status_fd, {"exit": code, "timed_out": timed_out})
      return
    if pid:
      continue
    remaining = deadline - time.monotonic()
    if remaining <= 0:
      _report(status_fd, {"timed_out": True})
      return
    told = signal.sigtimedwait(signals, remaining)
    if told and told.si_signo == signal.SIGTERM:
      return


def _limit(order, processes):
  """Sets every limit that the program has; none can be raised again."""
  memory, size = order["memory_bytes"], order["file_bytes"]
  for what, limit in (
    (resource.RLIMIT_AS, memory),
    (resource.RLIMIT_FSIZE, size),
    (resource.RLIMIT_NPROC, processes),
    (resource.RLIMIT_NOFILE, 64),
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
  _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _make_root(order):
  """Leaves nothing in sight but system libraries, Python and a scratch folder.

  All of it is read-only but the scratch folder, which lives in memory.
  """
  _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
  # The old root must stay reachable while folders are taken over from it.
  _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m")
  os.mkdir("/tmp/old")
  os.mkdir("/tmp/new")
  _call(_LIBC.pivot_root, b"/tmp", b"/tmp/old")
  os.chdir("/")
  _mount("tmpfs", "/new", "tmpfs", _MS_NOSUID, "size=1m,mode=755")
  for path in order["visible"]:
    old, new = "/old" + path, "/new" + path
    os.makedirs(os.path.dirname(new), exist_ok=True)
    if os.path.islink(old):
      os.symlink(os.readlink(old), new)
    elif os.path.isdir(old):
      os.makedirs(new, exist_ok=True)
      _mount(old, new, None, _MS_BIND | _MS_REC)
    elif os.path.exists(old):
      _bind_file(old, new)
  os.mkdir("/new/dev")
  for name in _DEVICES:
    _bind_file(f"/old/dev/{name}", f"/new/dev/{name}")
  os.makedirs(f"/new{_SCRATCH}", exist_ok=True)
  _read_only("/new")
  _mount(
    "tmpfs",
    f"/new{_SCRATCH}",
    "tmpfs",
    _MS_NOSUID | _MS_NODEV,
    f"size={order['scratch_bytes']},nr_inodes=1024,mode=1777",
  )
  os.chdir("/new")
  _call(_LIBC.pivot_root, b".", b".")
  _call(_LIBC.umount2, b".", _MNT_DETACH)
  os.chdir(_SCRATCH)
  _write_files(order)


def _bind_file(old, new):
  os.close(os.open(new, os.O_CREAT | os.O_WRONLY))
  _mount(old, new, None, _MS_BIND)


def _read_only(path):
  attributes = (ctypes.c_uint64 * 4)(
    _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0
  )
  _call(
    _LIBC.syscall,
    ctypes.c_long(_SYS_MOUNT_SETATTR),
    ctypes.c_int(_AT_FDCWD),
    ctypes.c_char_p(path.encode()),
    ctypes.c_uint(_AT_RECURSIVE),
    ctypes.byref(attributes),
    ctypes.c_size_t(ctypes.sizeof(attributes)),
  )


def _write_files(order):
  for name, text in order["files"].items():
    with open(name, "w", encoding="utf-8", errors="surrogatepass") as file:
      file.write(text)
    os.chmod(name, 0o644)


def _user():
  """The user and group of the program: root gives way to a spare one."""
  if os.geteuid() == 0:
    spare = _SPARE_USER + os.getpid()
    return spare, spare
  return os.geteuid(), os.getegid()


def _become(user, group):
  os.setgroups([])
  os.setresgid(group, group, group)
  os.setresuid(user, user, user)


def _map_user(proc, user, group):
  _write("self/setgroups", "deny", proc)
  _write("self/uid_map", f"{user} {user} 1", proc)
  _write("self/gid_map", f"{group} {group} 1", proc)


def _threads_of(user):
  count = 0
  for name in filter(str.isdigit, os.listdir("/proc")):
    try:
      if os.stat(f"/proc/{name}").st_uid == user:
        count += len(os.listdir(f"/proc/{name}/task"))
    except OSError:
      pass  # It ended meanwhile, or hides its threads.
  return count


def _kill_descendants(user):
  """Kills what the program left behind, also where it left our session."""
  give_up = time.monotonic() + 5
  while time.monotonic() < give_up:
    if user is not None:
      killer = os.fork()
      if not killer:
        _become(user, user)
        os.kill(-1, signal.SIGKILL)
        os._exit(0)
      os.waitpid(killer, 0)
    else:
      for pid in _descendants():
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


def _descendants():
  parents = {}
  for name in filter(str.isdigit, os.listdir("/proc")):
    try:
      with open(f"/proc/{name}/stat", "rb") as file:
        # The name of a program, in parentheses, may hold anything.
        parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
      pass  # It ended meanwhile.
  found, me = [], os.getpid()
  for pid in parents:
    above = pid
    while above in parents and above != me:
      above = parents[above]
    if above == me and pid != me:
      found.append(pid)
  return found


def _group_of(pid):
  """The process group, or the process itself where that is our own group."""
  try:
    group = os.getpgid(pid)
  except OSError:
    return pid
  return group if group != os.getpgrp() else pid


def _die_with_parent(by=signal.SIGKILL):
  _prctl(_PR_SET_PDEATHSIG, by)


def _report(status_fd, status):
  os.write(status_fd, marshal.dumps(status))


def _write(path, text, dir_fd=None):
  fd = os.open(path, os.O_WRONLY, dir_fd=dir_fd)
  try:
    os.write(fd, text.encode())
  except OSError as error:
    raise OSError(error.errno, error.strerror, path) from None
  finally:
    os.close(fd)


def _unshare(flags, what):
  _call(_LIBC.unshare, flags, what=f"making {what}")


def _mount(source, target, kind, flags, options=None):
  texts = (text and text.encode() for text in (source, target, kind))
  _call(
    _LIBC.mount,
    *texts,
    ctypes.c_ulong(flags),
    options and options.encode(),
    what=f"mounting {target}",
  )


def _prctl(option, value):
  _call(_LIBC.prctl, option, ctypes.c_ulong(value), 0, 0, 0)


def _call(function, *arguments, what=None):
  if function(*arguments) < 0:
    error = ctypes.get_errno()
    raise OSError(error, os.strerror(error), what or function.__name__)


if __name__ == "__main__":
  main(int(sys.argv[1]), int(sys.argv[2]))
