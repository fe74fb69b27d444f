"""`kedge serve`: what follows from changes, imports and answers of the server, in whatever order they come.

Imports, the server and the watching are stand-ins here; each has tests of its own.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import click.testing
import pytest
from msgspec import structs

from kedge.cli import serve
from kedge.cli.importing import Order, Parcel
from kedge.cli.main import main
from kedge.cli.watching import Watched
from kedge.exception import AuthError, ConflictError, InvalidError, RemoteError
from kedge.model.spec import AppSpec, CodeSpec, EnvironmentSpec, FunctionSpec, MethodSpec, WebSpec
from kedge.sdk.runner import Deployed

PATIENCE_S = 30.0
WEB = FunctionSpec(name="page", module="m", qualname="page", methods=(MethodSpec(web=WebSpec(kind="asgi_app")),))


def app(number: int = 1, name: str = "shop") -> AppSpec:
    environment = EnvironmentSpec(python="", python_version="3.11")
    return AppSpec(app=f"ap-{number}", name=name, functions=(WEB,), code=CodeSpec(), environment=environment)


class Stage:
    """Stands in for processes, files and the server, and says what `kedge serve` did."""

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.parcels: queue.Queue[Parcel] = queue.Queue()
        """What imports give, one after the other; an import without one goes on until it is stopped."""
        self.stopped_imports = 0
        self.answers: dict[str, queue.Queue[Any]] = {}
        """What the server says about a version, by its id."""
        self.sent: list[str] = []
        self.connections: list[str] = []
        self.closed: list[str] = []
        self.back: Callable[[], Any] = lambda: None
        self.lost: Callable[[Exception], Any] = lambda error: None
        self.changes: queue.Queue[None] = queue.Queue()
        self.waited: list[Watched] = []
        self.done = threading.Event()

    def answer(self, id: str) -> queue.Queue[Any]:
        return self.answers.setdefault(id, queue.Queue())

    def serves(self, number: int = 1, name: str = "shop") -> None:
        """The server takes this version."""
        self.answer(f"ap-{number}").put(
            Deployed(
                app="ap-dev", name=name, environment="main", version=number, labels={"page": "shop-page-dev"},
                web="http://127.0.0.1:4000", web_domain="localhost:4000",
            )
        )  # fmt: skip


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    made = Stage()

    class FakeImport:
        def __init__(self, order: Order, over: Callable[[Parcel], None], say: Callable[[str], None]) -> None:
            made.orders.append(order)
            try:
                over(made.parcels.get_nowait())
            except queue.Empty:
                pass

        def stop(self) -> None:
            made.stopped_imports += 1

    class FakeConnection:
        def __init__(self, spec: AppSpec, display: Any, events: Any, lost: Any, back: Any) -> None:
            self.name = spec.name
            made.connections.append(spec.name)
            made.lost = lambda error: events.put(lambda: lost(error))
            made.back = lambda: events.put(back)

        def deploy(self, spec: AppSpec) -> Deployed:
            made.sent.append(spec.app)
            known = spec.app if spec.app in made.answers else "any"
            found = made.answer(known).get(timeout=PATIENCE_S)
            if isinstance(found, Exception):
                raise found
            answer: Deployed = found
            return answer

        def close(self) -> None:
            made.closed.append(self.name)

    def wait(self: Watched, before: Any, stop: threading.Event) -> Any:
        made.waited.append(self)
        while not stop.is_set() and not made.done.is_set():
            try:
                made.changes.get(timeout=0.01)
            except queue.Empty:
                continue
            if stop.is_set():
                made.changes.put(None)  # it is for who waits in its place
                return None
            return {"changed": (1, 1, 1)}
        return None

    monkeypatch.setattr(serve, "Import", FakeImport)
    monkeypatch.setattr(serve, "Connection", FakeConnection)
    monkeypatch.setattr(serve, "AGAIN_S", 0.0)
    monkeypatch.setattr(Watched, "wait", wait)
    yield made
    made.done.set()


class Runs:
    """`kedge serve` on a thread, as far as a test lets it come."""

    def __init__(self, stage: Stage, capsys: pytest.CaptureFixture[str], **settings: Any) -> None:
        self._stage = stage
        self._capsys = capsys
        self._out = ""
        self.codes: list[int] = []
        given = serve.Settings(**{"timeout": PATIENCE_S, **settings})
        self.thread = threading.Thread(target=lambda: self.codes.append(serve.serve("app.py", given)))
        self.thread.start()

    @property
    def output(self) -> str:
        captured = self._capsys.readouterr()
        self._out += captured.out + captured.err
        return self._out

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = threading.Event()
        for _ in range(int(PATIENCE_S / 0.01)):
            if condition():
                return
            deadline.wait(0.01)
        raise AssertionError(f"it did not happen; so far: {self.output}")

    def says(self, text: str) -> None:
        self.until(lambda: text in self.output)

    def end(self) -> int:
        """As if its time was over."""
        self._stage.lost(InvalidError("the test is over"))
        self.thread.join(PATIENCE_S)
        return self.codes[0]


@pytest.fixture
def run(stage: Stage, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Runs]]:
    made: list[Runs] = []

    def start(**settings: Any) -> Runs:
        made.append(Runs(stage, capsys, **settings))
        return made[-1]

    yield start
    for one in made:
        if one.thread.is_alive():
            one.end()


def test_it_shows_the_addresses_once_and_then_only_what_changes(stage: Stage, run: Callable[..., Runs]) -> None:
    stage.parcels.put(Parcel(app=app(1)))
    stage.serves(1)
    serving = run(environment="staging")
    serving.says("shop is served after ")
    assert "http://127.0.0.1:4000/shop-page-dev/" in serving.output
    assert "http://shop-page-dev.localhost:4000" in serving.output
    assert stage.orders == [Order(ref="app.py", environment="staging")]
    stage.parcels.put(Parcel(app=app(2)))
    stage.serves(2)
    stage.changes.put(None)
    serving.says("shop is replaced, ")
    assert serving.output.count("http://127.0.0.1:4000/shop-page-dev/") == 1
    assert stage.sent == ["ap-1", "ap-2"]
    assert stage.connections == ["shop"], "one session for all versions"


def test_what_does_not_import_is_shown_and_the_next_change_repairs_it(stage: Stage, run: Callable[..., Runs]) -> None:
    stage.parcels.put(Parcel(traceback="Traceback: boom\n", error="importing app.py failed", sources=("/p/app.py",)))
    serving = run()
    serving.says("nothing is served yet; waiting for a change")
    assert "Traceback: boom\nError: importing app.py failed" in serving.output
    assert "/p" in stage.waited[0]._directories, "new files may repair it, too"
    stage.parcels.put(Parcel(app=app(1)))
    stage.serves(1)
    stage.changes.put(None)
    serving.says("shop is served after ")
    stage.parcels.put(Parcel(error="importing app.py failed"))
    stage.changes.put(None)
    serving.says("the version before goes on serving; waiting for a change")
    assert stage.closed == []


def test_what_does_not_start_is_shown_and_the_next_change_repairs_it(stage: Stage, run: Callable[..., Runs]) -> None:
    stage.parcels.put(Parcel(app=app(1)))
    failed = RemoteError("page cannot start: no model")
    failed.__cause__ = ValueError("no model")
    stage.answer("ap-1").put(failed)
    serving = run()
    serving.says("Error: page cannot start: no model")
    serving.says("nothing is served yet")
    assert "ValueError: no model\n" in serving.output
    stage.parcels.put(Parcel(app=app(2)))
    stage.serves(2)
    stage.changes.put(None)
    serving.says("shop is served after ")


def test_a_newer_change_ends_an_import_that_is_under_way(stage: Stage, run: Callable[..., Runs]) -> None:
    stage.parcels.put(Parcel(app=app(1)))
    stage.serves(1)
    serving = run()
    serving.says("shop is served after ")
    stage.changes.put(None)
    serving.until(lambda: len(stage.orders) == 2)
    assert stage.stopped_imports == 0
    stage.parcels.put(Parcel(app=app(3)))
    stage.serves(3)
    stage.changes.put(None)
    serving.says("shop is replaced, ")
    assert stage.stopped_imports == 1
    assert stage.sent == ["ap-1", "ap-3"]


def test_answers_about_an_older_version_are_of_no_interest(stage: Stage, run: Callable[..., Runs]) -> None:
    stage.parcels.put(Parcel(app=app(1)))
    serving = run()
    serving.until(lambda: stage.sent == ["ap-1"])
    stage.parcels.put(Parcel(app=app(2)))
    stage.answer("ap-2")
    stage.changes.put(None)
    serving.until(lambda: stage.sent == ["ap-1", "ap-2"])
    stage.answer("any").put(ConflictError("another deploy has taken the place of this one"))
    stage.serves(2)
    serving.says("shop is served after ")
    assert "has taken the place" not in serving.output


def test_another_name_is_another_app(stage: Stage, run: Callable[..., Runs]) -> None:
    stage.parcels.put(Parcel(app=app(1)))
    stage.serves(1)
    serving = run()
    serving.says("shop is served after ")
    stage.parcels.put(Parcel(app=app(2, "store")))
    stage.serves(2, "store")
    stage.changes.put(None)
    serving.until(lambda: stage.connections == ["shop", "store"])
    assert stage.closed == ["shop"]


def test_a_server_that_is_back_gets_everything_again(stage: Stage, run: Callable[..., Runs]) -> None:
    stage.parcels.put(Parcel(app=app(1)))
    stage.serves(1)
    serving = run()
    serving.says("shop is served after ")
    taken = ConflictError("shop is served already by another program")
    stage.answer("any").put(taken)
    stage.answer("any").put(taken)
    stage.back()
    serving.until(lambda: len(stage.sent) == 4)
    assert len(set(stage.sent)) == 4, "each time as a version of its own"
    stage.serves(9)
    stage.answer("any").put(stage.answer("ap-9").get())
    serving.says("shop is replaced, ")
    assert "served already by another program" not in serving.output


def test_a_server_that_is_lost_ends_it(stage: Stage, run: Callable[..., Runs]) -> None:
    stage.parcels.put(Parcel(app=app(1)))
    stage.serves(1)
    serving = run()
    serving.says("shop is served after ")
    assert serving.end() == 1
    assert "Error: the test is over" in serving.output
    assert "kedge: Failed after" in serving.output
    assert stage.closed == ["shop"]


def test_it_ends_when_its_time_is_over(stage: Stage, run: Callable[..., Runs]) -> None:
    stage.parcels.put(Parcel(app=app(1)))
    stage.serves(1)
    serving = run(timeout=0.2)
    serving.thread.join(PATIENCE_S)
    assert serving.codes == [0]
    assert "kedge: Stopped after" in serving.output
    assert stage.closed == ["shop"]


@pytest.mark.parametrize(
    ("parcel", "code"),
    [
        (Parcel(error="importing app.py failed"), 1),
        (Parcel(error="there is no file 'app.py'.", misused=True), 2),
    ],
)
def test_without_reloading_what_fails_is_the_end(
    stage: Stage, run: Callable[..., Runs], parcel: Parcel, code: int
) -> None:
    stage.parcels.put(parcel)
    serving = run(reload=False)
    serving.thread.join(PATIENCE_S)
    assert serving.codes == [code]
    assert f"Error: {parcel.error}" in serving.output
    assert stage.waited == []


@pytest.mark.parametrize(
    "refusal", [ConflictError("shop is served already by another program"), AuthError("the token is not known")]
)
def test_a_first_version_that_no_change_can_cure_is_the_end(
    stage: Stage, run: Callable[..., Runs], refusal: Exception
) -> None:
    stage.parcels.put(Parcel(app=app(1)))
    stage.answer("ap-1").put(refusal)
    serving = run()
    serving.thread.join(PATIENCE_S)
    assert serving.codes == [1]
    assert f"Error: {refusal}" in serving.output
    assert "waiting for a change" not in serving.output
    assert stage.closed == ["shop"]


def test_a_name_that_another_program_has_taken_meanwhile_is_the_end(stage: Stage, run: Callable[..., Runs]) -> None:
    stage.parcels.put(Parcel(app=app(1)))
    stage.serves(1)
    serving = run()
    serving.says("shop is served after ")
    for _ in range(serve.TRIES_AGAIN):
        stage.answer("any").put(ConflictError("shop is served already by another program"))
    stage.back()
    serving.thread.join(PATIENCE_S)
    assert serving.codes == [1]
    assert serving.output.count("Error: shop is served already by another program") == 1


def test_new_addresses_are_shown(stage: Stage, run: Callable[..., Runs]) -> None:
    stage.parcels.put(Parcel(app=app(1)))
    stage.serves(1)
    serving = run()
    serving.says("shop is served after ")
    stage.parcels.put(Parcel(app=app(2)))
    stage.serves(2)
    deployed = stage.answer("ap-2").get()
    stage.answer("ap-2").put(structs.replace(deployed, labels={**deployed.labels, "more": "shop-more-dev"}))
    stage.changes.put(None)
    serving.says("more answers at http://127.0.0.1:4000/shop-more-dev/")
    stage.parcels.put(Parcel(app=app(3)))
    stage.serves(3)
    stage.answer("ap-3").put(structs.replace(stage.answer("ap-3").get(), labels={"page": "other-dev"}))
    stage.changes.put(None)
    serving.says("page answers at http://127.0.0.1:4000/other-dev/")
    assert serving.output.count("answers at") == 2


def test_a_file_that_goes_away_is_waited_for(stage: Stage, run: Callable[..., Runs]) -> None:
    stage.parcels.put(Parcel(app=app(1)))
    stage.serves(1)
    serving = run()
    serving.says("shop is served after ")
    stage.parcels.put(Parcel(error="there is no file 'app.py'.", misused=True))
    stage.changes.put(None)
    serving.says("Error: there is no file 'app.py'.")
    serving.says("the version before goes on serving")
    assert serving.codes == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["app.py::"], "ends with '::'"),
        (["app.py", "--timeout", "0"], "Invalid value for '--timeout'"),
        (["app.py", "--name", ""], "it is empty"),
    ],
)
def test_what_cannot_be_tried_is_said(words: list[str], message: str) -> None:
    result = click.testing.CliRunner().invoke(main, ["serve", *words])
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_name_that_cannot_be_one_is_one_line() -> None:
    result = click.testing.CliRunner().invoke(main, ["serve", "app.py", "--name", "my app"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: --name may hold letters")
