"""One volume in one container: the tree that it sees, which stays for as long as it does, and where it writes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from kedge.exception import InvalidError, NotFoundError
from kedge.model.spec import VolumeMount
from kedge.server.volume_store import Store, View
from kedge.server.volume_trees import DIRECTORY, LINK, clean, kind_of
from kedge.server.volume_uppers import Upper


class Mounted:
    """One volume in one container."""

    def __init__(self, view: View, mount: VolumeMount, upper: Upper | None) -> None:
        self.view = view
        self.mount = mount
        self.upper = upper
        """What it writes; None where it cannot."""
        self.seen = view.tree
        """The tree that it shows, its own changes among it where they were the only ones since."""
        self.turn = asyncio.Lock()
        self.due = 0.0
        self.failed = False


class Pins:
    """Trees that containers of this server see: they stay until the last of these is gone."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[tuple[str, int], tuple[int, int]] = {}
        """Descriptor, and for how many."""

    def take(self, volume: str) -> int:
        number, descriptor = self._store.pin(volume)
        first, count = self._held.get((volume, number), (descriptor, 0))
        if first != descriptor:
            os.close(descriptor)
        self._held[volume, number] = first, count + 1
        return number

    def give_back(self, volume: str, number: int) -> None:
        descriptor, count = self._held.pop((volume, number), (-1, 0))
        if count > 1:
            self._held[volume, number] = descriptor, count - 1
        elif count:
            os.close(descriptor)


class Views:
    """Makes views, and keeps the trees below them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pins = Pins(store)
        self._generation = 0

    def make(self, volume: str, container: str, number: int, target: str, sub_path: str, read_only: bool) -> Mounted:
        """A view of the newest tree. It is on disk before the container can write."""
        self._store.lease.open()
        tree = self._pins.take(volume)
        try:
            self._generation += 1
            name = f"{container}-{number}-{self._generation}"
            directory = self._store.directory / volume / "views" / name
            sub_path = clean(sub_path, "sub_path")
            lower = self._lower(volume, tree, sub_path, read_only, directory)
            view = View(
                name=name,
                volume=volume,
                container=container,
                number=number,
                server=self._store.lease.server,
                directory=str(directory),
                tree=tree,
                sub_path=sub_path,
                read_only=read_only,
            )
            own = ("", "")
            if not read_only:
                own = (str(directory / "upper"), str(directory / "work"))
                for part in own:
                    os.makedirs(part, mode=0o700)
                # What is mounted has the mode of its uppermost directory.
                os.chmod(own[0], os.stat(lower).st_mode & 0o777 | 0o700)
            self._store.remember(view)
        except BaseException:
            self._pins.give_back(volume, tree)
            raise
        mount = VolumeMount(target=target, volume=volume, lower=lower, upper=own[0], work=own[1])
        return Mounted(view, mount, None if read_only else _upper(view, lower))

    def again(self, view: View) -> Mounted:
        """A view that a server has left behind that was killed."""
        lower = os.path.join(self._store.tree(view.volume, view.tree), view.sub_path)
        mount = VolumeMount(target="", volume=view.volume, lower=lower)
        return Mounted(view, mount, None if view.read_only else _upper(view, lower))

    def let_go(self, view: View) -> None:
        """Nobody sees its tree through it any more."""
        self._pins.give_back(view.volume, view.tree)

    def _lower(self, volume: str, tree: int, sub_path: str, read_only: bool, directory: Path) -> str:
        root = self._store.tree(volume, tree)
        kind = kind_of(root, sub_path) if sub_path else DIRECTORY
        if kind == DIRECTORY:
            return os.path.join(root, sub_path) if sub_path else root
        if kind:
            what = "a symbolic link" if kind == LINK else "a file"
            raise InvalidError(f"sub_path={sub_path!r} is {what} in the volume; only a directory can be mounted")
        if read_only:
            raise NotFoundError(f"sub_path={sub_path!r} is not in the volume, and read-only it cannot be made")
        empty = directory / "empty"
        empty.mkdir(mode=0o755, parents=True)
        return str(empty)


def _upper(view: View, lower: str) -> Upper:
    prefix = f"{view.sub_path}/" if view.sub_path else ""
    return Upper(os.path.join(view.directory, "upper"), lower, prefix)
