"""Functions that share volumes."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import kedge

app = kedge.App("volumes")
shared = kedge.Volume.from_name("shared", create_if_missing=True)
quick = {"scaledown_window": 2}


def _files(root: str) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(Path(root).rglob("*")) if path.is_file()}


@app.function(volumes={"/data": shared}, max_containers=1, scaledown_window=60)
def one(files: dict[str, str], commit: bool = False, reload: bool = False) -> dict[str, str]:
    """Writes files, and says what it sees."""
    return _work(files, commit, reload)


@app.function(volumes={"/data": shared}, max_containers=1, scaledown_window=60)
def other(files: dict[str, str], commit: bool = False, reload: bool = False) -> dict[str, str]:
    return _work(files, commit, reload)


def _work(files: dict[str, str], commit: bool, reload: bool) -> dict[str, str]:
    if reload:
        shared.reload()
    for name, text in files.items():
        path = Path("/data", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if commit:
        shared.commit()
    return _files("/data")


@app.function(volumes={"/data": shared}, **quick)
async def rearrange() -> dict[str, str]:
    """What programs do to directories."""
    os.makedirs("/data/tree/sub", exist_ok=True)
    Path("/data/tree/sub/kept").write_text("kept")
    Path("/data/tree/gone").write_text("gone")
    await shared.commit.aio()
    await shared.reload.aio()
    os.unlink("/data/tree/gone")
    shutil.move("/data/tree", "/data/moved")
    os.symlink("moved/sub/kept", "/data/link")
    os.symlink("/etc/passwd", "/data/out")
    await shared.commit.aio()
    return _files("/data")


@app.function(volumes={"/data": shared}, **quick)
def write_and_die(name: str, marker: str) -> str:
    if not os.path.exists(marker):
        Path("/data", name).write_text("written before its end")
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@app.function(volumes={"/all": shared.read_only(), "/part": shared.with_mount_options(sub_path="part/deep")}, **quick)
def parts(text: str) -> tuple[str, list[str]]:
    Path("/part/f").write_text(text)
    try:
        Path("/all/f").write_text(text)
    except OSError as error:
        return error.strerror or "", sorted(os.listdir("/part"))
    return "written", []


@app.function(volumes={"/data": shared}, max_containers=1, scaledown_window=60)
def reload_with_open_file() -> list[Any]:
    shared.commit()
    path = Path("/data/held")
    path.write_text("held")
    with path.open():
        try:
            shared.reload()
        except RuntimeError as error:
            refused = str(error)
        else:
            refused = ""
    shared.reload()
    return [refused, sorted(os.listdir("/data"))]


@app.cls(volumes={"/data": shared}, **quick)
class Library:
    @kedge.enter()
    def open(self) -> None:
        Path("/data/opened").write_text("by enter")

    @kedge.exit()
    def close(self) -> None:
        Path("/data/closed").write_text("by exit")

    @kedge.method()
    def ready(self) -> bool:
        return True
