"""`kedge volume`: file systems that outlive containers, and the files in them."""

from __future__ import annotations

import click

from kedge.cli.apps import JSON, YES
from kedge.cli.outcome import finish, not_empty
from kedge.cli.secret import ENVIRONMENT, MISSING, NAME


@click.group("volume")
def volume() -> None:
    """Volumes: file systems that outlive containers (kedge.Volume).

    \b
        kedge volume create models
        kedge volume put models ./weights /llama
        kedge volume ls models /llama
        kedge volume get models /llama/config.json
        kedge volume rm models /llama -r
    """


@volume.command("list")
@JSON
@ENVIRONMENT
def volume_list(environment: str | None, as_json: bool) -> None:
    """List volumes."""
    from kedge.cli import volumeviews

    finish(lambda: volumeviews.show_list(environment, as_json))


@volume.command("create")
@ENVIRONMENT
@NAME
def volume_create(name: str, environment: str | None) -> None:
    """Make an empty volume.

    \b
        kedge volume create models
    """
    from kedge.cli import volumeviews

    finish(lambda: volumeviews.create(name, environment))


@volume.command("delete")
@ENVIRONMENT
@YES
@MISSING
@NAME
def volume_delete(name: str, environment: str | None, yes: bool, allow_missing: bool) -> None:
    """Delete a volume with all its files.

    One that containers have mounted is not deleted: stop their apps first.

    \b
        kedge volume delete models
    """
    from kedge.cli import volumeviews

    finish(lambda: volumeviews.delete(name, environment, yes, allow_missing))


@volume.command("rename")
@ENVIRONMENT
@YES
@NAME
@click.argument("new_name", metavar="NEW_NAME", callback=not_empty)
def volume_rename(name: str, new_name: str, environment: str | None, yes: bool) -> None:
    """Give a volume another name.

    Apps that look for the old name do not find it any more.

    \b
        kedge volume rename models weights
    """
    from kedge.cli import volumeviews

    finish(lambda: volumeviews.rename(name, new_name, environment, yes))


@volume.command("ls")
@JSON
@ENVIRONMENT
@click.option("-r", "--recursive", is_flag=True, help="Also what is in the directories.")
@NAME
@click.argument("path", metavar="[PATH]", default="/")
def volume_ls(name: str, path: str, recursive: bool, environment: str | None, as_json: bool) -> None:
    """List files of a volume.

    PATH is a directory, a file, or a pattern in quotes.

    \b
        kedge volume ls models
        kedge volume ls models "/llama/*.safetensors"
        kedge volume ls models -r --json | jq -r '.[].path'
    """
    from kedge.cli import volumeviews

    finish(lambda: volumeviews.ls(name, path, recursive, environment, as_json))


@volume.command("get")
@ENVIRONMENT
@click.option("-f", "--force", is_flag=True, help="Replace files that are there.")
@NAME
@click.argument("remote", metavar="REMOTE", callback=not_empty)
@click.argument("local", metavar="[LOCAL]", default=".")
def volume_get(name: str, remote: str, local: str, force: bool, environment: str | None) -> None:
    """Copy a file or a directory of a volume to this machine.

    LOCAL is where it goes, by default the current directory; - prints a file.

    \b
        kedge volume get models /llama/config.json
        kedge volume get models /llama ./backup
        kedge volume get logs /latest.txt - | tail
    """
    from kedge.cli import volumeviews

    finish(lambda: volumeviews.get(name, remote, local, force, environment))


@volume.command("put")
@ENVIRONMENT
@click.option("-f", "--force", is_flag=True, help="Replace files that are there.")
@NAME
@click.argument("local", metavar="LOCAL", callback=not_empty)
@click.argument("remote", metavar="[REMOTE]", default="/")
def volume_put(name: str, local: str, remote: str, force: bool, environment: str | None) -> None:
    """Copy a file or a directory of this machine into a volume, as one commit.

    REMOTE is where it goes, by default the root of the volume. A file keeps its name where REMOTE ends with a slash.

    \b
        kedge volume put models ./weights /llama
        kedge volume put models config.json /llama/
    """
    from kedge.cli import volumeviews

    finish(lambda: volumeviews.put(name, local, remote, force, environment))


@volume.command("cp")
@ENVIRONMENT
@click.option("-r", "--recursive", is_flag=True, help="Also directories, with all that is in them.")
@NAME
@click.argument("paths", metavar="SOURCE... TARGET", nargs=-1, required=True)
def volume_cp(name: str, paths: tuple[str, ...], recursive: bool, environment: str | None) -> None:
    """Copy files within a volume.

    \b
        kedge volume cp models /llama/a.bin /llama/b.bin
        kedge volume cp models /llama /backup -r
    """
    from kedge.cli import volumeviews

    if len(paths) < 2:
        raise click.UsageError("Name what to copy, and where to.")
    finish(lambda: volumeviews.cp(name, list(paths[:-1]), paths[-1], recursive, environment))


@volume.command("rm")
@ENVIRONMENT
@click.option("-r", "--recursive", is_flag=True, help="Also directories, with all that is in them.")
@NAME
@click.argument("path", metavar="PATH", callback=not_empty)
def volume_rm(name: str, path: str, recursive: bool, environment: str | None) -> None:
    """Remove a file of a volume.

    \b
        kedge volume rm models /llama/a.bin
        kedge volume rm models /llama -r
    """
    from kedge.cli import volumeviews

    finish(lambda: volumeviews.rm(name, path, recursive, environment))
