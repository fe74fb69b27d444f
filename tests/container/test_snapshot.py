"""What is imported in a container: the stored files, under the names of their originals."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kedge.container.snapshot import Snapshot
from kedge.model.spec import CodeSpec

Files = dict[str, str]


@pytest.fixture
def ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Files, str], Path]]:
    """Stores files as a snapshot of a package, and installs its finder. Nothing is left where they came from."""

    def make(files: Files, package: str) -> Path:
        for name, text in files.items():
            path = tmp_path / "stored" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        origin = tmp_path / "home" / package
        code = CodeSpec(
            digest="d" * 32, root=str(tmp_path / "stored"), origin=str(origin), module=package, is_package=True
        )
        monkeypatch.setattr(sys, "meta_path", [Snapshot(code), *sys.meta_path])
        return origin

    yield make
    for name in [name for name in sys.modules if name.startswith("pier")]:
        del sys.modules[name]


def test_a_package_without_init_is_imported_from_the_snapshot(ship: Callable[[Files, str], Path]) -> None:
    origin = ship(
        {"pier/deep/text.py": "from pier_tools.words import WORD", "pier_tools/words.py": "WORD = 'a'"}, "pier"
    )
    module = importlib.import_module("pier.deep.text")
    assert (module.WORD, module.__file__) == ("a", str(origin / "deep" / "text.py"))
    assert list(sys.modules["pier"].__path__) == [str(origin)]


def test_other_parts_of_it_are_found_where_they_are_installed(
    ship: Callable[[Files, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("pier/installed.py", "pier/deep/more.py"):
        path = tmp_path / "site" / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("VALUE = 3")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    origin = ship({"pier/deep/text.py": "VALUE = 2"}, "pier")
    values = [importlib.import_module(f"pier.{name}").VALUE for name in ("deep.text", "installed", "deep.more")]
    assert values == [2, 3, 3]
    assert list(sys.modules["pier"].__path__) == [str(origin), str(tmp_path / "site" / "pier")]


def test_an_installed_package_of_the_same_name_does_not_take_its_place(
    ship: Callable[[Files, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site" / "pier" / "__init__.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("raise AssertionError")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    origin = ship({"pier/text.py": "VALUE = 2"}, "pier")
    assert importlib.import_module("pier.text").VALUE == 2
    assert list(sys.modules["pier"].__path__) == [str(origin)]


def test_what_is_not_in_the_snapshot_is_left_to_others(ship: Callable[[Files, str], Path], tmp_path: Path) -> None:
    ship({"pier/text.py": ""}, "pier")
    shutil.rmtree(tmp_path / "stored" / "pier")
    with pytest.raises(ModuleNotFoundError, match="No module named 'pier'"):
        importlib.import_module("pier.text")
