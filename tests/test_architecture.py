"""The house as it is described: layers, public names, and the size of things."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "kedge"
MODULES = sorted(SOURCE.rglob("*.py"))
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 75
NEWER = {
    "asyncio": {"Barrier", "Runner", "TaskGroup", "timeout", "timeout_at"},
    "contextlib": {"chdir"},
    "datetime": {"UTC"},
    "enum": {"StrEnum", "member", "nonmember"},
    "hashlib": {"file_digest"},
    "inspect": {"getmembers_static", "markcoroutinefunction"},
    "itertools": {"batched"},
    "sys": {"exception"},
    "typing": {"LiteralString", "Never", "NotRequired", "Required", "Self", "TypeVarTuple", "Unpack", "assert_never",
               "assert_type", "dataclass_transform", "override", "reveal_type"},
}  # fmt: skip
"""What the standard library has since Python 3.11."""


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring and signature."""
    body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_every_module_says_what_it_is_for_and_stays_readable(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{path} needs a docstring that says what it holds and what its rules are"
    assert text.count("\n") <= MAX_FILE_LINES, f"{path} is long: which noun is missing?"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert lines_of(node) <= MAX_FUNCTION_LINES, f"{path}:{node.lineno} {node.name} is long: split it"


def test_the_public_names_import_and_are_documented() -> None:
    import kedge

    for name in kedge.__all__:
        value = getattr(kedge, name)
        assert getattr(value, "__doc__", None), f"kedge.{name} has no docstring"


def test_importing_kedge_loads_nothing_heavy() -> None:
    heavy = [
        "asyncio",
        "rich",
        "click",
        "uvloop",
        "sqlite3",
        "numpy",
        "cloudpickle",
        "psutil",
        "kedge.server",
        "kedge.core",
    ]
    code = f"import sys, kedge; print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == "[]", f"import kedge loads {found}: import it where it is used"


def in_images() -> list[Path]:
    """What runs in the Pythons of images too."""
    rooms = ("container", "sdk", "wire", "model")
    boot = [SOURCE / "engines" / f"{name}.py" for name in ("boot", "child", "fork_server")]
    return [path for path in MODULES if path.relative_to(SOURCE).parts[0] in rooms] + boot


@pytest.mark.parametrize("path", in_images(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_what_runs_in_images_needs_no_python_that_is_newer_than_3_10(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert newer(tree) == [], "images may have Python 3.10; types belong under `if TYPE_CHECKING:`"


def newer(tree: ast.AST) -> list[str]:
    """Names that Python 3.10 does not know. What only type checkers read is left out."""
    found: list[str] = []
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=otherwise):
                for statement in otherwise:
                    found += newer(statement)
                continue
            case ast.ImportFrom(module=str(module), names=names):
                found += [f"{module}.{name.name}" for name in names if name.name in NEWER.get(module, ())]
            case ast.Import(names=names) if isinstance(tree, ast.Module):
                found += [name.name for name in names if name.name == "tomllib"]
            case ast.Attribute(value=ast.Name(id=module), attr=name) if name in NEWER.get(module, ()):
                found.append(f"{module}.{name}")
            case ast.Attribute(attr="add_note"):
                if not (isinstance(node.value, ast.Name) and node.value.id == "tracebacks"):
                    found.append("BaseException.add_note")
            case ast.Name(id="BaseExceptionGroup" | "ExceptionGroup"):
                found.append(node.id)
            case ast.TryStar():
                found.append("except*")
            case ast.ClassDef(bases=[ast.Name(id="NamedTuple"), _, *_]):
                found.append(f"{node.name}(NamedTuple, Generic)")
        found += newer(node)
    return found


def test_names_that_python_3_10_does_not_know_are_found() -> None:
    code = """
import asyncio, tomllib
from typing import TYPE_CHECKING, Self
if TYPE_CHECKING:
    from typing import Unpack
class Pair(NamedTuple, Generic[T]): ...
async def main():
    import tomllib
    try:
        async with asyncio.timeout(1): ...
    except* OSError as group:
        group.add_note("x")
    tracebacks.add_note(group, "y")
    return ExceptionGroup
"""
    assert newer(ast.parse(code)) == [
        "tomllib", "typing.Self", "Pair(NamedTuple, Generic)", "except*", "asyncio.timeout", "BaseException.add_note",
        "ExceptionGroup",
    ]  # fmt: skip
