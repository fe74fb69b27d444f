"""Profiles and environments: what the file may say, what goes before it, and what happens where it is wrong."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from kedge.exception import InvalidError, NotFoundError
from kedge.sdk import config, context, server_process

FILE = """\
# my servers
active = "box"  # the fast one

[profile.box]
server = "tcp://gpu-box:5335"
token = "0123456789abcdef0123"
environment = "staging"
tls_ca = "certs/box.pem"

[profile.here]
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kedge.toml"
    path.write_text(FILE)
    monkeypatch.setenv("KEDGE_CONFIG", str(path))
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path / "home"))
    return path


def test_without_a_file_there_is_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KEDGE_CONFIG", str(tmp_path / "none.toml"))
    assert config.load() == config.Config(str(tmp_path / "none.toml"))
    assert config.profile() is None
    assert config.environment() == "main"


def test_the_file_is_where_configurations_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEDGE_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/somewhere")
    assert config.path() == "/somewhere/kedge.toml"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert config.path() == "/home/ada/.config/kedge.toml"
    monkeypatch.setenv("KEDGE_CONFIG", "~/other.toml")
    assert config.path() == "/home/ada/other.toml"


def test_the_active_profile_names_the_server(file: Path) -> None:
    found = server_process.find()
    ca = str(file.parent / "certs" / "box.pem")
    assert found == server_process.ServerAddress(
        "tcp://gpu-box:5335", "0123456789abcdef0123", ca, "the profile 'box'", "that of the profile 'box'"
    ), "paths in the file are relative to it"
    assert config.environment() == "staging"
    assert server_process.find(str(file.parent)) is None, "asked for the machine's server, profiles do not count"


def test_variables_go_before_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_TOKEN", "another")
    found = server_process.find()
    assert found is not None
    assert (found.address, found.token) == ("tcp://gpu-box:5335", "another")
    assert found.token_of == "KEDGE_TOKEN, which goes before that of the profile 'box'"
    monkeypatch.setenv("KEDGE_PROFILE", "here")
    assert server_process.find() is None, "a profile without a server means this machine's"
    assert config.environment() == "main"
    monkeypatch.setenv("KEDGE_ENVIRONMENT", "testing")
    assert config.environment() == "testing"
    assert config.environment("given") == "given"
    monkeypatch.setenv("KEDGE_SERVER", "tcp://other:1")
    monkeypatch.setenv("KEDGE_TLS_CA", "/ca.pem")
    found = server_process.find()
    assert found == server_process.ServerAddress("tcp://other:1", "another", "/ca.pem", "KEDGE_SERVER")


@pytest.mark.parametrize("address", ["127.0.0.1:5398", "https://box:1", "foo", "tcp://box", "tcp://box:0", "tcps://:1"])
def test_what_is_no_address_of_a_server_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    how = r"; write tcp://HOST:PORT, tcps://HOST:PORT \(under TLS\), or the path of a socket"
    file.write_text(f'active = "box"\n[profile.box]\nserver = "{address}"\n')
    with pytest.raises(InvalidError, match=f"the server of the profile 'box' in .*kedge.toml is '{address}'{how}"):
        server_process.find()
    monkeypatch.setenv("KEDGE_SERVER", address)
    with pytest.raises(InvalidError, match=f"^KEDGE_SERVER is '{address}'{how}"):
        server_process.find()


def test_a_server_over_tcp_is_elsewhere_unless_this_machines_listens_there(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path))
    found = server_process.elsewhere()
    assert found is not None
    assert (found.address, found.named) == ("tcp://gpu-box:5335", "the profile 'box'")
    (tmp_path / "server").mkdir()
    facts = {"address": "/plane.sock", "process": os.getpid(), "tcp": "tcp://gpu-box:5335"}
    (tmp_path / "server" / "server.json").write_text(json.dumps(facts))
    assert server_process.elsewhere() is None
    monkeypatch.setenv("KEDGE_SERVER", "/another/plane.sock")
    assert server_process.elsewhere() is None


def test_in_a_container_there_is_no_profile(file: Path) -> None:
    context.set_container(app_id="ap-1")
    try:
        assert config.profile() is None
        assert config.environment() == "main"
    finally:
        context.clear_container()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# one\nactive = ", r"kedge.toml is no TOML: .*\(at the end, line 2\)"),
        ("[profile.a]\nserver = tcp://x\n", r"is no TOML: .*\(at line 2, column"),
        ("\xff", "is no TOML"),
        ("actve = 'a'", r"'actve' is not known. Did you mean 'active'\?"),
        ("port = 1", r"'port' is not known. It holds `active`, \[profile.NAME\] and \[server\]"),
        ("active = 3", r"active is the name of a profile, such as active = \"box\", not 3"),
        ("profile = 'box'", r"profiles are tables; write \[profile.NAME\]"),
        ("profile.box = 'x'", r"\[profile.box\] must be a table with server, token"),
        ("[profile.a]\nserver = 5335", r"\[profile.a\]: server is a text; write server = \"…\""),
        ("[profile.a]\nservre = 'x'", r"\[profile.a\] has no key 'servre'. Did you mean 'server'\?"),
        ("[profile.a]\nport = 'x'", r"has no key 'port'. It takes server, token, environment, tls_ca"),
        ("[profile.a]\nenvironment = 'My Env'", r"\[profile.a\]: environment is 'My Env'; an environment has a name"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_place(file: Path, text: str, message: str) -> None:
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidError, match=message):
        config.load()


def test_a_profile_that_is_not_there_is_said_with_those_that_are(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_PROFILE", "bax")
    with pytest.raises(
        NotFoundError,
        match=r"KEDGE_PROFILE names the profile 'bax', and .* has no such one; there are: box, here. Did you mean",
    ):
        config.profile()
    monkeypatch.delenv("KEDGE_PROFILE")
    file.write_text('active = "gone"\n')
    with pytest.raises(NotFoundError, match=r"`active` in .*kedge.toml names the profile 'gone', .* there are: none"):
        server_process.find()


@pytest.mark.parametrize("name", ["", "Main", "my env", "-x", "x" * 25, 3], ids=repr)
def test_names_of_environments_are_checked(name: object) -> None:
    with pytest.raises(InvalidError, match=r"environment_name is .*small letters, digits and '-', at most 24 of them"):
        config.environment(name)  # type: ignore[arg-type]


# ---------------------------------------------------------------- choosing another one


def test_activating_changes_one_line_and_nothing_else(file: Path) -> None:
    file.chmod(0o600)
    assert config.activate("here") == str(file)
    assert file.read_text() == FILE.replace('active = "box"  # the fast one', 'active = "here"')
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.glob("*.new")) == []
    config.activate("")
    assert config.profile() is None


def test_activating_adds_the_line_where_there_is_none(file: Path) -> None:
    text = '# mine\r\n[profile.a]\r\nserver = "tcp://x:1"\r\n'
    file.write_bytes(text.encode())
    config.activate("a")
    assert file.read_bytes() == f'active = "a"\r\n{text}'.encode()


def test_a_key_of_that_name_below_a_table_is_not_meant(file: Path) -> None:
    assert config.with_active("[profile.a]\nactive = 'x'\n", "a") == "active = \"a\"\n[profile.a]\nactive = 'x'\n"


def test_an_unusual_line_is_left_to_its_author(file: Path) -> None:
    file.write_text('active = """\nbox"""\n[profile.box]\n[profile.b]\n')
    before = file.read_text()
    with pytest.raises(Exception, match=r"by hand|TOML|Expected|Illegal|Unterminated"):
        config.activate("b")
    assert file.read_text() == before


def test_only_what_is_there_can_be_activated(file: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no profile 'boxx', .* Did you mean 'box'\?"):
        config.activate("boxx")
    assert file.read_text() == FILE


def test_a_file_that_is_a_link_stays_one(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "elsewhere" / "dotfiles.toml"
    real.parent.mkdir()
    os.rename(file, real)
    file.symlink_to(real)

    def replace(old: str, new: str) -> None:
        if os.path.dirname(old) != os.path.dirname(new):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        os.rename(old, new)

    monkeypatch.setattr(os, "replace", replace)  # as if that were another file system
    config.activate("here")
    assert file.is_symlink()
    assert 'active = "here"' in real.read_text()
