"""Volumes on disk: what they are called, which of their trees is the current one, and who sees which.

    <KEDGE_HOME>/volumes/
        names/<environment>/<name>      holds the id of the volume
        servers/<id>                    locked for as long as that server lives
        vo-…/  volume.json
               lock                     one change at a time, among all servers of this KEDGE_HOME
               current -> trees/<n>     switched in one step, once a tree is complete
               trees/<n>/               never changes; locked (shared) by each server whose containers see it
               drafts/<server>-…/       trees and files that are not complete
               views/<container>-<k>.json, and a directory of that name with upper/ and work/

What a container writes lies beside the trees, on the same disk: it can share blocks with them, nothing but this removes
it, and after a crash it is found and committed. Whatever is interrupted leaves the last tree as it was; what is then
left over is removed by whoever changes the volume next.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from kedge.exception import ConflictError, InvalidError, NotFoundError, ServiceError
from kedge.server import names
from kedge.server.bounds import ENVIRONMENT
from kedge.server.volume_lease import Lease
from kedge.server.volume_trees import FILE, Changes, apply, clone, discard

VOLUME_ID = re.compile(r"vo-[0-9a-f]{16}")
FEW = 64
"""Files that are written to disk one by one."""
HALF_MADE_S = 3600.0
"""To make or remove something takes no server longer."""
FIRST = 1
"""Number of the empty tree that a volume begins with."""


class Volume(Struct, frozen=True, kw_only=True):
    id: str
    name: str = ""
    environment: str = ""
    created_at: float = 0.0


class View(Struct, frozen=True, kw_only=True):
    """One volume in one container, as it is remembered for the case that its server does not live to commit it."""

    name: str
    volume: str
    container: str
    number: int
    """Which of the container's volumes it is."""
    server: str
    directory: str
    """Where `upper` and `work` are."""
    tree: int
    """The one below."""
    sub_path: str = ""
    read_only: bool = False


class Store:
    """All volumes of a KEDGE_HOME, from one server's point of view. Everything here may wait for the disk.

    Args:
        directory: `<KEDGE_HOME>/volumes`.
        durable: Whether a tree is on disk, not only on its way there, before it becomes the current one.
    """

    def __init__(self, directory: Path, durable: bool = True, clock: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self.lease = Lease(directory / "servers")
        self.dispose: Callable[[str], Any] = discard
        """Removes a directory that nobody needs any more, now or later."""
        self._durable = durable
        self._clock = clock

    # ------------------------------------------------------------ names

    def find(self, name: str, environment: str) -> Volume:
        """NotFoundError names what there is instead."""
        id = self._id_of(name, environment)
        if id is None:
            there = [volume.name for volume in self.all(environment)]
            how = f"`kedge volume create {name}`, or write kedge.Volume.from_name({name!r}, create_if_missing=True)"
            raise names.missing("volume", name, environment, there, f"Create it with {how}")
        return self._read(id, name, environment)

    def get(self, id: str) -> Volume:
        """The volume with an id; NotFoundError where there is none."""
        if not VOLUME_ID.fullmatch(id) or not (self.directory / id / "volume.json").exists():
            raise NotFoundError(f"there is no volume {id!r}: it was deleted, or its id belongs to another server")
        found = next((volume for volume in self.all() if volume.id == id), None)
        return found or self._read(id)

    def all(self, environment: str = "") -> list[Volume]:
        """Those that have a name, in the order of environments and names."""
        named = self.directory / "names"
        environments = [environment] if environment else sorted(os.listdir(named)) if named.is_dir() else []
        found = []
        for one in environments:
            place = named / one
            for name in sorted(os.listdir(place)) if place.is_dir() else ():
                id = self._id_of(name, one)
                if id is not None and (self.directory / id / "volume.json").exists():
                    found.append(self._read(id, name, one))
        return found

    def create(self, name: str = "", environment: str = "") -> Volume:
        """A new, empty volume; AlreadyExistsError where the name is taken. Without a name it belongs to this server,
        and goes with it."""
        if name:
            _check(name, environment)
            if self._id_of(name, environment) is not None:
                raise names.taken("volume", name, environment)
        self.lease.open()
        id = f"vo-{secrets.token_hex(8)}"
        root = self.directory / f"{id}.new"
        for part in ("drafts", "views", f"trees/{FIRST}"):
            (root / part).mkdir(mode=0o700, parents=True)
        (root / "trees" / str(FIRST)).chmod(0o755)
        (root / "current").symlink_to(f"trees/{FIRST}")
        facts = {"created_at": self._clock(), "owner": "" if name else self.lease.server}
        (root / "volume.json").write_text(json.dumps(facts))
        root.rename(self.directory / id)
        if name:
            try:
                self._give_name(id, name, environment)
            except BaseException:
                discard(str(self.directory / id))
                raise
        if self._durable:
            _sync_directory(self.directory)
        return self._read(id, name, environment)

    def rename(self, id: str, name: str) -> Volume:
        """Gives a volume another name; AlreadyExistsError where that is taken."""
        volume = self.get(id)
        if not volume.name:
            raise InvalidError(f"the volume {id} has no name, since it goes with the program that made it")
        _check(name, volume.environment)
        if name != volume.name:
            self._give_name(id, name, volume.environment)
            (self.directory / "names" / volume.environment / volume.name).unlink(missing_ok=True)
        return self._read(id, name, volume.environment)

    def delete(self, id: str) -> None:
        """Removes a volume with all that is in it; ConflictError where containers have it."""
        volume = self.get(id)
        with self.turn(id):
            mounted = sorted({view.container for view in self.views(id) if self.lease.lives(view.server)})
            if mounted:
                raise ConflictError(
                    f"the volume {volume.name or id} is mounted by {', '.join(mounted[:5])}; stop the apps that use it "
                    "first"
                )
            if volume.name:
                (self.directory / "names" / volume.environment / volume.name).unlink(missing_ok=True)
            gone = self.directory / f"{id}.gone"
            (self.directory / id).rename(gone)
        discard(str(gone))

    def _give_name(self, id: str, name: str, environment: str) -> None:
        place = self.directory / "names" / environment
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = place / f".{secrets.token_hex(8)}"
        draft.write_text(id)
        try:
            os.link(draft, place / name)
        except FileExistsError:
            raise names.taken("volume", name, environment) from None
        finally:
            draft.unlink()

    def _id_of(self, name: str, environment: str) -> str | None:
        if not names.NAME.fullmatch(name) or not ENVIRONMENT.fullmatch(environment) or name.startswith("."):
            return None
        try:
            id = (self.directory / "names" / environment / name).read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return id if VOLUME_ID.fullmatch(id) else None

    def _read(self, id: str, name: str = "", environment: str = "") -> Volume:
        try:
            facts = json.loads((self.directory / id / "volume.json").read_text())
        except FileNotFoundError:
            raise NotFoundError(f"there is no volume {name or id!r} any more") from None
        return Volume(id=id, name=name, environment=environment, created_at=facts["created_at"])

    # ------------------------------------------------------------ trees

    def current(self, id: str) -> int:
        """The number of the tree that counts."""
        try:
            return int(os.path.basename(os.readlink(self.directory / id / "current")))
        except FileNotFoundError:
            raise NotFoundError(f"the volume {id} has been deleted") from None

    def tree(self, id: str, number: int) -> str:
        return str(self.directory / id / "trees" / str(number))

    def pin(self, id: str) -> tuple[int, int]:
        """The current tree, and a descriptor: until that is closed, the tree stays."""
        while True:
            number = self.current(id)
            try:
                descriptor = os.open(self.tree(id, number), os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue  # another one is current by now
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), os.stat(self.tree(id, number))):
                    return number, descriptor
            except OSError:
                pass  # it is being removed
            os.close(descriptor)

    @contextmanager
    def newest(self, id: str) -> Iterator[str]:
        """The directory of the current tree, which stays for the time of the block."""
        number, descriptor = self.pin(id)
        try:
            yield self.tree(id, number)
        finally:
            os.close(descriptor)

    @contextmanager
    def turn(self, id: str) -> Iterator[None]:
        """One change of a volume at a time."""
        try:
            descriptor = os.open(self.directory / id / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            raise NotFoundError(f"the volume {id} has been deleted") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def change(self, id: str, make: Callable[[str], Changes]) -> int:
        """A new tree: what `make` says of the current one, whose directory it gets. Gives its number; the old one where
        there is nothing to change."""
        with self.turn(id), disk(f"the volume {id} cannot be changed"):
            self.prune(id)
            number = self.current(id)
            changes = make(self.tree(id, number))
            if not changes.puts and not changes.deletions:
                return number
            draft = self.draft(id)
            try:
                clone(self.tree(id, number), os.path.join(draft, "tree"))
                apply(changes, os.path.join(draft, "tree"))
                self._sync([put.source for put in changes.puts if put.kind == FILE], draft)
                self._switch(id, os.path.join(draft, "tree"), number + 1)
            finally:
                discard(draft)
            self.prune(id)
            return number + 1

    def _switch(self, id: str, tree: str, number: int) -> None:
        os.rename(tree, self.tree(id, number))
        link = self.directory / id / "current.new"
        link.unlink(missing_ok=True)
        link.symlink_to(f"trees/{number}")
        link.rename(self.directory / id / "current")
        if self._durable:
            _sync_directory(self.directory / id)

    def prune(self, id: str) -> None:
        """Removes trees that are over, or never became current, and that nobody sees; and drafts of the dead. In one's
        turn only."""
        needed = {self.current(id), *(view.tree for view in self.views(id))}
        for name in os.listdir(self.directory / id / "trees"):
            if int(name) not in needed:
                self._remove_tree(id, int(name))
        for name in os.listdir(self.directory / id / "drafts"):
            if not self.lease.lives(name.partition("-")[0]):
                discard(str(self.directory / id / "drafts" / name))

    def _remove_tree(self, id: str, number: int) -> None:
        path = self.tree(id, number)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        else:
            gone = os.path.join(self.draft(id), "tree")
            os.rename(path, gone)
            self.dispose(os.path.dirname(gone))
        finally:
            os.close(descriptor)

    def draft(self, id: str) -> str:
        """A new directory for what is not complete; it does not outlive this server."""
        self.lease.open()
        path = self.directory / id / "drafts" / f"{self.lease.server}-{secrets.token_hex(4)}"
        try:
            path.mkdir(mode=0o700)
        except FileNotFoundError:
            raise NotFoundError(f"the volume {id} has been deleted") from None
        return str(path)

    def _sync(self, files: list[str], directory: str) -> None:
        """The content of new files is on disk: one by one where they are few, since others may be writing a lot."""
        if not self._durable:
            return
        for path in files if len(files) <= FEW else [directory]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                if path == directory and _libc().syncfs(descriptor) != 0:
                    os.sync()
                elif path != directory:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)

    # ------------------------------------------------------------ views

    def remember(self, view: View) -> None:
        """This container may write now: after a crash of this server it is known what that belongs to."""
        path = self._view_path(view)
        draft = f"{path}.new"
        with open(draft, "w") as file:
            json.dump(structs.asdict(view), file)
        os.rename(draft, path)

    def forget(self, view: View) -> None:
        """Nothing of this container is left to be committed."""
        Path(self._view_path(view)).unlink(missing_ok=True)
        discard(view.directory)

    def views(self, id: str) -> list[View]:
        found = []
        for path in sorted((self.directory / id / "views").glob("*.json")):
            try:
                found.append(View(**json.loads(path.read_text())))
            except (FileNotFoundError, ValueError, TypeError):
                continue
        return found

    def left_over(self) -> list[View]:
        """What containers of servers have written that are not there any more."""
        found = []
        for path in sorted(self.directory.glob("vo-*/views")):
            found += [view for view in self.views(path.parent.name) if not self.lease.lives(view.server)]
        return found

    def adopt(self, view: View) -> View | None:
        """A view that was left over becomes this server's to commit; None where another one was quicker."""
        self.lease.open()
        with suppress(NotFoundError), self.turn(view.volume):
            now = next((one for one in self.views(view.volume) if one == view), None)
            if now is None or self.lease.lives(now.server):
                return None
            mine = structs.replace(view, server=self.lease.server)
            self.remember(mine)
            return mine
        return None

    def sweep(self) -> None:
        """Removes volumes without a name whose server is gone, and what was half made or half removed."""
        forlorn = [path for path in self.directory.glob("vo-*/views/*") if not path.with_suffix(".json").exists()]
        for path in [*self.directory.glob("vo-*.new"), *self.directory.glob("vo-*.gone"), *forlorn]:
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < self._clock() - HALF_MADE_S:
                    discard(str(path))
        for path in sorted(self.directory.glob("vo-*")):
            try:
                owner = json.loads((path / "volume.json").read_text()).get("owner", "")
            except (OSError, ValueError):
                continue
            if owner and not self.lease.lives(owner):
                discard(str(path))
        self.lease.sweep()

    def _view_path(self, view: View) -> str:
        return str(self.directory / view.volume / "views" / f"{view.name}.json")


def _check(name: str, environment: str) -> None:
    names.check("volume", name)
    if name.startswith("."):
        raise InvalidError(f"a volume cannot be called {name!r}: its name does not begin with '.'")
    if not ENVIRONMENT.fullmatch(environment):
        raise InvalidError(f"{environment!r} is no name of an environment: small letters, digits and '-'")


@contextmanager
def disk(what: str) -> Iterator[None]:
    """A disk that refuses is a ServiceError that says so."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise ServiceError(f"{what}: {reason}; it is as it was") from error


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
