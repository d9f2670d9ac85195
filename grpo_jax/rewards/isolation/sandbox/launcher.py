"""Shuts itself in and becomes a program: the first process of a sandbox.

Run as a script, with the standard library alone, by `sandbox.start`:

  python -I -S launcher.py ORDER STATUS

ORDER is a file descriptor with a dict that says what to run under which limits;
on STATUS goes a dict that says how it ended. (In the format of `marshal`, which
is there without an import of Python code.) Three processes follow:

  launcher   makes the namespaces, looks at what the program holds, and dies
             with the process above it;
  keeper     process 1 of the new namespace: waits for the program no longer
             than its wall-clock limit; with it ends all that is left inside;
  program    unprivileged, under the limits and a filter of system calls, with
             no descriptor but its own.

Without namespaces the launcher is the keeper.
"""

import ctypes
import marshal
import os
import signal
import sys
import time

# A script that is isolated does not find its neighbors by itself.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import keeper as keeper_lib
import kernel
import landlock
import scratch as scratch_lib
import seccomp
import usage

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

_DEVICES = ("null", "zero", "full", "random", "urandom")
# Far from the ids that people and services have. With the process's own id
# added, sandboxes that run at the same time have different users.
_SPARE_USER = 1_000_000_000
_SCRATCH = "/tmp"


def main(order_fd: int, status_fd: int) -> None:
  """Carries out the order; never returns to the caller's code."""
  keeper_lib.die_with_parent()
  os.set_inheritable(status_fd, False)
  with os.fdopen(order_fd, "rb") as file:
    order = marshal.load(file)
  if os.getppid() != order["parent"]:
    os._exit(1)  # The parent went before we could be bound to it.
  try:
    # The first to go, if any must.
    kernel.write("/proc/self/oom_score_adj", "1000")
    order["filter"] = seccomp.supported()
    if order["isolation"] == "namespaces":
      _in_namespaces(order, status_fd)
    else:
      _under_limits_alone(order, status_fd)
  except OSError as error:
    keeper_lib.report(status_fd, {"refused": str(error)})
  os._exit(0)


def _in_namespaces(order, status_fd):
  if not order["filter"]:
    raise OSError("this kernel filters no system calls, which needs seccomp")
  order["writes"] = True
  proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
  user, group = _user()
  if os.geteuid() == 0:
    _unshare(_APART, "namespaces of its own")
  else:
    _unshare(_APART | _CLONE_NEWUSER, "a user namespace")
    _map_user(proc, user, group)
  _make_root(order)
  signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
  keeper = os.fork()
  if keeper:
    _look_after(keeper, order, proc, status_fd)
    return
  keeper_lib.die_with_parent()
  kernel.prctl(kernel.PR_SET_DUMPABLE, 0)

  def prepare():
    if os.geteuid() == 0:
      _become(user, group)
      # Back in a namespace of users, where no further one can be made.
      kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
      _unshare(_CLONE_NEWUSER, "a user namespace")
      _map_user(proc, user, group)
    kernel.write("sys/user/max_user_namespaces", "0", proc)

  # The keeper and, for an ordinary user, the launcher count as processes too.
  keeper_lib.keep(order, status_fd, prepare, order["processes"] + 2)
  os._exit(0)


def _look_after(keeper, order, proc, status_fd):
  """Ends the keeper, and all that it keeps, where that holds too much."""
  watch = usage.Watch(proc, order["memory_bytes"])
  look = time.monotonic() + watch.pause
  while True:
    pid, status = os.waitpid(keeper, os.WNOHANG)
    if pid:
      break
    if time.monotonic() >= look:
      if watch.exceeded():
        os.kill(keeper, signal.SIGKILL)
        os.waitpid(keeper, 0)
        keeper_lib.report(status_fd, {"exit": -signal.SIGKILL})
        return
      look = time.monotonic() + watch.pause
    signal.sigtimedwait({signal.SIGCHLD}, max(look - time.monotonic(), 0))
  # A keeper ends by itself. Where it was killed, by the machine for what its
  # program holds or whoever it was, the program has ended; only the first
  # report counts.
  if os.WIFSIGNALED(status):
    keeper_lib.report(status_fd, {})


def _under_limits_alone(order, status_fd):
  proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
  user, group = _user()
  root = os.geteuid() == 0
  scratch = order["scratch"]
  keeper_lib.die_with_parent(signal.SIGTERM)  # Leaves time to end the others.
  kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
  # Where the kernel cannot confine what a program writes, it writes nothing.
  confines = landlock.supported()
  order["writes"] = confines or not order["filter"]
  if root:
    os.chown(scratch, user, group)
  else:
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
  os.chdir(scratch)
  _write_files(order)

  def become():
    _become(user, group)

  def prepare():
    if root:
      become()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if confines:
      devices = [f"/dev/{name}" for name in _DEVICES]
      landlock.restrict(order["visible"], devices, scratch)

  # The limit counts all processes of the user, so an ordinary one's are added.
  processes = order["processes"] + (0 if root else _threads_of(user))
  watch = usage.Watch(
    proc, order["memory_bytes"], scratch, order["scratch_bytes"]
  )
  try:
    keeper_lib.keep(order, status_fd, prepare, processes, watch)
  finally:
    keeper_lib.end_below(proc, become if root else None)
    os.chdir("/")
    scratch_lib.remove(scratch)


def _make_root(order):
  """Leaves nothing in sight but system libraries, Python and a scratch folder.

  All of it is read-only but the scratch folder, which lives in memory.
  """
  _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
  # The old root must stay reachable while folders are taken over from it.
  _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m")
  os.mkdir("/tmp/old")
  os.mkdir("/tmp/new")
  kernel.call(kernel.LIBC.pivot_root, b"/tmp", b"/tmp/old")
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
  kernel.call(kernel.LIBC.pivot_root, b".", b".")
  kernel.call(kernel.LIBC.umount2, b".", _MNT_DETACH)
  os.chdir(_SCRATCH)
  _write_files(order)


def _bind_file(old, new):
  os.close(os.open(new, os.O_CREAT | os.O_WRONLY))
  _mount(old, new, None, _MS_BIND)


def _read_only(path):
  attributes = (ctypes.c_uint64 * 4)(
    _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0
  )
  kernel.call(
    kernel.LIBC.syscall,
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
  kernel.write("self/setgroups", "deny", proc)
  kernel.write("self/uid_map", f"{user} {user} 1", proc)
  kernel.write("self/gid_map", f"{group} {group} 1", proc)


def _threads_of(user):
  count = 0
  for name in filter(str.isdigit, os.listdir("/proc")):
    try:
      if os.stat(f"/proc/{name}").st_uid == user:
        count += len(os.listdir(f"/proc/{name}/task"))
    except OSError:
      pass  # It ended meanwhile, or hides its threads.
  return count


def _unshare(flags, what):
  kernel.call(kernel.LIBC.unshare, flags, what=f"making {what}")


def _mount(source, target, kind, flags, options=None):
  texts = (text and text.encode() for text in (source, target, kind))
  kernel.call(
    kernel.LIBC.mount,
    *texts,
    ctypes.c_ulong(flags),
    options and options.encode(),
    what=f"mounting {target}",
  )


if __name__ == "__main__":
  main(int(sys.argv[1]), int(sys.argv[2]))
