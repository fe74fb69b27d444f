"""What a machine offers to kedge, found out by looking and trying; `kedge doctor` shows it (`cli.doctor`).

Everything here is asked of the machine and not of a server, so that it answers where none can be started. What cannot
be found out is said as such, and never ends the rest.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kedge._version import __version__
from kedge.model.spec import PROCESS, RUNGS

Facts = dict[str, Any]

TOOLS = ("mmdebstrap", "podman", "skopeo", "umoci", "micromamba")
_VERSION_S = 10.0


def facts(home: str) -> Facts:
    """Everything, as JSON can hold it. Takes half a second: isolation is tried out."""
    return {
        "kedge": __version__,
        "python": {"version": platform.python_version(), "path": sys.executable, "system": sys.platform},
        "home": _safely(lambda: directory(home)),
        "isolation": _safely(lambda: isolation(home)),
        "kernel": _safely(kernel),
        "limits": _safely(limits),
        "images": _safely(lambda: images(home)),
        "gpus": _safely(gpus),
        "server": _safely(lambda: server(home)),
    }


def _safely(look: Callable[[], Facts]) -> Facts:
    try:
        return look()
    except Exception as error:  # a broken part must not hide the others
        return {"error": f"{type(error).__name__}: {error}"}


# ---------------------------------------------------------------- the state directory


def directory(home: str) -> Facts:
    """Whether servers can keep their state there."""
    found: Facts = {"path": home, "writable": False, "hard_links": False, "reason": ""}
    path = Path(home)
    existing = path
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".kedge-doctor-", dir=existing) as draft:
            first = Path(draft) / "first"
            first.write_text("")
            found["writable"] = True
            try:
                os.link(first, Path(draft) / "second")
                found["hard_links"] = True
            except OSError as error:
                found["reason"] = str(error)
    except OSError as error:
        found["reason"] = str(error)
    usage = shutil.disk_usage(existing)
    return found | {"free_bytes": usage.free, "total_bytes": usage.total}


# ---------------------------------------------------------------- containers


def isolation(home: str) -> Facts:
    from kedge.engines import probe

    rungs = probe.survey(home if os.path.isdir(home) else "")
    return {"best": probe.best(rungs), "rungs": {rung: rungs.get(rung, "not tried") for rung in RUNGS}}


def kernel() -> Facts:
    """What isolation and limits stand on."""
    found: Facts = {"name": platform.system(), "release": platform.release(), "root": os.geteuid() == 0}
    if sys.platform != "linux":
        return found
    from kedge.engines import confinement

    return found | {
        "user_namespaces": _user_namespaces(),
        "overlayfs": "overlay" in _text("/proc/filesystems").split(),
        "seccomp": "Seccomp:" in _text("/proc/self/status"),
        "landlock": max(0, confinement.landlock_version()),
        "pidfds": hasattr(os, "pidfd_open"),
        "swap": len(_text("/proc/swaps").splitlines()) > 1,
    }


def _user_namespaces() -> str:
    """Empty where this user may make one, else why not."""
    code = "import os, ctypes; c = ctypes.CDLL(None, use_errno=True); r = c.unshare(0x10000000); "
    code += "print(os.strerror(ctypes.get_errno()) if r else '')"
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        capture_output=True,
        text=True,
        timeout=_VERSION_S,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return ended.stdout.strip() if ended.returncode == 0 else "it could not be tried: this Python has no ctypes"


def limits() -> Facts:
    """How each limit of a container is enforced: by a control group (and where), or otherwise."""
    from kedge.engines import cgroups, warden

    if os.environ.get(warden.SWITCH) == "off":
        found = cgroups.Found({}, dict.fromkeys(cgroups.CONTROLLERS, f"{warden.SWITCH}=off says so"))
    else:
        found = cgroups.find(kin={os.getpid()})
    each: Facts = {}
    for name in cgroups.CONTROLLERS:
        place = found.homes.get(name)
        each[name] = {
            "by": f"cgroup v{place.version}" if place else "kedge",
            "where": place.directory if place else "",
            "reason": found.lacking.get(name, ""),
        }
    each["disk"] = {"by": "kedge", "where": "", "reason": ""}
    most = warden.most_pids(os.environ.get(warden.PIDS_VARIABLE, ""))
    return {"each": each, "max_pids": most, "max_pids_together": warden.shared_pids(most)}


# ---------------------------------------------------------------- images


def images(home: str) -> Facts:
    from kedge.images import interpreters

    places = interpreters.candidates(os.environ, Path.home())
    versions: dict[str, Facts] = {}
    for one in places:
        if tuple(int(part) for part in one.version.rstrip("t").split(".")[:2]) < interpreters.OLDEST:
            continue  # containers cannot have it
        version = interpreters.minor_of(one.version) + ("t" if one.version.endswith("t") else "")
        versions.setdefault(version, {"version": one.version, "path": one.path, "source": one.source})
    return {
        "uv": _program(_uv),
        "interpreters": versions,
        "tools": {name: shutil.which(name) or "" for name in TOOLS},
        "built": _images_in(Path(home) / "images"),
    }


def _uv() -> str:
    from kedge.images import uvtool

    return uvtool.program()


def _program(find: Callable[[], str]) -> Facts:
    """Where a program is, and which version; or why it is not there."""
    from kedge.exception import Error

    try:
        path = find()
        ended = subprocess.run(
            [path, "--version"],
            capture_output=True,
            text=True,
            timeout=_VERSION_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (Error, OSError, subprocess.TimeoutExpired) as error:
        return {"path": "", "version": "", "reason": str(error)}
    words = ended.stdout.split()
    return {"path": path, "version": words[1] if len(words) > 1 else "", "reason": ended.stderr.strip()}


def _images_in(place: Path) -> int:
    try:
        return sum(path.name.startswith("im-") for path in place.iterdir())
    except OSError:
        return 0


# ---------------------------------------------------------------- devices and the server


def gpus() -> Facts:
    from kedge.server import gpus as devices

    return devices.facts()


def server(home: str) -> Facts:
    """The machine's server, as it has written itself down. No server: {"running": False}."""
    from kedge.sdk import server_process

    found = server_process.find(home)
    if found is None:
        return {"running": False}
    published = json.loads(_text(os.path.join(home, "server", "server.json")) or "{}")
    return {"running": True, "address": found.address, "process": published.get("process", 0)}


def usable(found: Facts) -> bool:
    """Whether kedge can run here at all."""
    return bool(found["home"].get("writable")) and not found["isolation"].get("rungs", {}).get(PROCESS)


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", errors="replace")
    except OSError:
        return ""
