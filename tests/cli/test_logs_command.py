"""`kedge logs`: what it selects, how it prints, what it says where there is nothing."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kedge.cli import logs
from kedge.cli.logchoice import Options, filter_of, short_call
from kedge.cli.main import main
from kedge.cli.moments import EXAMPLES, moment
from kedge.server.chunks import Chunk, Place
from kedge.server.logbook import LogBook
from kedge.wire.records import NOBODY, Origin
from tests.cli.fake_terminal import FakeTerminal

CALL = "fc-0123456789ab00000000"
SECOND = "fc-0123456789ab00000001"
START = time.time() - 100


def chunk(
    text: str,
    origin: Origin = NOBODY,
    *,
    late: float = 0.0,
    run: str = "1",
    app: str = "demo",
    function: str = "fetch",
    stream: int = 1,
    raw: bool = False,
    at: float | None = None,
) -> Chunk:
    at = START + late if at is None else at
    place = Place(f"ct-0000000000c{run}", f"ap-{run}", app, function)
    made = Chunk(place, origin, stream, 1, at, raw)
    made.add(text.encode(), at)
    return made


Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Puts chunks into the log of this test's state directory."""
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path))

    def put(*chunks: Chunk) -> None:
        book = LogBook(tmp_path / "logs" / "logs.db")
        book.put(list(chunks))
        book.close()

    return put


@pytest.fixture
def two_runs(write: Write) -> None:
    write(
        chunk("old\n", Origin("fc-ffffffffffff00000000", 0), run="0", late=-50),
        chunk("importing\n"),
        chunk("page 7\n", Origin(CALL, 7), late=1),
        chunk("page 8\n", Origin(CALL, 8), late=2),
        chunk("careful\n", Origin(CALL, 7), late=3, stream=2),
        chunk("page 7 again\n", Origin(CALL, 7, 1), late=4),
        chunk("predicted\n", Origin(SECOND, 0, 0, "predict"), late=5, function="Model", run="3"),
        chunk("from C\n", late=6, raw=True),
        chunk("half", Origin(CALL, 8), late=7),
    )


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["logs", *words])


def lines(*words: str) -> list[str]:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


# ---------------------------------------------------------------- what is shown


@pytest.mark.usefixtures("two_runs")
def test_each_line_says_which_input_wrote_it() -> None:
    result = run("ap-1")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "fetch [00c1] │ importing",
        "fetch 89ab-7 │ page 7",
        "fetch 89ab-8 │ page 8",
        "fetch 89ab-7 ! careful",
        "fetch 89ab-7 attempt 1 │ page 7 again",
        "fetch [00c1 raw] │ from C",
        "fetch 89ab-8 │ half",
    ]
    assert result.stderr == ""
    assert lines("ap-3") == ["Model.predict 89ab.1-0 │ predicted"]


@pytest.mark.usefixtures("two_runs")
def test_without_an_app_it_is_the_one_that_wrote_last() -> None:
    result = run()
    assert result.stdout.splitlines()[-1] == "fetch 89ab-8 │ half"
    assert "old" not in result.stdout
    assert result.stderr == "kedge: demo (ap-1)\n"


@pytest.mark.usefixtures("two_runs")
def test_a_name_means_all_runs() -> None:
    result = run("demo", "-n", "100")
    assert result.stdout.splitlines()[0] == "fetch ffff-0 │ old"
    assert len(result.stdout.splitlines()) == 9
    assert re.findall(r"ap-\d", result.stderr) == ["ap-0", "ap-1", "ap-3", "ap-1"], "it says where the run changes"


@pytest.mark.usefixtures("two_runs")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--input", "in-0123456789ab00000000-7"), ["page 7", "careful", "page 7 again"]),
        (("--input", "89ab-7"), ["page 7", "careful", "page 7 again"]),
        (("--input", "89ab-7", "--stream", "stderr"), ["careful"]),
        (("--input", "89ab.1-0"), ["predicted"]),
        (("--call", CALL), ["page 7", "page 8", "careful", "page 7 again", "half"]),
        (("--call", "89ab"), ["page 7", "page 8", "careful", "page 7 again", "half"]),
        (("--function", "fetch"), ["importing", "page 7", "page 8", "careful", "page 7 again", "from C", "half"]),
        (("demo", "--function", "Model"), ["predicted"]),
        (("demo", "--function", "Model.predict"), ["predicted"]),
        (("demo", "--function", "Model.other"), []),
        (("--container", "00c3"), ["predicted"]),
        (("--container", "ct-0000000000c3"), ["predicted"]),
        (("ap-0",), ["old"]),
        (("--grep", "page [78]$"), ["page 7", "page 8"]),
        (("-n", "2"), ["from C", "half"]),
        (("-n", "1", "--grep", "page"), ["page 7 again"]),
        (("-n", "0"), []),
        (("--since", "1h", "--until", "10s", "--stream", "stderr"), ["careful"]),
        (("--since", "10s"), []),
        (("--until", "1h"), []),
    ],
)
def test_what_is_selected(words: tuple[str, ...], found: list[str]) -> None:
    assert [line.partition(" │ ")[2] or line.partition(" ! ")[2] for line in lines(*words)] == found


def test_the_last_hundred_lines_unless_something_is_asked_for(write: Write) -> None:
    write(chunk("".join(f"{number}\n" for number in range(250))))
    assert len(lines()) == 100
    assert lines()[-1].endswith("│ 249")
    assert len(lines("-n", "120")) == 120
    assert len(lines("--grep", ".")) == 250
    assert len(lines("--since", "1d")) == 250


@pytest.mark.usefixtures("two_runs")
def test_times_are_local_and_to_the_millisecond() -> None:
    (line,) = lines("--input", "89ab.1-0", "--timestamps")
    stamp, _, rest = line.partition(" Model")
    assert rest == ".predict 89ab.1-0 │ predicted"
    assert datetime.datetime.fromisoformat(stamp).timestamp() == pytest.approx(START + 5, abs=0.001)
    assert len(stamp) == len("2026-01-31 14:30:00.123")


@pytest.mark.usefixtures("two_runs")
def test_json_has_all_that_is_known() -> None:
    first, *_, raw, _ = [json.loads(line) for line in lines("ap-1", "--json")]
    assert first["input"] is first["call"] is first["attempt"] is None
    assert raw["raw"] is True
    (facts,) = [json.loads(line) for line in lines("--input", "89ab.1-0", "--json")]
    assert datetime.datetime.fromisoformat(facts.pop("time")).timestamp() == pytest.approx(START + 5, abs=0.001)
    assert facts == {
        "app": "ap-3",
        "app_name": "demo",
        "function": "Model",
        "method": "predict",
        "container": "ct-0000000000c3",
        "call": SECOND,
        "input": "in-0123456789ab00000001-0",
        "attempt": 0,
        "stream": "stdout",
        "raw": False,
        "text": "predicted",
    }


def test_all_inputs_of_a_batch_are_named(write: Write) -> None:
    write(chunk("both\n", Origin(CALL, 1, members=((CALL, 1), (SECOND, 5)))))
    assert lines("--call", SECOND) == lines("--input", "89ab-1") == ["fetch 89ab-1 +1 │ both"]
    (facts,) = [json.loads(line) for line in lines("--input", "89ab.1-5", "--json")]
    assert facts["inputs"] == ["in-0123456789ab00000000-1", "in-0123456789ab00000001-5"]


def test_nothing_steers_the_terminal(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(chunk("\x1b[2J\x1b[1mbold\x1b[0m\x07\n10 %\r20 %\r\n\x9bcé\n"))
    assert lines() == ["fetch [00c1] │ bold", "fetch [00c1] │ 20 %", "fetch [00c1] │ cé"]
    texts = [json.loads(line)["text"] for line in lines("--json")]
    assert texts[:2] == ["\x1b[2J\x1b[1mbold\x1b[0m\x07", "10 %\r20 %"]
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = FakeTerminal()
    with contextlib.redirect_stdout(terminal):
        logs.show(Options())
    assert [line.rstrip() for line in terminal.seen] == lines()


def test_on_a_terminal_texts_begin_below_each_other(write: Write) -> None:
    write(chunk("from C\n", raw=True), chunk("page\n", Origin(CALL, 7), late=1))
    terminal = FakeTerminal()
    with contextlib.redirect_stdout(terminal):
        logs.show(Options())
    assert terminal.seen == ["fetch [00c1 raw] │ from C", "fetch 89ab-7     │ page"]


def test_a_reader_that_has_seen_enough_is_no_error(write: Write, tmp_path: Path) -> None:
    write(chunk("line\n" * 50_000))
    command = f"{sys.executable} -m kedge.cli.main logs --grep . | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "fetch [00c1] │ line\n"
    assert done.stderr == "kedge: demo (ap-1)\n"


# ---------------------------------------------------------------- what is not there


@pytest.mark.usefixtures("write")
def test_where_nothing_was_written_it_says_so(tmp_path: Path) -> None:
    result = run()
    assert result.exit_code == 1
    assert (
        result.stderr == f"Error: there is no log at {tmp_path}/logs/logs.db yet: no container has written anything\n"
    )


@pytest.mark.usefixtures("two_runs")
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("dmo",), "no app 'dmo' has written anything that is kept. Did you mean 'demo'? There are: demo (last ap-1, "),
        (("ap-7",), "no app 'ap-7' has written anything that is kept. There are: demo (last ap-1, "),
        (
            ("--input", "in-0123456789ab00000000-9"),
            "nothing that is kept; of its call, inputs 7 to 8 have written",
        ),
        (("--input", "in-0123456789abffffffff-0"), f"nothing that is kept; calls that have: {CALL}, {SECOND}, "),
        (("--call", "fc-0"), f"the call fc-0 has written nothing that is kept; calls that have: {CALL}"),
        (("--call", "1234"), "no call whose id ends with '1234' has written anything that is kept; calls that have: "),
        (
            ("--container", "1234"),
            "no container '1234' has written anything that is kept; there are: ct-0000000000c3",
        ),
        (("--container", "ct-9"), "no container 'ct-9' has written"),
        (("--call", "00000000"), "more than one call whose id ends with '00000000' has written: "),
        (
            ("--function", "f"),
            "no function 'f' of demo, the app that wrote last, has written anything that is kept; there are: fetch. "
            "Another app: kedge logs APP --function f",
        ),
        (("ap-1", "--function", "f"), "no function 'f' of the app ap-1 has written anything that is kept; there are: "),
    ],
)
def test_what_is_not_there_is_named_with_what_is(words: tuple[str, ...], text: str) -> None:
    result = run(*words)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert text in result.stderr


@pytest.mark.usefixtures("two_runs")
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--since", "yesterday"), f"--since: 'yesterday' is no moment; write for example {EXAMPLES}."),
        (("--until", "25:00"), "--until: '25:00' is no moment; write for example 10m, 2h"),
        (("--since", "1h", "--until", "2h"), "--since 1h is later than --until 2h."),
        (("--grep", "(a"), "--grep is '(a', which is no regular expression: missing ), unterminated subpattern"),
        (("--input", CALL), "an id such as in-0123abcd-7, or what lines of the log show: abcd-7. --call takes a call"),
        (("--input", "in-x"), "--input: 'in-x' is not an input id (expected in-<call>-<number>)."),
        (("--call", "in-0-1"), "--call is 'in-0-1'; the id of a call begins with fc-."),
        (("-f", "--until", "1h"), "--follow shows what comes and --until what was: give one of them."),
        (("-n", "-1"), "-1 is not in the range x>=0"),
        (("--stream", "3"), "'3' is not one of 'stdout', 'stderr'"),
        (("--input", ""), "Invalid value for '--input': it is empty; leave the option out, or give it something to"),
        (("--call", ""), "Invalid value for '--call': it is empty"),
        (("--since", ""), "Invalid value for '--since': it is empty"),
        (("",), "Invalid value for '[APP]': it is empty"),
    ],
)
def test_what_makes_no_sense_is_refused(words: tuple[str, ...], text: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert text in result.stderr


def test_a_file_that_is_no_log_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path))
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs" / "logs.db"
    path.write_text("junk " * 1000)
    result = run()
    advice = "file is not a database; remove the file, and the next run begins a new one"
    assert (result.exit_code, result.stderr) == (1, f"Error: the log at {path} cannot be read: {advice}\n")


@pytest.mark.usefixtures("two_runs")
def test_no_line_that_fits_is_said_beside_the_output() -> None:
    result = run("--grep", "nowhere")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "kedge: no line fits\n")


# ---------------------------------------------------------------- moments and names


NOON = datetime.datetime(2026, 1, 31, 12, 0)


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("30s", 30),
        ("10m", 600),
        ("2h", 7200),
        ("1d", 86400),
        ("1w", 7 * 86400),
        ("1h30m", 5400),
        ("1.5h", 5400),
        (" 10m ", 600),
        ("11:30", 1800),
        ("9:30", 9000),
        ("11:59:30", 30),
        ("12:30", 86400 - 1800),
        ("2026-01-31", 12 * 3600),
        ("2026-01-30T12:00", 86400),
        ("2026-01-30 12:00:00", 86400),
    ],
)
def test_moments(text: str, ago: float) -> None:
    assert NOON.timestamp() - moment(text, NOON) == ago


def test_a_moment_may_have_a_zone() -> None:
    assert moment("2026-01-31T14:30:00+02:00", NOON) == moment("2026-01-31T12:30Z", NOON)


@pytest.mark.parametrize("text", ["", "10", "10x", "m", "h10", "12:60", "2026-13-01", "0001-01-01", "now", "1h 30m"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="is no moment; write for example 10m, 2h, 1d"):
        moment(text, NOON)


@pytest.mark.parametrize("call", ["fc-1", "fc-", "", "x" * 40])
def test_calls_with_other_ids_have_short_names_too(call: str) -> None:
    assert isinstance(short_call(call), str)


# ---------------------------------------------------------------- following


class Watch:
    """A follower, and what it has printed since the last look."""

    def __init__(self, home: Path, **options: Any) -> None:
        self.stream = FakeTerminal()
        with contextlib.redirect_stdout(self.stream):
            chosen = Options(follow=True, **options)
            self.follower = logs.Follower(home / "logs" / "logs.db", chosen, filter_of(chosen, datetime.datetime.now()))
        self._shown = 0

    def look(self) -> list[str]:
        self.follower.look()
        return self.news()

    def news(self) -> list[str]:
        new = [line.partition("│ ")[2] for line in self.stream.seen[self._shown :]]
        self._shown = len(self.stream.seen)
        return new


def test_following_shows_what_comes_and_each_line_once(write: Write, tmp_path: Path) -> None:
    write(chunk("before\nhalf "))
    watch = Watch(tmp_path)
    assert watch.look() == ["before"]
    assert watch.look() == []
    write(chunk("a line\n", late=1), chunk("after\n", Origin(CALL, 1), late=2))
    assert watch.look() == ["half a line", "after"]
    assert watch.look() == []
    watch.follower.close()


def test_following_goes_on_with_later_runs(write: Write, tmp_path: Path) -> None:
    write(chunk("other\n", run="0", late=-10), chunk("first run\n", run="1"))
    everything, name, one = Watch(tmp_path), Watch(tmp_path, app="demo"), Watch(tmp_path, app="ap-1")
    assert everything.look() == one.look() == ["first run"]
    assert name.look() == ["other", "first run"]
    write(chunk("second run\n", run="2", late=1), chunk("another app\n", run="3", app="shop", late=2))
    assert everything.look() == ["second run", "another app"]
    assert name.look() == ["second run"]
    assert one.look() == []
    write(chunk("first run again\n", run="1", late=3))
    assert [watch.look() for watch in (everything, name, one)] == [["first run again"]] * 3
    for watch in (everything, name, one):
        watch.follower.close()


def test_following_waits_for_what_is_not_there_yet(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = Watch(tmp_path, app="demo", input=f"in-{CALL[3:]}-7")
    assert watch.look() == watch.look() == []
    assert capsys.readouterr().err == "kedge: nothing has been written yet; waiting\n"
    write(chunk("of another input\n", Origin(CALL, 8)))
    assert watch.look() == []
    write(chunk("at last\n", Origin(CALL, 7)))
    assert watch.look() == ["at last"]
    watch.follower.close()


def test_following_filters(write: Write, tmp_path: Path) -> None:
    write(chunk("x\n", late=-1))
    watch = Watch(tmp_path, grep="yes", stream="stdout", function="fetch", tail=0)
    assert watch.look() == []
    write(chunk("yes\nno\n"), chunk("yes\n", stream=2), chunk("yes!\n", function="other", run="2"))
    assert watch.look() == ["yes"]
    watch.follower.close()


def test_following_survives_that_the_log_is_removed(write: Write, tmp_path: Path) -> None:
    write(chunk("before\n"))
    watch = Watch(tmp_path)
    assert watch.look() == ["before"]
    for file in (tmp_path / "logs").iterdir():
        file.unlink()
    assert watch.look() == []
    write(chunk("new\n", late=1))
    assert watch.look() == ["new"]
    assert watch.look() == []
    watch.follower.close()


def test_ctrl_c_ends_following_in_good_order(write: Write, tmp_path: Path) -> None:
    write(chunk("whole\nhalf"))
    watch = Watch(tmp_path)
    turns = iter([None, None])

    def wait() -> None:
        try:
            next(turns)
        except StopIteration:
            raise KeyboardInterrupt from None

    with pytest.raises(KeyboardInterrupt):
        watch.follower.run(wait)
    assert watch.news() == ["whole", "half"]


def test_following_as_a_command(write: Write, tmp_path: Path) -> None:
    write(chunk("before\n"))
    command = [sys.executable, "-m", "kedge.cli.main", "logs", "-f"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    assert process.stdout.readline() == "fetch [00c1] │ before\n"
    write(chunk("after\n", late=1))
    assert process.stdout.readline() == "fetch [00c1] │ after\n"
    process.send_signal(2)
    assert process.communicate(timeout=60) == ("", "kedge: demo (ap-1)\n")
    assert process.returncode == 0


@pytest.mark.parametrize("words", [["logs"], ["logs", "-f"], ["app", "logs", "demo"], ["container", "logs", "ct-1"]])
def test_logs_of_a_server_elsewhere_are_read_there(
    words: list[str], two_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEDGE_SERVER", "tcps://gpu-box:5335")
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "Error: logs are read where the server runs, and KEDGE_SERVER names one at tcps://gpu-box:5335: "
        "run `kedge logs` there\n"
    )


def test_a_log_of_this_machines_server_is_said_to_be_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path))
    monkeypatch.setenv("KEDGE_SERVER", "tcps://gpu-box:5335")
    for words in (["logs"], ["stop"]):
        said = CliRunner().invoke(main, ["server", *words]).stderr
        assert said.startswith(
            "Note: this is about the server of this machine; that at tcps://gpu-box:5335 (KEDGE_SERVER names it) is "
        )
