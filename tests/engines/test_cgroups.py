"""Control groups as files: where groups may be made, and what is written into them. A directory tree stands in for the
kernel, so that both versions are tested wherever this runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kedge.engines import cgroups
from kedge.engines.cgroups import Found, Groups, Hierarchy, Home, find, hierarchies
from kedge.model.spec import Limits

HYBRID_MOUNTS = """\
23 1 254:0 / / rw,relatime - ext4 /dev/root rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
36 31 0:33 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
HYBRID_OWN = "4:memory:/box/7cf3\n2:cpu,cpuacct:/\n9:name=systemd:/\n0::/\n"


def test_each_controller_is_found_where_it_is_mounted() -> None:
    assert hierarchies(HYBRID_MOUNTS, HYBRID_OWN) == {
        "cpu": Hierarchy(1, "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
        "cpuacct": Hierarchy(1, "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
        "memory": Hierarchy(1, "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/box/7cf3"),
        "name=systemd": Hierarchy(1, "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/systemd"),
        "unified": Hierarchy(2, "/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified"),
    }


@pytest.mark.parametrize(
    ("root", "path", "own"),
    [
        ("/", "/user.slice/kedge.service", "/sys/fs/cgroup/user.slice/kedge.service"),
        ("/docker/abc", "/docker/abc", "/sys/fs/cgroup"),
        ("/docker/abc", "/docker/abc/inner", "/sys/fs/cgroup/inner"),
        ("/docker/abc", "/docker/abcd", "/sys/fs/cgroup"),
        ("/", "/../other", "/sys/fs/cgroup"),
    ],
)
def test_the_own_group_is_seen_below_what_is_mounted(root: str, path: str, own: str) -> None:
    mounts = f"30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
    assert hierarchies(mounts, f"0::{path}\n")["unified"].own == own


class Kernel:
    """A directory that looks like the process's own view of version 2."""

    def __init__(self, root: Path, own: str = "") -> None:
        self.root = root / "cgroup"
        self.process = root / "process"
        self.process.mkdir(parents=True)
        (self.process / "mountinfo").write_text(f"30 23 0:26 / {self.root} rw - cgroup2 cgroup2 rw\n")
        (self.process / "cgroup").write_text(f"0::/{own}\n")
        self.group("", "cpu io memory pids", is_root=True)

    def group(
        self, path: str, controllers: str, enabled: str = "", inside: tuple[int, ...] = (), is_root: bool = False
    ) -> Path:
        directory = self.root / path
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cgroup.controllers").write_text(controllers + "\n")
        (directory / "cgroup.subtree_control").write_text(enabled + "\n")
        (directory / "cgroup.procs").write_text("".join(f"{process}\n" for process in inside))
        if not is_root:
            (directory / "cgroup.events").write_text("populated 1\n")
        return directory

    def find(self, *kin: int) -> Found:
        return find(str(self.process), kin)


@pytest.fixture
def removable(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    """The kernel removes a group with its files. Gives what was in those of each group that was removed."""
    remove, removed = os.rmdir, dict[str, dict[str, str]]()

    def rmdir(path: str) -> None:
        files = [Path(entry.path) for entry in os.scandir(path) if entry.is_file()]
        removed[str(path)] = {file.name: file.read_text() for file in files}
        for file in files:
            file.unlink()
        remove(path)

    monkeypatch.setattr(os, "rmdir", rmdir)
    return removed


def test_a_service_of_its_own_moves_itself_aside_and_bounds_its_containers(
    tmp_path: Path, removable: dict[str, dict[str, str]]
) -> None:
    kernel = Kernel(tmp_path, "user.slice/kedge.service")
    kernel.group("user.slice", "cpu memory pids", "cpu memory pids")
    own = kernel.group("user.slice/kedge.service", "cpu memory pids", inside=(41, 42))
    found = kernel.find(41, 42)
    assert found == Found({name: Home(2, str(own)) for name in ("cpu", "memory", "pids")}, {})
    groups = Groups(found, "kedge-1-1")
    groups.open({41, 42})
    assert (own / "kedge.server" / "cgroup.procs").read_text() == "42", "each was written, the last one is left"
    group = groups.make("ct-1", Limits(cpu=1.5, memory=512, pids=100))
    [door] = group.doors
    directory = Path(door).parent
    assert directory == own / "kedge-1-1" / "ct-1"
    written = {path.name: path.read_text() for path in directory.iterdir()}
    assert written == {
        "cpu.max": "150000 100000",
        "memory.max": str(512 * 2**20),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "100",
    }
    (directory / "memory.peak").write_text(f"{300 * 2**20}\n")
    (directory / "memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 1\n")
    (directory / "pids.events").write_text("max 7\n")
    assert (group.peak_memory(), group.memory_kills(), group.refusals(), group.listen()) == (300, 2, 7, None)
    (directory / "cgroup.kill").write_text("")
    assert group.remove()
    assert removable[str(directory)]["cgroup.kill"] == "1"
    groups.close()
    assert not (own / "kedge-1-1").exists()


def test_where_others_run_in_the_own_group_one_above_it_is_used(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "app.slice/terminal.scope")
    above = kernel.group("app.slice", "memory pids", "memory pids")
    kernel.group("app.slice/terminal.scope", "memory pids", inside=(1, 2))
    (kernel.root / "cgroup.controllers").write_text("memory pids\n")
    found = kernel.find(2)
    assert found.homes == {name: Home(2, str(above)) for name in ("memory", "pids")}
    assert set(found.lacking) == {"cpu"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_groups_of_others_are_left_alone(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "session.scope")
    kernel.group("session.scope", "memory", inside=(1,))
    for directory in (kernel.root, kernel.root / "session.scope"):
        directory.chmod(0o500)
    found = kernel.find()
    assert found.homes == {}
    assert "cannot be written by this user" in found.lacking["memory"]


def test_without_any_group_the_reason_is_said(tmp_path: Path) -> None:
    found = find(str(tmp_path))
    assert found.homes == {}
    assert set(found.lacking) == set(cgroups.CONTROLLERS)
    assert "offers no such controller" in found.lacking["memory"]


@pytest.mark.usefixtures("removable")
def test_version_1_has_a_directory_for_each_controller(tmp_path: Path) -> None:
    homes = {name: Home(1, str(tmp_path / name)) for name in ("cpu", "memory", "pids")}
    for name in homes:
        (tmp_path / name).mkdir()
    groups = Groups(Found(homes, {}), "kedge-1-1")
    groups.open()
    group = groups.make("ct-1", Limits(memory=64, cpu=0.001))
    assert group.doors == tuple(f"{tmp_path}/{name}/kedge-1-1/ct-1/cgroup.procs" for name in ("cpu", "memory"))
    cpu, memory = (tmp_path / name / "kedge-1-1" / "ct-1" for name in ("cpu", "memory"))
    assert (cpu / "cpu.cfs_quota_us").read_text() == "1000", "the kernel takes no less"
    assert (memory / "memory.limit_in_bytes").read_text() == str(64 * 2**20)
    (memory / "memory.max_usage_in_bytes").write_text(f"{64 * 2**20}\n")
    (memory / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert (group.peak_memory(), group.memory_kills(), group.refusals()) == (64, 1, 0)
    assert group.remove()
    assert not cpu.exists()
    assert not memory.exists()


@pytest.mark.usefixtures("removable")
def test_only_groups_of_servers_that_are_gone_are_swept(tmp_path: Path) -> None:
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    living = tmp_path / f"kedge-{os.getpid()}-{stat[19]}"
    names = [f"kedge-{os.getpid()}-1", "kedge-999999999-1", "kedge-notes", "other"]
    for path in (living, *(tmp_path / name for name in names)):
        (path / "ct-1").mkdir(parents=True)
    cgroups.sweep(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([living.name, "kedge-notes", "other"])


def test_a_controller_that_cannot_be_used_after_all_is_left_out(tmp_path: Path) -> None:
    groups = Groups(Found({"pids": Home(1, str(tmp_path / "gone"))}, {}), "kedge-1-1")
    groups.open()
    assert groups.controllers == {}
    group = groups.make("ct-1", Limits(pids=5))
    assert (group.doors, group.holds("pids"), group.peak_memory(), group.memory_events) == ((), False, None, "")
