"""The user's file in a process of its own: what comes back, whatever the file does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kedge.cli.importing import Import, Order, Parcel

PATIENCE_S = 60.0

APP = """
import sys
import kedge
import helper
print("imported", sys.argv, sys.stdin.read(), file=sys.stderr)
app = kedge.App()

@app.function()
def square(x): return helper.product(x, x)
"""


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Parcel, str]]:
    """Imports app.py out of these files, and gives the parcel and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path / "home"))

    def run(files: dict[str, str], **fields: object) -> tuple[Parcel, str]:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        over, parcels, lines = threading.Event(), [], []

        def take(parcel: Parcel) -> None:
            parcels.append(parcel)
            over.set()

        order = Order(**{"ref": "app.py", **fields})  # type: ignore[arg-type]
        process = Import(order, take, lines.append)
        assert over.wait(PATIENCE_S)
        process.stop()
        return parcels[0], "".join(lines)

    return run


def test_the_app_comes_back_with_the_files_it_is_made_of(
    imported: Callable[..., tuple[Parcel, str]], tmp_path: Path
) -> None:
    parcel, printed = imported(
        {"app.py": APP, "helper.py": "def product(x, y): return x * y", "unused.py": ""}, environment="staging"
    )
    assert parcel.error == ""
    assert parcel.app is not None
    assert (parcel.app.name, parcel.app.environment_name) == ("app", "staging")
    assert [function.name for function in parcel.app.functions] == ["square"]
    assert (Path(parcel.app.code.root) / "app.py").read_text() == APP
    assert parcel.app.environment.alias_modal
    assert str(tmp_path) in parcel.app.environment.sys_path
    assert parcel.sources == (str(tmp_path / "app.py"), str(tmp_path / "helper.py"))
    assert printed == "imported ['kedge', 'serve', 'app.py'] \n"


def test_a_package_is_watched_whole(imported: Callable[..., tuple[Parcel, str]], tmp_path: Path) -> None:
    source = "import kedge\nfrom . import other\napp = kedge.App('p')\n@app.function()\ndef f(): ...\n"
    files = {"pkg/__init__.py": "", "pkg/main.py": source, "pkg/other.py": "", "pkg/lazy.py": ""}
    parcel, _ = imported(files, ref="pkg.main", is_module=True)
    assert parcel.app is not None
    assert parcel.packages == (str(tmp_path / "pkg"),)
    assert parcel.sources == tuple(str(tmp_path / "pkg" / name) for name in ("__init__.py", "main.py", "other.py"))


def test_code_that_fails_is_shown_and_names_its_files(
    imported: Callable[..., tuple[Parcel, str]], tmp_path: Path
) -> None:
    parcel, _ = imported({"app.py": APP, "helper.py": "print('before')\n1 / 0\n"})
    assert parcel.app is None
    assert f'File "{tmp_path}/helper.py", line 2' in parcel.traceback
    assert "importing.py" not in parcel.traceback
    assert parcel.traceback.rstrip().endswith("ZeroDivisionError: division by zero")
    assert parcel.error == "importing app.py failed, so there is nothing new to serve."
    assert not parcel.misused
    assert set(parcel.sources) == {str(tmp_path / "app.py"), str(tmp_path / "helper.py")}


def test_a_file_that_is_no_python_names_itself(imported: Callable[..., tuple[Parcel, str]], tmp_path: Path) -> None:
    parcel, _ = imported({"app.py": APP, "helper.py": "def product(:\n"})
    assert "SyntaxError" in parcel.traceback
    assert set(parcel.sources) == {str(tmp_path / "app.py"), str(tmp_path / "helper.py")}


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import sys; sys.exit(3)", "importing app.py called sys.exit(), so there is nothing new to serve."),
        ("import os; os._exit(7)", "the process that imported it has ended with exit code 7"),
        ("import os; os.kill(os.getpid(), 9)", "the process that imported it has ended with exit code -9"),
    ],
)
def test_code_that_leaves_is_no_app(imported: Callable[..., tuple[Parcel, str]], source: str, error: str) -> None:
    parcel, _ = imported({"app.py": source})
    assert (parcel.app, parcel.error) == (None, error)


def test_misuse_of_the_command_is_told_apart(imported: Callable[..., tuple[Parcel, str]]) -> None:
    parcel, _ = imported({"app.py": "x = 1"})
    assert parcel.misused
    assert parcel.error.startswith("app.py has no kedge.App")
    parcel, _ = imported({}, ref="nothing.py")
    assert (parcel.misused, parcel.error) == (True, "there is no file 'nothing.py'.")


def test_threads_that_are_left_behind_hold_nothing_up(imported: Callable[..., tuple[Parcel, str]]) -> None:
    source = "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,)).start()\n"
    parcel, _ = imported({"app.py": source + APP, "helper.py": ""})
    assert parcel.app is not None


def test_an_import_that_is_stopped_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(3600)")
    parcels: list[Parcel] = []
    begun = threading.Event()
    process = Import(Order(ref="app.py"), parcels.append, lambda line: begun.set())
    assert begun.wait(PATIENCE_S)
    process.stop()
    for thread in process._threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert parcels == []


def test_what_kedge_has_to_say_is_said_once(imported: Callable[..., tuple[Parcel, str]], tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    with (tmp_path / "shop" / "data.py").open("wb") as file:
        file.truncate(65 * 2**20)
    app = "import kedge\napp = kedge.App()\n@app.function()\ndef f(): ...\n"
    parcel, _ = imported({"shop/__init__.py": "", "shop/main.py": app}, ref="shop.main", is_module=True)
    assert parcel.traceback == ""
    assert parcel.error.startswith("shop.main cannot be served as it is: ")
    assert "is too large to be shipped as code" in parcel.error
