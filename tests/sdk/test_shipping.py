"""What goes along with an app to a server that does not share our disk, or is another machine."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import kedge
from kedge.exception import InvalidError
from kedge.model import protocol as p
from kedge.sdk import client as client_module
from kedge.sdk import shipping, snapshot
from kedge.sdk.serializer import PYTHON
from kedge.wire.source import digest_of
from tests.sdk.fake_plane import FakePlane

SOURCE = "import kedge\n\napp = kedge.App('far')\n\n\n@app.function()\ndef square(x):\n    return x * x\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    client = client_module.running()
    if client is not None:
        client.close()


def module(home: Path, name: str = "far_app", source: str = SOURCE) -> ModuleType:
    (home / f"{name}.py").write_text(source)
    importlib.invalidate_caches()
    return importlib.import_module(name)


def use(plane: FakePlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_SERVER", plane.address)


def test_another_machine_gets_the_files_and_nothing_of_ours(
    far_plane: FakePlane, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(far_plane, monkeypatch)
    monkeypatch.setenv("SECRET_OF_MINE", "x")
    app = module(home).app
    app.deploy()
    spec = far_plane.heard(p.AppDeployed)[0].app
    ((digest, files),) = far_plane.code.items()
    assert files == [("far_app.py", SOURCE.encode())]
    assert digest_of(files) == digest == spec.code.digest
    assert spec.code.root == f"/there/{digest}"
    assert spec.code.origin == f"/there/{digest}/far_app.py", "where data beside the file would be"
    environment = spec.environment
    assert (environment.python, environment.python_version, environment.directory) == ("", PYTHON, "")
    assert (environment.sys_path, environment.variables) == ((), ())
    assert [message.last for message in far_plane.heard(p.CodeUploaded)] == [True, True], "first asked, then sent"
    app.deploy()
    assert [len(message.files) for message in far_plane.heard(p.CodeUploaded)] == [0, 1, 0], "it is there already"


def test_a_run_goes_there_too(far_plane: FakePlane, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(far_plane, monkeypatch)
    with module(home).app.run():
        pass
    spec = far_plane.heard(p.AppCreated)[0].app
    assert spec.code.root.startswith("/there/")
    assert spec.environment.python == ""


def test_a_server_of_this_machine_with_another_home_gets_a_copy_to_keep(
    plane: FakePlane, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(plane, monkeypatch)
    module(home).app.deploy()
    spec = plane.heard(p.AppDeployed)[0].app
    assert spec.code.root.startswith("/there/")
    assert spec.environment.python == sys.executable, "but it is the same machine"


def test_the_server_of_our_own_home_reads_what_we_read(
    plane: FakePlane, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(plane, monkeypatch)
    monkeypatch.setenv("KEDGE_HOME", os.path.dirname(plane.home))
    snapshots = Path(plane.home).parent / "code"
    monkeypatch.setattr(snapshot, "take", lambda specs, where, include: snapshot.CodeSpec(module="x", root=str(where)))
    module(home).app.deploy()
    assert plane.heard(p.CodeUploaded) == []
    assert plane.heard(p.AppDeployed)[0].app.code.root == str(snapshots.parent)


def test_a_package_arrives_in_the_order_of_its_digest(
    far_plane: FakePlane, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(far_plane, monkeypatch)
    monkeypatch.setattr(shipping, "PART", 400)
    package = home / "far_pkg"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "main.py").write_text(SOURCE)
    (package / "sub" / "__init__.py").write_text("")
    (package / "sub" / "data.bin").write_bytes(bytes(range(256)) * 2)
    (package / "zz.py").write_text("# the last\n" * 20)
    importlib.invalidate_caches()
    importlib.import_module("far_pkg.main").app.deploy()
    ((digest, files),) = far_plane.code.items()
    assert digest_of(files) == digest
    assert [path for path, _ in files] == [
        "far_pkg/__init__.py", "far_pkg/main.py", "far_pkg/zz.py", "far_pkg/sub/__init__.py", "far_pkg/sub/data.bin",
    ]  # fmt: skip
    sent = [message for message in far_plane.heard(p.CodeUploaded) if message.files]
    assert [message.last for message in sent] == [False, True]


def test_code_that_stays_here_cannot_run_there(
    far_plane: FakePlane, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(far_plane, monkeypatch)
    app = module(home, source=SOURCE.replace("'far'", "'far', include_source=False")).app
    with pytest.raises(InvalidError, match=r"include_source=False keeps the code of .*far_app.py on this machine"):
        app.deploy()


def test_code_by_value_needs_no_files(far_plane: FakePlane, monkeypatch: pytest.MonkeyPatch) -> None:
    use(far_plane, monkeypatch)
    app = kedge.App("far")
    app.function(serialized=True, name="one")(lambda: 1)
    app.deploy()
    assert far_plane.heard(p.CodeUploaded) == []
    assert far_plane.heard(p.AppDeployed)[0].app.code.root == ""


def test_parts_are_bounded_and_keep_their_order() -> None:
    big = b"x" * (shipping.PART + 1)
    files = [("a", big), ("b", b""), ("c", b"yy"), ("d", big)]
    assert [[path for path, _ in part] for part in shipping.parts(files)] == [["a"], ["b", "c"], ["d"]]
