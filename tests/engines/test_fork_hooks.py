"""What libraries want done around a fork, in fork servers and in their containers."""

from __future__ import annotations

import subprocess
import sys
import textwrap

PREPARED = """
import os, sys
from kedge.engines import fork_hooks
fork_hooks.hold()
told = []

def hook(word, module="library"):
    def say(): told.append(word)
    say.__module__ = module
    return say

def in_child(fork, look):
    reader, writer = os.pipe()
    process = fork()
    if process == 0:
        os.write(writer, repr(look()).encode())
        os._exit(0)
    os.waitpid(process, 0)
    return eval(os.read(reader, 9999))
"""


def ran(source: str) -> str:
    """What a program in a process of its own prints. Its first lines are `PREPARED`."""
    code = PREPARED + textwrap.dedent(source)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_hooks_of_libraries_are_called_in_the_order_of_os_fork() -> None:
    source = """
        for n in (1, 2):
            os.register_at_fork(before=hook(f"before {n}"), after_in_child=hook(f"child {n}"),
                                after_in_parent=hook(f"parent {n}"))
        child = in_child(fork, lambda: told)
        print([told, child])
    """
    plain = ran("os.register_at_fork = fork_hooks._register; fork = os.fork\n" + textwrap.dedent(source))
    held = ran("fork = fork_hooks.fork\n" + textwrap.dedent(source))
    assert held == plain
    assert held == str(
        [["before 2", "before 1", "parent 1", "parent 2"], ["before 2", "before 1", "child 1", "child 2"]]
    )


def test_what_has_nothing_to_mend_is_left_out_once_and_there_in_the_containers_own_forks() -> None:
    source = """
        for module in ("threading", "random", "logging", "kedge.sdk.client", "library"):
            os.register_at_fork(after_in_child=hook(module, module))
        def of_container():
            first = told[:]
            return [first, in_child(os.fork, lambda: told)]
        print(in_child(fork_hooks.fork, of_container))
    """
    everything = ["threading", "random", "logging", "kedge.sdk.client", "library"]
    assert ran(source) == str([["library"], ["library", *everything]])


def test_a_container_knows_its_own_main_thread() -> None:
    source = """
        import threading
        def look():
            main = threading.main_thread()
            return [main.native_id == threading.get_native_id(), threading.current_thread() is main,
                    threading.active_count(), os.register_at_fork is fork_hooks._register]
        print(in_child(fork_hooks.fork, look))
    """
    assert ran(source) == "[True, True, 1, True]"


def test_a_hook_that_fails_is_told_and_stops_nothing() -> None:
    source = """
        def fail(): raise ValueError("broken hook")
        os.register_at_fork(before=fail, after_in_child=hook("child"))
        sys.stderr = sys.stdout
        print(in_child(fork_hooks.fork, lambda: told))
    """
    lines = ran(source).splitlines()
    assert lines[-2:] == ["ValueError: broken hook", "['child']"]


def test_bad_hooks_are_refused_as_ever() -> None:
    source = """
        for bad in ({}, {"after": print}, {"before": 3}):
            try:
                os.register_at_fork(**bad)
            except TypeError as error:
                print(error)
    """
    held = ran(source)
    assert held == ran("os.register_at_fork = fork_hooks._register\n" + textwrap.dedent(source))
    assert len(held.splitlines()) == 3
