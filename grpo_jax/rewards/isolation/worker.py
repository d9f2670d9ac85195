"""The other side of `workers`: a process that forks workers, and what they do.

Run as `python -m grpo_jax.rewards.isolation.worker FD` by `workers.Pool`; FD is
a Unix socket to it. The process imports the functions to run, once, then forks
a worker whenever it is asked to; one is ready within milliseconds. It never
imports JAX, has one thread, and ends with its workers when the socket closes,
also when the pool's process was killed.

A worker runs pure functions on text that a model wrote. Once it begins, an
audit hook ends it where anything of that process would run text as code, start
a program, open a file for writing, or use the network.
"""

import ctypes
import gc
import importlib
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from grpo_jax.rewards.isolation import pipe

# Bytes of a message, in either direction.
MAX_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1
# Events of https://docs.python.org/3/library/audit_events.html. Beside them
# `exec` and `compile` are refused outside of imports, and `open` for writing.
_REFUSED = (
  "ctypes.",
  "ftplib.",
  "http.client.",
  "mmap.",
  "os.",
  "pty.",
  "shutil.",
  "signal.",
  "smtplib.",
  "socket.",
  "sqlite3.",
  "subprocess.",
  "tempfile.",
  "urllib.",
  "webbrowser.",
)
_ALLOWED = ("os.listdir", "os.scandir")  # What an import does.


def encode(message: Any) -> bytes:
  """The bytes of one message; ValueError if it is too long."""
  return pipe.encode(message, MAX_BYTES)


def receive(channel: socket.socket, wait: Callable[[], Any] = int) -> Any:
  """The next message.

  Args:
    channel: what it comes from.
    wait: called before each read, to set the time that is left.

  Raises:
    pipe.Gone: the other side is gone, or sent what `encode` does not make.
  """

  def read(count: int) -> bytes:
    wait()
    return channel.recv(count)

  return pipe.receive(read, MAX_BYTES)


def load(path: str) -> Callable[..., Any]:
  """The function that "package.module:function" names."""
  module, _, name = path.partition(":")
  return getattr(importlib.import_module(module), name)


def serve(control: socket.socket) -> None:
  """Answers requests of a pool until it is gone.

  `load` imports a function and calls `warm_up` of its module, if it has one.
  `fork` starts a worker on the socket that comes with it. `end` kills a worker
  with its process group; no worker is reaped before, so that its number cannot
  have come to mean another process.
  """
  logging.disable()
  workers = set()
  try:
    while True:
      data, fds, _, _ = socket.recv_fds(control, 1, 1)
      if not data:
        return
      request = receive(control)
      if "load" in request:
        control.sendall(encode(_prepare(request["load"])))
      elif "fork" in request:
        channel = socket.socket(fileno=fds[0])
        gc.freeze()  # The collector would write to pages that are shared.
        pid = os.fork()
        if not pid:
          control.close()
          _work(channel, request["fork"])
        channel.close()
        workers.add(pid)
        control.sendall(encode(pid))
      else:
        _end(request["end"])
        workers.discard(request["end"])
        control.sendall(encode(True))
  except (pipe.Gone, ConnectionError):
    pass
  finally:
    for pid in workers:
      _end(pid)


def _prepare(path: str) -> str:
  """What went wrong when the function was imported; empty if nothing did."""
  try:
    load(path)
    module = sys.modules[path.partition(":")[0]]
    getattr(module, "warm_up", int)()
    if "jax" in sys.modules:
      return f"{path} imports JAX, which a process that forks must not."
  except Exception as error:
    return f"{type(error).__name__}: {error}"
  return ""


def _end(pid: int) -> None:
  for kill in (os.killpg, os.kill):  # It may not have its group yet.
    try:
      kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
      pass
  os.waitpid(pid, 0)


def _work(channel: socket.socket, memory: int) -> None:
  """Runs items until the pool is gone; never returns."""
  try:
    os.setpgid(0, 0)
    _limit(memory)
    _refuse(channel)
    channel.sendall(encode("ready"))
    while True:
      path, arguments = receive(channel)
      try:
        reply = encode({"value": load(path)(*arguments)})
      except Exception as error:
        reply = encode({"error": f"{type(error).__name__}: {error}"[:1000]})
      channel.sendall(reply)
  except BaseException:
    pass
  finally:
    os._exit(1)


def _limit(memory: int) -> None:
  """Memory beyond what is shared, no core files, and death with the parent."""
  parent = os.getppid()
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with open("/proc/self/statm") as sizes:
      memory += int(sizes.read().split()[0]) * resource.getpagesize()
  if os.getppid() != parent:
    os._exit(1)
  resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _refuse(channel: socket.socket) -> None:
  """Ends this process where it would do what no grading needs."""
  sys.dont_write_bytecode = True

  def hook(event: str, arguments: tuple) -> None:
    if event in ("exec", "compile"):
      refused = not _importing()
    elif event == "open":
      _, mode, flags = arguments
      refused = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
      refused = event.startswith(_REFUSED) and event not in _ALLOWED
    if refused:
      # No exception: the libraries that run here catch all of them.
      channel.sendall(encode({"error": f"{event} is refused."}))
      os._exit(1)

  sys.addaudithook(hook)


def _importing() -> bool:
  """Whether the code that runs is that of a module which is being imported."""
  frame = sys._getframe()
  while frame is not None:
    if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
      return True
    frame = frame.f_back
  return False


if __name__ == "__main__":
  assert threading.active_count() == 1
  serve(socket.socket(fileno=int(sys.argv[1])))
