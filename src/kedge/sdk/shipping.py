"""What goes to a server along with an app: its code, where that server does not read our disk, and its environment.

A server that is reached over TCP may be another machine: it gets the files of the snapshot, unless it has them, and
nothing of this machine's paths and variables. Containers there run in the server's own interpreter.
"""

from __future__ import annotations

import os

from msgspec import structs

from kedge.exception import InvalidError, ServiceError
from kedge.model.protocol import CodeUploaded, FilesOffered, FilesSent
from kedge.model.spec import CodeSpec, EnvironmentSpec, LocalFiles
from kedge.sdk import server_process, snapshot
from kedge.sdk.batches import batches
from kedge.sdk.client import Client
from kedge.wire.transport import is_tcp
from kedge.wire.trees import Entry, entries_of

PART = 8 * 1024 * 1024
"""Bytes of files in one message."""
SENT_AGAIN = 5
"""Parts that may be sent without any of them getting there."""


def environment(client: Client, ours: EnvironmentSpec) -> EnvironmentSpec:
    """Where containers run: as we do, or as the server does where that is another machine."""
    if not is_tcp(client.address):
        return ours
    return EnvironmentSpec(python="", python_version=ours.python_version, directory="", alias_modal=ours.alias_modal)


def at_server(client: Client, code: CodeSpec, *, private: bool) -> CodeSpec:
    """The same code, where the server finds it.

    Args:
        client: Leads to the server.
        code: As `snapshot.take` has stored it here.
        private: It is this program's own server, and reads what we read.
    """
    if private or not code.module or _reads_our_disk(client):
        return code
    if not code.digest:
        if not is_tcp(client.address):
            return code
        raise InvalidError(
            f"include_source=False keeps the code of {code.origin} on this machine, and the server at {client.address} "
            "is another one; leave include_source=False out, or install the package there"
        )
    root = _uploaded(client, code.digest, [], last=True)
    if not root:
        *first, last = parts(snapshot.stored_files(code))
        for part in first:
            _uploaded(client, code.digest, part, last=False)
        root = _uploaded(client, code.digest, last, last=True)
    if not root:
        raise ServiceError(f"the server at {client.address} has taken the code and does not say where it is")
    if not is_tcp(client.address):
        return structs.replace(code, root=root)
    # There is nothing at the place where the code came from: `__file__`, and data beside it, are where it is stored.
    origin = f"{root}/{code.module.partition('.')[0]}" if code.is_package else f"{root}/{code.module}.py"
    return structs.replace(code, root=root, origin=origin)


def files_at_server(client: Client, files: LocalFiles) -> LocalFiles:
    """Files that an image reads, where the server finds them: what it does not have of them is sent."""
    if not files.root or _reads_our_disk(client):
        return files
    digest = os.path.basename(files.root)
    answer = client.request(lambda number: FilesOffered(number, digest))
    if "root" in answer:
        return structs.replace(files, root=answer["root"])
    entries = entries_of(files.root)
    offered = [(entry.path, entry.hash, entry.size, entry.executable) for entry in entries]
    answer = client.request(lambda number: FilesOffered(number, digest, offered))
    if "root" not in answer:
        missing = set(answer["missing"])
        for entry in {entry.object: entry for entry in entries if entry.object in missing}.values():
            _send(client, entry, os.path.join(files.root, entry.path))
        answer = client.request(lambda number: FilesOffered(number, digest, offered))
    if "root" not in answer:
        raise ServiceError(
            f"the server at {client.address} has taken files of an image and does not say where they are"
        )
    return structs.replace(files, root=answer["root"])


def _send(client: Client, entry: Entry, path: str) -> None:
    """One content, in parts: each is answered, so that no more than one is under way. After a lost connection the
    answer says from where it goes on."""
    offset, stuck = 0, 0
    with open(path, "rb") as file:
        while stuck < SENT_AGAIN:
            file.seek(offset)
            part = file.read(PART)
            last = offset + len(part) == entry.size
            there = _append(client, FilesSent(0, entry.hash, entry.executable, offset, part, last))
            if there == entry.size:
                return
            stuck = stuck + 1 if there <= offset else 0
            offset = there
    raise ServiceError(f"the server at {client.address} does not take {path}")


def _append(client: Client, part: FilesSent) -> int:
    """How much of the content the server has then."""
    answer = client.request(lambda number: structs.replace(part, request=number))
    there: int = answer["size"]
    return there


def _reads_our_disk(client: Client) -> bool:
    """Whether it is the server of our own state directory."""
    if is_tcp(client.address):
        return False
    ours, theirs = os.path.realpath(server_process.home()), os.path.realpath(client.link().welcome.home)
    return os.path.commonpath([ours, theirs]) == ours


def _uploaded(client: Client, digest: str, files: list[tuple[str, bytes]], *, last: bool) -> str:
    if not last:
        client.link().send([CodeUploaded(0, digest, files)])
        return ""
    answer = client.request(lambda number: CodeUploaded(number, digest, files, last=True))
    root: str = answer["root"]
    return root


def parts(files: list[tuple[str, bytes]]) -> list[list[tuple[str, bytes]]]:
    """The files in messages of a bounded size, in their order; none of them is cut, since none is larger than a frame.

    >>> [[path for path, _ in part] for part in parts([("a", b"x" * PART), ("b", b"y"), ("c", b"z")])]
    [['a'], ['b', 'c']]
    """
    return list(batches(files, lambda file: len(file[1]), len(files), PART))
