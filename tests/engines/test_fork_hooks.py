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
        for module in ("threading", "random", "logging", "kedge.container.output", "kedge.sdk.client", "library"):
            os.register_at_fork(after_in_child=hook(module, module))
        def of_container():
            first = told[:]
            return [first, in_child(os.fork, lambda: told)]
        print(in_child(fork_hooks.fork, of_container))
    """
    some = ["kedge.sdk.client", "library"]
    everything = ["threading", "random", "logging", "kedge.container.output", *some]
    assert ran(source) == str([some, [*some, *everything]])


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


def test_containers_do_not_give_out_each_others_ids() -> None:
    source = """
        from kedge.sdk import client, named
        def ids():
            return [client.new_call_id(), named._process[0]]
        found = [ids(), in_child(fork_hooks.fork, ids), in_child(fork_hooks.fork, ids)]
        print([len({str(one[place]) for one in found}) for place in (0, 1)])
    """
    assert ran(source) == "[3, 3]"


def test_who_took_the_function_by_name_is_heard_in_a_container() -> None:
    source = """
        from os import register_at_fork
        def of_container():
            register_at_fork(after_in_child=hook("late"))
            return in_child(os.fork, lambda: told)
        print(in_child(fork_hooks.fork, of_container))
    """
    assert ran(source) == "['late']"


def test_who_puts_a_function_of_its_own_around_it_takes_nothing_from_containers() -> None:
    source = """
        import threading
        held = os.register_at_fork
        def around(**hooks): held(**hooks)
        os.register_at_fork = around
        os.register_at_fork(after_in_child=hook("early", "threading"))
        def of_container():
            os.register_at_fork(after_in_child=hook("late"))
            main = threading.main_thread()
            return [told[:], in_child(os.fork, lambda: told), os.register_at_fork is around,
                    main.native_id == threading.get_native_id()]
        print(in_child(fork_hooks.fork, of_container))
    """
    assert ran(source) == str([[], ["early", "late"], True, True])


def test_threads_that_have_ended_unseen_are_not_those_of_a_container() -> None:
    """Python keeps, up to 3.11, what it made for a thread of C code when that asked who it is."""
    source = """
        del sys.modules["threading"]  # what had it imported before hooks were held
        import threading, _thread, time
        def ask():
            threading.current_thread()
            asked.set()
        asked = threading.Event()
        _thread.start_new_thread(ask, ())
        asked.wait()
        while len(os.listdir("/proc/self/task")) > 1:
            time.sleep(0.001)
        print(in_child(fork_hooks.fork, lambda: [thread.name for thread in threading.enumerate()]))
    """
    assert ran(source) == "['MainThread']"


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
