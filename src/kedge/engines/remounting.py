"""Another version of a volume in a living container, in the place of the one that is there."""

from __future__ import annotations

import errno
import os

from kedge.engines import kernel, mounts, namespaces
from kedge.model.spec import VolumeMount

BUSY = "busy"
"""How an answer begins where files of the volume are open."""
_MOST_NAMED = 3


def remount(base: namespaces.Base, process: int, volume: VolumeMount, scratch: str) -> str:
    """Runs in a process that is thrown away. An empty string, or why the container sees what it saw before.

    The mount is made among the machine's files, and put into the container's by its descriptor: the container's own
    links lead nowhere on the machine. `process` is any that lives in the container.
    """
    try:
        inside = None
        base.join()
        inside = os.open(f"/proc/{process}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        root = os.open(f"/proc/{process}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        mounts.part()
        piece = mounts.volume_piece(volume, mounts.stage_of(scratch))
        kernel.setns(inside, kernel.NEWNS)
        os.fchdir(root)
        os.chroot(".")
        os.chdir("/")
        try:
            _exchange(piece.descriptor, volume.target)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return f"{BUSY}: {_culprits(volume.target) or 'its files are in use'}"
    except OSError as error:
        return str(error)
    return ""


def _exchange(fresh: int, target: str) -> None:
    """EBUSY where what is there is in use. On kernels before 6.5, `target` is an empty directory for a moment."""
    try:
        kernel.umount(target, kernel.MNT_EXPIRE)
    except OSError as error:
        if error.errno != errno.EAGAIN:  # which says that it is not in use
            raise
    try:
        kernel.attach(fresh, target, beneath=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        kernel.umount(target, 0)
        kernel.attach(fresh, target)
    else:
        kernel.umount(target)  # what was opened just now stays what it was


def _culprits(target: str) -> str:
    """Which files below `target` are open, as /proc of the container shows."""
    found: dict[str, None] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            for path in _paths_of(name):
                if path == target or path.startswith(target.rstrip("/") + "/"):
                    found[path] = None
    named = ", ".join(list(found)[:_MOST_NAMED])
    further = len(found) - _MOST_NAMED
    return f"{named}{f' and {further} more' if further > 0 else ''} in use" if found else ""


def _paths_of(process: str) -> list[str]:
    paths: list[str] = []
    try:
        links = [f"/proc/{process}/{name}" for name in ("cwd", "root", "exe")]
        links += [f"/proc/{process}/fd/{number}" for number in os.listdir(f"/proc/{process}/fd")]
        for link in links:
            paths.append(os.readlink(link))  # noqa: PERF401
        with open(f"/proc/{process}/maps", encoding="utf-8", errors="replace") as maps:
            paths += [fields[5].rstrip("\n") for line in maps if len(fields := line.split(maxsplit=5)) == 6]
    except OSError:  # it has ended, or closed one meanwhile
        pass
    return paths
