"""What is shipped: the right files, once, and nothing that is no code."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.exception import Error, ModuleNotMountable
from kedge.model.payload import Payload
from kedge.model.spec import CodeSpec, FunctionSpec
from kedge.sdk import alias, snapshot
from kedge.wire.source import digest_of


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on the path with a package and a module in it."""
    root = tmp_path / "project"
    files = {
        "shop_pkg/__init__.py": "",
        "shop_pkg/tasks.py": "VALUE = 1",
        "shop_pkg/deep/__init__.py": "",
        "shop_pkg/deep/more.py": "",
        "shop_pkg/data.json": "{}",
        "shop_pkg/.git/config": "secret",
        "shop_pkg/__pycache__/tasks.pyc": "stale",
        "shop_pkg/venv/pyvenv.cfg": "",
        "shop_pkg/venv/lib.py": "",
        "shop_pkg/weights.bin": "x" * (snapshot.DATA_LIMIT + 1),
        "shop_single.py": "VALUE = 2",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.syspath_prepend(str(root))
    yield root
    for name in [name for name in sys.modules if name.startswith("shop_")]:
        del sys.modules[name]


def take(home: Path, *modules: str, include_source: bool = True) -> CodeSpec:
    specs = []
    for module in modules:
        importlib.import_module(module)
        specs.append(FunctionSpec(name=module, module=module, qualname="f"))
    return snapshot.take(specs, str(home), include_source)


def stored(code: CodeSpec) -> list[str]:
    return sorted(str(path.relative_to(code.root)) for path in Path(code.root).rglob("*") if path.is_file())


def test_a_module_is_one_file(project: Path, tmp_path: Path) -> None:
    code = take(tmp_path, "shop_single")
    assert stored(code) == ["shop_single.py"]
    assert code == CodeSpec(
        digest=code.digest,
        root=str(tmp_path / "code" / code.digest),
        origin=str(project / "shop_single.py"),
        module="shop_single",
    )


def test_a_package_is_shipped_from_its_top_without_what_is_no_code(project: Path, tmp_path: Path) -> None:
    code = take(tmp_path, "shop_pkg.tasks")
    assert (code.module, code.is_package, code.main) == ("shop_pkg", True, False)
    assert code.origin == str(project / "shop_pkg")
    assert stored(code) == [
        "shop_pkg/__init__.py",
        "shop_pkg/data.json",
        "shop_pkg/deep/__init__.py",
        "shop_pkg/deep/more.py",
        "shop_pkg/tasks.py",
    ]


def test_what_was_imported_from_beside_goes_along(project: Path, tmp_path: Path) -> None:
    """A version that was deployed stays what it was when these files change."""
    code = take(tmp_path, "shop_single", "shop_pkg.tasks")
    assert (code.module, code.is_package) == ("shop_single", False)
    assert "shop_pkg/tasks.py" in stored(code)
    assert "shop_pkg/data.json" in stored(code)
    assert "shop_pkg/weights.bin" not in stored(code)
    assert digest_of(snapshot.stored_files(code)) == code.digest
    (project / "shop_pkg" / "tasks.py").write_text("VALUE = 2")
    assert take(tmp_path, "shop_single").digest != code.digest
    other = take(tmp_path, "shop_pkg")
    assert other.module == "shop_pkg"
    assert "shop_single.py" in stored(other)
    assert digest_of(snapshot.stored_files(other)) == other.digest


def test_what_came_from_elsewhere_or_under_another_name_does_not(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop_elsewhere.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("shop_elsewhere")
    monkeypatch.setitem(sys.modules, "shop_alias", importlib.import_module("shop_single"))
    code = take(tmp_path, "shop_pkg")
    assert not [name for name in stored(code) if "elsewhere" in name or "alias" in name]


def test_a_namespace_package_beside_goes_along(project: Path, tmp_path: Path) -> None:
    (project / "shop_space").mkdir()
    (project / "shop_space" / "part.py").write_text("")
    importlib.invalidate_caches()
    importlib.import_module("shop_space.part")
    assert stored(take(tmp_path, "shop_single")) == ["shop_single.py", "shop_space/part.py"]


def test_a_module_in_a_namespace_package_is_shipped_with_what_is_in_the_same_place(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    for path in (project / "shop_space" / "deep" / "part.py", other / "shop_space" / "installed.py"):
        path.parent.mkdir(parents=True)
        path.write_text("")
    monkeypatch.syspath_prepend(str(other))
    importlib.import_module("shop_space.installed")
    importlib.import_module("shop_single")
    code = take(tmp_path, "shop_space.deep.part")
    assert stored(code) == ["shop_single.py", "shop_space/deep/part.py"]
    assert (code.module, code.is_package, code.main) == ("shop_space", True, False)
    assert code.origin == str(project / "shop_space")


def test_a_namespace_package_that_is_installed_is_not_shipped(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "shop_space").mkdir()
    (project / "shop_space" / "part.py").write_text("")
    monkeypatch.setattr(snapshot.site, "getsitepackages", lambda: [str(project)])
    assert take(tmp_path, "shop_space.part") == CodeSpec()


def test_what_is_too_much_beside_stays_where_it_is(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "FILE_LIMIT", 2)
    importlib.import_module("shop_pkg")
    assert stored(take(tmp_path, "shop_single")) == ["shop_single.py"]


def test_equal_code_is_stored_once_and_changed_code_beside_it(project: Path, tmp_path: Path) -> None:
    first = take(tmp_path, "shop_pkg.tasks")
    assert take(tmp_path, "shop_pkg.tasks") == first
    (project / "shop_pkg" / "tasks.py").write_text("VALUE = 3")
    second = take(tmp_path, "shop_pkg.tasks")
    assert second.digest != first.digest
    assert Path(first.root, "shop_pkg/tasks.py").read_text() == "VALUE = 1"
    assert sorted(os.listdir(tmp_path / "code")) == sorted([first.digest, second.digest]), "no drafts are left"
    assert (tmp_path / "code").stat().st_mode & 0o777 == 0o700


def test_code_that_is_stored_already_counts_as_used_again(project: Path, tmp_path: Path) -> None:
    importlib.import_module("shop_single")
    first = take(tmp_path, "shop_single")
    os.utime(first.root, times=(0, 0))
    assert take(tmp_path, "shop_single").root == first.root
    assert os.stat(first.root).st_mtime > 0


def test_a_module_of_the_same_content_under_another_name_is_another_snapshot(project: Path, tmp_path: Path) -> None:
    (project / "shop_other.py").write_text("VALUE = 2")
    assert take(tmp_path, "shop_other").digest != take(tmp_path, "shop_single").digest


def test_without_include_source_containers_import_the_files_where_they_are(project: Path, tmp_path: Path) -> None:
    code = take(tmp_path, "shop_single", include_source=False)
    assert (code.digest, code.root, code.module) == ("", str(project), "shop_single")
    assert not (tmp_path / "code").exists()


def test_installed_code_is_not_shipped(tmp_path: Path) -> None:
    assert take(tmp_path, "json", "numpy") == CodeSpec()


def test_code_by_value_needs_no_files(tmp_path: Path) -> None:
    spec = FunctionSpec(name="f", module="__main__", qualname="f", serialized=Payload())
    assert snapshot.take([spec], str(tmp_path)) == CodeSpec()


def test_what_is_too_large_to_be_code_is_refused_with_the_fix(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "FILE_LIMIT", 2)
    with pytest.raises(ModuleNotMountable, match=r"shop_pkg is too large to be shipped.*include_source=False"):
        take(tmp_path, "shop_pkg")


def test_a_home_that_cannot_be_written_is_said_with_the_fix(project: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Error, match=r"file cannot be used: .* set KEDGE_HOME to a directory you can write to"):
        take(tmp_path / "file", "shop_single")


def run_main(directory: Path, home: Path, *command: str) -> list[str]:
    """What a main script's own snapshot is, from a process of its own."""
    report = """
        import os
        from kedge.model.spec import FunctionSpec
        from kedge.sdk import snapshot
        code = snapshot.take([FunctionSpec(name="f", module="__main__", qualname="f")], os.environ["STORE"])
        files = sorted(os.path.join(d, n) for d, _, names in os.walk(code.root) for n in names)
        print(code.module, code.is_package, code.main, os.path.basename(code.origin), snapshot.program_name())
        print(*[os.path.relpath(path, code.root) for path in files])
    """
    for name in ("program.py", "tool/__init__.py", "tool/run.py", "tool/__main__.py"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("" if name.endswith("__init__.py") else textwrap.dedent(report))
    environment = {**os.environ, "STORE": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=directory, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_a_main_script_is_shipped_alone(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    facts = run_main(tmp_path / "here", tmp_path, "program.py")
    assert facts == ["program False True program.py program", "program.py"]


@pytest.mark.parametrize(("name", "module"), [("tool.run", "tool.run"), ("tool", "tool.__main__")])
def test_a_module_run_with_m_is_shipped_with_its_package(tmp_path: Path, name: str, module: str) -> None:
    (tmp_path / "here").mkdir()
    facts = run_main(tmp_path / "here", tmp_path, "-m", name)
    assert facts[0].startswith(f"{module} True True here")
    assert facts[1] == "tool/__init__.py tool/__main__.py tool/run.py"


def test_the_environment_is_this_process_without_kedges_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_TOKEN", "secret")
    monkeypatch.setenv("COLOUR", "blue")
    monkeypatch.setattr(sys, "path", ["", "relative", "/absolute", "/absolute"])
    environment = snapshot.environment()
    assert environment.python == sys.executable
    assert environment.sys_path == (os.getcwd(), os.path.abspath("relative"), "/absolute")
    assert ("COLOUR", "blue") in environment.variables
    assert not any(key.startswith("KEDGE_") for key, _ in environment.variables)
    assert environment.directory == os.getcwd()
    assert environment.alias_modal is alias.is_installed()
