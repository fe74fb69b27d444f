"""`kedge profile` and `kedge config`: which server is meant, said without saying secrets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click.testing
import pytest

from kedge.cli.main import main

Kedge = Callable[..., click.testing.Result]

FILE = """\
active = "box"

[profile.box]
server = "tcp://gpu-box:5335"
token = "0123456789abcdef0123"
environment = "staging"

[profile.here]
"""


@pytest.fixture
def kedge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kedge:
    monkeypatch.setenv("KEDGE_CONFIG", str(tmp_path / "kedge.toml"))
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path / "home"))
    (tmp_path / "kedge.toml").write_text(FILE)
    return lambda *words: click.testing.CliRunner().invoke(main, list(words))


def test_profiles_are_listed_with_the_one_in_use(kedge: Kedge, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kedge("profile", "list").stdout == "* box  tcp://gpu-box:5335\n  here  the server of this machine\n"
    monkeypatch.setenv("KEDGE_PROFILE", "here")
    assert kedge("profile", "list").stdout.splitlines()[1].startswith("* here")


def test_the_current_one_is_printed_alone(kedge: Kedge, tmp_path: Path) -> None:
    assert kedge("profile", "current").stdout == "box\n"
    (tmp_path / "kedge.toml").unlink()
    result = kedge("profile", "current")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "No profile is in use; programs use the server of this machine" in result.stderr
    assert "There is no profile. One looks like this" in kedge("profile", "list").stdout


def test_another_one_is_activated(kedge: Kedge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "The profile here is in use from now on" in kedge("profile", "activate", "here").stdout
    assert (tmp_path / "kedge.toml").read_text() == FILE.replace('active = "box"', 'active = "here"')
    assert "No profile is in use from now on" in kedge("profile", "activate", "--none").stdout
    assert kedge("profile", "current").exit_code == 1
    monkeypatch.setenv("KEDGE_SERVER", "tcp://x:1")
    assert "Not in this shell" in kedge("profile", "activate", "box").stderr


def test_misuse_is_one_line(kedge: Kedge, tmp_path: Path) -> None:
    result = kedge("profile", "activate", "boxx")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: there is no profile 'boxx'")
    assert kedge("profile", "activate").exit_code == 2
    assert kedge("profile", "activate", "box", "--none").exit_code == 2
    (tmp_path / "kedge.toml").write_text("[profile.box\n")
    for words in (["profile", "list"], ["profile", "current"], ["config", "show"]):
        result = kedge(*words)
        assert result.exit_code == 1
        assert "is no TOML: Expected ']'" in result.stderr


def test_the_configuration_is_shown_without_tokens(kedge: Kedge, monkeypatch: pytest.MonkeyPatch) -> None:
    result = kedge("config", "show")
    assert "server       tcp://gpu-box:5335, by the profile 'box'" in result.stdout
    assert "token        0123…" in result.stdout
    assert "environment  staging" in result.stdout
    assert "456789" not in result.output
    monkeypatch.setenv("KEDGE_SERVER", "tcp://other:1")
    monkeypatch.setenv("KEDGE_TOKEN", "fedcba9876543210fedc")
    result = kedge("config", "show")
    assert "server       tcp://other:1, by KEDGE_SERVER" in result.stdout
    assert "variable     KEDGE_TOKEN=fedc…" in result.stdout
    assert "ba98" not in result.output
    monkeypatch.delenv("KEDGE_SERVER")
    monkeypatch.setenv("KEDGE_PROFILE", "here")
    assert "server       (none runs on this machine)" in kedge("config", "show").stdout
