"""Rungs above namespaces: each container is a fresh process that somebody else's program starts in a sandbox of its own
making. What is inside is put together here, as for every rung; walls and processes are the tool's.

* `bubblewrap`: bwrap. Descriptors pass through it.
* `oci`: runc, or crun where there is no runc, from a bundle in the scratch directory.
* `gvisor`: runsc, likewise. It passes no descriptors on: the launch comes as standard input, and what Python code
  prints comes through stdout and stderr only, so that nobody knows which input wrote a line.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from kedge.engines import boot, cgroups, confinement, mounts, namespaces, spawn
from kedge.model.spec import BUBBLEWRAP, GVISOR, OCI, Bind, Isolation, Launch

WRAPPED = (BUBBLEWRAP, OCI, GVISOR)
_BUNDLE, _STATE = "bundle", "state"
_FILTER_FD = 5
_CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("NET_BIND_SERVICE", "SYS_CHROOT", "AUDIT_WRITE", "SETFCAP"),
)
"""The names of `confinement.KEPT`."""
_MASKED = ("acpi", "kcore", "keys", "latency_stats", "timer_list", "sched_debug", "scsi")
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
_FLAGS = (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
_PERIOD = 100_000
_PATIENCE_S = 5.0
_TRUNCATED_FATE = 128


class WrappedEntry:
    """Leads to the tool's own program, with everything that it needs made before."""

    def __init__(self, base: namespaces.Base, launch: Launch, runtime: Sequence[str]) -> None:
        self.parent = os.getpid()
        self._base = base
        self._launch = launch
        self._runtime = runtime
        self._arguments: Sequence[str] = ()
        self._variables: Mapping[str, str] = {}

    def wrap(self, arguments: Sequence[str], variables: Mapping[str, str]) -> list[str]:
        """The command line that runs `arguments` inside."""
        self._arguments, self._variables = arguments, variables
        isolation, name = self._launch.isolation, self._launch.container
        if isolation.rung == BUBBLEWRAP:
            return bubblewrap(isolation, name, arguments)
        return _runtime_command(isolation, name)

    def fork(self) -> int:
        return namespaces.branch(self._base)

    def enter(self) -> None:
        isolation = self._launch.isolation
        mounts.part()
        mounts.build(isolation, isolation.scratch, namespaces.needed(self._runtime), mounts.NOBODYS)
        if isolation.rung == BUBBLEWRAP:
            descriptor = os.memfd_create("kedge-filter", 0)
            os.write(descriptor, confinement.program())
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.dup2(descriptor, _FILTER_FD)
            return
        if isolation.rung == GVISOR:
            os.dup2(spawn.LAUNCH_FD, 0)
        for name in (_BUNDLE, _STATE):
            os.makedirs(os.path.join(isolation.scratch, name), exist_ok=True)
        import json

        with open(os.path.join(isolation.scratch, _BUNDLE, "config.json"), "w", encoding="utf-8") as file:
            json.dump(configuration(self._launch, self._arguments, self._variables), file)


def launch_descriptor(rung: str) -> int:
    """Where the container finds what it is to be."""
    return 0 if rung == GVISOR else spawn.LAUNCH_FD


def bubblewrap(isolation: Isolation, name: str, arguments: Sequence[str]) -> list[str]:
    root = mounts.root_of(isolation.scratch)
    kept = [word for capability in _CAPABILITIES for word in ("--cap-add", f"CAP_{capability}")]
    return [
        shutil.which("bwrap") or "bwrap",
        *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", name, "--die-with-parent"),
        *(() if isolation.network else ("--unshare-net",)),
        *("--dev-bind", root, "/", "--proc", "/proc", "--chdir", "/"),
        *("--cap-drop", "ALL", *kept, "--seccomp", str(_FILTER_FD), "--"),
        *arguments,
    ]


def _runtime_command(isolation: Isolation, name: str) -> list[str]:
    bundle = os.path.join(isolation.scratch, _BUNDLE)
    tool = _tool(isolation)
    if isolation.rung == GVISOR:
        network = "host" if isolation.network else "none"
        return [*tool, "--ignore-cgroups", f"--network={network}", "--host-uds=open", "run", "--bundle", bundle, name]
    if os.path.basename(tool[0]) == "crun":
        tool.append("--cgroup-manager=disabled")
    return [*tool, "run", "--bundle", bundle, "--preserve-fds", "2", name]


def _tool(isolation: Isolation) -> list[str]:
    names = ("runsc",) if isolation.rung == GVISOR else ("runc", "crun")
    found = [path for path in map(shutil.which, names) if path]
    return [found[0] if found else names[0], "--root", os.path.join(isolation.scratch, _STATE)]


def configuration(launch: Launch, arguments: Sequence[str], variables: Mapping[str, str]) -> dict[str, Any]:
    """What an OCI runtime is told about one container."""
    isolation = launch.isolation
    kinds = ["pid", "ipc", "uts", "mount", *(() if isolation.network else ("network",))]
    capabilities = [f"CAP_{name}" for name in _CAPABILITIES]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(arguments),
            "env": [f"{name}={value}" for name, value in variables.items()],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": True,
            "oomScoreAdj": 500,
        },
        "root": {"path": mounts.root_of(isolation.scratch), "readonly": False},
        "hostname": launch.container,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "nodev", "noexec"]},
            *(_shared(bind) for bind in isolation.own if isolation.rung == GVISOR),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in kinds],
            "cgroupsPath": cgroups.nested(launch.container),
            "resources": _resources(isolation),
            "maskedPaths": [f"/proc/{name}" for name in _MASKED],
            "readonlyPaths": [f"/proc/{name}" for name in _READ_ONLY],
            "seccomp": _seccomp(),
        },
    }


def _shared(bind: Bind) -> dict[str, Any]:
    """gVisor takes what is in the root for its own: it would not see what others put there once it has looked."""
    options = ["bind", "ro" if bind.read_only else "rw"]
    return {"destination": bind.target, "type": "bind", "source": bind.source, "options": options}


def _resources(isolation: Isolation) -> dict[str, Any]:
    limits = isolation.limits
    found: dict[str, Any] = {"devices": [{"allow": True, "access": "rwm"}]}
    if limits.memory is not None:
        found["memory"] = {"limit": limits.memory << 20}
    if limits.pids is not None:
        found["pids"] = {"limit": limits.pids}
    if limits.cpu is not None:
        found["cpu"] = {"quota": int(limits.cpu * _PERIOD), "period": _PERIOD}
    return found


def _seccomp() -> dict[str, Any]:
    refused = {"action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    rules: list[dict[str, Any]] = [
        {"names": list(confinement.DENIED), **refused},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
    ]
    for flag in _FLAGS:
        argument = {"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}
        rules.append({"names": ["clone", "unshare"], **refused, "args": [argument]})
    machine = _ARCHITECTURES.get(platform.machine())
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": [machine] if machine else [],
        "syscalls": rules,
    }


# ---------------------------------------------------------------- ends


def fate(rung: str, found: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
    """How the container itself has ended: tools say 128 + n for a signal n."""
    code = found[0]
    if rung in WRAPPED and code is not None and code > _TRUNCATED_FATE:
        return None, code - _TRUNCATED_FATE
    return found


def addressee(rung: str, process: int) -> int:
    """Who is to be asked to leave: bwrap passes no signals on, so what it runs is asked; others do."""
    if rung == BUBBLEWRAP:
        for _ in range(2):  # bwrap, the init that it makes, what it was to run
            try:
                with open(f"/proc/{process}/task/{process}/children", encoding="ascii") as file:
                    children = file.read().split()
            except OSError:
                break
            if not children:
                break
            process = int(children[0])
    return process


def forget(path: str) -> None:
    """Has a runtime that was killed tidy up what it left outside of the scratch directory `path`: control groups."""
    state = os.path.join(path, _STATE)
    for name in os.listdir(state) if os.path.isdir(state) else ():
        if os.path.isdir(os.path.join(state, name)):
            for tool in filter(None, map(shutil.which, ("runc", "crun"))):
                _run(tool, "--root", state, "delete", "--force", name)


def ask_to_leave(isolation: Isolation, name: str) -> str:
    """Has runsc end what it runs; older ones do not pass signals on."""
    _run(*_tool(isolation), "kill", name, "TERM")
    return ""


def _run(*arguments: str) -> None:
    import subprocess

    nowhere = subprocess.DEVNULL
    try:
        subprocess.run(arguments, stdin=nowhere, stdout=nowhere, stderr=nowhere, timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        pass


def command(launch: Launch, runtime: Sequence[str], runner: str) -> list[str]:
    """What starts a fresh container, as it is said inside."""
    descriptor = launch_descriptor(launch.isolation.rung)
    plain = boot.command(launch.environment.python, boot.CONTAINER, descriptor, runtime, runner)
    return [*launch.isolation.entrypoint, *plain]
