"""The seccomp filter, run instruction by instruction; what an OCI runtime is told; scratch directories."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from kedge.engines import confinement, nursery, probe, scratch, wrapping
from kedge.model.spec import (
    BUBBLEWRAP,
    GVISOR,
    NAMESPACE,
    OCI,
    RUNGS,
    Bind,
    CodeSpec,
    EnvironmentSpec,
    FunctionSpec,
    Isolation,
    Launch,
    Limits,
)

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED = 0x7FFF0000


def verdict(machine: str, number: int, argument: int = 0, architecture: int | None = None) -> int:
    """What the filter says of one call: ALLOWED, or the number of an error."""
    code = confinement.program(machine)
    lines = [struct.unpack_from("HBBI", code, place) for place in range(0, len(code), 8)]
    data = {0: number, 4: ARCHITECTURES[machine] if architecture is None else architecture, 16: argument & 0xFFFFFFFF}
    value = place = 0
    while True:
        operation, yes, no, operand = lines[place]
        place += 1
        if operation == 0x20:
            value = data[operand]
        elif operation == 0x06:
            return int(operand) if operand == ALLOWED else int(operand) & 0xFFFF
        else:
            holds: bool = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[operation]
            place += yes if holds else no


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_the_filter_refuses_what_it_lists_and_nothing_else(machine: str, column: int) -> None:
    denied = {pair[column] for pair in confinement.DENIED.values() if pair[column] >= 0}
    special = {"x86_64": {56, 272, 435}, "aarch64": {220, 97, 435}}[machine]
    for number in range(500):
        if number not in special:
            assert verdict(machine, number) == (errno.EPERM if number in denied else ALLOWED), number


@pytest.mark.parametrize(("machine", "clone", "unshare"), [("x86_64", 56, 272), ("aarch64", 220, 97)])
def test_the_filter_refuses_new_namespaces_and_allows_processes_and_threads(
    machine: str, clone: int, unshare: int
) -> None:
    fork, thread = 0x01200011, 0x003D0F00
    assert [verdict(machine, clone, flags) for flags in (fork, thread)] == [ALLOWED, ALLOWED]
    assert verdict(machine, unshare, 0x400) == ALLOWED
    for kind in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(machine, clone, fork | kind) == errno.EPERM
        assert verdict(machine, unshare, kind) == errno.EPERM
    assert verdict(machine, 435) == errno.ENOSYS, "its flags cannot be seen: libc uses clone instead"


def test_the_filter_knows_no_other_numbering() -> None:
    assert verdict("x86_64", 21, architecture=0x40000003) == errno.ENOSYS, "mount of 32-bit programs"
    assert verdict("x86_64", 0x40000000 | 165) == errno.ENOSYS, "x32"
    assert verdict("aarch64", 0, architecture=ARCHITECTURES["x86_64"]) == errno.ENOSYS


def launch_on(rung: str, scratch_directory: str = "/scratch/ct", **options: object) -> Launch:
    isolation = Isolation(rung=rung, shares_files=False, scratch=scratch_directory, **options)  # type: ignore[arg-type]
    return Launch(
        container="ct-1",
        token="t",
        address="/a",
        pool="p",
        app="a",
        app_name="a",
        function=FunctionSpec(name="f", module="m", qualname="f"),
        code=CodeSpec(),
        environment=EnvironmentSpec(python="/python", python_version="3.11"),
        isolation=isolation,
    )


def test_an_oci_runtime_is_told_limits_walls_and_command() -> None:
    launch = launch_on(OCI, network=False, limits=Limits(cpu=1.5, memory=256, pids=64))
    found = wrapping.configuration(launch, ["/python", "x"], {"A": "1"})
    assert json.loads(json.dumps(found)) == found
    assert found["process"]["args"] == ["/python", "x"]
    assert found["process"]["env"] == ["A=1"]
    assert found["process"]["noNewPrivileges"] is True
    assert "CAP_SYS_ADMIN" not in found["process"]["capabilities"]["bounding"]
    assert len(found["process"]["capabilities"]["bounding"]) == len(confinement.KEPT)
    assert found["root"]["path"] == "/scratch/.root"
    assert {"type": "network"} in found["linux"]["namespaces"]
    resources = found["linux"]["resources"]
    assert resources["memory"] == {"limit": 256 << 20}
    assert resources["pids"] == {"limit": 64}
    assert resources["cpu"] == {"quota": 150_000, "period": 100_000}
    assert {"type": "network"} not in wrapping.configuration(launch_on(OCI), [], {})["linux"]["namespaces"]


def test_gvisor_does_not_take_for_its_own_what_others_write_to() -> None:
    """Of what is in the root it would see nothing new once it has looked."""
    own = (Bind("/server/payloads/ct-1", "/server/blobs", read_only=False),)
    shared = {"type": "bind", "source": "/server/payloads/ct-1", "destination": "/server/blobs"}
    assert {**shared, "options": ["bind", "rw"]} in wrapping.configuration(launch_on(GVISOR, own=own), [], {})["mounts"]
    assert len(wrapping.configuration(launch_on(OCI, own=own), [], {})["mounts"]) == 1, "the root has it"


def test_what_is_one_containers_own_makes_no_other_fork_server() -> None:
    one, other = (launch_on(NAMESPACE, f"/scratch/{id}", own=(Bind(f"/server/{id}", "/server/blobs"),)) for id in "ab")
    assert one.isolation != other.isolation
    assert nursery._shared(one.isolation) == nursery._shared(other.isolation)


def test_bubblewrap_is_told_walls_and_command() -> None:
    command = wrapping.bubblewrap(launch_on(BUBBLEWRAP, network=False).isolation, "ct-1", ["/python", "x"])
    assert command[-2:] == ["/python", "x"]
    assert "--unshare-net" in command
    assert command[command.index("--dev-bind") + 1] == "/scratch/.root"
    assert "--unshare-net" not in wrapping.bubblewrap(launch_on(BUBBLEWRAP).isolation, "ct-1", ["/python"])


def test_a_signal_is_told_from_an_exit_code() -> None:
    assert wrapping.fate(OCI, (137, None)) == (None, 9)
    assert wrapping.fate(GVISOR, (3, None)) == (3, None)
    assert wrapping.fate("namespace", (137, None)) == (137, None)


# ---------------------------------------------------------------- scratch directories


def test_a_scratch_directory_is_cleared_but_for_volumes(tmp_path: Path) -> None:
    path = tmp_path / "c1"
    scratch.make(str(path))
    (path / "upper" / "etc").mkdir(parents=True)
    (path / "work" / "work").mkdir(parents=True)
    (path / "work" / "work").chmod(0)
    (path / "link").symlink_to("/etc")
    (path / "volumes" / "0").mkdir(parents=True)
    scratch.clear(str(path))
    assert os.listdir(path) == ["volumes"]
    (path / "volumes" / "0").rmdir()
    (path / "volumes").rmdir()
    scratch.clear(str(path))
    assert not path.exists()
    assert os.path.exists("/etc")
    scratch.clear(str(path))


@pytest.mark.skipif(sys.platform != "linux", reason="processes are told apart by /proc")
def test_only_what_dead_supervisors_have_left_is_swept(tmp_path: Path) -> None:
    program = f"from kedge.engines import scratch; scratch.make({str(tmp_path / 'dead')!r})"
    subprocess.run([sys.executable, "-c", program], check=True)
    scratch.make(str(tmp_path / "living"))
    (tmp_path / "stranger").mkdir()
    scratch.sweep(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["living", "stranger"]


# ---------------------------------------------------------------- what a machine has


def test_a_survey_names_every_rung_and_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = probe.survey()
    assert tuple(found) == RUNGS
    assert found["process"] == ""
    if sys.platform == "linux":
        assert found[BUBBLEWRAP] == "bwrap is not installed (Debian: apt install bubblewrap)"
        assert found[OCI] == "neither runc nor crun is installed (Debian: apt install runc)"
        assert found[GVISOR].startswith("runsc is not installed")


def test_the_second_rung_is_taken_where_it_is_there() -> None:
    assert probe.best({"process": "", "namespace": ""}) == "namespace"
    assert probe.best({"process": "", "namespace": "no"}) == "process"


WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
WITHOUT_TRACING = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
UNSHARE = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--mount-proc"]


@pytest.mark.parametrize(
    ("before", "options"),
    [
        pytest.param([], [], id="administrator"),
        pytest.param(WITHOUT_TRACING, [], id="administrator who may not trace"),
        pytest.param(WITHOUT_RIGHTS, ["--map-root-user"], id="user"),
    ],
)
def test_where_others_can_make_namespaces_there_is_the_rung(
    before: list[str], options: list[str], tmp_path: Path
) -> None:
    """Else all tests of containers in namespaces would be left out, and nobody would see that they do not work."""
    if shutil.which("unshare") is None or (before and shutil.which("setpriv") is None):
        pytest.skip("util-linux is not installed")
    others = subprocess.run([*before, *UNSHARE, *options, "true"], capture_output=True, text=True, check=False)
    if others.returncode:
        pytest.skip(f"others cannot: {others.stderr}")
    code = f"from kedge.engines import probe; print(probe.survey({str(tmp_path)!r})['namespace'] or 'there it is')"
    ours = subprocess.run([*before, sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ours.stdout.strip() == "there it is"
