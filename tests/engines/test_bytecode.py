"""Bytecode that is written beside the users' code, for containers that cannot write there."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from kedge.engines import bytecode
from kedge.model.spec import CodeSpec
from tests.engines.rig import Rig, eventually, make_launch, with_rig
from tests.engines.sandbox import isolated
from tests.engines.test_namespaces import named

PROGRAM = """
import os, sys
from kedge.engines import bytecode
bytecode.MOST_MEMORY = int(sys.argv[3])
bytecode.write(os.open(sys.argv[1], os.O_RDONLY), sys.argv[2])
"""


def write(root: Path, shown: str = "/shown", memory: int = bytecode.MOST_MEMORY) -> None:
    """In a process of its own, whose priority it lowers for good."""
    command = [sys.executable, "-c", PROGRAM, str(root), shown, str(memory)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("", "")


def cached(source: Path) -> Path:
    return Path(importlib.util.cache_from_source(str(source)))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
def test_everything_below_is_compiled_but_what_cannot_be(tmp_path: Path) -> None:
    package = tmp_path / "boat"
    package.mkdir()
    whole = [tmp_path / "main.py", package / "__init__.py", package / "sail.py"]
    for source in whole:
        source.write_text("ANSWER = 42\n")
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "warns.py").write_text("'\\d'")
    (tmp_path / "data.py").write_text("#" * (bytecode.MOST_BYTES + 1))
    write(tmp_path)
    assert all(cached(source).is_file() for source in whole)
    assert cached(tmp_path / "warns.py").is_file()
    assert not cached(tmp_path / "broken.py").exists()
    assert not cached(tmp_path / "data.py").exists()
    code = "import sys; sys.dont_write_bytecode = True; import main; print(main.ANSWER, main.__cached__)"
    told = subprocess.run([sys.executable, "-v", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["42", str(cached(tmp_path / "main.py"))]
    assert f"{cached(tmp_path / 'main.py')} matches" in told.stderr, "Python takes it"


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
def test_what_is_there_is_kept_and_what_is_old_is_not(tmp_path: Path) -> None:
    source = tmp_path / "main.py"
    source.write_text("ANSWER = 42\n")
    write(tmp_path)
    before = cached(source).stat()
    write(tmp_path)
    assert cached(source).stat().st_ino == before.st_ino
    source.write_text("ANSWER = 'forty-two'\n")
    write(tmp_path)
    assert cached(source).stat().st_ino != before.st_ino


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
def test_what_is_no_file_is_passed_over_and_nothing_is_written_elsewhere(tmp_path: Path) -> None:
    elsewhere, code = tmp_path / "elsewhere", tmp_path / "code"
    for directory in (elsewhere, code, code / "linked"):
        directory.mkdir()
    (code / ".#editor.py").symlink_to("nobody@nowhere")
    os.mkfifo(code / "fifo.py")
    (code / "linked" / "__pycache__").symlink_to(elsewhere)
    for source in (code / "linked" / "boat.py", code / "main.py"):
        source.write_text("ANSWER = 42\n")
    write(code)
    assert [path.name for path in (code / "__pycache__").iterdir()] == [cached(code / "main.py").name]
    assert os.listdir(elsewhere) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
def test_a_source_that_needs_any_amount_of_memory_is_left(tmp_path: Path) -> None:
    """What stands in `finally` is there twice in bytecode, in each of twenty levels."""
    lines = [f"{' ' * (level // 2)}{('try: a()', 'finally:')[level % 2]}" for level in range(40)]
    (tmp_path / "grows.py").write_text("\n".join([*lines, *[" " * 20 + "x = y"] * 200]))
    ast.parse((tmp_path / "grows.py").read_text())
    (tmp_path / "main.py").write_text("ANSWER = 42\n")
    write(tmp_path, memory=128 << 20)
    assert [path.name for path in (tmp_path / "__pycache__").iterdir()] == [cached(tmp_path / "main.py").name]


@with_rig
async def test_the_code_of_confined_containers_is_compiled_once(it: Rig, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "boat.py").write_text("ANSWER = 42\n")
    for _ in range(2):
        launch = make_launch(f"ct-{os.urandom(4).hex()}", "pass", isolation=isolated(tmp_path))
        it.engine.start(replace(launch, code=CodeSpec(root=str(code), digest="d1")))
        assert (await it.lost(launch.container)).exit_code == 0
        await eventually(lambda: cached(code / "boat.py").is_file())
    [server] = named("kedge-fork", it.engine.supervisor)
    await eventually(lambda: not Path(f"/proc/{server}/task/{server}/children").read_text())  # all are reaped
