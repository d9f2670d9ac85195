"""A filter of system calls for programs, seccomp(2).

Namespaces and limits leave doors: keyrings belong to no namespace, AF_VSOCK to
none of the network's, shared memory and files in memory count to no limit of a
process. The filter refuses them, and what else a program that computes has no
use for and that defects of kernels were found in: with an error and not with a
kill, so that a library can do without. Calls that are newer than this table
are "not implemented", as on an older kernel.

The standard library alone: the launcher imports this file as its neighbor.
"""

import ctypes
import errno
import os
from collections.abc import Sequence

import kernel

# Numbers on x86-64 and on 64-bit ARM; -1 where there is none.
_REFUSED = {
  # Keyrings.
  "add_key": (248, 217),
  "request_key": (249, 218),
  "keyctl": (250, 219),
  # Shared memory, semaphores and messages of System V and POSIX; files in
  # memory.
  "shmget": (29, 194),
  "shmat": (30, 196),
  "shmctl": (31, 195),
  "semget": (64, 190),
  "semop": (65, 193),
  "semtimedop": (220, 192),
  "semctl": (66, 191),
  "msgget": (68, 186),
  "msgsnd": (69, 189),
  "msgrcv": (70, 188),
  "msgctl": (71, 187),
  "mq_open": (240, 180),
  "mq_unlink": (241, 181),
  "mq_timedsend": (242, 182),
  "mq_timedreceive": (243, 183),
  "mq_notify": (244, 184),
  "mq_getsetattr": (245, 185),
  "memfd_create": (319, 279),
  "memfd_secret": (447, 447),
  # Pages.
  "userfaultfd": (323, 282),
  "remap_file_pages": (216, 234),
  "move_pages": (279, 239),
  "migrate_pages": (256, 238),
  "mbind": (237, 235),
  "set_mempolicy": (238, 237),
  "set_mempolicy_home_node": (450, 450),
  "vmsplice": (278, 75),
  # Other processes.
  "ptrace": (101, 117),
  "process_vm_readv": (310, 270),
  "process_vm_writev": (311, 271),
  "process_madvise": (440, 440),
  "process_mrelease": (448, 448),
  "kcmp": (312, 272),
  "pidfd_getfd": (438, 438),
  "pidfd_send_signal": (424, 424),
  "sched_setaffinity": (203, 122),
  "sched_setattr": (314, 274),
  "sched_setparam": (142, 118),
  "sched_setscheduler": (144, 119),
  "setpriority": (141, 140),
  "ioprio_set": (251, 30),
  # Queues to the kernel.
  "io_uring_setup": (425, 425),
  "io_uring_enter": (426, 426),
  "io_uring_register": (427, 427),
  "io_setup": (206, 0),
  "io_submit": (209, 2),
  "io_pgetevents": (333, 292),
  # Namespaces and mounts.
  "unshare": (272, 97),
  "setns": (308, 268),
  "chroot": (161, 51),
  "pivot_root": (155, 41),
  "mount": (165, 40),
  "umount2": (166, 39),
  "mount_setattr": (442, 442),
  "open_tree": (428, 428),
  "move_mount": (429, 429),
  "fsopen": (430, 430),
  "fsconfig": (431, 431),
  "fsmount": (432, 432),
  "fspick": (433, 433),
  "statmount": (457, 457),
  "listmount": (458, 458),
  "swapon": (167, 224),
  "swapoff": (168, 225),
  "quotactl": (179, 60),
  "quotactl_fd": (443, 443),
  "acct": (163, 89),
  "name_to_handle_at": (303, 264),
  "open_by_handle_at": (304, 265),
  "fanotify_init": (300, 262),
  "fanotify_mark": (301, 263),
  # The kernel and the machine.
  "bpf": (321, 280),
  "perf_event_open": (298, 241),
  "seccomp": (317, 277),
  "personality": (135, 92),
  "kexec_load": (246, 104),
  "kexec_file_load": (320, 294),
  "init_module": (175, 105),
  "finit_module": (313, 273),
  "delete_module": (176, 106),
  "reboot": (169, 142),
  "syslog": (103, 116),
  "lookup_dcookie": (212, 18),
  "sethostname": (170, 161),
  "setdomainname": (171, 162),
  "settimeofday": (164, 170),
  "clock_settime": (227, 112),
  "clock_adjtime": (305, 266),
  "adjtimex": (159, 171),
  "vhangup": (153, 58),
  "iopl": (172, -1),
  "ioperm": (173, -1),
  "modify_ldt": (154, -1),
  "uselib": (134, -1),
  "ustat": (136, -1),
  "sysfs": (139, -1),
}
# Would outlive the program where files are those of the machine.
_OF_OWNERS = {
  "truncate": (76, 45),
  "chmod": (90, -1),
  "fchmod": (91, 52),
  "fchmodat": (268, 53),
  "fchmodat2": (452, 452),
  "chown": (92, -1),
  "fchown": (93, 55),
  "lchown": (94, -1),
  "fchownat": (260, 54),
  "utime": (132, -1),
  "utimes": (235, -1),
  "futimesat": (261, -1),
  "utimensat": (280, 88),
  "setxattr": (188, 5),
  "lsetxattr": (189, 6),
  "fsetxattr": (190, 7),
  "removexattr": (197, 14),
  "lremovexattr": (198, 15),
  "fremovexattr": (199, 16),
}
_OF_WRITERS = {
  "creat": (85, -1),
  "mkdir": (83, -1),
  "mkdirat": (258, 34),
  "mknod": (133, -1),
  "mknodat": (259, 33),
  "link": (86, -1),
  "linkat": (265, 37),
  "symlink": (88, -1),
  "symlinkat": (266, 36),
  "rename": (82, -1),
  "renameat": (264, 38),
  "renameat2": (316, 276),
  "unlink": (87, -1),
  "unlinkat": (263, 35),
  "rmdir": (84, -1),
}
# Their arguments decide.
_DECIDED = {
  "open": (2, -1),
  "openat": (257, 56),
  "openat2": (437, 437),
  "clone": (56, 220),
  "clone3": (435, 435),
  "socket": (41, 198),
  "socketpair": (53, 199),
  "prlimit64": (302, 261),
  "ioctl": (16, 29),
  "fcntl": (72, 25),
  "prctl": (157, 167),
  "kill": (62, 129),
  "tkill": (200, 130),
  "tgkill": (234, 131),
  "rt_sigqueueinfo": (129, 138),
  "rt_tgsigqueueinfo": (297, 240),
}
_LAST = 462  # The newest call that was looked at.

# A machine's column of the tables, and its mark in what the filter is shown.
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, UTS, IPC, USER, PID, NET
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
# Settings by which a descriptor sends signals to any process of the user, and
# the size of a pipe's buffer.
_FCNTLS = (8, 10, 15, 1031)  # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETPIPE_SZ
_IOCTLS = (0x8901, 0x8902, 0x5412, 0x541C)  # Owners; input of a terminal.
_WRITING = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _IF_EQUAL, _IF_ABOVE, _IF_ANY, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000


def supported() -> bool:
  """Whether the kernel filters system calls and their numbers are known."""
  # Told to read a filter at no address, a kernel that has them faults.
  kernel.LIBC.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), None, 0, 0)
  faulted = ctypes.get_errno() == errno.EFAULT
  return faulted and os.uname().machine in _MACHINES


def install(*, confined: bool, writes: bool) -> None:
  """Filters the calls of this process from now on, for good.

  Args:
    confined: it is in namespaces of its own. If not, it also makes no sockets
      but pairs, signals nothing but itself, and changes no owners or modes.
    writes: it may open files for writing and change folders.
  """
  code = rules(os.uname().machine, confined, writes, os.getpid())
  packed = b"".join(
    kind.to_bytes(2, "little")
    + bytes((then, otherwise))
    + value.to_bytes(4, "little")
    for kind, then, otherwise, value in code
  )
  program = (ctypes.c_byte * len(packed)).from_buffer_copy(packed)

  class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

  kernel.call(
    kernel.LIBC.prctl,
    _PR_SET_SECCOMP,
    ctypes.c_ulong(_MODE_FILTER),
    ctypes.byref(_Filter(len(code), ctypes.addressof(program))),
    0,
    0,
    what="filtering system calls",
  )


_Instruction = tuple[int, int, int, int]


def rules(
  machine: str, confined: bool, writes: bool, own: int
) -> list[_Instruction]:
  """The filter's program, in the kernel's classic BPF.

  Args:
    machine: as `os.uname` names it.
    confined: see `install`.
    writes: see `install`.
    own: the process's number.
  """
  column, mark = _MACHINES[machine]
  families = [_AF_UNIX, _AF_INET, _AF_INET6] if confined else []
  decided: dict[str, list[_Instruction]] = {
    "clone": _refuse_bits(0, _NEW_NAMESPACES),
    "clone3": [_error(errno.ENOSYS)],  # The C library then takes `clone`.
    "openat2": [_error(errno.ENOSYS)],
    "socket": _allow_only(0, families, errno.EAFNOSUPPORT),
    "socketpair": _allow_only(0, [_AF_UNIX], errno.EAFNOSUPPORT),
    "prlimit64": _allow_only(0, [0]),  # Of itself alone.
    "ioctl": _refuse_values(1, _IOCTLS),
    "fcntl": _refuse_values(1, _FCNTLS),
  }
  refused = dict(_REFUSED)
  if not confined:
    refused |= _OF_OWNERS
    decided["kill"] = _allow_only(0, [0, own])
    decided["tgkill"] = _allow_only(0, [own])
    for name in ("tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
      decided[name] = [_error()]
    # What hides from its keeper how much it holds.
    decided["prctl"] = _refuse_values(0, [kernel.PR_SET_DUMPABLE])
  if not writes:
    refused |= _OF_WRITERS
    decided["open"] = _refuse_bits(1, _WRITING)
    decided["openat"] = _refuse_bits(2, _WRITING)
  code = [(_LOAD, 0, 0, 4), (_IF_EQUAL, 1, 0, mark), (_RETURN, 0, 0, _KILL)]
  code.append((_LOAD, 0, 0, 0))
  # The second kind of calls on x86-64 is above all others.
  code += [(_IF_ABOVE, 0, 1, _LAST), _error(errno.ENOSYS)]
  for numbers in refused.values():
    if numbers[column] >= 0:
      code += _where(numbers[column], [_error()])
  for name, action in decided.items():
    if _DECIDED[name][column] >= 0:
      code += _where(_DECIDED[name][column], action)
  return [*code, (_RETURN, 0, 0, _ALLOW)]


def _where(number: int, action: Sequence[_Instruction]) -> list[_Instruction]:
  """An action, which ends in a return, for one call."""
  return [(_IF_EQUAL, 0, len(action), number), *action]


def _error(number: int = errno.EPERM) -> _Instruction:
  return (_RETURN, 0, 0, _ERROR | number)


def _argument(index: int) -> _Instruction:
  """Loads the lower half, which is all of an int, of an argument."""
  return (_LOAD, 0, 0, 16 + 8 * index)


def _refuse_bits(index: int, bits: int) -> list[_Instruction]:
  return [
    _argument(index),
    (_IF_ANY, 0, 1, bits),
    _error(),
    (_RETURN, 0, 0, _ALLOW),
  ]


def _refuse_values(index: int, values: Sequence[int]) -> list[_Instruction]:
  code = [_argument(index)]
  for value in values:
    code += [(_IF_EQUAL, 0, 1, value), _error()]
  return [*code, (_RETURN, 0, 0, _ALLOW)]


def _allow_only(
  index: int, values: Sequence[int], error: int = errno.EPERM
) -> list[_Instruction]:
  code = [_argument(index)]
  for value in values:
    code += [(_IF_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
  return [*code, _error(error)]
