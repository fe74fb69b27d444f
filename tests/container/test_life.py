"""How a container comes up and how it leaves."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from kedge.container import imports
from kedge.model.protocol import ContainerDrained, ContainerFailed, ContainerReady, Refused
from kedge.model.spec import CodeSpec, EnvironmentSpec, MethodSpec
from kedge.sdk.serializer import by_value_payload
from tests.container.fake_plane import HERE, FakePlane, function, service_class

COUNTER = {"add": False, "add_async": True, "rest": False}


def environment(plane: FakePlane, *path: Path, **more: object) -> EnvironmentSpec:
    fields = {
        "python": sys.executable,
        "python_version": "3.11",
        "sys_path": tuple(str(entry) for entry in path) + tuple(entry for entry in sys.path if entry),
        "directory": str(plane.directory),
    }
    return EnvironmentSpec(**(fields | more))  # type: ignore[arg-type]


# ---------------------------------------------------------------- coming up


@pytest.mark.slow
def test_a_fresh_process_reads_its_launch_from_standard_input(plane: FakePlane) -> None:
    plane.start(function("square"), fresh=True)
    assert plane.call(9) == 81
    plane.drain()
    assert plane.wait_exit() == 0


@pytest.mark.parametrize("max_inputs", [1, 4])
def test_enter_then_inputs_then_exit(plane: FakePlane, max_inputs: int) -> None:
    plane.start(service_class("Counter", max_inputs, COUNTER))
    assert plane.call(5, method="add") == 5
    plane.drain()
    assert plane.wait_exit() == 0
    assert plane.journal() == ["enter sync", "enter async", "add 5", "exit async", "exit sync"]


def test_a_failing_enter_hook_is_reported_and_the_container_leaves(plane: FakePlane) -> None:
    plane.start(service_class("Broken", 1, {"go": False}), ready=False)
    failed = plane.wait_for(ContainerFailed)
    assert (failed.error.type, failed.error.message) == ("RuntimeError", "no fuel")
    assert "in open" in failed.error.traceback
    assert plane.wait_exit() == 1
    assert not plane.of(ContainerReady)
    assert "no fuel" in plane.errors()


@pytest.mark.parametrize("how", ["drain", "SIGTERM"])
def test_a_container_that_is_told_to_leave_while_it_enters_runs_no_exit_hooks(plane: FakePlane, how: str) -> None:
    plane.start(service_class("Paced", 1, {"go": False}), ready=False)
    plane.noted("entering")
    if how == "drain":
        plane.drain(cancel=True)
    else:
        os.kill(plane.process, signal.SIGTERM)
    assert plane.wait_exit() == 0
    assert plane.journal() == ["entering"]


def test_an_import_error_is_reported_with_the_user_s_frames(plane: FakePlane, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def load():\n    import no_such_oven\n\nload()\n")
    plane.start(function("f", module="broken"), ready=False, environment=environment(plane, tmp_path))
    failed = plane.wait_for(ContainerFailed)
    assert failed.error.type == "ModuleNotFoundError"
    assert "no_such_oven" in failed.error.message
    assert "broken.py" in failed.error.traceback
    assert "import no_such_oven" in failed.error.traceback
    assert "importlib" not in failed.error.traceback
    assert plane.wait_exit() == 1
    assert plane.errors() == failed.error.traceback, "its log has it once, without an empty line"


def test_code_that_exits_at_import_is_an_import_error(plane: FakePlane, tmp_path: Path) -> None:
    (tmp_path / "quitter.py").write_text("import sys\nsys.exit('no licence')\n")
    plane.start(function("f", module="quitter"), ready=False, environment=environment(plane, tmp_path))
    assert plane.wait_for(ContainerFailed).error.type == "SystemExit"
    assert plane.wait_exit() == 1


def test_a_name_the_module_does_not_declare_is_reported(plane: FakePlane) -> None:
    plane.start(function("cube"), ready=False)
    failed = plane.wait_for(ContainerFailed)
    assert "did not register 'cube'" in failed.error.message


def test_a_serialized_function_needs_no_module(plane: FakePlane) -> None:
    base = 40

    def add(x: int) -> int:
        return base + x

    spec = function("add", module="gone", serialized=by_value_payload(add, None))
    plane.start(spec)
    assert plane.call(2) == 42


def test_heavy_imports_are_named_dearest_first(
    plane: FakePlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = [0.0]
    monkeypatch.setattr(imports, "spent", spent, raising=False)
    monkeypatch.setattr(imports, "clock", lambda: spent[0])  # modules say what they cost
    packages = tmp_path / "site-packages"
    packages.mkdir()
    for name, seconds in (("heavy_one", 0.02), ("heavier_two", 0.05), ("light", 0.0)):
        (packages / f"{name}.py").write_text(f"from kedge.container import imports\nimports.spent[0] += {seconds}\n")
    (tmp_path / "own.py").write_text("from kedge.container import imports\nimports.spent[0] += 0.03\n")
    source = "import heavy_one, heavier_two, light, own, json\nimport kedge\napp = kedge.App()\n"
    (tmp_path / "shopper.py").write_text(source + "@app.function()\ndef f():\n    return 'bought'\n")
    plane.start(function("f", module="shopper"), environment=environment(plane, tmp_path, packages))
    (ready,) = plane.of(ContainerReady)
    assert ready.imports == ["heavier_two", "heavy_one"]
    assert plane.call() == "bought"


# ---------------------------------------------------------------- code


SCRIPT = """
import os
import kedge

app = kedge.App()
GREETING = "from the snapshot"

class Order:
    def __init__(self, x):
        self.x = x

@app.function()
def look(order=None):
    import __main__
    import my_script
    return {
        "name": __name__,
        "file": __file__,
        "greeting": GREETING,
        "same": __main__.Order is Order is my_script.Order,
        "data": open(os.path.join(os.path.dirname(__file__), "data.txt")).read(),
        "directory": os.getcwd(),
        "env": os.environ["COLOUR"],
    }

@app.function()
def fail():
    raise ValueError("from line thirty")

if __name__ == "__main__":
    raise SystemExit("the guard was passed")
"""


def snapshot(tmp_path: Path) -> CodeSpec:
    """A script whose original was edited after the snapshot was made."""
    root, origin = tmp_path / "snapshot", tmp_path / "project"
    root.mkdir()
    origin.mkdir()
    (root / "my_script.py").write_text(SCRIPT)
    (origin / "my_script.py").write_text("# rewritten meanwhile\n" * 40)
    (origin / "data.txt").write_text("beside the original")
    return CodeSpec(
        digest="d", root=str(root), origin=str(origin / "my_script.py"), module="my_script", is_package=False, main=True
    )


def test_a_main_script_runs_from_its_snapshot_and_finds_its_data(plane: FakePlane, tmp_path: Path) -> None:
    code = snapshot(tmp_path)
    place = environment(
        plane, tmp_path / "project", variables=(("COLOUR", "red"),), directory=str(tmp_path / "project")
    )
    plane.start(function("look", module="__main__"), code=code, environment=place)
    assert plane.call() == {
        "name": "__kedge_main__",
        "file": code.origin,
        "greeting": "from the snapshot",
        "same": True,
        "data": "beside the original",
        "directory": str(tmp_path / "project"),
        "env": "red",
    }


def test_a_traceback_names_the_original_and_quotes_the_snapshot(plane: FakePlane, tmp_path: Path) -> None:
    code = snapshot(tmp_path)
    plane.start(function("fail", module="__main__"), code=code)
    error = plane.result(plane.dispatch()).result.error
    assert error is not None
    assert f'File "{code.origin}"' in error.traceback
    assert 'raise ValueError("from line thirty")' in error.traceback


@pytest.mark.parametrize("origin", ["project", "project/stall", "project/stall/__init__.py"])
def test_a_package_is_imported_from_its_snapshot(plane: FakePlane, tmp_path: Path, origin: str) -> None:
    stored, original = tmp_path / "snapshot" / "stall", tmp_path / "project" / "stall"
    for place, text in ((stored, "stored"), (original, "edited")):
        (place / "inner").mkdir(parents=True)
        (place / "__init__.py").write_text("")
        (place / "inner" / "__init__.py").write_text(f"TEXT = '{text}'\n")
    (original / "left_out.py").write_text("TEXT = 'only in the original'\n")
    (stored / "entry.py").write_text(
        "import kedge\nfrom stall import left_out\nfrom .inner import TEXT\n"
        "app = kedge.App()\n@app.function()\ndef f():\n    return TEXT, left_out.TEXT, __file__\n"
    )
    code = CodeSpec(
        digest="d", root=str(tmp_path / "snapshot"), origin=str(tmp_path / origin), module="stall", is_package=True
    )
    plane.start(function("f", module="stall.entry"), code=code)
    assert plane.call() == ("stored", "only in the original", str(original / "entry.py"))


def test_what_was_shipped_beside_it_is_imported_as_it_was(plane: FakePlane, tmp_path: Path) -> None:
    code = snapshot(tmp_path)
    root, origin = Path(code.root), Path(code.origin).parent
    for place, text in ((root, "stored"), (origin, "edited")):
        (place / "my_beside.py").write_text(f"TEXT = '{text}'\n")
        (place / "my_space").mkdir()
        (place / "my_space" / "part.py").write_text(f"TEXT = '{text}'\n")
    (root / "my_script.py").write_text(
        "import kedge, my_beside\nfrom my_space import part\napp = kedge.App()\n"
        "@app.function()\ndef f():\n    return my_beside.TEXT, part.TEXT, my_beside.__file__, part.__file__\n"
    )
    place = environment(plane, origin)
    plane.start(function("f", module="__main__"), code=code, environment=place)
    files = [str(origin / "my_beside.py"), str(origin / "my_space" / "part.py")]
    assert list(plane.call()) == ["stored", "stored", *files]


def test_a_missing_directory_is_said_and_survived(plane: FakePlane, tmp_path: Path) -> None:
    plane.start(function("square"), environment=environment(plane, HERE, directory=str(tmp_path / "gone")))
    assert plane.call(2) == 4
    plane.drain()
    plane.wait_exit()
    assert "cannot enter" in plane.errors()


# ---------------------------------------------------------------- leaving


def test_drain_lets_running_inputs_finish(plane: FakePlane) -> None:
    plane.start(function("first_then_fast", 2))
    lease = plane.dispatch("long")
    plane.noted("begin long")
    plane.drain()
    credit = plane.dispatch("", credited=True)
    plane.until(lambda: plane.returned == [credit])
    plane.allow("long")
    assert plane.value(lease) == "long"
    assert plane.wait_exit() == 0


@pytest.mark.parametrize(
    ("name", "is_async", "how"),
    [
        ("snooze", False, "drain"),
        ("snooze", False, "SIGTERM"),
        ("snooze_async", True, "drain"),
        ("snooze_async", True, "SIGTERM"),
        ("snooze_async", True, "SIGINT"),
    ],
)
def test_leaving_at_once_cancels_what_runs_and_reports_nothing(
    plane: FakePlane, name: str, is_async: bool, how: str
) -> None:
    plane.start(function(name, is_async=is_async))
    plane.dispatch("a")
    plane.noted("begin a")
    if how == "drain":
        plane.drain(cancel=True)
    else:
        os.kill(plane.process, getattr(signal, how))
    assert plane.wait_exit() == 0
    assert plane.journal()[1] == ("CancelledError a" if is_async else "InputCancellation a")
    assert plane.finished == {}


@pytest.mark.parametrize("how", ["drain", "SIGTERM"])
@pytest.mark.parametrize(("name", "is_async"), [("nap", False), ("nap_async", True)])
def test_leaving_at_once_ends_every_input_and_runs_the_exit_hooks(
    plane: FakePlane, name: str, is_async: bool, how: str
) -> None:
    plane.start(service_class("Stubborn", 3, {name: is_async}))
    for letter in "abc":
        plane.dispatch(letter, 60, method=name)
        plane.noted(f"begin {letter}")
    if how == "drain":
        plane.drain(cancel=True)
    else:
        os.kill(plane.process, signal.SIGTERM)
    assert plane.wait_exit() == 0
    error = "CancelledError" if is_async else "InputCancellation"
    assert sorted(line.strip() for line in plane.journal()[3:6]) == [f"{error} {letter}" for letter in "abc"]
    assert plane.journal()[6:] == ["exit async", "exit sync"]
    assert plane.finished == {}


def test_exit_hooks_are_not_disturbed(plane: FakePlane) -> None:
    plane.start(service_class("Paced", 1, {"go": False}), ready=False)
    plane.allow("enter")
    plane.wait_for(ContainerReady)
    plane.drain()
    plane.noted("leaving")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        os.kill(plane.process, number)
        plane.poll(0.02)
    plane.drain(cancel=True)
    plane.poll(0.02)
    plane.allow("exit")
    assert plane.wait_exit() == 0
    assert plane.journal() == ["entering", "entered", "leaving", "left"]


def test_ctrl_c_on_the_main_thread_belongs_to_user_code(plane: FakePlane) -> None:
    plane.start(function("snooze"))
    lease = plane.dispatch("a")
    plane.noted("begin a")
    os.kill(plane.process, signal.SIGINT)
    error = plane.result(lease).result.error
    assert error is not None
    assert error.type == "KeyboardInterrupt"


def test_a_signal_ends_an_idle_container_through_its_exit_hooks(plane: FakePlane) -> None:
    plane.start(service_class("Counter", 1, {"add": False}))
    os.kill(plane.process, signal.SIGTERM)
    assert plane.wait_exit() == 0
    assert plane.journal()[-1] == "exit sync"


@pytest.mark.parametrize(
    ("name", "max_inputs", "is_async"), [("snooze", 1, False), ("spin", 3, False), ("snooze_async", 3, True)]
)
def test_no_container_outlives_its_plane(
    plane: FakePlane, name: str, max_inputs: int, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kedge.container.heartbeat.ORPHAN_GRACE_S", 30.0)  # it goes as soon as the code has ended
    plane.start(function(name, max_inputs, is_async=is_async))
    plane.dispatch("a")
    plane.noted("begin a")
    plane.connection.close()
    assert plane.wait_exit() != 0
    assert len(plane.journal()) > 1, "cancelled code had a moment to clean up"


@pytest.mark.parametrize(("max_inputs", "is_async"), [(1, False), (3, False), (3, True)])
def test_an_idle_container_ends_with_its_plane(plane: FakePlane, max_inputs: int, is_async: bool) -> None:
    plane.start(function("square_async" if is_async else "square", max_inputs, is_async=is_async))
    plane.connection.close()
    assert plane.wait_exit() != 0


SLOW_MODULE = """
import os, time
with open(os.environ["JOURNAL"], "w") as file:
    file.write("importing\\n")
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["lost", "drained"])
def test_an_import_ends_with_the_plane_too(plane: FakePlane, tmp_path: Path, how: str) -> None:
    (tmp_path / "slow_module.py").write_text(SLOW_MODULE)
    plane.start(function("f", module="slow_module"), ready=False, environment=environment(plane, tmp_path))
    plane.noted("importing")
    if how == "lost":
        plane.connection.close()
        assert plane.wait_exit() != 0
    else:
        plane.send(ContainerDrained("stopped", cancel=True))
        assert plane.wait_exit() == 0


def test_a_refused_container_says_why(plane: FakePlane) -> None:
    plane.start(function("square"))
    plane.send(Refused("wrong token"))
    plane.until(lambda: "wrong token" in plane.errors())


def test_threads_that_user_code_left_behind_do_not_keep_it(plane: FakePlane) -> None:
    plane.start(function("with_thread"))
    assert plane.call() == "started"
    plane.drain()
    assert plane.wait_exit() == 0


def test_a_failing_exit_hook_is_printed_and_the_others_run(plane: FakePlane, tmp_path: Path) -> None:
    (tmp_path / "leavers.py").write_text(
        "import kedge, os\napp = kedge.App()\n@app.cls()\nclass Leaver:\n"
        "    @kedge.method()\n    def go(self): return 1\n"
        "    @kedge.exit()\n    def first(self): print('first hook', flush=False)\n"
        "    @kedge.exit()\n    def second(self): raise ValueError('stuck door')\n"
    )
    spec = function("Leaver", module="leavers", is_class=True, methods=(MethodSpec(name="go"),))
    plane.start(spec, environment=environment(plane, tmp_path))
    assert plane.call(method="go") == 1
    plane.drain()
    assert plane.wait_exit() == 0
    assert "stuck door" in plane.errors()
    assert "first hook" in (plane.directory / "stdout").read_text()


def test_without_a_plane_it_says_so_and_leaves(plane: FakePlane, capfd: pytest.CaptureFixture[str]) -> None:
    launch = plane.launch_of(function("square"), address=str(plane.directory / "nobody.sock"))
    plane.process = plane._fork(launch)
    _, status = os.waitpid(plane.process, 0)
    plane.code = os.waitstatus_to_exitcode(status)
    assert plane.code == 69
    assert "cannot reach its server" in plane.errors()
