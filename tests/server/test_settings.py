"""Options before variables before the configuration, and what makes no sense is named with where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kedge.cli import servers
from kedge.sdk import config
from kedge.server.settings import FLAGS, KEYS, Settings, configuration, is_loopback, load
from tests.wire.test_tls import CERTIFICATES

CERT, KEY = str(CERTIFICATES / "server.pem"), str(CERTIFICATES / "server.key")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def settings(home: Path, options: dict[str, Any] | None = None, file: str = "", **variables: str) -> Settings:
    (home / "kedge.toml").write_text(file)
    variables["KEDGE_CONFIG"] = str(home / "kedge.toml")
    return load({"home": home, **(options or {})}, variables)


def refused(home: Path, *arguments: Any, **variables: str) -> str:
    with pytest.raises(ValueError) as error:
        settings(home, *arguments, **variables)
    return str(error.value)


def test_without_a_word_it_listens_on_this_machine_only(home: Path) -> None:
    found = settings(home)
    assert (found.host, found.port, found.listen, found.tls, found.domains) == ("127.0.0.1", None, (), False, ())
    assert found.result_ttl == 7 * 24 * 3600
    assert found.cpus >= 1
    assert found.memory > 0


def test_options_win_over_variables_and_those_over_the_file(home: Path) -> None:
    file = '[server]\nport = 1000\nresult_ttl = 60\ngpus = {H100 = 8}\ndomain = ["a.example", "B.example."]\n'
    assert settings(home, None, file).port == 1000
    assert settings(home, None, file, KEDGE_PORT="2000").port == 2000
    found = settings(home, {"port": "3000"}, file, KEDGE_PORT="2000")
    assert (found.port, found.result_ttl, len(found.gpus or ())) == (3000, 60.0, 8)
    assert found.domains == ("a.example", "b.example")


def test_profiles_of_clients_may_stand_in_the_same_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = 'active = "box"\n[server]\nport = 1000\n[profile.box]\nserver = "tcp://box:1"\n'
    assert settings(home, None, file).port == 1000
    monkeypatch.setenv("KEDGE_CONFIG", str(home / "kedge.toml"))
    assert list(config.load().profiles) == ["box"]


def test_a_private_server_takes_no_place_from_the_machines(home: Path) -> None:
    file = '[server]\nport = 1000\nhost = "0.0.0.0"\nlisten = "tcp://0.0.0.0:1"\ncpus = 3\n'
    found = settings(home, {"private": True}, file, KEDGE_HOST="0.0.0.0", KEDGE_RPC_PORT="7")
    assert (found.port, found.host, found.listen, found.cpus) == (0, "127.0.0.1", (), 3.0)
    listening = settings(home, {"private": True, "listen": "tcp://127.0.0.1:0"})
    assert listening.listen == ("tcp://127.0.0.1:0",)


def test_its_log_has_more_to_say_where_it_is_a_file(home: Path) -> None:
    assert settings(home).log_level == "WARNING"
    assert settings(home, {"log_file": home / "log"}).log_level == "INFO"
    assert settings(home, {"log_file": home / "log"}, KEDGE_LOGLEVEL="Error").log_level == "ERROR"


# ---------------------------------------------------------------- beyond this machine


def test_beyond_this_machine_it_wants_tls_or_to_be_told_that_it_need_not(home: Path) -> None:
    assert refused(home, {"host": "0.0.0.0"}) == (
        "0.0.0.0 can be reached from other machines, and without TLS tokens and payloads travel in clear text, for "
        "everybody on their way to read: give --tls-cert and --tls-key, or --insecure where the network itself is "
        "private"
    )
    assert "10.0.0.7 can be reached" in refused(home, {"listen": "tcp://10.0.0.7:1"})
    secure = settings(home, {"host": "0.0.0.0", "tls_cert": CERT, "tls_key": KEY})
    assert (secure.listen, secure.tls, secure.warnings) == (("tcp://0.0.0.0:5335",), True, ())
    insecure = settings(home, {"host": "::", "insecure": True, "rpc_port": "77"})
    assert insecure.listen == ("tcp://[::]:77",)
    assert insecure.warnings[0].startswith(":: can be reached from other machines, and tokens and payloads travel")
    assert settings(home, None, '[server]\nhost = "0.0.0.0"\ninsecure = true\n').warnings


def test_on_this_machine_other_clients_are_let_in_on_request(home: Path) -> None:
    assert settings(home, {"rpc_port": "0"}).listen == ("tcp://127.0.0.1:0",)
    assert settings(home, {"listen": "tcp://localhost:9", "rpc_port": "9"}).listen == (
        "tcp://localhost:9",
        "tcp://127.0.0.1:9",
    )


@pytest.mark.parametrize(
    ("host", "is_own"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("box", False), ("", False)],
)
def test_which_hosts_are_this_machine(host: str, is_own: bool) -> None:
    assert is_loopback(host) is is_own


# ---------------------------------------------------------------- nonsense


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"port": "http"}, "--port is 'http'; it must be a port: a number up to 65535, or 0 for any"),
        ({"port": "70000"}, "--port is '70000'; it must be a port"),
        ({"tls_cert": CERT}, "--tls-cert and --tls-key belong together"),
        ({"tls_cert": "nowhere.pem", "tls_key": KEY}, "--tls-cert is 'nowhere.pem', and there is no such file"),
        ({"public_url": "example.org"}, "--public-url is 'example.org'; write https://HOST or http://HOST:PORT"),
        ({"public_url": "https://a.example/b"}, "--public-url is 'https://a.example/b'; write https://HOST"),
        ({"domain": "a b"}, "--domain is 'a b'; write a host name such as apps.example.org"),
        ({"result_ttl": "soon"}, "--result-ttl, in seconds, is 'soon'; it must be a number above 0"),
        ({"result_ttl": "1e300"}, "--result-ttl, in seconds, is '1e300'"),
        ({"listen": "0.0.0.0:1"}, "--listen is '0.0.0.0:1'; write tcp://HOST:PORT"),
    ],
)
def test_options_that_make_no_sense_are_named(home: Path, options: dict[str, str], text: str) -> None:
    assert text in refused(home, options)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("[server]\nprot = 1\n", "[server] has no key 'prot'; it takes host, port, rpc_port"),
        ("server = 1\n", "server is a table; write [server] and below it for example port = 8080"),
        ("[server\n", "cannot be read: "),
        ("[server]\nport = 2026-01-01\n", "[server] port must be a text or a number, not "),
        ('[server]\nport = "x"\n', "port in "),
        ('[server]\ninsecure = "maybe"\n', "is 'maybe'; it must be true or false"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_named_with_its_file(home: Path, file: str, text: str) -> None:
    error = refused(home, None, file)
    assert text in error
    assert str(home / "kedge.toml") in error


def test_variables_that_make_no_sense_are_named(home: Path) -> None:
    assert "KEDGE_PORT (or --port) is 'x'" in refused(home, None, "", KEDGE_PORT="x")
    assert "KEDGE_TRUST_FORWARDED (or --trust-forwarded) is 'maybe'" in refused(
        home, None, "", KEDGE_TRUST_FORWARDED="maybe"
    )


def test_a_port_that_kubernetes_has_set_is_none_of_ours(home: Path) -> None:
    assert settings(home, None, "", KEDGE_PORT="tcp://10.0.0.1:80").port is None


def test_files_of_the_configuration_are_beside_it(home: Path) -> None:
    for name, path in (("a.pem", CERT), ("a.key", KEY)):
        (home / name).write_bytes(Path(path).read_bytes())
    found = settings(home, None, '[server]\ntls_cert = "a.pem"\ntls_key = "a.key"\n')
    assert (found.tls_cert, found.tls_key) == (str(home / "a.pem"), str(home / "a.key"))


def test_where_the_configuration_is(tmp_path: Path) -> None:
    assert configuration({"KEDGE_CONFIG": "/etc/kedge.toml"}) == Path("/etc/kedge.toml")
    assert configuration({"XDG_CONFIG_HOME": "/x"}) == Path("/x/kedge.toml")
    assert configuration({}) == Path.home() / ".config" / "kedge.toml"
    assert load({"home": tmp_path}, {"XDG_CONFIG_HOME": str(tmp_path / "none")}).port is None


def test_the_command_has_an_option_for_each_setting() -> None:
    options = [parameter.name for parameter in servers.server_start.params]
    assert options[: len(KEYS)] == [key.name for key in KEYS]
    given = {key.name: True if key.name in FLAGS else "x" for key in KEYS}
    words = servers.words_of({**given, "port": None})
    assert words[:2] == ["--host", "x"]
    assert "--insecure" in words
    assert "--port" not in words
