"""`kedge deploy`: what it takes, what it shows, and how it ends. The server is a small stand-in."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click.testing
import pytest

from kedge.cli.main import main
from kedge.model import protocol as p
from kedge.model.ids import deployment_id
from kedge.model.payload import ErrorInfo
from kedge.sdk import alias, registry
from kedge.sdk.serializer import error_info
from tests.sdk.fake_plane import FakePlane

Deploy = Callable[..., click.testing.Result]

APP = """
import kedge
app = kedge.App("shop")

@app.function()
def square(x): return x * x

@app.function(schedule=kedge.Cron("0 9 * * 1-5", "Europe/Berlin"))
def report(): ...

@app.function()
@kedge.fastapi_endpoint(method="POST", label="order", custom_domains=["orders.example.org"])
def order(): ...

@app.cls()
class Model:
    @kedge.method()
    def generate(self): ...

    @kedge.asgi_app()
    def chat(self): ...
"""


@pytest.fixture
def plane() -> Iterator[FakePlane]:
    with tempfile.TemporaryDirectory(prefix="kedge") as home:
        made = FakePlane(home)
        made.web = "http://127.0.0.1:5334"
        yield made
        made.close()


@pytest.fixture
def deploy(tmp_path: Path, plane: FakePlane, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deploy]:
    """Writes `source` to script.py and runs `kedge deploy` with these words in its directory."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "_implicit_apps", {})
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KEDGE_SERVER", plane.address)
    monkeypatch.chdir(tmp_path)

    def run(source: str | None, *words: str) -> click.testing.Result:
        if source is not None:
            (tmp_path / "script.py").write_text(source)
        return click.testing.CliRunner().invoke(main, ["deploy", *words])

    yield run
    alias.uninstall()
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def test_it_shows_what_was_created_and_where_it_answers(deploy: Deploy, plane: FakePlane) -> None:
    result = deploy(APP, "script.py", "--tag", "v1.2")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:-1] == [
        "shop, version 1 (v1.2)",
        "├── square function",
        "├── report function, runs at 0 9 * * 1-5 (Europe/Berlin)",
        "├── order POST endpoint",
        "│   ├── http://127.0.0.1:5334/order/",
        "│   ├── http://order.localhost:5334",
        "│   └── https://orders.example.org",
        "└── Model class",
        "    ├── generate",
        "    └── chat",
        "        ├── http://127.0.0.1:5334/shop-model-chat/",
        "        └── http://shop-model-chat.localhost:5334",
    ]
    assert lines[-1].startswith("Deployed in ")
    assert lines[-1].endswith("`kedge app logs shop` shows what it prints.")
    assert result.stderr == "kedge: f is up\n"


def test_how_it_comes_up_is_followed(deploy: Deploy, plane: FakePlane) -> None:
    assert deploy(APP, "script.py").exit_code == 0
    (message,) = plane.heard(p.AppDeployed)
    assert [one.app for one in plane.heard(p.OutputSubscribed)] == [deployment_id("main", "shop")]
    counted = {one.app for one in plane.heard(p.StatisticsRequested)}
    assert counted == {message.app.app}, "of the version that is tried, not of the one that serves"


def test_its_options_reach_the_server(deploy: Deploy, plane: FakePlane) -> None:
    result = deploy(APP, "script.py::app", "--name", "other", "--strategy", "recreate", "--env", "staging")
    assert result.exit_code == 0, result.output
    (message,) = plane.heard(p.AppDeployed)
    spec = message.app
    assert (spec.name, spec.environment_name, message.strategy, spec.ephemeral) == (
        "other", "staging", "recreate", False,
    )  # fmt: skip
    assert "other in the environment staging, version 1\n" in result.stdout
    assert "`kedge app logs other -e staging`" in result.stdout


def test_an_app_without_a_name_is_called_as_its_file(deploy: Deploy, plane: FakePlane) -> None:
    source = "import kedge\n@kedge.function()\ndef f(): ...\n"
    assert deploy(source, "script.py").exit_code == 0
    assert deploy(None, "-m", "script").exit_code == 0
    assert [message.app.name for message in plane.heard(p.AppDeployed)] == ["script", "script"]


def test_a_file_whose_name_cannot_be_one(deploy: Deploy, tmp_path: Path) -> None:
    (tmp_path / "my app.py").write_text("import kedge\n@kedge.function()\ndef f(): ...\n")
    result = deploy(None, "my app.py")
    assert result.exit_code == 2
    assert "'my app' cannot be the name of an app; give it one: --name" in result.stderr


def test_import_modal_means_kedge_unless_told_otherwise(deploy: Deploy, plane: FakePlane) -> None:
    source = "import modal\napp = modal.App('m')\n@app.function()\ndef f(): ...\n"
    assert deploy(source, "script.py").exit_code == 0
    assert plane.heard(p.AppDeployed)[0].app.environment.alias_modal


def test_why_it_does_not_start_is_shown_with_the_containers_traceback(deploy: Deploy, plane: FakePlane) -> None:
    try:
        _ = {}["weights"]  # type: ignore[var-annotated]
    except KeyError as error:
        info = error_info(error)
    text = "square cannot start: 'weights'. Version 3 of shop goes on serving"
    plane.refuse_deploy = ErrorInfo(info.type, text, info.traceback, info.payload, info.module, (), info.frames)
    result = deploy(APP, "script.py")
    assert result.exit_code == 1
    assert f'File "remote:{__file__}"' in result.stderr
    assert "KeyError: 'weights'\n" in result.stderr
    assert result.stderr.endswith(f"Error: shop was not deployed: {text}\n")
    assert "runner.py" not in result.stderr


def test_what_the_server_refuses_is_one_line(deploy: Deploy, plane: FakePlane) -> None:
    plane.refuse_deploy = ErrorInfo("InvalidError", "the label 'order' belongs to somebody else")
    result = deploy(APP, "script.py")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: shop was not deployed: the label 'order' belongs to somebody else\n"


@pytest.mark.parametrize(
    ("source", "words", "message"),
    [
        ("x = 1", ["script.py"], "script.py has no kedge.App"),
        (APP, ["script.py::ap"], "script.py has no app 'ap'. Did you mean 'app'? Name the variable that holds one"),
        (
            "import kedge\none = kedge.App('one')\ntwo = kedge.App('two')\n",
            ["script.py"],
            "script.py has several apps; choose one:\n\n    kedge deploy script.py::one\n"
            "    kedge deploy script.py::two\n",
        ),
        (
            "import kedge\napp = kedge.App('a')\n@app.local_entrypoint()\ndef main(): ...\n",
            ["script.py"],
            "has no functions to serve; add @app.function() to some. Local entrypoints are for `kedge run`",
        ),
        (None, ["nothing.py"], "there is no file 'nothing.py'"),
        (None, ["nothing"], "For a module, write: kedge deploy -m nothing"),
        (APP, ["script.py", "--name", ""], "it is empty"),
        (APP, ["script.py", "--strategy", "canary"], "'canary' is not one of 'rolling', 'recreate'"),
    ],
)
def test_what_cannot_be_tried_is_said(deploy: Deploy, source: str, words: list[str], message: str) -> None:
    result = deploy(source, *words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_of_several_apps_the_one_named_app_is_meant(deploy: Deploy, plane: FakePlane) -> None:
    source = "import kedge\nother = kedge.App('other')\napp = kedge.App('it')\n@app.function()\ndef f(): ...\n"
    assert deploy(source, "script.py").exit_code == 0
    assert plane.heard(p.AppDeployed)[0].app.name == "it"


def test_a_file_that_does_not_import_is_shown(deploy: Deploy, plane: FakePlane) -> None:
    result = deploy("import kedge\n1 / 0\n", "script.py")
    assert result.exit_code == 2
    assert "ZeroDivisionError" in result.stderr
    assert result.stderr.endswith("Error: importing script.py failed, so nothing was deployed.\n")
    assert plane.said == []


def test_misuse_of_the_configuration_is_one_line(
    deploy: Deploy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kedge.toml").write_text("active = 3\n")
    monkeypatch.setenv("KEDGE_CONFIG", str(tmp_path / "kedge.toml"))
    result = deploy(APP, "script.py")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: shop was not deployed: ")
    assert "active is the name of a profile" in result.stderr
    assert "Traceback" not in result.stderr
