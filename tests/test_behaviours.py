"""docs/behaviours.md is kept: every behaviour is there once, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from kedge.sim.scenarios import SCENARIOS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "behaviours.md"
TABLES = {"Sixty that programs rely on": 60, "Eighteen that kedge adds": 18, "Eight about GPUs": 8}
ROW = re.compile(r"^\| *(\d+) *\|(.+)\|(.+)\|$", re.MULTILINE)
REFERENCE = re.compile(r"`(tests/[^`]+)`")
REASONS = ("Later: ", "Different: ", "Not here: ")
"""How a row says why no test proves it. It may also say so about a part of it, beside the tests of the rest."""
SHORTEST_REASON = 20


def rows(title: str) -> list[tuple[int, str, str]]:
    """Number, behaviour and proof of each row of the table under a heading."""
    _, _, after = PAGE.read_text().partition(f"\n## {title}\n")
    table = after.partition("\n## ")[0]
    return [(int(number), behaviour.strip(), proof.strip()) for number, behaviour, proof in ROW.findall(table)]


@cache
def names_in(path: str) -> frozenset[str]:
    """Names of the tests in a file as pytest shows them; those of classes with their class."""
    found = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            methods = [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
            found |= {f"{node.name}::{method.name}" for method in methods}
    return frozenset(name for name in found if name.rpartition("::")[2].startswith("test_"))


def problem(reference: str) -> str:
    """What is wrong with `tests/path.py::test_name`; a story of the simulator is named in brackets."""
    path, _, name = reference.partition("::")
    name, _, case = name.partition("[")
    if not (ROOT / path).is_file():
        return f"there is no file {path}"
    if name not in names_in(path):
        return f"{path} has no test {name!r}"
    if case and (name != "test_story" or case.removesuffix("]") not in SCENARIOS):
        return f"{case.removesuffix(']')!r} is no story of the simulator; other cases are not named"
    return ""


@pytest.mark.parametrize("title", TABLES)
def test_every_behaviour_is_on_the_page_once_with_its_proof(title: str) -> None:
    found = rows(title)
    assert [number for number, _, _ in found] == list(range(1, TABLES[title] + 1))
    for number, behaviour, proof in found:
        assert behaviour, f"row {number} says nothing"
        references = REFERENCE.findall(proof)
        assert references or proof.startswith(REASONS), f"row {number} names no test and gives no reason: {proof}"
        if not references:
            assert len(proof) > SHORTEST_REASON, f"row {number}: {proof!r} is no reason"


@pytest.mark.parametrize("title", TABLES)
def test_every_test_that_the_page_names_exists(title: str) -> None:
    wrong = {
        number: found
        for number, _, proof in rows(title)
        if (found := [trouble for reference in REFERENCE.findall(proof) if (trouble := problem(reference))])
    }
    assert not wrong


@pytest.mark.parametrize(
    ("reference", "trouble"),
    [
        ("tests/test_nothing.py::test_x", "there is no file tests/test_nothing.py"),
        ("tests/test_behaviours.py::test_x", "tests/test_behaviours.py has no test 'test_x'"),
        ("tests/test_behaviours.py::rows", "tests/test_behaviours.py has no test 'rows'"),
        ("tests/sim/test_scenarios.py::test_story[a_dream]", "'a_dream' is no story of the simulator"),
        ("tests/sim/test_scenarios.py::test_story[a_caller_leaves]", ""),
        ("tests/container/test_executor.py::TestGenerators::test_without_credit_the_generator_stands_still", ""),
    ],
)
def test_a_name_that_does_not_exist_is_noticed(reference: str, trouble: str) -> None:
    assert problem(reference).startswith(trouble) if trouble else not problem(reference)
