"""What a process may not do any more once it is inside: capabilities, seccomp, Landlock. It holds for whatever it
starts, for ever.

Capabilities: those that containers elsewhere have, without making device nodes and reading the network's packets (the
network is the machine's). seccomp refuses what could undo the walls: mounts, namespaces, kernel modules, tracing, the
clock. It answers EPERM, so that programs go on without; clone3 is "not there", since its flags lie in memory that a
filter cannot read, and libc then uses clone. Landlock adds what the others cannot say: no connections to abstract Unix
sockets of processes outside, which a shared network would allow.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct

from kedge.engines import kernel

_CAP_CHOWN, _CAP_DAC_OVERRIDE, _CAP_FOWNER, _CAP_FSETID, _CAP_KILL, _CAP_SETGID, _CAP_SETUID = 0, 1, 3, 4, 5, 6, 7
_CAP_SETPCAP, _CAP_NET_BIND_SERVICE, _CAP_SYS_CHROOT, _CAP_AUDIT_WRITE, _CAP_SETFCAP = 8, 10, 18, 29, 31
KEPT = (
    _CAP_CHOWN,
    _CAP_DAC_OVERRIDE,
    _CAP_FOWNER,
    _CAP_FSETID,
    _CAP_KILL,
    _CAP_SETGID,
    _CAP_SETUID,
    _CAP_SETPCAP,
    _CAP_NET_BIND_SERVICE,
    _CAP_SYS_CHROOT,
    _CAP_AUDIT_WRITE,
    _CAP_SETFCAP,
)
_PR_CAPBSET_DROP = 24
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 22, 38, 47
_AMBIENT_CLEAR_ALL = 4
_LAST_CAPABILITY = 63
_CAPABILITY_VERSION = 0x20080522
_SECCOMP_FILTER = 2
_CAPGET, _CAPSET = {"x86_64": (125, 126), "aarch64": (90, 91)}.get(platform.machine(), (-1, -1))

_NAMESPACES = 0x7E020080
"""All CLONE_NEW… flags."""
DENIED = {
    # name: (x86_64, aarch64); -1 where the processor has no such call
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, -1),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "lookup_dcookie": (212, 18),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "iopl": (172, -1),
    "ioperm": (173, -1),
    "modify_ldt": (154, -1),
    "nfsservctl": (180, 42),
    "move_pages": (279, 239),
    "kcmp": (312, 272),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
_UNSHARE = (272, 97)
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000


def prepare() -> None:
    """In a fork server: what is the same for all of its containers, and takes nothing from itself."""
    program()
    landlock_version()
    _narrow()


def confine() -> None:
    """Gives up everything that is not needed inside. OSError where the kernel cannot do that."""
    kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _scope()
    _drop_capabilities()
    code = program()
    buffer = ctypes.create_string_buffer(code, len(code))
    request = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer)), 16)
    kernel.prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, ctypes.addressof(request))


@functools.cache
def _narrow() -> None:
    """What neither this process nor a child of it can get any more by running another program."""
    for number in range(_LAST_CAPABILITY + 1):
        if number not in KEPT:
            try:
                kernel.prctl(_PR_CAPBSET_DROP, number)
            except OSError:  # the first that this kernel does not know
                break
    kernel.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)


def _drop_capabilities() -> None:
    _narrow()
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION, 0), 8)
    data = ctypes.create_string_buffer(24)
    kernel.syscall(_CAPGET, header, data)
    _, low, _, _, high, _ = struct.unpack("6I", data.raw)
    bits = sum(1 << number for number in KEPT) & (low | high << 32)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    data = ctypes.create_string_buffer(struct.pack("6I", low, low, 0, high, high, 0), 24)
    kernel.syscall(_CAPSET, header, data)


@functools.cache
def landlock_version() -> int:
    """0 where there is none."""
    try:
        return kernel.syscall(kernel.LANDLOCK_CREATE, 0, 0, 1)
    except OSError:
        return 0


def _scope() -> None:
    """No abstract Unix sockets of others (Landlock of Linux 6.12)."""
    if landlock_version() < 6:
        return
    rules = ctypes.create_string_buffer(struct.pack("3Q", 0, 0, 1), 24)
    descriptor = kernel.syscall(kernel.LANDLOCK_CREATE, rules, 24, 0)
    try:
        kernel.syscall(kernel.LANDLOCK_RESTRICT, descriptor, 0)
    finally:
        os.close(descriptor)


@functools.cache
def program(machine: str = "") -> bytes:
    """The seccomp filter, as instructions of 8 bytes. Pure."""
    column, architecture = _ARCHITECTURES[machine or platform.machine()]
    refuse = _REFUSE | errno.EPERM
    absent = _REFUSE | errno.ENOSYS
    numbers = sorted(pair[column] for pair in DENIED.values() if pair[column] >= 0)
    lines: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 4),  # the architecture
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, absent),  # calls of another processor's numbering
        (_LOAD, 0, 0, 0),  # the number
    ]
    if column == 0:
        lines += [(_JUMP_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, absent)]
    lines += [(_JUMP_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, absent)]
    for pair in (_CLONE, _UNSHARE):  # their first argument are flags
        lines += [
            (_JUMP_EQUAL, 0, 4, pair[column]),
            (_LOAD, 0, 0, 16),
            (_JUMP_ANY_BIT, 0, 1, _NAMESPACES),
            (_RETURN, 0, 0, refuse),
            (_RETURN, 0, 0, _ALLOW),
        ]
    lines += [(_JUMP_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, refuse)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)
