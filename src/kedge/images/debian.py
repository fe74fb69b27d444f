"""The Debian that command steps build on: made once per suite, architecture and set of certificates, and shared.

A base is `bases/<suite>-<architecture>-<hash>/root` with a `base.json` that is written last. It comes from the package
mirrors that this machine itself is configured for, so that it can be made wherever `apt-get install` works.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from kedge.exception import ImageBuildError
from kedge.images import overlay
from kedge.images.chamber import Plan
from kedge.images.running import CommandFailed, inherited

if TYPE_CHECKING:
    from kedge.images.steps import Workspace

DEFAULT_SUITE = "bookworm"
PACKAGES = ("python3", "ca-certificates", "tzdata", "netbase")
"""python3 brings the shared libraries that any CPython links to: ssl, ffi, sqlite, readline, bz2, lzma, ncurses."""
_SHAPE = 1
"""Goes up when what a base contains changes."""
ROOM = 400 << 20
"""Bytes that have to be free for making one: 180 MiB stay. On a full disk apt waits and says nothing."""
_MAKING = 1800.0
"""Seconds; a base takes 20 with a near mirror."""
_CERTIFICATES = Path("/usr/local/share/ca-certificates")
_UNPACKED_WITHOUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")


class Base(Struct, frozen=True, kw_only=True):
    """What `base.json` says of the `root/` beside it."""

    suite: str
    architecture: str
    sources: tuple[str, ...] = ()


class Machine(Struct, frozen=True, kw_only=True):
    """What this machine tells about how to get Debian packages."""

    suite: str
    architecture: str
    sources: tuple[str, ...] = ()
    """Lines as in sources.list."""
    settings: tuple[str, ...] = ()
    """Lines for apt: its proxies."""
    certificates: tuple[str, ...] = ()
    """Paths of further authorities that an administrator has added."""


# ---------------------------------------------------------------- what the machine has


def machine(etc: Path = Path("/etc")) -> Machine:
    release = _release(etc / "os-release")
    suite = release.get("VERSION_CODENAME", "") if release.get("ID") == "debian" else ""
    suite = suite or DEFAULT_SUITE
    texts = [(path.suffix, _text(path)) for path in _source_files(etc / "apt")]
    lines = [line for suffix, text in texts for line in (deb822(text) if suffix == ".sources" else one_lines(text))]
    kept = tuple(line for line in dict.fromkeys(lines) if is_of_debian(line, suite))
    return Machine(
        suite=suite,
        architecture=_architecture(),
        sources=kept or default_sources(suite),
        settings=_proxies(),
        certificates=tuple(str(path) for path in sorted(_CERTIFICATES.glob("*.crt"))),
    )


def default_sources(suite: str) -> tuple[str, ...]:
    if suite in ("sid", "unstable"):
        return (f"deb http://deb.debian.org/debian {suite} main",)
    return (
        f"deb http://deb.debian.org/debian {suite} main",
        f"deb http://deb.debian.org/debian {suite}-updates main",
        f"deb http://deb.debian.org/debian-security {suite}-security main",
    )


def one_lines(text: str) -> list[str]:
    """Entries of a sources.list, without comments and source packages."""
    lines = [line.split("#", 1)[0].strip() for line in text.splitlines()]
    return [re.sub(r"\s+", " ", line) for line in lines if re.match(r"deb\s", line)]


def deb822(text: str) -> list[str]:
    """Entries of a *.sources file, as lines of a sources.list."""
    found: list[str] = []
    for stanza in re.split(r"\n\s*\n", "\n".join(line for line in text.splitlines() if not line.startswith("#"))):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[key] = f"{fields.get(key, '')}\n{line.strip()}"
            elif ":" in line:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        options = []
        signed = fields.get("signed-by", "")
        if signed and "BEGIN PGP" not in signed:  # a key in the file itself is one that apt has, for Debian's own
            options.append(f"signed-by={signed}")
        if architectures := fields.get("architectures", ""):
            options.append("arch=" + ",".join(architectures.split()))
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                words = ["deb", *([f"[{' '.join(options)}]"] if options else []), uri, suite]
                found.append(" ".join([*words, *fields.get("components", "").split()]))
    return found


def is_of_debian(line: str, suite: str) -> bool:
    """Whether an entry is Debian itself or a mirror of it. Others may need keys or accounts that a base has not."""
    words = re.sub(r"\[[^]]*\]", " ", line).split()
    ours = {suite, f"{suite}-updates", f"{suite}-security", f"{suite}/updates"}
    return len(words) > 3 and words[2].rstrip("/") in ours and "main" in words[3:]


def _source_files(apt: Path) -> list[Path]:
    parts = sorted((apt / "sources.list.d").glob("*")) if (apt / "sources.list.d").is_dir() else []
    return [path for path in [apt / "sources.list", *parts] if path.suffix in (".list", ".sources") and path.is_file()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # an entry that only root may read has a password in it


def _release(path: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in _text(path).splitlines())
    return {key: value.strip().strip('"') for key, _, value in pairs}


def _architecture() -> str:
    try:
        found = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
        return found.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf"}.get(platform.machine(), platform.machine())


def _proxies() -> tuple[str, ...]:
    """What apt goes through, from its own configuration. Commands get the variables that it honours besides."""
    try:
        found = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ()
    return tuple(line for line in found.stdout.splitlines() if re.match(r'Acquire::\w+::Proxy(::\S+)? ".+";', line))


# ---------------------------------------------------------------- making it


def name_of(found: Machine) -> str:
    """Mirrors and proxies are not part of it: they are the way to the same packages."""
    parts = [str(_SHAPE), *PACKAGES, *_UNPACKED_WITHOUT]
    parts += [_text(Path(path)) for path in found.certificates]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{found.suite}-{found.architecture}-{digest[:12]}"


def ensure(workspace: Workspace) -> Path:
    """The root of this machine's base, made now if it is not there. One process makes it, others wait for it."""
    found = machine()
    home = workspace.store.path / "bases" / name_of(found)
    if read(home) is not None:
        return home / "root"
    chosen = tool()
    overlay.users()
    with workspace.store.turn(f"base-{home.name}", lambda: workspace.say("waiting for the Debian base")):
        if read(home) is not None:
            return home / "root"
        overlay.remove_tree(home)
        check_room(workspace.store.path)
        home.mkdir(parents=True)
        workspace.say(f"making the Debian base ({found.suite}), once")
        try:
            _make(workspace, chosen, found, home)
            base = Base(suite=found.suite, architecture=found.architecture, sources=found.sources)
            (home / "base.json.new").write_bytes(msgspec.json.encode(base))
            os.replace(home / "base.json.new", home / "base.json")
        except BaseException:
            with contextlib.suppress(OSError):
                overlay.remove_tree(home)
            raise
    return home / "root"


def check_room(images: Path) -> None:
    status = os.statvfs(images)
    free = status.f_bavail * status.f_frsize
    if free < ROOM:
        raise ImageBuildError(
            f"No space left on device: making the Debian base takes {ROOM >> 20} MiB, and {free >> 20} MiB are free "
            "where KEDGE_HOME is"
        )


def sweep(images: Path, needed: Collection[str], everything: bool = False) -> None:
    """Removes bases that are not complete, and those that no image needs; the one that would be used next stays, unless
    it is `everything`."""
    next_one = "" if everything else name_of(machine())
    bases = images / "bases"
    for home in sorted(bases.iterdir()) if bases.is_dir() else ():
        unused = str(home / "root") not in needed and home.name != next_one
        if home.is_dir() and (unused or read(home) is None):
            overlay.remove_tree(home)


def read(home: Path) -> Base | None:
    try:
        return msgspec.json.decode((home / "base.json").read_bytes(), type=Base)
    except (OSError, msgspec.DecodeError):
        return None


def tool() -> tuple[str, bool]:
    """The program that makes a base, and whether it makes it without root."""
    as_root = os.geteuid() == 0
    if path := shutil.which("mmdebstrap"):
        return path, not as_root
    if (path := shutil.which("debootstrap")) and as_root:
        return path, False
    what = "commands in an image (apt_install, run_commands, …) need a Debian base"
    if path:
        raise ImageBuildError(f"{what}, and debootstrap makes one only as root; `apt-get install mmdebstrap`")
    raise ImageBuildError(
        f"{what}, and nothing is installed here that makes one; on this machine: `apt-get install mmdebstrap`"
    )


def command(path: str, rootless: bool, found: Machine, target: str) -> list[str]:
    """The words that make a base at `target`."""
    included = ",".join(PACKAGES)
    if os.path.basename(path) == "debootstrap":
        mirror = re.sub(r"\[[^]]*\]", " ", found.sources[0]).split()[1]
        return [path, "--variant=minbase", f"--include={included}", found.suite, target, mirror]
    mode, shape = ("unshare", "tar") if rootless else ("root", "directory")
    words = [path, "--quiet", f"--mode={mode}", f"--format={shape}"]
    words += ["--variant=minbase", f"--architectures={found.architecture}", f"--include={included}"]
    words += [f"--dpkgopt=path-exclude={pattern}" for pattern in _UNPACKED_WITHOUT]
    words += ["--dpkgopt=path-include=/usr/share/doc/*/copyright", "--dpkgopt=force-unsafe-io"]
    words += [f"--aptopt={setting.rstrip(';')}" for setting in found.settings]
    for certificate in found.certificates:
        words.append(f"--customize-hook=copy-in {certificate} /usr/local/share/ca-certificates")
    if found.certificates:
        words.append('--customize-hook=chroot "$1" update-ca-certificates >/dev/null 2>&1')
    return [*words, found.suite, target, *found.sources]


def _make(workspace: Workspace, chosen: tuple[str, bool], found: Machine, home: Path) -> None:
    path, rootless = chosen
    root, archive = home / "root", home / "root.tar"
    making = command(path, rootless, found, str(archive if rootless else root))
    if not rootless:
        making = overlay.chambered(Plan(), making)  # what it mounts is gone with it
    variables = {**inherited(os.environ), "LC_ALL": "C"}
    try:
        workspace.run(making, variables=variables, shown=f"{os.path.basename(path)} {found.suite}", timeout=_MAKING)
    except CommandFailed as failure:
        sources = "\n".join(f"    {line}" for line in found.sources)
        failure.lines += [
            f"the Debian base ({found.suite}, {found.architecture}) is made from these package sources, which are "
            f"those of this machine's /etc/apt where it has some:\n{sources}"
        ]
        raise
    if rootless:
        # Unpacked with our own map of ids, in which the server's user is root; device files are not for us to make.
        root.mkdir()
        words = ["tar", "-x", "--numeric-owner", "--exclude=./dev/*", "-C", str(root), "-f", str(archive)]
        workspace.run(overlay.chambered(Plan(users=overlay.users()), words), variables=variables, shown="tar")
        archive.unlink()
    _finish(found, root)
    if found.certificates and os.path.basename(path) == "debootstrap":
        for certificate in found.certificates:
            shutil.copy(certificate, root / "usr/local/share/ca-certificates")
        words = ["/usr/sbin/chroot", str(root), "update-ca-certificates"]
        workspace.run(overlay.chambered(Plan(), words), variables=variables, shown="update-ca-certificates")


def _finish(found: Machine, root: Path) -> None:
    """Files that a file system of a build should have, whoever unpacked it."""
    etc = root / "etc"
    (etc / "apt" / "sources.list").write_text("".join(f"{line}\n" for line in found.sources))
    (etc / "apt" / "apt.conf.d" / "90kedge").write_text('Acquire::Languages "none";\n')
    (etc / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    for path in (*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*_*")):
        path.unlink()
    policy = root / "usr" / "sbin" / "policy-rc.d"
    policy.write_text("#!/bin/sh\n# installing a service does not start it here\nexit 101\n")
    policy.chmod(0o755)


# ---------------------------------------------------------------- what builds see of the machine


def files_of_now(found: Machine) -> dict[str, str]:
    """Files that a command finds although no layer has them: how names are resolved, and where packages come from."""
    files = {
        "/etc/resolv.conf": _text(Path("/etc/resolv.conf")),
        "/etc/hosts": _text(Path("/etc/hosts")),
        "/etc/apt/sources.list": "".join(f"{line}\n" for line in found.sources),
    }
    if found.settings:
        files["/etc/apt/apt.conf.d/90kedge-proxy"] = "".join(f"{line}\n" for line in found.settings)
    return files


def networking(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables of the machine by which programs find their way out."""
    names = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
    return {key: value for key, value in variables.items() if key.lower() in names}


def missing_on_host(packages: Sequence[str]) -> list[str]:
    """Packages of these that this machine itself does not have installed."""
    if not packages:
        return []
    shown = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package}\t${Provides}\t${db:Status-Status}\n"],
        capture_output=True,
        text=True,
        check=False,
    )
    return not_among(packages, shown.stdout.splitlines())


def not_among(packages: Sequence[str], shown: Iterable[str]) -> list[str]:
    """Names may carry a version (`jq=1.6`) or an architecture (`jq:amd64`), and may be provided by others."""
    have: set[str] = set()
    for line in shown:
        name, provides, status = (*line.split("\t"), "", "")[:3]
        if status == "installed":
            have.add(name)
            have.update(re.sub(r"\(.*?\)", "", part).strip() for part in provides.split(","))
    return [package for package in packages if re.split(r"[=:/]", package)[0] not in have]
