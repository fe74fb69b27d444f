"""`kedge doctor`: sentences made of facts, and one look at the machine that runs this."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kedge.cli import diagnosis, doctor
from kedge.cli.main import main
from kedge.model.spec import RUNGS

FACTS: dict[str, Any] = {
    "kedge": "1.2.3",
    "python": {"version": "3.12.4", "path": "/opt/python", "system": "linux"},
    "home": {
        "path": "/data/kedge",
        "writable": True,
        "hard_links": True,
        "reason": "",
        "free_bytes": 75 * 2**30,
        "total_bytes": 251 * 2**30,
    },
    "isolation": {"best": "namespace", "rungs": dict.fromkeys(RUNGS, "")},
    "kernel": {
        "name": "Linux",
        "release": "6.18.0",
        "root": True,
        "user_namespaces": "",
        "overlayfs": True,
        "seccomp": True,
        "landlock": 7,
        "pidfds": True,
        "swap": False,
    },
    "limits": {
        "each": {
            **{name: {"by": "cgroup v2", "where": "/groups", "reason": ""} for name in ("cpu", "memory", "pids")},
            "disk": {"by": "kedge", "where": "", "reason": ""},
        },
        "max_pids": 4096,
        "max_pids_together": 32768,
    },
    "images": {
        "uv": {"path": "/bin/uv", "version": "0.13.9", "reason": ""},
        "interpreters": {
            "3.12": {"version": "3.12.4", "path": "/a", "source": "kedge"},
            "3.9": {"version": "3.9.1", "path": "/b", "source": "pyenv"},
        },
        "tools": dict.fromkeys(diagnosis.TOOLS, "/usr/bin/tool"),
        "built": 0,
    },
    "gpus": {
        "devices": [{"index": 0, "name": "H100", "memory": 81920, "product": "NVIDIA H100 80GB HBM3", "uuid": "GPU-1"}],
        "notes": [],
        "driver": "565.1",
        "error": "",
    },
    "server": {"running": True, "process": 77, "address": "/data/kedge/server/plane.sock"},
}


def told(**changes: Any) -> list[str]:
    """The report of a machine that differs in `changes` from one that has everything: `part__name=value`."""
    found = copy.deepcopy(FACTS)
    for path, value in changes.items():
        part, _, name = path.partition("__")
        if name:
            found[part][name] = value
        else:
            found[part] = value
    return list(doctor.report(found))


def about(name: str, lines: list[str]) -> list[str]:
    """The line of this name, and its advice."""
    [place] = [number for number, line in enumerate(lines) if line[4:].startswith(f"{name} ")]
    more = [line.strip() for line in lines[place + 1 : place + 2] if line.lstrip().startswith("→")]
    return [" ".join(lines[place].split()), *more]


def test_a_machine_that_has_everything() -> None:
    lines = told()
    assert not [line for line in lines if line.lstrip().startswith("✗")]
    assert about("state", lines) == ["✓ state /data/kedge: 75 GiB of 251 GiB are free"]
    assert about("memory", lines) == ["✓ memory enforced by the kernel (cgroup v2, /groups)"]
    assert about("Pythons", lines) == ["✓ Pythons 3.9 (pyenv), 3.12 (kedge)"]
    assert about("[0] H100", lines) == ["✓ [0] H100 NVIDIA H100 80GB HBM3, 80 GiB"]
    assert about("server", lines) == ["✓ server process 77 at /data/kedge/server/plane.sock"]
    [namespace] = about("namespace", lines)
    assert namespace.endswith("containers with images of their own run so")


def test_a_state_directory_that_cannot_be_written() -> None:
    lines = told(home__writable=False, home__reason="Permission denied")
    assert about("state", lines) == [
        "✗ state cannot be kept: Permission denied",
        "→ set KEDGE_HOME to a directory that this user can write to",
    ]


def test_a_small_disk_without_hard_links() -> None:
    lines = told(home__free_bytes=100 * 2**20, home__hard_links=False, home__reason="not permitted")
    assert about("state", lines)[0] == "– state /data/kedge: 100 MiB of 251 GiB are free"
    assert "kedge image prune" in about("state", lines)[1]
    assert about("hard links", lines)[0].endswith("cannot be made there (not permitted): every image is a full copy")


def test_rungs_that_are_not_there_say_why() -> None:
    rungs = {**dict.fromkeys(RUNGS, ""), "namespace": "user namespaces are switched off", "gvisor": "no runsc"}
    lines = told(isolation={"best": "process", "rungs": rungs})
    assert about("namespace", lines) == ["✗ namespace not here: user namespaces are switched off"]
    assert about("gvisor", lines) == ["– gvisor not here: no runsc"]
    assert about("process", lines)[0].endswith("containers with images of their own run so")


def test_limits_without_control_groups_say_what_is_not_bounded() -> None:
    each = {
        **{name: {"by": "kedge", "where": "", "reason": "/g cannot be written"} for name in ("cpu", "memory", "pids")},
        "disk": {"by": "kedge", "where": "", "reason": ""},
    }
    lines = told(limits__each=each)
    assert about("cpu", lines) == [
        "– cpu /g cannot be written: a container stays on as many cores as its limit, rounded up; programs can undo "
        "that for themselves",
        "→ as root, or as a service with control groups of its own: `kedge server start --systemd --install`",
    ]
    [memory] = about("memory", lines)
    assert memory.endswith("measured four times a second and ended above the limit: a quick one gets further")


def test_tools_that_are_not_installed_say_what_they_are_for() -> None:
    lines = told(images__tools={**FACTS["images"]["tools"], "mmdebstrap": ""})
    [line] = about("mmdebstrap", lines)
    assert line.startswith("– mmdebstrap not installed; needed for apt_install, run_commands")


def test_no_uv() -> None:
    lines = told(images__uv={"path": "", "version": "", "reason": "no program uv"})
    assert about("uv", lines) == ["✗ uv not found: no program uv", "→ pip install uv"]


def test_no_devices() -> None:
    lines = told(gpus={"devices": [], "notes": ["one is divided"], "driver": "", "error": ""})
    assert about("devices", lines)[0] == "– devices no NVIDIA driver is here"
    assert about("note", lines) == ["– note one is divided"]


def test_a_user_without_user_namespaces_and_an_old_kernel() -> None:
    lines = told(
        kernel__root=False,
        kernel__user_namespaces="Operation not permitted",
        kernel__landlock=0,
        kernel__overlayfs=False,
    )
    assert about("user namespaces", lines)[0].startswith("✗ user namespaces refused (Operation not permitted)")
    assert about("Landlock", lines)[0].startswith("– Landlock not in this kernel")
    assert about("overlayfs", lines)[0].startswith("✗ overlayfs not in this kernel")


def test_a_part_that_fails_does_not_hide_the_others() -> None:
    lines = told(gpus={"error": "ValueError: broken"})
    assert about("gpus", lines) == ["✗ gpus could not be found out: ValueError: broken", "→ please report it"]
    assert about("uv", lines)


def test_another_system_than_linux() -> None:
    lines = told(kernel={"name": "Darwin", "release": "24.0", "root": False})
    assert about("system", lines) == ["✓ system Darwin 24.0, as an ordinary user"]


@pytest.mark.parametrize(("writable", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_says_whether_kedge_can_run(writable: bool, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {**FACTS, "home": {**FACTS["home"], "writable": writable, "reason": "no"}}
    monkeypatch.setattr(diagnosis, "facts", lambda home: found)
    assert CliRunner().invoke(main, ["doctor"]).exit_code == code


def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path / "not" / "there" / "yet"))
    ran = CliRunner().invoke(main, ["doctor", "--json"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.output)
    assert set(found) == set(FACTS)
    assert found["home"]["writable"]
    assert set(found["isolation"]["rungs"]) == set(RUNGS)
    assert found["server"] == {"running": False}
    assert not (tmp_path / "not").exists(), "looking leaves nothing behind"
    report = list(doctor.report(found))
    assert [line for line in report if line in ("kedge", "Isolation", "Limits of containers", "Images", "GPUs")]
