"""Images on their way to a server: bound when an app starts, all asked for at once, their ids in the specs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kedge
from kedge.exception import ImageBuildError, InvalidError, NotFoundError
from kedge.model import protocol as p
from kedge.model.payload import ErrorInfo
from kedge.model.spec import SecretRef
from kedge.sdk import client as client_module
from kedge.sdk import context, output
from kedge.wire.trees import Entry, digest_of
from tests.sdk.fake_plane import FakePlane
from tests.sdk.test_runner import Shown


class Watching(Shown):
    def __init__(self) -> None:
        super().__init__()
        self.builds: list[tuple[str, str, str]] = []

    def building(self, image: str, message: p.ImageProgressed) -> None:
        self.builds.append((image, message.state, message.title))


class Builder:
    """The server's side: answers once everybody who is expected has asked."""

    def __init__(self, together: int = 1) -> None:
        self.asked: list[p.ImageRequested] = []
        self.together = together
        self.error: ErrorInfo | None = None

    def answer(self, plane: FakePlane, message: p.ImageRequested, link: Any) -> None:
        self.asked.append(message)
        if len(self.asked) < self.together:
            return
        for one in self.asked[-self.together :]:
            link.send([p.ImageProgressed(one.request, "started", 1, 1, "pip_install"), self._reply(one)])

    def _reply(self, message: p.ImageRequested) -> p.Reply:
        if self.error is not None:
            return p.Reply(message.request, None, self.error)
        return p.Reply(message.request, {"id": f"im-{len(message.image.steps)}", "cached": False, "seconds": 2.0})


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    made = Builder()
    monkeypatch.setattr(
        FakePlane, "_on_ImageRequested", lambda plane, message, link: made.answer(plane, message, link), raising=False
    )
    return made


@pytest.fixture(autouse=True)
def home(tmp_path: Path, plane: FakePlane, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("KEDGE_HOME", plane.home)  # it reads our disk
    monkeypatch.setenv("KEDGE_SERVER", plane.address)
    for name in ("KEDGE_FORCE_BUILD", "KEDGE_IGNORE_CACHE", "MODAL_FORCE_BUILD", "MODAL_IGNORE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    for client in [client_module.running()]:
        if client is not None:
            client.close()


def square(x: int) -> int:
    return x * x


def app_of(**images: kedge.Image) -> kedge.App:
    app = kedge.App("shop")
    for name, image in images.items():
        app.function(serialized=True, name=name, image=image)(square)
    return app


BASE = kedge.Image.debian_slim("3.11")


def test_distinct_images_are_asked_for_at_once_and_their_ids_are_in_the_specs(
    plane: FakePlane, builder: Builder, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a")
    builder.together = 2  # none is answered before both are asked for
    app = app_of(
        a=BASE.pip_install("numpy"),
        b=BASE.pip_install("numpy"),
        c=BASE.pip_install("numpy").env({"A": "1"}),
        d=BASE.pip_install("numpy").add_local_file(tmp_path / "a.txt", "/a.txt"),
        e=kedge.Image(),
    )
    shown = Watching()
    with output.show_on(shown), app.run():
        pass
    assert [len(message.image.steps) for message in builder.asked] == [2, 3]
    (created,) = plane.heard(p.AppCreated)
    images = {function.name: function.image for function in created.app.functions}
    assert {name: image.id for name, image in images.items()} == {
        "a": "im-2",
        "b": "im-2",
        "c": "im-3",
        "d": "im-2",
        "e": "",
    }
    assert [files.target for files in images["d"].mounts] == ["/a.txt"]
    assert images["c"].digest == BASE.pip_install("numpy").env({"A": "1"}).digest
    # Two threads wait: either may be the first to say something.
    for whose in ("a, b, d", "c"):
        told = [(event, text) for who, event, text in shown.builds if who == whose]
        assert told == [("started", "pip_install"), ("finished", "")]
    assert len(shown.builds) == 4


def test_a_deploy_builds_as_well_and_an_app_without_images_asks_for_none(plane: FakePlane, builder: Builder) -> None:
    app_of(a=kedge.Image()).deploy()
    assert builder.asked == []
    app_of(a=BASE).deploy()
    assert [message.force for message in builder.asked] == [False]
    assert plane.heard(p.AppDeployed)[-1].app.functions[0].image.id == "im-1"


def test_a_failed_build_raises_what_the_server_says_and_leaves_nothing(plane: FakePlane, builder: Builder) -> None:
    builder.error = ErrorInfo("ImageBuildError", "step 1 of 1 failed: no such package")
    app = app_of(a=BASE)
    shown = Watching()
    with output.show_on(shown), pytest.raises(ImageBuildError, match="step 1 of 1 failed: no such package"), app.run():
        pass
    assert plane.heard(p.AppCreated) == []
    assert app.app_id is None
    assert shown.builds[-1] == ("", "failed", "")
    assert client_module.running() is None


def test_what_cannot_be_read_is_said_before_a_server_is_asked(plane: FakePlane, builder: Builder) -> None:
    app = app_of(a=BASE.add_local_file("no-such-file", "/x"))
    with pytest.raises(NotFoundError, match=r"Image.add_local_file \(.*test_image_builds.py:\d+\): there is no file"):
        app.run().__enter__()
    assert plane.said == []


@pytest.mark.parametrize(
    ("variable", "aliased", "wished"),
    [
        ("KEDGE_FORCE_BUILD", False, (True, False)),
        ("KEDGE_IGNORE_CACHE", False, (False, True)),
        ("MODAL_FORCE_BUILD", False, (False, False)),
        ("MODAL_FORCE_BUILD", True, (True, False)),
        ("MODAL_IGNORE_CACHE", True, (False, True)),
    ],
)
def test_variables_ask_for_new_builds(
    builder: Builder, monkeypatch: pytest.MonkeyPatch, variable: str, aliased: bool, wished: tuple[bool, bool]
) -> None:
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr("kedge.sdk.alias.is_installed", lambda: aliased)
    with app_of(a=BASE).run():
        pass
    (asked,) = builder.asked
    assert (asked.force, asked.ignore_cache) == wished


def test_building_and_publishing_by_hand(builder: Builder) -> None:
    image = BASE.pip_install("numpy")
    assert image.build(kedge.App()) is image
    assert image.publish("tools") is image
    assert [(len(message.image.steps), message.publish) for message in builder.asked] == [(2, ""), (2, "tools")]
    with pytest.raises(
        InvalidError, match=r"kedge.Image\(\) is the caller's own environment: there is nothing to build"
    ):
        kedge.Image().build()
    context.set_container(app_id="ap-1", function=None)
    try:
        assert image.build() is image, "its file is imported again, and nothing is built"
    finally:
        context.clear_container()


def test_secrets_of_steps_travel_as_references(
    plane: FakePlane, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[dict[str, str]] = []

    def keep(self: FakePlane, message: p.SecretsChanged, link: Any) -> None:
        kept.append(message.values)
        link.send([p.Reply(message.request, {"id": "se-1"})])

    monkeypatch.setattr(FakePlane, "_on_SecretsChanged", keep, raising=False)
    mine, named = kedge.Secret.from_dict({"TOKEN": "hunter2"}), kedge.Secret.from_name("index")
    image = (
        kedge.Image.from_registry("python:3.12", mine)
        .pip_install("x", secrets=[mine, named])
        .pip_install_from_pyproject(__file__, secrets=[named])
    )
    with app_of(a=image).run(environment_name="test"):
        pass
    assert kept == [{"TOKEN": "hunter2"}]
    steps = builder.asked[0].image.steps
    assert json.loads(dict(steps[0].arguments)["secret"])["id"] == "se-1"
    refs = json.loads(dict(steps[1].arguments)["secrets"])
    assert [(ref["id"], ref["name"], ref["environment"]) for ref in refs] == [("se-1", "", ""), ("", "index", "test")]
    assert json.loads(dict(steps[2].arguments)["secrets"]) == refs[1:]
    assert "hunter2" not in repr(builder.asked)
    assert SecretRef(name="index", environment="test").id == ""


def test_secrets_are_looked_up_before_anything_is_built(
    plane: FakePlane, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[p.SecretsChanged] = []

    def info(self: FakePlane, message: p.SecretsChanged, link: Any) -> None:
        asked.append(message)
        link.send([p.Reply(message.request, None, ErrorInfo("NotFoundError", "there is no secret 'hub'"))])

    monkeypatch.setattr(FakePlane, "_on_SecretsChanged", info, raising=False)
    app = kedge.App(image=BASE, secrets=[kedge.Secret.from_name("hub", required_keys=["TOKEN"])])
    app.function(serialized=True, name="a")(lambda: None)
    app.function(serialized=True, name="b")(lambda: None)
    with pytest.raises(NotFoundError, match="there is no secret 'hub'"), app.run(environment_name="test"):
        pass
    assert [(one.action, one.name, one.environment, one.required_keys) for one in asked] == [
        ("info", "hub", "test", ("TOKEN",))
    ]
    assert builder.asked == []


def test_another_machine_gets_the_files_that_it_does_not_have(
    tmp_path: Path, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: dict[str, bytes] = {}
    sent: list[p.FilesSent] = []

    def offered(self: FakePlane, message: p.FilesOffered, link: Any) -> None:
        if not message.entries:
            answer: dict[str, Any] = {"root": f"/there/{message.digest}"} if len(there) > 1 else {"missing": []}
            link.send([p.Reply(message.request, answer)])
            return
        assert digest_of(Entry(*entry) for entry in message.entries) == message.digest
        missing = [entry[1] for entry in message.entries if entry[1] not in there]
        answer = {"missing": missing} if missing else {"root": f"/there/{message.digest}"}
        link.send([p.Reply(message.request, answer)])

    def arrived(self: FakePlane, message: p.FilesSent, link: Any) -> None:
        sent.append(message)
        if len(sent) == 2:  # the connection was lost, and what had arrived with it
            there.pop(message.hash, None)
            link.send([p.Reply(message.request, {"size": 0})])
            return
        there[message.hash] = there.get(message.hash, b"") + message.data
        link.send([p.Reply(message.request, {"size": len(there[message.hash])})])

    monkeypatch.setattr(FakePlane, "_on_FilesOffered", offered, raising=False)
    monkeypatch.setattr(FakePlane, "_on_FilesSent", arrived, raising=False)
    monkeypatch.setattr("kedge.sdk.shipping.PART", 4)
    far = FakePlane(str(tmp_path), over_tcp=True)
    monkeypatch.setenv("KEDGE_SERVER", far.address)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "large").write_bytes(b"0123456789")
    (tmp_path / "data" / "empty").write_bytes(b"")
    image = BASE.add_local_dir(tmp_path / "data", "/data")
    try:
        for _ in range(2):
            app_of(a=image).deploy()
    finally:
        far.close()
    assert sorted(there.values()) == [b"", b"0123456789"]
    (mount,) = far.heard(p.AppDeployed)[-1].app.functions[0].image.mounts
    assert mount.root == f"/there/{mount.digest}"
    assert len(far.heard(p.FilesOffered)) == 4
    assert not far.heard(p.FilesOffered)[-1].entries, "what is there is neither read nor sent again"
