"""Where the files go that an image adds when a container starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedge.exception import InvalidError
from kedge.model.spec import LocalFiles
from kedge.server import added


def tree(root: Path, *paths: str) -> str:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return str(root)


def placed(mounts: list[LocalFiles], layer: str, *others: str) -> dict[str, str]:
    return {bind.target: bind.source for bind in added.binds(mounts, (layer,), others)}


def test_a_directory_of_its_own_is_one_bind(tmp_path: Path) -> None:
    source, layer = tree(tmp_path / "s", "a", "sub/b"), tree(tmp_path / "l", "app/baked")
    assert placed([LocalFiles("x", source, "/data")], layer) == {"/data": source}


def test_what_the_image_has_in_the_same_directory_stays(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", "main.py", "sub/b", "new/c")
    layer = tree(tmp_path / "l", "app/baked", "app/sub/baked")
    assert placed([LocalFiles("x", source, "/app")], layer) == {
        "/app/main.py": f"{source}/main.py",
        "/app/sub/b": f"{source}/sub/b",
        "/app/new": f"{source}/new",
    }


def test_directories_are_added_below_and_over_each_other(tmp_path: Path) -> None:
    code, data = tree(tmp_path / "s", "main.py", "lib/a"), tree(tmp_path / "d", "part", "lib/b")
    layer = tree(tmp_path / "l", "etc/passwd")
    below = [LocalFiles("x", code, "/app"), LocalFiles("y", data, "/app/data")]
    assert placed(below, layer) == {"/app/main.py": f"{code}/main.py", "/app/lib": f"{code}/lib", "/app/data": data}
    over = [LocalFiles("x", code, "/app"), LocalFiles("y", data, "/app")]
    assert placed(over, layer) == {
        "/app/main.py": f"{code}/main.py",
        "/app/part": f"{data}/part",
        "/app/lib/a": f"{code}/lib/a",
        "/app/lib/b": f"{data}/lib/b",
    }


def test_a_volume_may_lie_in_what_is_added(tmp_path: Path) -> None:
    source, layer = tree(tmp_path / "s", "main.py"), tree(tmp_path / "l", "etc/passwd")
    mounts = [LocalFiles("x", source, "/app")]
    assert placed(mounts, layer, "/app/models") == {"/app/main.py": f"{source}/main.py"}
    assert placed(mounts, layer, "/apples") == {"/app": source}


def test_a_file_goes_to_its_path(tmp_path: Path) -> None:
    source, layer = tree(tmp_path / "s", "config.toml"), tree(tmp_path / "l", "etc/passwd")
    files = LocalFiles("x", source, "/etc/app.toml", is_file=True)
    assert placed([files], layer) == {"/etc/app.toml": f"{source}/config.toml"}


def test_too_many_for_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(added, "AT_MOST", 2)
    source, layer = tree(tmp_path / "s", "1", "2", "3"), tree(tmp_path / "l", "app/baked")
    with pytest.raises(InvalidError, match=r"more than 2 files would have to be added one by one to /app, which the"):
        placed([LocalFiles("x", source, "/app")], layer)
    assert placed([LocalFiles("x", source, "/data")], layer) == {"/data": source}
