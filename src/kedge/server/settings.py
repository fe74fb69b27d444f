"""What a server is told: by options, by `KEDGE_*` variables, and by `[server]` in the configuration, in this order.

    [server]
    host = "0.0.0.0"
    port = 443
    tls_cert = "/etc/ssl/box.pem"
    tls_key = "/etc/ssl/box.key"
    domain = "apps.example.org"

    [[gpus]]
    name = "H100"
    count = 8

Keys are the options with `_` for `-`. A private server, which belongs to one program, takes none of those that say
where to listen.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from msgspec import Struct

from kedge.model.gpus import GpuDevice
from kedge.model.spec import RUNGS
from kedge.server import gpus
from kedge.wire.transport import is_tcp, split_tcp

HTTP_PORT = 5334
RPC_PORT = 5335
LEVELS = ("debug", "info", "warning", "error", "critical")
LIFETIME_S = 7 * 24 * 3600.0
MOST_LIFETIME_S = 100 * 366 * 24 * 3600.0


class Key(NamedTuple):
    name: str
    variable: str
    metavar: str
    help: str
    machine_only: bool = False


KEYS = (
    Key("host", "KEDGE_HOST", "HOST", "address to listen on for HTTP (127.0.0.1)", True),
    Key("port", "KEDGE_PORT", "PORT", f"port for HTTP ({HTTP_PORT}, or another where that is taken)", True),
    Key("rpc_port", "KEDGE_RPC_PORT", "PORT", f"port for clients of other machines ({RPC_PORT} beyond loopback)", True),
    Key("listen", "", "tcp://HOST:PORT", "also listen there for clients with a token"),
    Key("tls_cert", "KEDGE_TLS_CERT", "FILE", "certificate chain (PEM), for HTTP and for clients", True),
    Key("tls_key", "KEDGE_TLS_KEY", "FILE", "its private key (PEM)", True),
    Key(
        "insecure",
        "KEDGE_INSECURE",
        "",
        "listen beyond loopback without TLS: what is said can be read on its way",
        True,
    ),
    Key("domain", "KEDGE_DOMAIN", "NAME", "hosts LABEL.NAME lead to web functions; several with commas", True),
    Key("public_url", "KEDGE_PUBLIC_URL", "URL", "what clients see of it behind a proxy", True),
    Key(
        "trust_forwarded",
        "KEDGE_TRUST_FORWARDED",
        "",
        "believe X-Forwarded-* headers: for servers behind a proxy",
        True,
    ),
    Key("result_ttl", "KEDGE_RESULT_TTL", "SECONDS", "how long results of spawned calls are kept (7 days)"),
    Key("cpus", "KEDGE_CPUS", "N", "cores that containers may ask for"),
    Key("memory", "KEDGE_MEMORY", "MIB", "MiB that they may ask for"),
    Key("gpus", "KEDGE_GPUS", "LIST", 'declared devices in place of those that are found: "H100=8,L4=1", or none'),
    Key("isolation", "KEDGE_ISOLATION", "RUNG", f"how containers are kept apart: {', '.join(RUNGS)}"),
    Key("host_apt", "KEDGE_HOST_APT", "", "Debian packages of images are those that this machine has installed"),
    Key("log_level", "KEDGE_LOGLEVEL", "LEVEL", ", ".join(LEVELS)),
)
FLAGS = ("insecure", "trust_forwarded", "host_apt")


class Settings(Struct, frozen=True, kw_only=True):
    """What it all means."""

    home: Path
    private: bool = False
    host: str = "127.0.0.1"
    port: int | None = None
    """None: the usual one, or another."""
    listen: tuple[str, ...] = ()
    """Where clients of other machines connect: `tcp://host:port`."""
    tls_cert: str = ""
    tls_key: str = ""
    domains: tuple[str, ...] = ()
    public_url: str = ""
    trust_forwarded: bool = False
    result_ttl: float = LIFETIME_S
    cpus: float = 1.0
    memory: int = 1024
    gpus: tuple[GpuDevice, ...] | None = None
    """Declared devices; None: those that the machine has."""
    isolation: str = ""
    """The rung of containers whose app asks for none; empty: the best for each app."""
    host_apt: bool = False
    """Debian packages of images are those of this machine, and images have no layers of them."""
    log_level: str = "WARNING"
    """Of one that writes to stderr; INFO where the log is a file."""
    warnings: tuple[str, ...] = ()
    """What people should know about these settings."""

    @property
    def tls(self) -> bool:
        return bool(self.tls_cert)


def configuration(environment: Mapping[str, str]) -> Path:
    """Where it is: KEDGE_CONFIG, or `kedge.toml` in the directory of configurations."""
    named = environment.get("KEDGE_CONFIG")
    if named:
        return Path(named).expanduser().absolute()
    directory = environment.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return Path(directory) / "kedge.toml"


def load(options: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """`options` holds what was given on the command line by key, `home` and `private` among it. ValueError names what
    makes no sense, and where it came from."""
    private = bool(options.get("private"))
    given: dict[str, tuple[str, str]] = {}
    """(text, where it came from) by key."""
    file = configuration(environment)
    table = _table(file)
    for key in KEYS:
        option = f"--{key.name.replace('_', '-')}"
        if options.get(key.name) not in (None, "", False):
            given[key.name] = str(options[key.name]), option
        elif private and (key.machine_only or key.name == "listen"):
            continue
        elif key.variable and environment.get(key.variable) and not environment[key.variable].startswith("tcp://"):
            # Kubernetes sets KEDGE_PORT to such a thing where there is a service of that name.
            given[key.name] = environment[key.variable], f"{key.variable} (or {option})"
        elif key.name in table:
            given[key.name] = _as_text(file, key.name, table[key.name]), f"{key.name} in {file}"
    # A log of its own is there to be looked at later; stderr is for what somebody should see now.
    values = _Values(given, "info" if options.get("log_file") else "warning")
    return values.settings(Path(options["home"]).expanduser().absolute(), private)


def _table(file: Path) -> dict[str, Any]:
    try:
        whole = tomllib.loads(file.read_text("utf-8"))
        table = whole.get("server", {})
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"the configuration {file} cannot be read: {error}") from None
    if not isinstance(table, dict):
        raise ValueError(f"{file}: server is a table; write [server] and below it for example port = 8080")
    known = [key.name for key in KEYS]
    for name in table:
        if name not in known:
            raise ValueError(f"{file}: [server] has no key {name!r}; it takes {', '.join(known)}")
    return {"gpus": whole["gpus"], **table} if "gpus" in whole else table


def _as_text(file: Path, name: str, value: Any) -> str:
    if name in ("tls_cert", "tls_key") and isinstance(value, str):
        return str(file.parent / Path(value).expanduser())
    if name == "gpus":
        return gpus.as_text(str(file), value)
    if isinstance(value, list):
        return ",".join(_as_text(file, name, one) for one in value)
    if not isinstance(value, str | int | float):
        raise ValueError(f"{file}: [server] {name} must be a text or a number, not {value!r}")
    return str(value)


class _Values:
    """The texts that were given, and what they mean."""

    def __init__(self, given: dict[str, tuple[str, str]], log_level: str) -> None:
        self._given = given
        self._log_level = log_level

    def settings(self, home: Path, private: bool) -> Settings:
        cert, key = self._file("tls_cert"), self._file("tls_key")
        if bool(cert) != bool(key):
            raise ValueError("--tls-cert and --tls-key belong together: the certificate chain, and its private key")
        host = self._text("host", "127.0.0.1")
        listen = [part.strip() for part in self._text("listen").split(",") if part.strip()]
        for address in listen:
            if not is_tcp(address):
                raise ValueError(f"{self._source('listen')} is {address!r}; write tcp://HOST:PORT")
            split_tcp(address)
        rpc_port = self._port("rpc_port")
        if rpc_port is not None or not (private or is_loopback(host)):
            listen.append(f"tcp://{f'[{host}]' if ':' in host else host}:{RPC_PORT if rpc_port is None else rpc_port}")
        return Settings(
            home=home,
            private=private,
            host=host,
            port=0 if private else self._port("port"),
            listen=tuple(dict.fromkeys(listen)),
            tls_cert=cert,
            tls_key=key,
            domains=tuple(_domain(part) for part in self._text("domain").split(",") if part.strip()),
            public_url=self._url(),
            trust_forwarded=self._flag("trust_forwarded"),
            result_ttl=self._amount("result_ttl", LIFETIME_S, MOST_LIFETIME_S),
            cpus=self._amount("cpus", float(psutil.cpu_count() or 1)),
            memory=math.ceil(self._amount("memory", psutil.virtual_memory().total / 2**20)),
            gpus=gpus.parse_gpus(self._text("gpus"), self._source("gpus")) if self._text("gpus") else None,
            isolation=self._isolation(),
            host_apt=self._flag("host_apt"),
            log_level=self._level(),
            warnings=self._exposed([host, *(split_tcp(address)[0] for address in listen)], bool(cert)),
        )

    def _exposed(self, hosts: list[str], tls: bool) -> tuple[str, ...]:
        """What is to be said, or refused, about listening beyond this machine."""
        beyond = [host for host in hosts if not is_loopback(host)]
        insecure = self._flag("insecure")
        if not beyond or tls:
            return ()
        what = "tokens and payloads travel in clear text, for everybody on their way to read"
        if not insecure:
            raise ValueError(
                f"{beyond[0]} can be reached from other machines, and without TLS {what}: give --tls-cert and "
                "--tls-key, or --insecure where the network itself is private"
            )
        return (f"{beyond[0]} can be reached from other machines, and {what}",)

    def _text(self, name: str, default: str = "") -> str:
        return self._given.get(name, (default, ""))[0].strip()

    def _source(self, name: str) -> str:
        return self._given[name][1]

    def _file(self, name: str) -> str:
        text = self._text(name)
        path = Path(text).expanduser().absolute()
        if text and not path.is_file():
            raise ValueError(f"{self._source(name)} is {text!r}, and there is no such file")
        return str(path) if text else ""

    def _port(self, name: str) -> int | None:
        text = self._text(name)
        if not text:
            return None
        if not text.isdecimal() or int(text) > 65535:
            raise ValueError(f"{self._source(name)} is {text!r}; it must be a port: a number up to 65535, or 0 for any")
        return int(text)

    def _flag(self, name: str) -> bool:
        text = self._text(name, "false").lower()
        if text not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
            raise ValueError(f"{self._source(name)} is {text!r}; it must be true or false")
        return text in ("1", "true", "yes", "on")

    def _amount(self, name: str, default: float, most: float = math.inf) -> float:
        text = self._text(name)
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (0 < value <= most and value < math.inf):
            unit = {"memory": ", in MiB,", "result_ttl": ", in seconds,"}.get(name, "")
            raise ValueError(f"{self._source(name)}{unit} is {text!r}; it must be a number above 0")
        return value

    def _url(self) -> str:
        text = self._text("public_url").rstrip("/")
        if text and not re.fullmatch(r"https?://[^/?#\s]+", text):
            raise ValueError(f"{self._source('public_url')} is {text!r}; write https://HOST or http://HOST:PORT")
        return text

    def _isolation(self) -> str:
        text = self._text("isolation").lower()
        if text and text not in RUNGS:
            raise ValueError(f"{self._source('isolation')} is {text!r}; it must be one of {', '.join(RUNGS)}")
        return text

    def _level(self) -> str:
        text = self._text("log_level", self._log_level).lower()
        if text not in LEVELS:
            raise ValueError(f"{self._source('log_level')} is {text!r}; it must be one of {', '.join(LEVELS)}")
        return text.upper()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it.

    >>> is_loopback("localhost"), is_loopback("127.0.0.2"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _domain(text: str) -> str:
    """A host name in lower case, without dots around it."""
    name = text.strip().strip(".").lower()
    if not name or len(name) > 253 or any(not part or not part.replace("-", "").isalnum() for part in name.split(".")):
        raise ValueError(f"--domain is {text.strip()!r}; write a host name such as apps.example.org")
    return name
