"""The program that a command of a build runs under: private namespaces, an overlay as root, and an end for everything.

`python chamber.py PLAN COMMAND…` runs COMMAND in what PLAN (a `Plan` as JSON) describes, with the environment and the
output that it has itself, and ends with the command's exit code; 125 and a line on standard error where the place could
not be made. Mounts and processes live in namespaces of their own, whose first process dies with this one, as this one
dies with whoever started it: nothing is left behind, whatever happens.

Only the standard library is imported: this runs once for each command.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

NOT_ENTERED = 125
"""Exit code where the command was not even tried."""

PID_FILE = "pid"
"""In the stage: the process whose end is the end of everything."""

_NEWNS, _NEWIPC, _NEWUSER, _NEWPID = 0x00020000, 0x08000000, 0x10000000, 0x20000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP = 1, 24
_KEPT_CAPABILITIES = frozenset([0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31])
"""What installers need: ownership and modes of files, other users, low ports, chroot, device files. Not: mounting,
modules, the clock, tracing, the machine's network settings."""
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"), ("ptmx", "pts/ptmx"))
_OPTIONS_ROOM = 4000
"""mount(2) takes one page of options."""


@dataclass(frozen=True)
class Overlay:
    """`lower` uppermost first; `upper` takes what is written, `work` is an empty directory of the same file system.
    Without them it is read-only."""

    lower: tuple[str, ...]
    upper: str = ""
    work: str = ""


@dataclass(frozen=True)
class Bound:
    source: str
    target: str
    read_only: bool = True
    deep: bool = True
    """With what is mounted below it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a command sees. Without a `root` it is the machine's files, and still ends with all its children."""

    directory: str = "/"
    stage: str = ""
    """A directory for mount points."""
    root: Overlay | None = None
    """The lowest of `lower` is the base. What is there only for the time of a command lies right above it."""
    packages: str = ""
    """Where the Python environment lies."""
    package_overlay: Overlay | None = None
    binds: tuple[Bound, ...] = ()
    volumes: tuple[tuple[str, Overlay], ...] = ()
    """By where they are seen."""
    files: tuple[tuple[str, str], ...] = ()
    """Small files such as /etc/resolv.conf, below everything that the image itself has written."""
    users: tuple[tuple[int, int], ...] = ()
    """(first, count) of the subordinate user ids, then of the group ids; empty: no user namespace."""

    def text(self) -> str:
        return json.dumps(dataclasses.asdict(self))


def parsed(text: str) -> Plan:
    given = json.loads(text)
    for name in ("root", "package_overlay"):
        given[name] = given[name] and Overlay(**given[name])
    given["binds"] = tuple(Bound(**bound) for bound in given["binds"])
    given["volumes"] = tuple((target, Overlay(**volume)) for target, volume in given["volumes"])
    return Plan(**given)


_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    plan, command = parsed(sys.argv[1]), sys.argv[2:]
    _die_with_parent()
    try:
        if plan.users:
            _become_root_of_own(plan.users)
        _call("unshare", _NEWPID)
    except OSError as error:
        _refuse(error)
    child = os.fork()
    if child == 0:
        _first(plan, command)
    if plan.stage:
        with open(os.path.join(plan.stage, PID_FILE), "w", encoding="ascii") as file:
            file.write(str(child))
    os._exit(_code(os.waitpid(child, 0)[1]))


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _first(plan: Plan, command: Sequence[str]) -> NoReturn:
    """Process 1 of the namespace: everything in it ends when it does."""
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _call("unshare", _NEWNS | _NEWIPC)
        _mount("", "/", "", _REC | _PRIVATE)
        if plan.root is None:
            _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
        else:
            _enter(plan, plan.root)
            for capability in range(64):
                if capability not in _KEPT_CAPABILITIES:
                    _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        os.umask(0o022)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.makedirs(plan.directory, exist_ok=True)
        os.chdir(plan.directory)
    except OSError as error:
        _refuse(error)
    pid = os.fork()
    if pid == 0:
        _execute(command)
    while True:
        ended, status = os.wait()
        if ended == pid:
            os._exit(_code(status))


def _code(status: int) -> int:
    """As shells say it: 128 + n for a signal."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _execute(command: Sequence[str]) -> NoReturn:
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(command[0], list(command))
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _refuse(error: OSError) -> NoReturn:
    os.write(2, f"kedge: no place for the command: {error}\n".encode())
    os._exit(NOT_ENTERED)


# ---------------------------------------------------------------- the root


def _enter(plan: Plan, root: Overlay) -> None:
    skeleton, top = os.path.join(plan.stage, "skeleton"), os.path.join(plan.stage, "root")
    for directory in (skeleton, top):
        os.makedirs(directory, exist_ok=True)
    _mount("tmpfs", skeleton, "tmpfs", 0, "mode=755")
    _furnish(plan, skeleton, root.lower[-1])
    in_user_namespace = bool(plan.users)
    _overlay(Overlay((*root.lower[:-1], skeleton, root.lower[-1]), root.upper, root.work), top, in_user_namespace)
    _mount("proc", top + "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    _mount("/sys", top + "/sys", "", _BIND | _REC)
    _mount("", top + "/sys", "", _BIND | _REMOUNT | _RDONLY | _NOSUID | _NODEV | _NOEXEC)
    if os.path.isdir("/sys/fs/cgroup"):
        _mount("tmpfs", top + "/sys/fs/cgroup", "tmpfs", _RDONLY | _NOSUID | _NODEV | _NOEXEC)
    _devices(top + "/dev")
    for bound in plan.binds:
        _mount(bound.source, top + bound.target, "", _BIND | (_REC if bound.deep else 0))
        if bound.read_only:
            _mount("", top + bound.target, "", _BIND | _REMOUNT | _RDONLY | _locked_flags(top + bound.target))
    if plan.package_overlay is not None:
        _overlay(plan.package_overlay, top + plan.packages, in_user_namespace)
    for target, volume in plan.volumes:
        _overlay(volume, top + target, in_user_namespace)
    os.chdir(top)
    number = _PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        os.chroot(".")
    elif _libc.syscall(number, b".", b".") != 0:
        raise _failure("pivot_root")
    else:
        _call("umount2", b".", _DETACH)
    os.chdir("/")


def _furnish(plan: Plan, skeleton: str, base: str) -> None:
    """Mount points that the base lacks, and the files of this moment: in memory, so that no layer ever holds them."""
    targets = [(bound.target, os.path.isdir(bound.source)) for bound in plan.binds]
    targets += [(plan.packages, True)] if plan.package_overlay is not None else []
    targets += [(target, True) for target, _ in plan.volumes]
    for target, is_directory in [("/proc", True), ("/sys", True), ("/dev", True), *targets]:
        if not os.path.lexists(base + target):
            _directories(skeleton, base, target if is_directory else os.path.dirname(target))
            if not is_directory:
                os.close(os.open(skeleton + target, os.O_CREAT | os.O_WRONLY, 0o644))
    for target, text in plan.files:
        _directories(skeleton, base, os.path.dirname(target))
        with open(skeleton + target, "w", encoding="utf-8") as file:
            file.write(text)


def _directories(skeleton: str, base: str, path: str) -> None:
    """As the base has them: in an overlay the uppermost directory's owner and mode hold."""
    here = ""
    for part in path.strip("/").split("/"):
        here += "/" + part
        if not os.path.isdir(skeleton + here):
            os.mkdir(skeleton + here, 0o755)
            if os.path.isdir(base + here):
                found = os.stat(base + here)
                os.chown(skeleton + here, found.st_uid, found.st_gid)
                os.chmod(skeleton + here, stat.S_IMODE(found.st_mode))


def _overlay(overlay: Overlay, target: str, in_user_namespace: bool) -> None:
    """Paths are given relative to what they have in common: ids are long, and the kernel takes one page of options."""
    if not overlay.upper and len(overlay.lower) == 1:  # older kernels take no overlay of one
        _mount(overlay.lower[0], target, "", _BIND)
        _mount("", target, "", _BIND | _REMOUNT | _RDONLY | _locked_flags(target))
        return
    paths = [*overlay.lower, *((overlay.upper, overlay.work) if overlay.upper else ())]
    common = os.path.commonpath(paths)
    short = [
        os.path.relpath(path, common).replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:") for path in paths
    ]
    options = f"lowerdir={':'.join(short[: len(overlay.lower)])}"
    options += f",upperdir={short[-2]},workdir={short[-1]}" if overlay.upper else ""
    options += ",userxattr" if in_user_namespace else ",redirect_dir=off,index=off,metacopy=off"
    if len(options) > _OPTIONS_ROOM:
        raise OSError(
            f"an image of {len(overlay.lower)} layers has too many; join some of its steps, as in "
            f"run_commands('a', 'b')"
        )
    os.chdir(common)
    _mount("overlay", target, "overlay", 0, options)
    os.chdir("/")


def _devices(target: str) -> None:
    _mount("tmpfs", target, "tmpfs", _NOSUID, "mode=755")
    for name in _DEVICES:
        os.close(os.open(f"{target}/{name}", os.O_CREAT | os.O_WRONLY, 0o666))
        _mount(f"/dev/{name}", f"{target}/{name}", "", _BIND)
    for name, leads_to in _LINKS:
        os.symlink(leads_to, f"{target}/{name}")
    for name, kind, options in (("pts", "devpts", "newinstance,ptmxmode=0666,mode=620"), ("shm", "tmpfs", "mode=1777")):
        os.mkdir(f"{target}/{name}")
        _mount(kind, f"{target}/{name}", kind, _NOSUID | _NOEXEC, options)


def _locked_flags(path: str) -> int:
    """In a user namespace a remount must keep what the machine's own mount had."""
    flags = os.statvfs(path).f_flag
    return sum(
        flag for bit, flag in ((os.ST_NOSUID, _NOSUID), (os.ST_NODEV, _NODEV), (os.ST_NOEXEC, _NOEXEC)) if flags & bit
    )


# ---------------------------------------------------------------- without root


def _become_root_of_own(users: Sequence[tuple[int, int]]) -> None:
    """A user namespace in which we are root and the subordinate ids are everybody else. The map is written from outside
    of it, by newuidmap."""
    pid, uid, gid = os.getpid(), os.getuid(), os.getgid()
    ready, go = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        os.close(go)
        os.read(ready, 1)
        for tool, own, (first, count) in (("newuidmap", uid, users[0]), ("newgidmap", gid, users[1])):
            words = [tool, str(pid), "0", str(own), "1", "1", str(first), str(count)]
            if subprocess.run(words, check=False).returncode != 0:
                os._exit(1)
        os._exit(0)
    os.close(ready)
    _call("unshare", _NEWUSER)
    os.write(go, b"1")
    os.close(go)
    if os.waitpid(mapper, 0)[1] != 0:
        raise OSError("newuidmap refused the ids of /etc/subuid and /etc/subgid")
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


# ---------------------------------------------------------------- the kernel


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()) != 0:
        raise _failure(f"mounting {kind or source or 'again'} at {target}")


def _call(name: str, *arguments: int | bytes) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        raise _failure(name)


def _failure(what: str) -> OSError:
    return OSError(f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
