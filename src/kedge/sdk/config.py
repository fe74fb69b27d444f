"""What people configure once: profiles of servers in `~/.config/kedge.toml`, and which environment names mean.

    active = "box"

    [profile.box]
    server = "tcps://gpu-box:5335"
    token = "…"
    environment = "main"
    tls_ca = "/etc/ssl/box.pem"

Variables win over the file: `KEDGE_SERVER` with `KEDGE_TOKEN` and `KEDGE_TLS_CA`, `KEDGE_PROFILE`, `KEDGE_ENVIRONMENT`.
`KEDGE_CONFIG` names another file. Without a profile, the server of this machine is used.
"""

from __future__ import annotations

import os
import re
from typing import Any

from msgspec import Struct

from kedge.exception import InvalidError, NotFoundError
from kedge.model.spec import MAIN_ENVIRONMENT
from kedge.sdk import context
from kedge.sdk.usage import nearest

KEYS = ("server", "token", "environment", "tls_ca")
ENVIRONMENT_LIMIT = 24
"""Characters of the name of an environment: it is a part of labels, which have 63."""
_TABLE = re.compile(r"^\s*\[")
_ACTIVE = re.compile(r"""^\s*["']?active["']?\s*=""")
_SHOWN = 4
"""Characters of a token that are shown, where it is long enough to stay a secret."""


class Profile(Struct, frozen=True):
    """How to reach one server, and what is meant there."""

    name: str
    server: str = ""
    token: str = ""
    environment: str = ""
    tls_ca: str = ""
    """A file with the certificates that the server's is checked against. Without one, `tcps://` checks it against those
    that this machine trusts, and `tcp://` is not encrypted."""


class Config(Struct, frozen=True):
    path: str
    profiles: dict[str, Profile] = {}
    active: str = ""
    """Name of the profile that the file chooses; empty for none."""


def path() -> str:
    """The file: `KEDGE_CONFIG`, or `kedge.toml` in the directory of configurations."""
    named = os.environ.get("KEDGE_CONFIG")
    if named:
        return os.path.abspath(os.path.expanduser(named))
    directory = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(directory, "kedge.toml")


def load() -> Config:
    """What the file says; nothing where there is none. InvalidError names the file and the line or key."""
    file = path()
    try:
        with open(file, "rb") as stream:
            data = stream.read()
    except FileNotFoundError:
        return Config(file)
    except OSError as error:
        raise InvalidError(f"the configuration {file} cannot be read: {error.strerror or error}") from error
    import tomllib  # only where there is a file, for the time of `import kedge`

    try:
        table = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        last = f"at the end, line {data.count(10, 0, -1) + 1}"
        text = str(error).replace("at end of document", last)
        raise InvalidError(f"the configuration {file} is no TOML: {text}") from error
    return _checked(file, table)


def _checked(file: str, table: dict[str, Any]) -> Config:
    unknown = next((key for key in table if key not in ("active", "profile", "server")), None)
    if unknown is not None:
        advice = nearest(unknown, ["active", "profile"]) or " It holds `active`, [profile.NAME] and [server]."
        raise InvalidError(f"{file}: {unknown!r} is not known.{advice}")
    found = table.get("profile", {})
    if not isinstance(found, dict):
        raise InvalidError(f'{file}: profiles are tables; write [profile.NAME] and below it server = "tcp://HOST:PORT"')
    profiles = {name: _profile(file, name, values) for name, values in found.items()}
    active = table.get("active", "")
    if not isinstance(active, str):
        raise InvalidError(f'{file}: active is the name of a profile, such as active = "box", not {active!r}')
    return Config(file, profiles, active)


def _profile(file: str, name: str, values: Any) -> Profile:
    where = f"{file}: [profile.{name}]"
    if not isinstance(values, dict):
        raise InvalidError(f"{where} must be a table with {', '.join(KEYS)}; got {values!r}")
    for key, value in values.items():
        if key not in KEYS:
            advice = nearest(key, KEYS) or f" It takes {', '.join(KEYS)}."
            raise InvalidError(f"{where} has no key {key!r}.{advice}")
        if not isinstance(value, str):
            raise InvalidError(f'{where}: {key} is a text; write {key} = "…"')
    profile = Profile(name, **values)
    if profile.environment:
        _name_of_environment(f"{where}: environment", profile.environment)
    if profile.tls_ca:
        ca = os.path.join(os.path.dirname(file), os.path.expanduser(profile.tls_ca))
        profile = Profile(name, profile.server, profile.token, profile.environment, ca)
    return profile


def profile() -> Profile | None:
    """The profile in use: `KEDGE_PROFILE`, else what the file says is active. NotFoundError where there is no such one.

    In a container there is none: it belongs to the server that started it.
    """
    if context.container() is not None:
        return None
    named = os.environ.get("KEDGE_PROFILE")
    config = load()
    name = named or config.active
    if not name:
        return None
    if name not in config.profiles:
        source = "KEDGE_PROFILE" if named else f"`active` in {config.path}"
        raise NotFoundError(f"{source} names the profile {name!r}, {_there_is(config, name)}")
    return config.profiles[name]


def _there_is(config: Config, name: str) -> str:
    there = ", ".join(config.profiles) or "none"
    return f"and {config.path} has no such one; there are: {there}.{nearest(name, config.profiles)}"


def environment(given: str | None = None) -> str:
    """The environment that names are looked up in: what is given, else `KEDGE_ENVIRONMENT` (containers have that of
    their app there), else the profile's, else "main". InvalidError where it cannot be one."""
    if given is not None:
        return _name_of_environment("environment_name", given)
    variable = os.environ.get("KEDGE_ENVIRONMENT")
    if variable:
        return _name_of_environment("KEDGE_ENVIRONMENT", variable)
    chosen = profile()
    return (chosen.environment if chosen is not None else "") or MAIN_ENVIRONMENT


def _name_of_environment(what: str, name: Any) -> str:
    if not isinstance(name, str) or not re.fullmatch(rf"[a-z0-9](?:[a-z0-9\-]{{0,{ENVIRONMENT_LIMIT - 1}}})", name):
        raise InvalidError(
            f"{what} is {name!r}; an environment has a name of small letters, digits and '-', at most "
            f"{ENVIRONMENT_LIMIT} of them, such as 'staging'"
        )
    return name


def masked(token: str) -> str:
    """A token as it may be shown.

    >>> masked("0123456789abcdef0123"), masked("short"), masked("")
    ('0123…', '…', '')
    """
    if not token:
        return ""
    return f"{token[:_SHOWN]}…" if len(token) >= 4 * _SHOWN else "…"


def activate(name: str) -> str:
    """Makes a profile the active one, or none with an empty name. Everything else in the file stays as it was written.

    Returns the path of the file. NotFoundError where it has no such profile.
    """
    config = load()
    if name and name not in config.profiles:
        raise NotFoundError(f"there is no profile {name!r}, {_there_is(config, name)}")
    if not name and not config.active:
        return config.path
    with open(config.path, encoding="utf-8", newline="") as file:
        text = with_active(file.read(), name)
    import tomllib

    if tomllib.loads(text).get("active") != name:
        raise InvalidError(
            f'`active` stands in {config.path} in a way that is not changed here; write active = "{name}"'
        )
    file_itself = os.path.realpath(config.path)  # a link may lead to another file system
    draft = f"{file_itself}.new"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.stat(config.path).st_mode & 0o777)
    with open(descriptor, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    os.replace(draft, file_itself)
    return config.path


def with_active(text: str, name: str) -> str:
    """The text of a file with another active profile.

    >>> print(with_active('# mine\\nactive = "a"  # yes\\n[profile.a]\\n', "b"))
    # mine
    active = "b"
    [profile.a]
    <BLANKLINE>
    """
    import json

    line = f"active = {json.dumps(name, ensure_ascii=False)}"
    lines = text.splitlines(keepends=True)
    for number, old in enumerate(lines):
        if _TABLE.match(old):
            break  # what follows belongs to tables
        if _ACTIVE.match(old):
            lines[number] = line + old[len(old.rstrip("\r\n")) :]
            return "".join(lines)
    end = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    return f"{line}{end}{text}"
