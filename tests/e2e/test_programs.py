"""Programs as people start them: scripts, modules of packages, files with helpers beside them, code without a file."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BODY = """
    import enum
    from dataclasses import dataclass
    from pathlib import Path

    import kedge
    {imports}

    app = kedge.App("program")

    class Mood(enum.Enum):
        CALM = "calm"

    @dataclass
    class Ship:
        name: str
        mood: Mood = Mood.CALM

    @app.function()
    def launch(ship: Ship) -> Ship:
        assert isinstance(ship, Ship) and ship.mood is Mood.CALM
        return Ship(double(ship.name) + Path(__file__).with_name("data.txt").read_text())

    if __name__ == "__main__":
        with app.run():
            ship = launch.remote(Ship("Vasa"))
            assert type(ship) is Ship and ship.mood is Mood.CALM
            print(ship.name)
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))


def run(directory: Path, *arguments: str, text: str | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=directory, input=text, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_script_with_a_helper_and_a_data_file_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "fleet.py", BODY.format(imports="from helper import double"))
    write(tmp_path / "helper.py", "def double(text): return text * 2")
    write(tmp_path / "data.txt", "!")
    assert run(tmp_path, "fleet.py") == "VasaVasa!"


@pytest.mark.parametrize("main", ["fleet", "__main__"])
def test_a_module_of_a_package_with_relative_imports(tmp_path: Path, main: str) -> None:
    write(tmp_path / "harbour" / "__init__.py", "")
    write(tmp_path / "harbour" / f"{main}.py", BODY.format(imports="from .helper import double"))
    write(tmp_path / "harbour" / "helper.py", "def double(text): return text * 2")
    write(tmp_path / "harbour" / "data.txt", "?")
    name = "harbour" if main == "__main__" else f"harbour.{main}"
    assert run(tmp_path, "-W", "error::DeprecationWarning", "-m", name) == "VasaVasa?"


def test_code_without_a_file_travels_by_value(tmp_path: Path) -> None:
    program = """
        import kedge
        app = kedge.App("typed")
        class Ship:
            def __init__(self, name): self.name = name
        factor = 3
        @app.function()
        def launch(ship): return Ship(ship.name * factor)
        with app.run():
            ship = launch.remote(Ship("Ha"))
            print(ship.name, type(ship) is Ship)
    """
    assert run(tmp_path, "-", text=textwrap.dedent(program)) == "HaHaHa True"


def test_import_modal_runs_unchanged_under_kedge_run(tmp_path: Path) -> None:
    program = """
        import modal
        from modal.exception import InvalidError
        app = modal.App("theirs")
        @app.function()
        @modal.concurrent(max_inputs=4)
        def square(x: int) -> int:
            assert not modal.is_local()
            return x * x
        @app.local_entrypoint()
        def main(n: int = 4):
            print(sum(square.map(range(n))))
    """
    write(tmp_path / "theirs.py", program)
    assert run(tmp_path, "-m", "kedge.cli.main", "run", "-q", "theirs.py", "--n", "5") == "30"


def test_a_result_whose_class_the_caller_lacks_is_named(tmp_path: Path) -> None:
    program = """
        import sys
        import kedge
        app = kedge.App("hidden")
        @app.function()
        def make():
            import types
            module = types.ModuleType("only_there")
            exec("class Thing: pass", module.__dict__)
            sys.modules["only_there"] = module
            return module.Thing()
        if __name__ == "__main__":
            with app.run():
                try:
                    make.remote()
                except kedge.exception.DeserializationError as error:
                    print(error)
    """
    write(tmp_path / "hidden.py", program)
    assert "only_there" in run(tmp_path, "hidden.py")


def test_a_module_that_fails_to_import_in_the_container_says_where(tmp_path: Path) -> None:
    program = """
        import kedge
        if not kedge.is_local():
            raise RuntimeError("not here")
        app = kedge.App("picky")
        @app.function()
        def f(): return 1
        if __name__ == "__main__":
            with app.run():
                try:
                    f.remote()
                except RuntimeError as error:
                    import traceback
                    print(str(error), "picky.py" in "".join(traceback.format_exception(error)))
    """
    write(tmp_path / "picky.py", program)
    assert run(tmp_path, "picky.py") == "not here True"
