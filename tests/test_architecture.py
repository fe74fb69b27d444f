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


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring and signature."""
    body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_every_module_says_what_it_is_for_and_stays_readable(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{path} needs a docstring that says what it holds and what its rules are"
    assert text.count("\n") <= MAX_FILE_LINES or path.name == "protocol.py", f"{path} is long: which noun is missing?"
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
