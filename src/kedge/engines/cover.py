"""The uppermost read-only layer of a root that is the machine's own, in memory: it hides what is nobody's business, and
has the places at which something is mounted.

A directory of it that is *opaque* covers the one of the layer below. Without it, each directory that is hidden would be
a directory on disk and a mount, and each place would be made on disk anew for every container.
"""

from __future__ import annotations

import os
import stat

from kedge.engines import kernel

_OPAQUE = "trusted.overlay.opaque"
_LIMITS = "mode=755,size=1m"


class Cover:
    """Over `/`, in a file system of its own that is mounted at `place`.

    Example:
        with Cover(stage) as cover:
            cover.hide("/tmp")
            cover.put("/tmp/plane.sock", directory=False)
            mounts.overlay(root, [stage, "/"], upper, work)
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._hidden: list[str] = []
        self._made = {"/"}

    def __enter__(self) -> Cover:
        kernel.mount("tmpfs", self._place, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, _LIMITS)
        self._mask = os.umask(0)
        return self

    def __exit__(self, *exception: object) -> None:
        """An overlay that was made with it keeps it."""
        os.umask(self._mask)
        kernel.umount(self._place)

    def hide(self, path: str) -> bool:
        """The directory is empty from here on. False where a link leads to it or it is one, or the kernel cannot do
        that here."""
        own = self._place + path
        try:
            found = os.lstat(path)
            mode = stat.S_IMODE(found.st_mode)
            if stat.S_ISLNK(found.st_mode):  # what it leads to would still be there by its own name
                return False
        except OSError:  # the machine has no such directory
            mode = 0o755
        try:
            if not self._like_below(os.path.dirname(path)):
                return False
            os.mkdir(own, mode)
            os.setxattr(own, _OPAQUE, b"y")
        except OSError:
            return False
        self._made.add(path)
        self._hidden.append(path)
        return True

    def blank(self, path: str) -> bool:
        """The file is empty from here on. False where a link leads to it or it is one."""
        try:
            if os.path.islink(path) or not self._like_below(os.path.dirname(path)):
                return False
            self._touch(path)
        except OSError:
            return False
        return True

    def put(self, path: str, directory: bool) -> None:
        """A place for a mount, where that is in a directory that is hidden."""
        if os.path.normpath(path) != path or not any(path.startswith(f"{hidden}/") for hidden in self._hidden):
            return
        try:
            self._make(path if directory else os.path.dirname(path))
            if not directory:
                self._touch(path)
        except OSError:  # two mounts in each other's way: whoever attaches them says so
            pass

    def _make(self, path: str) -> None:
        if path not in self._made:
            self._make(os.path.dirname(path))
            os.mkdir(self._place + path, 0o755)
            self._made.add(path)

    def _touch(self, path: str) -> None:
        os.close(os.open(self._place + path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))

    def _like_below(self, path: str) -> bool:
        """Makes a directory that shows what the machine's has, as the machine's looks. False where that is a link."""
        if path in self._made:
            return True
        if not self._like_below(os.path.dirname(path)):
            return False
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode):
            return False
        own = self._place + path
        os.mkdir(own, stat.S_IMODE(found.st_mode))
        if found.st_uid or found.st_gid:
            os.chown(own, found.st_uid, found.st_gid)
        self._made.add(path)
        return True
