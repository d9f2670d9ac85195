"""Programs that try the doors which namespaces and limits leave open.

Each prints LEAK where a door opened. `{pid}` is the caller's process, `{key}`
the name of a key that its session holds, `{marker}` a name that no file may
have afterwards.
"""

_CALLS = """
import ctypes, errno, os, platform
libc = ctypes.CDLL(None, use_errno=True)
column = ("x86_64", "aarch64").index(platform.machine())
def call(numbers, *arguments):
  if numbers[column] < 0: return
  result = libc.syscall(ctypes.c_long(numbers[column]), *arguments)
  if result >= 0 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
    print("LEAK", numbers, arguments, result, ctypes.get_errno())
"""

# Programs that find out whether calls are refused.
PROBES = {
  "keyrings": _CALLS
  + """
call((248, 217), b"user", b"{key}-left", b"value", 5, -3)
call((249, 218), b"user", b"{key}", None, -3)
for operation in range(33):
  call((250, 219), operation, -3, b"user", b"{key}", 0)
""",
  "sockets": """
import errno, socket
for family in range(60):
  if family in (1, 2, 10): continue
  for kind in (1, 2, 3, 5):
    try:
      socket.socket(family, kind)
      print("LEAK", family, kind)
    except OSError as error:
      if error.errno != errno.EAFNOSUPPORT: print("LEAK", family, kind, error)
""",
  "shared_memory": _CALLS
  + """
call((29, 194), 0, 1 << 20, 0o1666)
call((30, 196), 0, None, 0)
call((64, 190), 0, 1, 0o1666)
call((68, 186), 0, 0o1666)
call((240, 180), b"{marker}", 0o102, 0o666, None)
call((319, 279), b"{marker}", 0)
call((447, 447), 0)
""",
  "shared_memory_files": """
import os
from multiprocessing import shared_memory
try:
  shared_memory.SharedMemory("{marker}", create=True, size=1 << 20)
  print("LEAK")
except OSError: pass
for folder in ("/dev/shm", "/var/tmp", "/run/lock", "/dev/mqueue"):
  try: open(folder + "/{marker}", "wb").write(bytes(1 << 20)); print("LEAK")
  except OSError: pass
""",
  "kernel": _CALLS
  + """
call((323, 282), 1)
call((425, 425), 8, ctypes.create_string_buffer(256))
call((206, 0), 8, ctypes.byref(ctypes.c_long()))
call((321, 280), 0, ctypes.create_string_buffer(128), 128)
call((298, 241), ctypes.create_string_buffer(128), 0, -1, -1, 0)
call((317, 277), 2, 0, None)
call((135, 92), 0xFFFFFFFF)
call((300, 262), 0, 0)
call((303, 264), -100, b"/", ctypes.create_string_buffer(256), None, 0)
call((304, 265), -100, ctypes.create_string_buffer(256), 0)
call((246, 104), 0, 0, None, 0)
call((313, 273), 0, b"", 0)
call((169, 142), 0, 0, 0, None)
call((103, 116), 3, ctypes.create_string_buffer(64), 64)
call((9999, 9999))
call((437, 437), -100, b"/", ctypes.create_string_buffer(24), 24)
""",
  "namespaces": _CALLS
  + """
for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000,
             0x40000000, 0x80):
  call((272, 97), flag)
  if flag != 0x80: call((56, 220), flag | 17, 0, 0, 0, 0)
call((435, 435), ctypes.create_string_buffer(88), 88)
call((308, 268), 0, 0)
call((165, 40), b"none", b"/tmp", b"tmpfs", 0, None)
call((428, 428), -100, b"/", 1)
call((430, 430), b"tmpfs", 0)
call((161, 51), b".")
""",
  "other_processes": _CALLS
  + """
for pid in (1, os.getppid(), {pid}):
  call((101, 117), 16, pid, 0, 0)
  call((310, 270), pid, None, 0, None, 0, 0)
  call((302, 261), pid, 0, ctypes.create_string_buffer(16), None)
  call((203, 122), pid, 8, ctypes.create_string_buffer(8))
  call((141, 140), 0, pid, 19)
  call((144, 119), pid, 5, ctypes.create_string_buffer(4))
  call((251, 30), 1, pid, 3 << 13)
  call((312, 272), pid, pid, 0, 0, 0)
r, w = os.pipe()
for command in (8, 10, 15, 1031): call((72, 25), r, command, {pid})
for command in (0x8901, 0x8902, 0x5412): call((16, 29), r, command, b"")
""",
  "another_kind_of_calls": """
import ctypes, os, platform
if platform.machine() == "x86_64":
  libc = ctypes.CDLL(None)
  if libc.syscall(ctypes.c_long(0x40000000 + 39)) > 0: print("LEAK x32")
""",
  "calls_of_32_bits": """
import ctypes, mmap, platform
if platform.machine() == "x86_64":
  page = mmap.mmap(-1, 4096, prot=7)
  page.write(bytes.fromhex("b814000000cd80c3"))  # getpid, int 0x80.
  address = ctypes.addressof(ctypes.c_char.from_buffer(page))
  print("LEAK", ctypes.CFUNCTYPE(ctypes.c_int)(address)())
""",
}

# Programs that would harm who runs them, or stay.
HARM = {
  "signals_to_all": """
import os, signal
for pid in (1, os.getppid(), {pid}, -{pid}, -1):
  for number in list(range(1, 65)):
    if pid == -1 and number in (9, 19): continue
    try: os.kill(pid, number)
    except OSError: pass
""",
  "deep_folders": """
import os
while True:
  try:
    os.mkdir("x")
    os.chdir("x")
  except OSError: break
""",
  "many_deep_folders": """
import os, itertools
for i in itertools.count():
  try: os.makedirs(f"{{i}}/" + "a/" * 50)
  except OSError: break
  try: os.chmod(f"{{i}}", 0)
  except OSError: pass
""",
  "files_everywhere": """
import os
for folder in (".", "/dev/shm", "/tmp", "/var/tmp", os.path.expanduser("~"),
               "/run/lock", "/run/user/%d" % os.getuid()):
  try: open(folder + "/{marker}", "wb").write(bytes(1 << 20))
  except OSError: pass
""",
  "much_scratch": """
for i in range(100_000):
  try: open(str(i), "wb").write(bytes(1 << 20))
  except OSError: pass
""",
  "deleted_files": """
import os
files = []
for i in range(60):
  try:
    files.append(open(str(i), "wb", 0))
    os.unlink(str(i))
    files[-1].write(bytes(4 << 20))
  except OSError: pass
while True: pass
""",
  "links": """
import os
for name in ("/etc", "/root", "/tmp", "/dev/shm"):
  try: os.symlink(name, name.strip("/").replace("/", "-"))
  except OSError: pass
""",
}

# Programs that hold memory by several ways; each prints MiB that it holds,
# all of its processes together.
MEMORY = {
  "children": """
import os, time
r, w = os.pipe()
for _ in range(6):
  if not os.fork():
    held = []
    while True:
      held.append(bytearray(os.urandom(1 << 20)))
      os.write(w, b"x")
total = 0
while True:
  total += len(os.read(r, 1))
  print(total, flush=True)
""",
  "shared_maps": """
import mmap, os
held = []
for i in range(1 << 16):
  try: page = mmap.mmap(-1, 1 << 20)
  except OSError:
    if os.fork(): os.wait()
    held = []
    continue
  page.write(os.urandom(1 << 20))
  held.append(page)
  print(len(held), flush=True)
""",
  "segments": """
import ctypes
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
for i in range(1, 2000):
  place = libc.shmat(libc.shmget(0, 1 << 20, 0o1666), None, 0)
  if place in (None, 2**64 - 1): break
  ctypes.memset(place, 1, 1 << 20)
  libc.shmdt(ctypes.c_void_p(place))
  print(i, flush=True)
""",
  "files_under_way": """
import array, os, socket
ours, theirs = socket.socketpair()
for i in range(1, 2000):
  try: fd = os.memfd_create("x")
  except OSError: break
  os.write(fd, bytes(1 << 20))
  ours.sendmsg([b"x"], [(1, 1, array.array("i", [fd]))])
  os.close(fd)
  print(i, flush=True)
""",
  "pipes": """
import fcntl, os
total, kept = 0, []
for child in range(6):
  try:
    while True:
      r, w = os.pipe()
      kept.append((r, w))
      try: fcntl.fcntl(w, 1031, 1 << 20)
      except OSError: pass
      os.set_blocking(w, False)
      try:
        while True: total += os.write(w, bytes(1 << 16))
      except BlockingIOError: pass
      print(total >> 20, flush=True)
  except OSError: pass
  if os.fork():
    os.wait()
    break
  for pair in kept:
    for fd in pair: os.close(fd)
""",
}
