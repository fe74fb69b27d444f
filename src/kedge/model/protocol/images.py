"""What containers run: files and code of another machine's client, and images that are built."""

from __future__ import annotations

from kedge.model.protocol.base import Message
from kedge.model.spec import ImageSpec

# ---------------------------------------------------------------- client → plane: files


class CodeUploaded(Message, frozen=True):
    """Files of a snapshot, for a server that does not share the client's disk. With `last` they are complete: Reply is
    {"root": directory}. `files` is (relative path, content); an empty list with `last` asks whether it is there: then
    the Reply is {"root": directory or ""}."""

    request: int
    digest: str
    files: list[tuple[str, bytes]] = []
    last: bool = False


class FilesOffered(Message, frozen=True):
    """Files that an image reads, for a server that does not share the client's disk: (path, hash, size, executable) of
    each. Reply: {"root": directory} where their contents are all there, else {"missing": [hashes]}, which FilesSent
    brings. Without entries it asks whether the whole is there; where it is not, none are missing."""

    request: int
    digest: str
    """`wire.trees.digest_of` the entries."""
    entries: list[tuple[str, str, int, bool]] = []


class FilesSent(Message, frozen=True):
    """Bytes `offset` and following of one content. With `last` it is complete. Reply: {"size": bytes that are
    there}."""

    request: int
    hash: str
    executable: bool
    offset: int
    data: bytes
    last: bool = False


# ---------------------------------------------------------------- client → plane: images


class ImageRequested(Message, frozen=True):
    """Has an image built, unless it is there. Reply: {"id": `im-…`, "cached": bool, "seconds": s}; ImageBuildError says
    which step failed, with its last lines. Meanwhile the session gets ImageProgressed."""

    request: int
    image: ImageSpec
    """Bound: its steps have their files, at the server."""
    force: bool = False
    """Build every step anew."""
    ignore_cache: bool = False
    publish: str = ""
    """A name that the image is kept under as well (`Image.from_name`)."""


# ---------------------------------------------------------------- plane → client


class ImageProgressed(Message, frozen=True):
    """To the client that has requested an image: how its build goes."""

    request: int
    state: str
    """waiting (somebody else builds it), started (a step), output (lines of it), finished (a step), cached."""
    step: int = 0
    """Counted from 1; 0: about the whole."""
    steps: int = 0
    title: str = ""
    text: str = ""
    seconds: float = 0.0
