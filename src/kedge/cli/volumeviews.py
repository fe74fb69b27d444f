"""What `kedge volume` does: asks the server through the same calls that programs use, and shows what it says."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from kedge.cli import named, tables
from kedge.cli.asking import connected, provided
from kedge.cli.confirm import confirmed
from kedge.cli.tables import Column
from kedge.exception import AlreadyExistsError, Error, InvalidError, NotFoundError
from kedge.model.protocol import VolumeChanged, VolumeRequested, VolumesRequested
from kedge.sdk import client as client_module
from kedge.sdk.volume import FileEntry, FileEntryType, Volume

EMPTY = "There is nothing there."
_KINDS = {FileEntryType.FILE: "file", FileEntryType.DIRECTORY: "dir", FileEntryType.SYMLINK: "link"}

LIST = (
    Column("name", lambda one: one["name"]),
    Column("id", lambda one: one["id"]),
    Column("created", lambda one: tables.when(one["created_at"])),
)
FILES = (
    Column("path", lambda one: one["path"], folds=True),
    Column("type", lambda one: one["type"]),
    Column("modified", lambda one: tables.when(one["mtime"])),
    Column("size", lambda one: tables.size(one["size"]) if one["type"] == "file" else tables.NONE, right=True),
)


@contextmanager
def _volume(name: str, environment: str | None) -> Iterator[Volume]:
    """A volume of the server in use."""
    with connected() as client:
        client_module.use(client)
        yield Volume.from_name(name, environment_name=environment)


def show_list(environment: str | None, as_json: bool) -> None:
    named.show_list("volume", LIST, VolumesRequested, environment, as_json)


def create(name: str, environment: str | None) -> None:
    Volume.from_name(name, environment_name=environment)  # no server is started for a name that cannot be
    with provided():
        Volume.objects.create(name, environment_name=environment)
    print(f"The volume {name} has been made. kedge.Volume.from_name({name!r}) finds it.")


def delete(name: str, environment: str | None, yes: bool, allow_missing: bool) -> int:
    return named.delete(
        "volume",
        name,
        environment,
        yes,
        allow_missing,
        find=lambda request, where: VolumeRequested(request, name, environment=where),
        listing=VolumesRequested,
        remove=lambda request, _, found: VolumeChanged(request, "delete", found["id"]),
        loss=" with all its files?",
    )


def rename(name: str, new_name: str, environment: str | None, yes: bool) -> int:
    with _volume(name, environment) as volume:
        volume.hydrate()
        if not confirmed(f"Rename the volume {name} to {new_name}? Apps that look for {name} do not find it.", yes):
            click.echo("Nothing was renamed.", err=True)
            return 1
        Volume.rename(name, new_name, environment_name=environment)
    print(f"The volume {name} is called {new_name} now.")
    return 0


def ls(name: str, path: str, recursive: bool, environment: str | None, as_json: bool) -> None:
    with _volume(name, environment) as volume:
        found = volume.listdir(path, recursive=recursive)
    facts = [
        {"path": entry.path, "type": _KINDS.get(entry.type, "other"), "mtime": entry.mtime, "size": entry.size}
        for entry in found
    ]
    tables.show(facts, FILES, as_json=as_json, empty=EMPTY)


def put(name: str, local: str, remote: str, force: bool, environment: str | None) -> None:
    here = Path(local)
    if not here.exists():
        raise InvalidError(f"there is no file or directory {local!r} here")
    with _volume(name, environment) as volume:
        volume.hydrate()
        with volume.batch_upload(force=force) as batch:
            if here.is_dir():
                batch.put_directory(here, remote)
            else:
                batch.put_file(here, f"{remote}{here.name}" if remote.endswith("/") else remote)
        count = len(batch)
    print(f"{tables.count(count)} file{'' if count == 1 else 's'} put into the volume {name}.")


def get(name: str, remote: str, local: str, force: bool, environment: str | None) -> int:
    with _volume(name, environment) as volume:
        if local == "-":
            for data in volume.read_file(remote):
                sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return 0
        return _download(volume, remote, Path(local), force)


def cp(name: str, sources: list[str], target: str, recursive: bool, environment: str | None) -> None:
    with _volume(name, environment) as volume:
        volume.copy_files(sources, target, recursive=recursive)


def rm(name: str, path: str, recursive: bool, environment: str | None) -> None:
    with _volume(name, environment) as volume:
        volume.remove_file(path, recursive=recursive)


# ---------------------------------------------------------------- downloads


def _download(volume: Volume, remote: str, local: Path, force: bool) -> int:
    """Gives 1 where something of a directory could not be had."""
    found = volume.listdir(remote, recursive=True)
    base = remote.strip("/")
    if not found and any(mark in base for mark in "*?["):
        raise NotFoundError(f"nothing in the volume matches {remote!r}; `kedge volume ls` shows what there is")
    if [entry.path for entry in found] == [base]:
        target = local / base.rpartition("/")[2] if local.is_dir() else local
        _fetch(volume, base, target, force)
        print(target)
        return 0
    root = local / base.rpartition("/")[2] if local.is_dir() and base else local
    files = [(entry, _place(root, entry, base)) for entry in found if entry.type is not FileEntryType.DIRECTORY]
    taken = [str(target) for _, target in files if os.path.lexists(target)]
    if taken and not force:
        raise AlreadyExistsError(
            f"{', '.join(taken[:3])} {'is' if len(taken) == 1 else 'are'} here already; --force replaces what is there"
        )
    root.mkdir(parents=True, exist_ok=True)
    failed = 0
    for entry, target in files:
        try:
            _fetch(volume, entry.path, target, force)
        except (Error, OSError) as error:
            if entry.type is not FileEntryType.SYMLINK:
                raise
            click.echo(f"{entry.path} is left out: {error}", err=True)
            failed += 1
    count = len(files) - failed
    print(f"{tables.count(count)} file{'' if count == 1 else 's'} in {root}")
    return 1 if failed else 0


def _place(root: Path, entry: FileEntry, base: str) -> Path:
    relative = entry.path.removeprefix(base).strip("/")
    if not relative or ".." in relative.split("/"):
        raise InvalidError(f"the server names a file {entry.path!r}, which is not below {base!r}")
    return root / relative


def _fetch(volume: Volume, path: str, target: Path, force: bool) -> None:
    """One file, which is there when all of it is."""
    if os.path.lexists(target) and not force:
        raise AlreadyExistsError(f"{target} is here already; --force replaces it")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.part")
    try:
        with draft.open("wb") as file:
            volume.read_file_into_fileobj(path, file)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
