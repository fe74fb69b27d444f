"""What is imported in a container: the stored files, under the names of their originals."""

from __future__ import annotations

import importlib
import inspect
import linecache
import shutil
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kedge.container.snapshot import Snapshot
from kedge.model.spec import CodeSpec

Files = dict[str, str]


@pytest.fixture
def ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Files, str], Path]]:
    """Stores files as a snapshot of a package, and installs its finder. Nothing is left where they came from."""

    def make(files: Files, package: str, home: str = "") -> Path:
        for name, text in files.items():
            path = tmp_path / "stored" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        origin = tmp_path / "home" / package
        code = CodeSpec(
            digest="d" * 32, root=str(tmp_path / "stored"), origin=str(origin), module=package, is_package=True
        )
        monkeypatch.setattr(sys, "meta_path", [Snapshot(code, home), *sys.meta_path])
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


def test_a_package_in_a_container_with_its_own_files_has_its_data_beside_it(
    ship: Callable[[Files, str, str], Path], tmp_path: Path
) -> None:
    home = tmp_path / "root"
    home.mkdir()
    origin = ship({"pier/__init__.py": "", "pier/text.py": "def f(): pass\n", "pier/words.txt": "a"}, "pier", str(home))
    module = importlib.import_module("pier.text")
    assert module.__file__ == str(tmp_path / "stored" / "pier" / "text.py")
    assert list(sys.modules["pier"].__path__) == [str(tmp_path / "stored" / "pier")]
    assert module.f.__code__.co_filename == str(origin / "text.py"), "tracebacks name what the user edits"


@pytest.mark.parametrize(("added", "at_home"), [("large.bin", True), ("words.txt", False)])
def test_what_an_image_has_of_a_package_beyond_the_snapshot_is_beside_it(
    ship: Callable[[Files, str, str], Path], tmp_path: Path, added: str, at_home: bool
) -> None:
    directory = tmp_path / "root" / "pier" / "data"
    directory.mkdir(parents=True)
    (directory / added).write_text("")
    files = {"pier/__init__.py": "", "pier/text.py": "VALUE = 'stored'", "pier/data/words.txt": "a"}
    ship(files, "pier", str(tmp_path / "root"))
    module = importlib.import_module("pier.text")
    place = tmp_path / ("root" if at_home else "stored")
    assert (module.VALUE, module.__file__) == ("stored", str(place / "pier" / "text.py"))
    assert (place / "pier" / "data" / added).exists()


def test_a_module_without_a_package_lies_where_an_image_has_data(
    ship: Callable[[Files, str, str], Path], tmp_path: Path
) -> None:
    ship({"pier.py": "VALUE = 1"}, "pier", str(tmp_path / "root"))
    assert importlib.import_module("pier").__file__ == str(tmp_path / "root" / "pier.py")


FAILING = """
import warnings

def fail():
    warnings.warn("old")
    raise ValueError("stored")

class Boat:
    length = 3
"""


@pytest.mark.parametrize("home", ["", "root"])
@pytest.mark.parametrize("edited", [False, True])
def test_the_stored_lines_are_quoted_also_where_the_original_was_edited(
    ship: Callable[[Files, str, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    home: str,
    edited: bool,
) -> None:
    monkeypatch.setattr(linecache, "updatecache", linecache.updatecache)
    monkeypatch.setattr(linecache, "cache", {})
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    origin = ship({"pier/__init__.py": "", "pier/text.py": FAILING}, "pier", home and str(tmp_path / home))
    finder = sys.meta_path[0]
    assert isinstance(finder, Snapshot)
    finder.quote_stored_lines()
    if edited:
        origin.mkdir(parents=True)
        (origin / "text.py").write_text("# edited\n" * 30)
    module = importlib.import_module("pier.text")
    with pytest.warns(UserWarning, match="old") as warned, pytest.raises(ValueError, match="stored") as caught:
        module.fail()
    (warning,) = warned
    shown = warnings.formatwarning(str(warning.message), warning.category, warning.filename, warning.lineno)
    assert shown == f'{origin / "text.py"}:5: UserWarning: old\n  warnings.warn("old")\n'
    told = "".join(traceback.format_exception(caught.value))
    assert f'File "{origin / "text.py"}", line 6, in fail\n    raise ValueError("stored")' in told
    threading.excepthook(threading.ExceptHookArgs((ValueError, caught.value, caught.tb, None)))
    assert f'File "{origin / "text.py"}", line 6, in fail\n    raise ValueError("stored")' in capsys.readouterr().err
    assert inspect.getsource(module.Boat) == "class Boat:\n    length = 3\n"
    assert linecache.getline(traceback.__file__, 1), "other files are read as ever"


def test_what_the_compiler_says_names_the_original(ship: Callable[[Files, str], Path]) -> None:
    wrong, doubtful = "x = 1\ndef f(:\n", "x = 1\ny = x is 5\n"
    origin = ship({"pier/__init__.py": "", "pier/wrong.py": wrong, "pier/doubtful.py": doubtful}, "pier")
    with pytest.raises(SyntaxError) as caught:
        importlib.import_module("pier.wrong")
    assert (caught.value.filename, caught.value.lineno, caught.value.text) == (str(origin / "wrong.py"), 2, "def f(:\n")
    with pytest.warns(SyntaxWarning, match="is") as warned:
        importlib.import_module("pier.doubtful")
    assert [(warning.filename, warning.lineno) for warning in warned] == [(str(origin / "doubtful.py"), 2)]
