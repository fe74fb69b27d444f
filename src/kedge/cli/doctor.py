"""`kedge doctor`: what this machine offers, what follows from it, and what to do where something is lacking.

The sentences are made of facts (`cli.diagnosis`) alone, so that each can be read without a machine that is so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import click

from kedge.cli.outcome import finish

Facts = dict[str, Any]

GOOD, PARTLY, BAD = "✓", "–", "✗"
_LOW_DISK = 5 * 2**30
"""Bytes: an image with torch and its libraries takes as much."""
_OLD_LANDLOCK = 6
"""From here on it also keeps signals and abstract sockets apart."""

_WITHOUT = {
    "cpu": "a container stays on as many cores as its limit, rounded up; programs can undo that for themselves",
    "memory": "its processes are measured four times a second and ended above the limit: a quick one gets further",
    "pids": "its processes are counted four times a second and ended above the limit: a quick one gets further",
}
_KERNEL_DISK = "its files are measured every few seconds, and none can become larger than the limit"
_NEEDED_FOR = {
    "mmdebstrap": "apt_install, run_commands and other system layers; Debian: apt install mmdebstrap",
    "podman": "from_registry and from_dockerfile by podman; Debian: apt install podman",
    "skopeo": "from_registry without podman (with umoci); Debian: apt install skopeo",
    "umoci": "from_registry without podman (with skopeo); Debian: apt install umoci",
    "micromamba": "micromamba_install; https://mamba.readthedocs.io says how to install it",
}
_RUNGS = {
    "process": "processes of this user, with the machine's files",
    "namespace": "own files, processes and names; system calls and capabilities are filtered",
    "bubblewrap": "each container in a sandbox of bwrap, started fresh",
    "oci": "each container by an OCI runtime, started fresh",
    "gvisor": "each container on a kernel of its own (gVisor), started fresh",
}


class Line(NamedTuple):
    mark: str
    name: str
    says: str
    advice: str = ""


Section = tuple[str, list[Line]]


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def doctor(as_json: bool) -> None:
    """Say what this machine offers: isolation, limits, images, GPUs, disk.

    The exit code is 1 only where kedge cannot run at all.
    """
    finish(lambda: examine(as_json))


def examine(as_json: bool) -> int:
    from kedge.cli import diagnosis, tables
    from kedge.sdk import server_process

    found = diagnosis.facts(server_process.home())
    if as_json:
        tables.print_json(found)
    else:
        for line in report(found):
            click.echo(line)
    return 0 if diagnosis.usable(found) else 1


def report(found: Facts) -> Iterator[str]:
    """The lines that people read."""
    parts = sections(found)
    width = max(len(line.name) for _, lines in parts for line in lines)
    for number, (title, lines) in enumerate(parts):
        if number:
            yield ""
        yield title
        for line in lines:
            yield f"  {line.mark} {line.name:<{width}}  {line.says}"
            if line.advice:
                yield f"    {'':<{width}}  → {line.advice}"


def sections(found: Facts) -> list[Section]:
    parts = (
        ("kedge", "", lambda facts: [*_own(facts), *_home(facts["home"]), _server(facts["server"])]),
        ("Isolation", "isolation", _isolation),
        ("Kernel", "kernel", _kernel),
        ("Limits of containers", "limits", _limits),
        ("Images", "images", _images),
        ("GPUs", "gpus", _gpus),
    )
    result: list[Section] = []
    for title, key, describe in parts:
        facts = found[key] if key else found
        if key and set(facts) == {"error"}:
            result.append((title, [Line(BAD, key, f"could not be found out: {facts['error']}", "please report it")]))
        else:
            result.append((title, list(describe(facts))))
    return result


def _own(found: Facts) -> Iterator[Line]:
    yield Line(GOOD, "kedge", f"{found['kedge']}, on Python {found['python']['version']} ({found['python']['path']})")


def _home(home: Facts) -> Iterator[Line]:
    if "error" in home or not home["writable"]:
        reason = home.get("error") or home["reason"]
        yield Line(
            BAD, "state", f"cannot be kept: {reason}", "set KEDGE_HOME to a directory that this user can write to"
        )
        return
    free = home["free_bytes"]
    room = f"{_size(free)} of {_size(home['total_bytes'])} are free"
    if free < _LOW_DISK:
        yield Line(
            PARTLY,
            "state",
            f"{home['path']}: {room}",
            "`kedge image prune` removes what no app uses; or set KEDGE_HOME to a larger disk",
        )
    else:
        yield Line(GOOD, "state", f"{home['path']}: {room}")
    if not home["hard_links"]:
        yield Line(
            PARTLY,
            "hard links",
            f"cannot be made there ({home['reason']}): every image is a full copy",
            "set KEDGE_HOME to a directory on ext4, xfs or btrfs",
        )


def _server(server: Facts) -> Line:
    if "error" in server:
        return Line(BAD, "server", f"could not be found out: {server['error']}")
    if not server["running"]:
        return Line(
            PARTLY,
            "server",
            "not running; `kedge run` starts one for its own time",
            "`kedge server start` starts one that stays",
        )
    return Line(GOOD, "server", f"process {server['process']} at {server['address']}")


def _isolation(found: Facts) -> Iterator[Line]:
    best = found["best"]
    for rung, reason in found["rungs"].items():
        chosen = "; containers with images of their own run so" if rung == best else ""
        if reason:
            lacking = BAD if rung in ("process", "namespace") else PARTLY
            yield Line(lacking, rung, f"not here: {reason}")
        else:
            yield Line(GOOD, rung, f"{_RUNGS.get(rung, '')}{chosen}")


def _kernel(found: Facts) -> Iterator[Line]:
    who = "root" if found["root"] else "an ordinary user"
    yield Line(GOOD, "system", f"{found['name']} {found['release']}, as {who}")
    if "overlayfs" not in found:
        yield Line(PARTLY, "isolation", "it needs Linux; here containers are processes")
        return
    reason = found["user_namespaces"]
    if reason:
        mark = PARTLY if found["root"] else BAD
        needed = "not needed by root" if found["root"] else "isolation without root needs them"
        yield Line(
            mark,
            "user namespaces",
            f"refused ({reason}); {needed}",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        )
    else:
        yield Line(GOOD, "user namespaces", "can be made")
    for key, name, means in (
        ("overlayfs", "overlayfs", "images are layers under what a container writes"),
        ("seccomp", "seccomp", "system calls that containers have no use for are refused"),
        ("pidfds", "pidfds", "the end of a container is noticed at once"),
    ):
        yield Line(GOOD if found[key] else BAD, name, means if found[key] else f"not in this kernel: no {means}")
    version = found["landlock"]
    if version >= _OLD_LANDLOCK:
        yield Line(GOOD, "Landlock", f"version {version}: containers cannot reach abstract Unix sockets of the machine")
    elif version:
        yield Line(PARTLY, "Landlock", f"version {version}: too old to keep abstract Unix sockets apart")
    else:
        yield Line(PARTLY, "Landlock", "not in this kernel, or switched off", "boot with lsm=landlock,…")


def _limits(found: Facts) -> Iterator[Line]:
    advice = "as root, or as a service with control groups of its own: `kedge server start --systemd --install`"
    for name, one in found["each"].items():
        if one["by"] != "kedge":
            yield Line(GOOD, name, f"enforced by the kernel ({one['by']}, {one['where']})")
        elif name == "disk":
            yield Line(PARTLY, name, f"watched by kedge: {_KERNEL_DISK}; only where it has files of its own")
        else:
            yield Line(PARTLY, name, f"{one['reason']}: {_WITHOUT[name]}", advice)
            advice = ""
    yield Line(
        GOOD,
        "default",
        f"{found['max_pids']} processes and threads for a container that says nothing else "
        f"(KEDGE_MAX_PIDS), {found['max_pids_together']} for all such together",
    )


def _images(found: Facts) -> Iterator[Line]:
    uv = found["uv"]
    if uv["path"]:
        yield Line(GOOD, "uv", f"{uv['version']} ({uv['path']})")
    else:
        yield Line(BAD, "uv", f"not found: {uv['reason']}", "pip install uv")
    versions = found["interpreters"]
    listed = ", ".join(f"{version} ({one['source']})" for version, one in sorted(versions.items(), key=_by_version))
    yield Line(
        GOOD if versions else BAD, "Pythons", listed or "none", "" if len(versions) > 1 else "uv python install 3.12"
    )
    for name, path in found["tools"].items():
        if path:
            yield Line(GOOD, name, path)
        else:
            yield Line(PARTLY, name, f"not installed; needed for {_NEEDED_FOR[name]}")


def _by_version(item: tuple[str, Facts]) -> tuple[int, ...]:
    return tuple(int(part) for part in item[0].rstrip("t").split("."))


def _gpus(found: Facts) -> Iterator[Line]:
    if found.get("error"):
        yield Line(PARTLY, "driver", found["error"], 'devices can be declared for tests: --gpus "H100=8"')
    elif found["devices"]:
        yield Line(GOOD, "driver", found["driver"])
    for device in found["devices"]:
        memory = f"{device['memory'] / 1024:.0f} GiB"
        yield Line(GOOD, f"[{device['index']}] {device['name']}", f"{device['product']}, {memory}")
    if not found["devices"] and not found.get("error"):
        yield Line(
            PARTLY, "devices", "no NVIDIA driver is here", 'declared ones serve tests and dry runs: --gpus "H100=8"'
        )
    for note in found["notes"]:
        yield Line(PARTLY, "note", note)


def _size(count: float) -> str:
    return f"{math.floor(count / 2**30)} GiB" if count >= 2**30 else f"{math.floor(count / 2**20)} MiB"
