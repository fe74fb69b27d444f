"""Files of large values, and which containers get at which of them.

They lie in `blobs/`, where programs and containers that share the machine's files write and read them. A container with
files of its own has a tray instead, a directory that it sees in the place of `blobs/`: in it are what was meant for it
and what it has written. A message to a container, or to code in it, that names a file brings a link to it into the
tray; a message from there that names one brings it out of the tray, or is refused. So nothing is copied, and what
nobody gave it a container neither sees nor replaces.

What comes out of a tray may be anything, since hostile code can make links and directories there. Names in the tray are
never followed, and only what is a regular file without a second name is taken. Who wrote it may go on writing to it: it
is his value.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kedge.model import protocol as p
from kedge.model.payload import Payload
from kedge.wire.removal import remove

log = logging.getLogger("kedge.server")

TAKEN_MEMORY = 10_000
"""Names of files that a container has handed over: a client that was cut off sends what is unfinished again, and has
far less under way."""


class Tray:
    """The payload files of one container.

    Args:
        path: Its directory; empty for code of which nobody knows where it is, which gets and gives no files.
        blobs: Where those of all are.
    """

    def __init__(self, path: str, blobs: str) -> None:
        self.path = path
        self.users = 1
        """The container itself, and connections out of it."""
        self._blobs = blobs
        self._taken: dict[str, None] = {}
        self._leases: dict[int, str] = {}
        """The files of inputs that the container has, by lease."""
        self._latest: dict[str, int] = {}
        """For each of them the lease that it was given for last."""

    # ------------------------------------------------------------ in

    def give(self, message: Any, kept: bool = False) -> None:
        """Brings the files into the tray that a message names. `kept`: others may want these results as well."""
        kind = type(message)
        if kind is p.InputsDispatched:
            for dispatch in message.inputs:
                if name := dispatch.payload.blob:
                    self._leases[dispatch.lease] = name
                    self._latest[name] = dispatch.lease
                    self._bring(os.link, name)
        elif kind is p.OutputsDelivered:
            for output in message.outputs:
                if output.result.payload is not None and (name := output.result.payload.blob):
                    self._bring(os.link if kept else os.rename, name)
        elif kind is p.StreamValues:
            for value in message.values:
                if value.blob:
                    self._bring(os.rename, value.blob)

    def _bring(self, how: Callable[[str, str], None], name: str) -> None:
        if not self.path or not name.isalnum():
            return
        try:
            how(f"{self._blobs}/{name}", f"{self.path}/{name}")
        except (FileExistsError, FileNotFoundError):
            pass  # it has been there since another attempt; or it is gone, which its reader says
        except OSError as error:
            log.warning("a payload file did not reach %s: %s", os.path.basename(self.path), error)

    # ------------------------------------------------------------ out

    def take(self, message: Any) -> str:
        """Brings the files out of the tray that a message names. Gives why that cannot be; empty where it can."""
        named = _NAMED.get(type(message))
        if named is None:
            return ""
        if self._leases:
            self._ended(message)
        for payload in named(message):
            if payload is not None and payload.blob and not self._take(payload.blob):
                return (
                    f"{type(message).__name__} names the payload file {payload.blob[:64]!r}, which is none that its "
                    "container has written"
                )
        return ""

    def _take(self, name: str) -> bool:
        if name in self._taken:
            return True
        if not self.path or not name.isalnum():
            return False
        here, there = f"{self.path}/{name}", f"{self._blobs}/{name}"
        try:
            os.link(here, there, follow_symlinks=False)  # unlike a rename, this replaces nothing
        except OSError:
            return False
        try:
            os.unlink(here)
            found = os.lstat(there)
        except OSError:  # nobody else knows that name: a disk that fails
            found = None
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            with contextlib.suppress(OSError):
                os.unlink(there)
            return False
        self._taken[name] = None
        if len(self._taken) > TAKEN_MEMORY:
            del self._taken[next(iter(self._taken))]
        return True

    def _ended(self, message: Any) -> None:
        """Inputs that it does not have any more need no file."""
        kind = type(message)
        if kind is p.InputsFinished:
            leases: Iterable[int] = [item.lease for item in message.inputs]
        elif kind is p.InputsReturned:
            leases = message.leases
        else:
            return
        for lease in leases:
            name = self._leases.pop(lease, "")
            if name and self._latest.get(name) == lease:
                del self._latest[name]
                with contextlib.suppress(OSError):
                    os.unlink(f"{self.path}/{name}")


class Payloads:
    """The trays of one server.

    Args:
        directory: The state directory.
    """

    def __init__(self, directory: Path) -> None:
        self.blobs = directory / "blobs"
        self.trays: dict[str, Tray] = {}
        """By who talks: containers, and sessions of code in them. Whoever is not here uses `blobs` itself."""
        self._directory = directory / "payloads"
        self._of: dict[str, Tray] = {}
        """By container."""

    def sweep(self) -> None:
        """Removes trays of containers that a server before this one had."""
        with contextlib.suppress(FileNotFoundError):
            for path in self._directory.iterdir():
                if path.name not in self._of:
                    _discard(str(path))

    def open(self, container: str) -> str:
        """The directory that a new container is to see in the place of `blobs`."""
        path = self._directory / container
        for made in (self.blobs, self._directory, path):
            made.mkdir(mode=0o700, exist_ok=True)
        self._of[container] = Tray(str(path), str(self.blobs))
        return str(path)

    def ended(self, container: str) -> None:
        """Nothing of it is left but, perhaps, what it has said last."""
        tray = self._of.pop(container, None)
        if tray is not None:
            self._leave(tray)

    def admit(self, address: str, container: str, apart: bool) -> bool:
        """Somebody talks from now on: a container or code in it (`container` is its id), or somebody else. `apart`:
        code in a container that is kept apart, whichever that is. False where it cannot use files at all."""
        tray = self._of.get(container)
        if tray is not None:
            tray.users += 1
        elif apart and not container:
            tray = Tray("", str(self.blobs))
        if tray is not None:
            self.trays[address] = tray
        return tray is None or bool(tray.path)

    def depart(self, address: str) -> None:
        tray = self.trays.pop(address, None)
        if tray is not None:
            self._leave(tray)

    def give(self, address: str, message: Any, kept: bool = False) -> None:
        """See `Tray.give`."""
        tray = self.trays.get(address)
        if tray is not None:
            tray.give(message, kept)

    def place(self, session: str) -> Path:
        """Where a session reads files from."""
        tray = self.trays.get(session)
        return Path(tray.path) if tray is not None and tray.path else self.blobs

    def _leave(self, tray: Tray) -> None:
        tray.users -= 1
        if not tray.users and tray.path:
            _discard(tray.path)


def _discard(path: str) -> None:
    try:
        os.rmdir(path)  # nearly all are empty
    except OSError:
        asyncio.get_running_loop().run_in_executor(None, remove, path)


def _of_results(message: p.InputsFinished) -> Iterable[Payload | None]:
    for item in message.inputs:
        yield item.result.payload
        if item.result.error is not None:
            yield item.result.error.payload


_NAMED: dict[type, Callable[[Any], Iterable[Payload | None]]] = {
    p.InputsFinished: _of_results,
    p.InputsReturned: lambda message: (),
    p.ContainerFailed: lambda message: (message.error.payload,),
    p.StreamValues: lambda message: message.values,
    p.InputsSubmitted: lambda message: message.payloads,
    p.VariantBound: lambda message: (message.variant.parameters, message.variant.spec.serialized),
    p.EntriesChanged: lambda message: [payload for _, payload in message.entries],
    p.ItemsPut: lambda message: message.values,
}
"""The payloads of all messages from containers and code in them; what else has some is not for these."""
