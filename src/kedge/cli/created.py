"""What an app consists of, as people see it when it is deployed, served or run: a tree of functions with addresses."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from kedge.model.spec import FunctionSpec, MethodSpec, ScheduleSpec


def addresses(label: str, web: str, domain: str, spec: MethodSpec) -> list[str]:
    """All forms of an address: the first works everywhere, the second where names below localhost do (browsers, curl),
    and then those of the user's own domains."""
    scheme, _, _ = web.partition("://")
    found = [f"{web}/{label}/"]
    if domain:
        found.append(f"{scheme}://{label}.{domain}")
    assert spec.web is not None
    return [*found, *(f"https://{host}" for host in spec.web.custom_domains)]


def described(schedule: ScheduleSpec) -> str:
    """
    >>> described(ScheduleSpec(cron="0 9 * * 1-5", timezone="Europe/Berlin"))
    'at 0 9 * * 1-5 (Europe/Berlin)'
    >>> described(ScheduleSpec(period=(("hours", 4.0), ("minutes", 1.0))))
    'every 4 hours and 1 minute'
    """
    if schedule.cron:
        return f"at {schedule.cron} ({schedule.timezone})"
    parts = [f"{amount:g} {unit if amount != 1 else unit.removesuffix('s')}" for unit, amount in schedule.period]
    return f"every {' and '.join(parts)}"


def tree(
    title: str, functions: Sequence[FunctionSpec], labels: Mapping[str, str], web: str = "", domain: str = ""
) -> Tree:
    """The functions and classes of an app. `labels` says where its web functions answer, by name."""
    root = Tree(Text(title, "bold"), guide_style="dim")
    for function in functions:
        branch = root.add(_line(function))
        for method in function.methods:
            name = f"{function.name}.{method.name}" if method.name else function.name
            twig = branch.add(Text(method.name)) if method.name else branch
            if name in labels:
                for address in addresses(labels[name], web, domain, method):
                    twig.add(Text(address, "cyan"))
    return root


def _line(function: FunctionSpec) -> Text:
    kind = "class" if function.is_class else "function"
    web = function.methods[0].web if not function.is_class else None
    if web is not None:
        kind = f"{web.method} endpoint" if web.kind == "fastapi_endpoint" else web.kind.replace("_", " ")
    line = Text.assemble(function.name, (f" {kind}", "dim"))
    if function.schedule is not None:
        line.append(f", runs {described(function.schedule)}", "dim")
    return line


def show(shape: Tree | Text, stream: TextIO | None = None) -> None:
    """Prints it: lines stay as long as they are, since people copy addresses out of them."""
    Console(file=stream or sys.stdout, highlight=False).print(shape, soft_wrap=True)
