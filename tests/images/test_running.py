"""Commands of a build: what is heard of them, and that nothing of them is left."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kedge.images import running
from kedge.images.buildlog import BuildLog
from kedge.images.running import CommandFailed, Runner


class Desk:
    """A runner, its log, and what people were told."""

    def __init__(self, path: Path) -> None:
        self.log = BuildLog(path / "step.log", limit=200_000)
        self.told: list[str] = []
        self.path = path

    def runner(self, secrets: Sequence[str] = (), deadline: float = math.inf) -> Runner:
        return Runner(self.log, self.told.append, secrets, deadline, 7.0)

    def run(self, code: str, **wishes: object) -> None:
        runner = self.runner()
        runner.run([sys.executable, "-c", code], dict(os.environ), self.path, **wishes)  # type: ignore[arg-type]

    @property
    def lines(self) -> list[str]:
        return "\n".join(self.told).splitlines()

    @property
    def logged(self) -> str:
        return self.log.path.read_text()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.log.close()


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except OSError:
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_output_is_told_and_logged_with_its_command(desk: Desk) -> None:
    desk.run("import sys; print('one'); print('two', file=sys.stderr, flush=True)", shown="python hello")
    assert sorted(desk.lines) == ["one", "two"]
    assert desk.logged.splitlines()[0] == "$ python hello"
    assert "two" in desk.logged


def test_a_failing_command_says_how_it_ended_and_its_last_lines(desk: Desk) -> None:
    with pytest.raises(CommandFailed) as caught:
        desk.run("for i in range(30): print(i)\nraise SystemExit(3)", shown="count")
    assert (caught.value.command, caught.value.reason) == ("count", "exit code 3")
    assert caught.value.lines == [str(number) for number in range(10, 30)]
    with pytest.raises(CommandFailed, match="killed by SIGKILL"):
        desk.run("import os; os.kill(os.getpid(), 9)")


def test_a_program_that_is_not_there(desk: Desk) -> None:
    with pytest.raises(CommandFailed, match=r"/no/such: cannot be started: No such file"):
        desk.runner().run(["/no/such"], {}, desk.path)


def test_a_flood_of_output_is_bounded_and_told_in_part(desk: Desk) -> None:
    desk.run("import sys\nfor i in range(100_000): sys.stdout.write(f'line {i:06} {\"x\" * 88}\\n')")
    assert desk.log.path.stat().st_size <= 200_000
    assert desk.logged.startswith("[earlier output is left out]")
    assert desk.lines[-1].startswith("line 099999"), "the last line is told"
    assert len(desk.lines) < 50_000


def test_one_line_without_end_is_bounded(desk: Desk) -> None:
    desk.run("import sys; sys.stdout.write('x' * 5_000_000)")
    assert max(map(len, desk.lines)) <= running.LINE_LIMIT
    assert desk.log.path.stat().st_size <= 200_000


def test_a_progress_bar_is_lines(desk: Desk) -> None:
    desk.run("print('10 %\\r50 %\\r100 %')")
    assert desk.lines == ["10 %", "50 %", "100 %"]


def test_secrets_are_blotted_out_of_everything(desk: Desk) -> None:
    runner = desk.runner(["hunter22", "line-one\nline-two", "ab"])
    with pytest.raises(CommandFailed) as caught:
        runner.run(
            [sys.executable, "-c", "print('hunter22 and line-two'); print('about'); raise SystemExit(1)", "hunter22"],
            dict(os.environ),
            desk.path,
        )
    assert caught.value.lines == ["*** and ***", "about"], "what is too short to be one stays"
    assert "hunter22" not in desk.logged + caught.value.command


def test_a_build_that_is_given_up_ends_its_command_with_all_that_it_started(desk: Desk) -> None:
    class GivenUp(BaseException):
        pass

    def give_up(text: str) -> None:
        desk.told.append(text)
        raise GivenUp

    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    with pytest.raises(GivenUp):
        Runner(desk.log, give_up).run([sys.executable, "-c", code], dict(os.environ), desk.path)
    wait_until(lambda: gone(int(desk.lines[0])))


def test_a_command_has_its_own_bound(desk: Desk) -> None:
    with pytest.raises(CommandFailed, match="not done after 0 s, so it was ended"):
        desk.run("import time; time.sleep(600)", timeout=0.2)


def test_what_a_command_leaves_behind_is_ended_and_not_waited_for(desk: Desk) -> None:
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)"
    )
    desk.run(code)
    wait_until(lambda: gone(int(desk.lines[0])))


def test_the_bound_of_the_whole_build_holds_for_each_command(desk: Desk) -> None:
    runner = desk.runner(deadline=time.monotonic() + 0.2)
    with pytest.raises(CommandFailed, match="not done after 7 s, so it was ended"):
        runner.run(["sleep", "600"], dict(os.environ), desk.path)


def test_silence_is_said(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "SILENCE_S", 0.2)
    gate = desk.path / "gate"
    runner = Runner(desk.log, lambda text: (desk.told.append(text), gate.touch())[0])  # type: ignore[func-returns-value]
    code = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)"
    runner.run([sys.executable, "-c", code], dict(os.environ), desk.path)
    assert desk.lines[0].startswith("… no output for ")


ADOPTING = """
import subprocess
import sys
from pathlib import Path
from kedge.images import running
from kedge.images.buildlog import BuildLog
running.adopt_orphans()
log = BuildLog(Path(sys.argv[1]))
daemon = "import os, subprocess, sys; p = subprocess.Popen(['sleep', '600'], start_new_session=True); print(p.pid)"
running.Runner(log, print).run([sys.executable, "-c", daemon], {}, "/", shown="daemon")
log.close()
"""


def test_a_process_that_only_builds_leaves_no_daemon_behind(tmp_path: Path) -> None:
    words = [sys.executable, "-c", ADOPTING, str(tmp_path / "log")]
    process = int(subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert gone(process)
