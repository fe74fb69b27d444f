"""uv, as builds use it: which program, with which settings.

Where somebody has told pip how to reach packages and has not told uv, uv is told the same. uv does not read pip's
settings by itself, and a company that has an index of its own has it in there.
"""

from __future__ import annotations

import configparser
import os
import shlex
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from kedge.exception import NotFoundError
from kedge.images.running import inherited

_DROPPED = (
    "--no-cache-dir",
    "--user",
    "--prefer-binary",
    "--use-pep517",
    "--no-input",
    "--root-user-action",
    "--disable-pip-version-check",
    "--progress-bar",
    "--default-timeout",
    "--timeout",
    "--retries",
    "--use-deprecated",
    "--use-feature",
    "--no-warn-script-location",
    "--break-system-packages",
    "--no-python-version-warning",
    "--cache-dir",
)
"""Options of pip that have no meaning here: what they ask for is so anyway, or is ours to decide."""
_WITH_VALUE = (
    "--root-user-action",
    "--progress-bar",
    "--default-timeout",
    "--timeout",
    "--retries",
    "--use-deprecated",
    "--use-feature",
    "--cache-dir",
)
_RENAMED = {
    "--trusted-host": "--allow-insecure-host",
    "--force-reinstall": "--reinstall",
    "--ignore-installed": "--reinstall",
    "-I": "--reinstall",
    "--pre": "--prerelease=allow",
    "-U": "--upgrade",
    "-i": "--index-url",
    "-f": "--find-links",
    "-c": "--constraint",
    "-r": "--requirement",
    "-q": "--quiet",
    "-v": "--verbose",
}


def program() -> str:
    """Path of uv. NotFoundError where there is none."""
    try:
        from uv import find_uv_bin

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
    if found is None:
        raise NotFoundError("uv is not installed, and images are built with it: `pip install uv` beside kedge")
    return found


def settings(environ: Mapping[str, str], pip: Mapping[str, str]) -> dict[str, str]:
    """Variables for uv that say what pip was told, except where uv was told something itself.

    >>> settings({}, {"index-url": "https://pypi.example/simple", "find-links": "/wheels"})
    {'UV_DEFAULT_INDEX': 'https://pypi.example/simple', 'UV_FIND_LINKS': '/wheels'}
    """
    told: dict[str, str] = {}
    own = environ.keys()
    if (index := pip.get("index-url")) and not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & own:
        told["UV_DEFAULT_INDEX"] = index.strip()
    if (extra := pip.get("extra-index-url")) and not {"UV_INDEX", "UV_EXTRA_INDEX_URL"} & own:
        told["UV_INDEX"] = " ".join(extra.split())
        told.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # pip takes the best version of all its indexes
    if (links := pip.get("find-links")) and "UV_FIND_LINKS" not in own:
        told["UV_FIND_LINKS"] = ",".join(links.split())
    if (bundle := pip.get("cert")) and "SSL_CERT_FILE" not in own:
        told["SSL_CERT_FILE"] = bundle
    if (hosts := pip.get("trusted-host")) and "UV_INSECURE_HOST" not in own:
        told["UV_INSECURE_HOST"] = " ".join(hosts.split())
    return {name: value for name, value in told.items() if name not in own}


def pip_settings(environ: Mapping[str, str], files: Iterable[Path] | None = None) -> dict[str, str]:
    """What pip was told by its configuration files and, before them, by `PIP_*`."""
    found: dict[str, str] = {}
    for path in _pip_files(environ) if files is None else files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(path)
        except (OSError, configparser.Error, UnicodeDecodeError):
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                found |= {name.replace("_", "-"): value for name, value in parser.items(section)}
    for name, value in environ.items():
        if name.startswith("PIP_"):
            found[name[4:].lower().replace("_", "-")] = value
    return found


def environment(given: Mapping[str, str], cache: Path, machine: Mapping[str, str] | None = None) -> dict[str, str]:
    """All variables of a uv command: those `given`, what uv and pip were told on this machine, and what builds insist
    on."""
    machine = inherited(os.environ) if machine is None else machine
    told = {name: value for name, value in machine.items() if name.startswith(("UV_", "SSL_CERT_"))} | dict(given)
    return {
        **told,
        **settings(told, pip_settings({**machine, **given})),
        "UV_CACHE_DIR": str(cache),
        "UV_LINK_MODE": "hardlink",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_CONFIG": given.get("UV_NO_CONFIG", "0"),
        "NO_COLOR": "1",
    }


def without_index(environ: Mapping[str, str]) -> bool:
    """Whether pip was told to ask no index at all. uv has no variable for it."""
    return pip_settings(environ).get("no-index", "").lower() in ("1", "true", "yes", "on")


def local_paths(variables: Mapping[str, str], words: Iterable[str]) -> list[str]:
    """Files and directories of this machine that a uv command reads: packages, indexes, certificates, constraints."""
    texts = [variables.get("UV_FIND_LINKS", "").replace(",", " "), variables.get("UV_INDEX", "")]
    texts += [variables.get("UV_DEFAULT_INDEX", ""), variables.get("SSL_CERT_FILE", ""), *words]
    texts += [variables.get(name, "") for name in ("UV_CONSTRAINT", "UV_BUILD_CONSTRAINT", "UV_OVERRIDE")]
    found = [part.removeprefix("file://") for text in texts for part in text.split()]
    return list(dict.fromkeys(path for path in found if path.startswith("/") and os.path.exists(path)))


def pip_options(text: str) -> list[str]:
    """`extra_options` in pip's words, in uv's.

    >>> pip_options("--no-cache-dir --no-deps --trusted-host pypi.example")
    ['--no-deps', '--allow-insecure-host', 'pypi.example']
    """
    options: list[str] = []
    words = iter(shlex.split(text))
    for word in words:
        name, equals, value = word.partition("=")
        if name in _DROPPED:
            if not equals and name in _WITH_VALUE:
                next(words, None)
            continue
        options.append(_RENAMED.get(name, name) + (f"={value}" if equals else ""))
    return options


def _pip_files(environ: Mapping[str, str]) -> list[Path]:
    chosen = environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return []
    home = Path(environ.get("HOME") or Path.home())
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = [Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf"), home / ".pip" / "pip.conf", config / "pip/pip.conf"]
    return [*files, Path(chosen)] if chosen else files
