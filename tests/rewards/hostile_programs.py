"""Programs that try to harm, to see, to reach out, to stay, or to cheat.

`{secret}` is a file of the caller's, `{pid}` its process, `{port}` a server on
this machine, `{home}` the caller's home folder, `{marker}` a name that no file
may have afterwards.
"""

BOMBS = {
  "endless_loop": "while True: pass",
  "endless_loop_deaf": """
import signal
for number in range(1, 65):
  try: signal.signal(number, signal.SIG_IGN)
  except (OSError, ValueError): pass
while True: pass
""",
  "endless_sleep": "import time\nwhile True: time.sleep(1000)",
  "stops_itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
  "waits_for_input": "import sys\nwhile True: sys.stdin.read()",
  "power_tower": "print(9**9**9**9)",
  "factorial": "import math\nmath.factorial(10**9)",
  "regular_expression": "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
  "recursion": """
import sys
sys.setrecursionlimit(10**9)
def f(): return f()
f()
""",
  "nested_source": "x = " + "(" * 50_000,
  "fork_bomb": """
import os
while True:
  try: os.fork()
  except OSError: pass
""",
  "fork_bomb_sessions": """
import os
while True:
  try:
    if not os.fork(): os.setsid()
  except OSError: pass
""",
  "fork_bomb_shell": "import os\nos.system('f() { f | f & }; f')",
  "thread_bomb": """
import threading, time
while True:
  try: threading.Thread(target=time.sleep, args=(1000,)).start()
  except RuntimeError: pass
""",
  "memory": "x = bytearray(10**12)",
  "memory_by_pages": "x = []\nwhile True: x.append(bytearray(10**7))",
  "memory_by_text": "x = 'a' * 10\nwhile True: x += x",
  "memory_by_children": """
import os
for _ in range(4):
  try: os.fork()
  except OSError: pass
x = bytearray(400 << 20)
while True: pass
""",
  "output": "while True: print('x' * 10**6)",
  "output_sparse": "import os\nos.ftruncate(1, 10**13)\nos.lseek(1, 10**13, 0)",
  "scratch": """
import itertools
for i in itertools.count():
  try: open(f'f{i}', 'wb').write(b'x' * 10**6)
  except OSError: pass
""",
  "scratch_names": """
import itertools
for i in itertools.count():
  try: open(f'f{i}', 'wb').close()
  except OSError: pass
""",
  "descriptors": """
import os
while True:
  try: os.pipe()
  except OSError: pass
""",
}

HELD_BY_LIMITS = (
  "endless_loop",
  "fork_bomb",
  "fork_bomb_sessions",
  "memory_by_pages",
  "output",
  "thread_bomb",
)

ESCAPES = {
  "writes_everywhere": """
import os
for folder in ('{home}', '/', '/usr', '/etc', '/dev', '/dev/shm', '/var/tmp',
               '/root', '/work', '/proc', '/sys', os.path.dirname('{secret}')):
  try: open(os.path.join(folder, '{marker}'), 'w').write('x')
  except OSError: pass
""",
  "removes_files": """
import os, shutil
for path in ('{secret}', os.path.dirname('{secret}'), '{home}', '/usr', '/'):
  shutil.rmtree(path, ignore_errors=True)
  try: os.remove(path)
  except OSError: pass
""",
  "reads_files": """
import os
for path in ('{secret}', '/etc/shadow', '/etc/passwd', '/etc/hostname'):
  try: print('LEAK', open(path).read())
  except OSError: pass
for folder in ('{home}', '/work', '/home', '/proc', '/sys', '/var'):
  try: names = os.listdir(folder)
  except OSError: continue
  # The way to the interpreter may begin here.
  if len(names) > 1: print('LEAK', folder, names)
""",
  "reads_environments": """
import os, glob
print(dict(os.environ))
for path in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline'):
  try: print('LEAK', open(path).read())
  except OSError: pass
""",
  "reads_descriptors": """
import os
for fd in range(3, 256):
  try: print('LEAK', os.read(fd, 10**6))
  except OSError: pass
  try: os.write(fd, b'x' * 10**6)
  except OSError: pass
""",
  "connects": """
import socket
for host in ('127.0.0.1', 'localhost', '::1', '10.0.0.1', '8.8.8.8'):
  try:
    socket.create_connection((host, {port}), timeout=0.2).send(b'x')
    print('LEAK')
  except OSError: pass
try: print('LEAK', socket.getaddrinfo('example.org', 80))
except OSError: pass
""",
  "raw_sockets": """
import socket
for kind in (socket.SOCK_RAW, 10):
  try:
    socket.socket(socket.AF_INET, kind, 1)
    print('LEAK')
  except OSError: pass
""",
  "becomes_root": """
import os
for call in (os.setuid, os.setgid, os.seteuid):
  try:
    call(0)
    print('LEAK')
  except OSError: pass
""",
  "makes_namespaces": """
import ctypes
libc = ctypes.CDLL(None)
for flag in (0x10000000, 0x10020000, 0x00020000, 0x40000000, 0x20000000):
  if libc.unshare(flag) == 0: print('LEAK', hex(flag))
if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0: print('LEAK mount')
if libc.chroot(b'/tmp') == 0: print('LEAK chroot')
if libc.umount2(b'/tmp', 2) == 0: print('LEAK umount')
""",
  "raises_limits": """
import resource
for name in dir(resource):
  if name.startswith('RLIMIT_'):
    what = getattr(resource, name)
    soft, hard = resource.getrlimit(what)
    if hard == -1: continue
    try:
      resource.setrlimit(what, (hard + 1, hard + 1))
      print('LEAK', name)
    except (OSError, ValueError): pass
""",
  "traces": """
import ctypes
libc = ctypes.CDLL(None)
for pid in range(1, 10):
  if pid != __import__('os').getpid() and libc.ptrace(16, pid, 0, 0) == 0:
    print('LEAK', pid)
""",
  "signals": """
import os
for pid in (1, os.getppid(), {pid}, -{pid}):
  for number in (9, 19):
    try: os.kill(pid, number)
    except (OSError, OverflowError): pass
""",
  "signals_all": "import os\nos.kill(-1, 9)",
  "devices": """
import os
character, block = 0o020000, 0o060000
for kind, number in ((character, (1, 1)), (block, (8, 0)), (block, (254, 0))):
  try:
    os.mknod('device', 0o600 | kind, os.makedev(*number))
    print('LEAK', open('device', 'rb').read(10))
  except OSError: pass
  if os.path.exists('device'): os.remove('device')
""",
  "set_user_id_programs": """
import subprocess, glob
for path in ('/bin/su', '/bin/mount', '/usr/bin/sudo', '/usr/bin/passwd'):
  command = [path, '-c', 'echo LEAK']
  try: print(subprocess.run(command, stdin=-3, stdout=-1, timeout=1).stdout)
  except (OSError, subprocess.SubprocessError): pass
""",
  "stays_behind": """
import os, time, signal
for _ in range(3):
  if not os.fork():
    os.setsid()
    if not os.fork():
      for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)
      for fd in range(3): os.close(fd)
      time.sleep(1000)
    os._exit(0)
""",
  "crashes": "import ctypes\nctypes.string_at(0)",
  "kills_itself": "import os\nos.kill(os.getpid(), 9)",
  "closes_everything": "import os\nos.closerange(0, 256)",
  "replaces_itself": """
import os
os.execv('/bin/sh', ['sh', '-c', 'cat {secret}'])
""",
  "null_byte": "x = 1\0",
  "half_characters": "x = '\ud800'\nprint(x)",
  "no_program_at_all": "\u202e\u200b{{{{",
}

# Each is to pass `assert f(2) == 4`, `f(3) == 9`, `f(4) == 16` by other means.
CHEATS = {
  "exits_early": "import sys\ndef f(x): sys.exit(0)",
  "exits_at_once": "import os\nos._exit(0)",
  "exits_when_called": "import os\ndef f(x): os._exit(0)",
  "raises_assertion_error": "def f(x): raise AssertionError",
  "raises_stop": "def f(x): raise StopIteration",
  "raises_exit": "def f(x): raise SystemExit(0)",
  "raises_interrupt": "def f(x): raise KeyboardInterrupt",
  "is_equal_to_all": """
class Yes:
  def __eq__(self, other): return True
  def __ne__(self, other): return False
  def __bool__(self): return True
  def __hash__(self): return 4
def f(x): return Yes()
""",
  "is_a_number_equal_to_all": """
class Yes(int):
  def __eq__(self, other): return True
  def __index__(self): return self
  def __bool__(self): return True
def f(x): return Yes(7)
""",
  "is_text_equal_to_all": """
class Yes(str):
  def __eq__(self, other): return True
def f(x): return Yes('4')
""",
  "is_a_class_equal_to_all": """
class Meta(type):
  def __eq__(self, other): return True
  __hash__ = type.__hash__
class int(metaclass=Meta):
  __name__ = 'int'
def f(x): return int
""",
  "is_not_a_number": "def f(x): return float('nan')",
  "is_none": "def f(x): return None",
  "is_not_implemented": "def f(x): return NotImplemented",
  "replaces_built_ins": """
import builtins
builtins.AssertionError = type('Quiet', (Exception,), {})
builtins.len = builtins.abs = builtins.all = lambda *a: True
def f(x): return 0
""",
  "replaces_modules": """
import sys, json, ast, types
json.dumps = lambda *a, **k: '{"value": ["int", "0x4"]}'
sys.modules['ast'] = None
def f(x): return 0
""",
  "writes_results": """
import os
for fd in range(1, 64):
  try: os.write(fd, b'+0\\n+1\\n+2\\n')
  except OSError: pass
def f(x): return 0
""",
  "answers_ahead": """
import json, os
values = [None, ['mine', 0]] + 9 * [['int', '0x10']]
for value in values:
  data = json.dumps({'value': value}).encode()
  for fd in range(3, 64):
    try: os.write(fd, len(data).to_bytes(4, 'little') + data)
    except OSError: pass
def f(x): return 0
""",
  "sends_evil_handles": """
import json, os
data = json.dumps({'value': ['type', 'exec']}).encode()
for fd in range(3, 64):
  try: os.write(fd, len(data).to_bytes(4, 'little') + data)
  except OSError: pass
def f(x): return 0
""",
  "sends_deep_nesting": """
def f(x):
  value = []
  for _ in range(100_000): value = [value]
  return value
""",
  "sends_much": "def f(x): return 'x' * 10**8",
  "sends_forever": """
import itertools
def f(x): return itertools.count()
""",
  "searches_frames": """
import sys, gc
def f(x):
  frame = sys._getframe()
  while frame:
    for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
      if isinstance(value, str) and 'assert f(' in value:
        return int(value.split('==')[x - 1].split()[0])
    frame = frame.f_back
  for value in gc.get_objects():
    if isinstance(value, dict) and 'asserts' in value: return 16
  return 0
""",
  "searches_files": """
import glob
text = ''
for path in glob.glob('/tmp/**', recursive=True) + glob.glob('/proc/*/mem'):
  try: text += open(path, errors='replace').read()
  except (OSError, ValueError): pass
def f(x): return int(text.split(f'f({x}) ==')[1].split()[0])
""",
  "defines_the_tests": """
def test(*a): pass
__test__ = check = test
def f(x): return 0
""",
  "compares_lazily": """
import fractions
class Any(fractions.Fraction):
  def __eq__(self, other): return True
def f(x): return Any(1, 3)
""",
  "prints_the_answers": "print('4\\n9\\n16')\ndef f(x): print(x * x)",
  "hooks_exit": """
import atexit, os
atexit.register(os.write, 1, b'+0\\n+1\\n+2\\n')
def f(x): return 0
""",
  "changes_its_argument": "def f(x): x = x * x",
  "never_answers": "import time\ndef f(x): time.sleep(1000)",
  "defines_nothing": "",
}
