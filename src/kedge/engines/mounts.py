"""The file system of a container, put together from its Isolation in a mount namespace of its own.

Everything that is to be seen is opened on the machine first, as mounts that are attached nowhere; then they are
attached inside the new root. So a link in an image never leads out of it, neither while it is built nor later.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from kedge.engines import kernel, system
from kedge.engines.cover import Cover
from kedge.model.spec import Bind, Isolation, VolumeMount

UPPER, WORK, HIDDEN = "upper", "work", "hidden"
"""Directories of a scratch directory."""
ROOT, STAGE = ".root", ".stage"
"""Beside the scratch directories: empty directories, over which each container's processes mount what is their own."""
OWN, MACHINES, NOBODYS = "own", "the machine's", "nobody's"
_NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
NOTHING, _EMPTY = "/dev/null", "/dev/.empty"
"""Who binds these to a file or a directory hides it."""
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
_GIVEN = ("proc", "sys", "dev")
"""Directories of the root that are made, never the machine's."""
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_COVERED = ("acpi", "kcore", "keys", "latency_stats", "timer_list", "sched_debug", "scsi")
"""Parts of /proc that belong to the whole machine."""
_LONGEST_OPTIONS = 4000
"""Bytes that mount(2) takes as options, less a little."""


class Piece(NamedTuple):
    """A mount that is attached nowhere, and where it belongs inside."""

    descriptor: int
    target: str
    directory: bool


def build(isolation: Isolation, scratch: str, needed: Sequence[str] = (), proc: str = OWN) -> str:
    """Puts a container's root together and returns its path, for `move_in`. The process must have mounts of its own
    (`part`); OSError names the path that could not be had.

    `needed` are directories of the engine's own that must be there. `proc` says whose processes the present /proc
    shows, which is inside too: OWN, those of a pid namespace whose first process is in the same mount namespace as this
    one; NOBODYS leaves that to somebody else.
    """
    root, stage = root_of(scratch), stage_of(scratch)
    for path in (root, stage, os.path.join(scratch, UPPER), os.path.join(scratch, WORK)):
        _make_directory(path)
    pieces = [_device(path) for path in isolation.devices]
    last = [] if proc == NOBODYS else [Piece(kernel.copy_tree("/proc"), "/proc", True)]
    pieces.append(_shown(Bind("/sys", "/sys")))
    if not isolation.shares_files:
        pieces += _packages(isolation, scratch)
        pieces += [_shown(Bind(path, path)) for path in _out_of_sight(isolation, needed)]
    pieces += [_shown(bind) for bind in isolation.binds if bind.source != NOTHING or isolation.shares_files]
    pieces += [_shown(bind) for bind in isolation.own]
    pieces += [volume_piece(volume, stage) for volume in isolation.volumes]
    first = _machine_root(root) if isolation.shares_files else _own_root(isolation, scratch, pieces, proc)
    with _inside(root):
        lacking = _make_dev()
    first += [_device(path) for path in lacking]
    with _inside(root):
        for piece in (*first, *pieces, *last):  # links of an image lead out through the processes in /proc
            _attach(piece)
        if proc == OWN:
            _cover_proc()
    return root


def part() -> None:
    """From here on this process has mounts of its own."""
    kernel.unshare(kernel.NEWNS)
    keep_apart()


def keep_apart() -> None:
    """In a mount namespace of its own: what is mounted there does not reach the machine's."""
    kernel.mount("", "/", flags=kernel.MS_REC | kernel.MS_SLAVE)


def root_of(scratch: str) -> str:
    """Where the root of a container is put together, in a mount namespace of its own."""
    return os.path.join(os.path.dirname(scratch.rstrip("/")), ROOT)


def stage_of(scratch: str) -> str:
    """Where a mount is made that goes elsewhere."""
    return os.path.join(os.path.dirname(scratch.rstrip("/")), STAGE)


def move_in(root: str) -> None:
    """Makes `root` the root of this process; what was there before cannot be reached any more."""
    os.chdir(root)
    kernel.pivot_root(".", ".")
    kernel.umount(".")
    os.chdir("/")


def make_proc() -> None:
    """A /proc of the pid namespace of this process, over the one that is there."""
    kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)


def _cover_proc() -> None:
    """Hides of a /proc what belongs to the machine."""
    for name in _READ_ONLY:
        if os.path.exists(f"/proc/{name}"):
            _attach(_shown(Bind(f"/proc/{name}", f"/proc/{name}")))
    os.mkdir(_EMPTY)
    for name in _COVERED:
        path = f"/proc/{name}"
        if os.path.exists(path):
            _attach(_shown(Bind(_EMPTY if os.path.isdir(path) else NOTHING, path)))
    os.rmdir(_EMPTY)  # it lives on where it was put


def overlay(target: str, lower: Sequence[str], upper: str = "", work: str = "", flags: int = 0) -> None:
    """Mounts directories on top of each other, the uppermost first."""
    options = f"lowerdir={':'.join(map(_escaped, lower))}"
    if upper:
        options += f",upperdir={_escaped(upper)},workdir={_escaped(work)}"
        # Files of all layers are on one device, as directories are: else each would look like a mount point.
        options += ",xino=on"
    before = ""
    if len(options) > _LONGEST_OPTIONS:  # paths from a common directory are shorter
        before = os.getcwd()
        shared = os.path.commonpath([os.path.dirname(path) for path in lower])
        os.chdir(shared)
        options = options.replace(_escaped(shared) + "/", "") if shared != "/" else options
    if in_user_namespace():
        options += ",userxattr"
    try:
        kernel.mount("overlay", target, "overlay", flags | kernel.MS_NODEV, options)
    finally:
        if before:
            os.chdir(before)


def volume_piece(volume: VolumeMount, stage: str) -> Piece:
    """`stage` is any empty directory; it is empty again afterwards."""
    if not volume.upper:
        return _shown(Bind(volume.lower, volume.target))
    overlay(stage, [volume.lower], volume.upper, volume.work, kernel.MS_NOSUID)
    return Piece(_lifted(stage), volume.target, True)


# ---------------------------------------------------------------- roots


def _own_root(isolation: Isolation, scratch: str, above: Sequence[Piece], proc: str) -> list[Piece]:
    """Mounts it. Returns what comes on it before the pieces `above`, whose places it has where that can be."""
    upper, work, root = os.path.join(scratch, UPPER), os.path.join(scratch, WORK), root_of(scratch)
    os.chmod(upper, 0o755)
    blank = [bind.target for bind in isolation.binds if bind.source == NOTHING]
    if isolation.layers:
        overlay(root, isolation.layers, upper, work)
        return _masks(isolation.hidden, blank, scratch)
    if in_user_namespace():
        return [*_pieced_root(isolation, scratch, root), *_masks(isolation.hidden, blank, scratch)]
    # An overlay shows one file system. Others of the machine, such as a /usr of its own, come as they are.
    unseen = [*(f"/{name}" for name in _GIVEN), *isolation.hidden]
    others = [path for path in _mount_points(proc) if not _among(path, unseen)]
    stage = stage_of(scratch)
    with Cover(stage) as cover:
        bare = [path for path in isolation.hidden if _among(path, others) or not cover.hide(path)]
        seen = [path for path in blank if _among(path, others) or not cover.blank(path)]
        for piece in above:
            cover.put(piece.target, piece.directory)
        overlay(root, [stage, "/"], upper, work)
    return [*(_shown(Bind(path, path)) for path in others), *_masks(bare, seen, scratch)]


def _machine_root(root: str) -> list[Piece]:
    """A root in which directories can be made, and everything that the machine's holds for it."""
    kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755")
    pieces = []
    with os.scandir("/") as entries:
        for entry in entries:
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), os.path.join(root, entry.name))
            elif entry.name not in _GIVEN:
                pieces.append(Piece(kernel.copy_tree(entry.path), entry.path, entry.is_dir()))
    return pieces


def _pieced_root(isolation: Isolation, scratch: str, root: str) -> list[Piece]:
    """In a user namespace the machine's root cannot be overlaid as a whole, since others have mounted things below it:
    each of its directories is, and one for which that is true again is shown as it is."""
    upper, stage = os.path.join(scratch, UPPER), stage_of(scratch)
    own = os.path.join(upper, "root")
    os.makedirs(own, exist_ok=True)
    kernel.mount(own, root, flags=kernel.MS_BIND)
    skipped = {f"/{name}" for name in _GIVEN} | set(isolation.hidden)
    pieces = []
    for name in os.listdir("/"):
        path = f"/{name}"
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        elif path not in skipped and os.access(path, os.R_OK):
            part, work = os.path.join(upper, "parts", name), os.path.join(scratch, WORK, name)
            os.makedirs(part, exist_ok=True)
            os.makedirs(work, exist_ok=True)
            try:
                overlay(stage, [path], part, work)
                pieces.append(Piece(_lifted(stage), path, True))
            except OSError:
                pieces.append(_shown(Bind(path, path)))
    return pieces


def _masks(directories: Sequence[str], files: Sequence[str], scratch: str) -> list[Piece]:
    """What hides them where no cover does: empty directories on disk, and files in which nothing is."""
    pieces = []
    if directories:
        _make_directory(os.path.join(scratch, HIDDEN))
    for number, target in enumerate(directories):
        place = os.path.join(scratch, HIDDEN, str(number))
        _make_directory(place)
        try:
            os.chmod(place, stat.S_IMODE(os.stat(target).st_mode))
        except OSError:  # the machine has no such directory
            pass
        descriptor = kernel.copy_tree(place)
        kernel.restrict(descriptor, kernel.ATTR_NODEV)
        pieces.append(Piece(descriptor, target, True))
    return pieces + [_shown(Bind(NOTHING, path)) for path in files]


def _packages(isolation: Isolation, scratch: str) -> list[Piece]:
    if not isolation.packages:
        return []
    if not isolation.package_layers:
        return [_shown(Bind(isolation.packages, isolation.packages))]
    stage = stage_of(scratch)
    overlay(stage, [*isolation.package_layers, isolation.packages], flags=kernel.MS_RDONLY)
    return [Piece(_lifted(stage), isolation.packages, True)]


def _out_of_sight(isolation: Isolation, needed: Sequence[str]) -> list[str]:
    """Which of the needed directories are neither in the root nor in what is shown there."""
    return [
        path
        for path in needed
        if not any(_within(path, bind.target) for bind in isolation.binds)
        and (isolation.layers or _among(path, isolation.hidden))
    ]


def _device(path: str) -> Piece:
    """The machine's own node: what is read-only is its mode and owner, never the device."""
    descriptor = kernel.copy_tree(path)
    kernel.restrict(descriptor, kernel.ATTR_NOSUID | kernel.ATTR_RDONLY)
    return Piece(descriptor, path, os.path.isdir(path))


def _make_dev() -> list[str]:
    """Returns the nodes that this process cannot make: they have to be the machine's."""
    os.makedirs("/dev", exist_ok=True)
    quiet = kernel.MS_NOSUID | kernel.MS_NOEXEC
    kernel.mount("tmpfs", "/dev", "tmpfs", kernel.MS_NOSUID, "mode=755,size=64k")
    for name in ("pts", "shm"):
        os.mkdir(f"/dev/{name}")
    kernel.mount("devpts", "/dev/pts", "devpts", quiet, "newinstance,ptmxmode=0666,mode=620")
    kernel.mount("tmpfs", "/dev/shm", "tmpfs", quiet | kernel.MS_NODEV, "mode=1777")
    for name, target in _LINKS.items():
        os.symlink(target, f"/dev/{name}")
    lacking = []
    for name, number in _NODES.items():
        path = f"/dev/{name}"
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(*number))
            os.chmod(path, 0o666)  # whatever the umask is
        except OSError:
            lacking.append(path)
    return lacking


# ---------------------------------------------------------------- pieces


def _make_directory(path: str) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass


def _shown(bind: Bind) -> Piece:
    descriptor = kernel.copy_tree(bind.source)
    kernel.restrict(descriptor, kernel.ATTR_NOSUID | (kernel.ATTR_RDONLY if bind.read_only else 0))
    return Piece(descriptor, bind.target, stat.S_ISDIR(os.fstat(descriptor).st_mode))


def _lifted(stage: str) -> int:
    descriptor = kernel.copy_tree(stage)
    kernel.umount(stage)
    return descriptor


def _attach(piece: Piece) -> None:
    target = piece.target
    try:
        _make_place(target, piece.directory)
    except (FileExistsError, FileNotFoundError):  # a link that leads nowhere is in the way: what it means is made
        target = os.path.realpath(target)
        _make_place(target, piece.directory)
    kernel.attach(piece.descriptor, target)
    os.close(piece.descriptor)


def _make_place(path: str, directory: bool) -> None:
    if directory:
        if not os.path.isdir(path):
            os.makedirs(path)
    elif not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.islink(path):
            os.unlink(path)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))


@contextmanager
def _inside(root: str) -> Iterator[None]:
    """Paths are those of the new root meanwhile."""
    outside = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chroot(root)
        os.chdir("/")
        yield
    finally:
        os.fchdir(outside)
        os.chroot(".")
        os.close(outside)


def _mount_points(proc: str) -> list[str]:
    """Of the machine, below its root; what is under another of them is not named, since it comes along."""
    found: list[str] = []
    for line in _whole("/proc/1/mountinfo" if proc == OWN else "/proc/self/mountinfo").splitlines():
        name = line.split(b" ", 5)[4]
        if b"\\" in name:  # how spaces are written
            name = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), name)
        path = os.fsdecode(name)
        if path != "/" and not any(_within(path, other) for other in found):
            found.append(path)
    return found


def _whole(path: str) -> bytes:
    """A file of the kernel's."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return system.whole(descriptor)
    finally:
        os.close(descriptor)


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _among(path: str, directories: Iterable[str]) -> bool:
    return any(_within(path, directory) for directory in directories)


def _escaped(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


@functools.cache
def in_user_namespace() -> bool:
    """Asked once: a process that goes into one does so before."""
    return _whole("/proc/self/uid_map").split() != [b"0", b"0", b"4294967295"]
