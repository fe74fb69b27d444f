"""What a container in namespaces sees, what it cannot do, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from kedge.engines import confinement, furnisher, mounts, namespaces, rooms
from kedge.engines.errands import Errands
from kedge.engines.loop import Loop
from kedge.model.protocol import ContainerLost, ContainerStarted, ForkServerReported, VolumeAnswered
from kedge.model.spec import Bind, VolumeMount
from tests.engines.rig import Rig, alive, descriptors, ended, eventually, make_launch, rig, site_packages, with_rig
from tests.engines.sandbox import interpreter, isolated, mounted, scratches, system

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")

SLEEP = "import time; print('up', flush=True); time.sleep(600)"


async def said(it: Rig, source: str, **options: Any) -> Any:
    """What a container prints as JSON."""
    end, output = await it.run("import json, os, sys\ndef say(value): print(json.dumps(value))\n" + source, **options)
    assert end.exit_code == 0, (end, it.output(end.container, 2))
    return json.loads(output)


# ---------------------------------------------------------------- what it sees


@with_rig
async def test_it_sees_its_own_processes_only(it: Rig, tmp_path: Path) -> None:
    source = """
import socket
say([os.getpid(), os.getppid(), sorted(filter(str.isdigit, os.listdir("/proc"))), socket.gethostname()])
"""
    process, parent, processes, hostname = await said(it, source, isolation=isolated(tmp_path))
    [started] = it.of(ContainerStarted)
    assert started.how == "fork"
    assert (process, parent, processes) == (2, 0, ["1", "2"])
    assert hostname == started.container
    assert started.process > 2, "people who look after the machine are told its number there"


@with_rig
async def test_files_of_the_machine_are_hidden_and_what_it_writes_is_gone(it: Rig, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("secret")
    name = f"kedge-test-{os.getpid()}"
    source = f"""
mine = [os.path.exists({str(tmp_path / "private")!r}), os.listdir("/tmp")]
for path in ("/tmp/{name}", "/usr/{name}", "/{name}", "/etc/{name}"):
    with open(path, "w") as file:
        file.write("mine")
os.unlink("/etc/passwd")
say([*mine, os.listdir("/tmp")])
"""
    seen, before, after = await said(it, source, isolation=isolated(tmp_path))
    assert seen is False
    assert name not in before
    assert name in after
    assert not any(os.path.exists(f"{place}/{name}") for place in ("/tmp", "/usr", "", "/etc"))
    assert os.path.exists("/etc/passwd")
    source = f"say([os.path.exists(p) for p in ('/tmp/{name}', '/usr/{name}', '/etc/passwd')])"
    assert await said(it, source, isolation=isolated(tmp_path)) == [False, False, True]


@pytest.mark.slow
@with_rig
async def test_around_what_is_hidden_everything_is_as_the_machine_has_it(it: Rig, tmp_path: Path) -> None:
    """Directories and files below others, and what is mounted in what is hidden."""
    shown = tmp_path / "shown"
    (shown / "below").mkdir(parents=True)
    (shown / "file").write_text("text")
    binds = (
        Bind(str(shown), str(shown)),
        Bind(str(shown / "file"), str(tmp_path / "there" / "file")),
        Bind("/dev/null", "/etc/passwd"),
    )
    source = f"""
def facts(path):
    it = os.stat(path)
    return [it.st_mode, it.st_uid, it.st_gid]
say([
    [facts(path) for path in ("/etc", "/etc/ssl")],
    set(os.listdir("/etc")) >= {{"ssl", "passwd", "hosts"}},
    [os.listdir("/etc/ssl/certs"), os.listdir("/opt"), os.stat("/opt").st_mode],
    open("/etc/passwd").read(),
    [sorted(os.listdir({str(shown)!r})), open({str(tmp_path / "there" / "file")!r}).read()],
    os.stat("/tmp").st_mode,
])
"""
    hidden = (*isolated(tmp_path).hidden, "/etc/ssl/certs", "/opt")
    found = await said(it, source, isolation=isolated(tmp_path, binds=binds, hidden=hidden))
    around, names, below, blank, mounted_there, mode = found
    expected = [os.stat(path) for path in ("/etc", "/etc/ssl")]
    assert around == [[one.st_mode, one.st_uid, one.st_gid] for one in expected]
    assert names
    assert below == [[], [], os.stat("/opt").st_mode]
    assert blank == ""
    assert mounted_there == [["below", "file"], "text"]
    assert mode == os.stat("/tmp").st_mode


@pytest.mark.slow
@with_rig
async def test_what_a_link_leads_to_is_hidden_too(it: Rig, tmp_path: Path) -> None:
    """A directory by whose name a link is in the way cannot be covered: it is mounted over."""
    links = [name for name in ("/bin", "/lib", "/sbin") if os.path.islink(name)]
    if not links:
        pytest.skip("no links in the machine's root")
    target = os.path.join(links[0], "kedge-hidden")
    source = f"say([os.listdir({target!r}), os.path.islink({links[0]!r})])"
    hidden = (*isolated(tmp_path).hidden, target)
    assert await said(it, source, isolation=isolated(tmp_path, hidden=hidden)) == [[], True]
    assert not os.path.exists(target)


@pytest.mark.skipif(not os.access("/usr/local", os.W_OK), reason="not the administrator")
@with_rig
async def test_what_a_link_that_is_hidden_means_is_hidden_by_its_own_name(it: Rig, tmp_path: Path) -> None:
    """Directories and files of the machine that are in sight otherwise."""
    with TemporaryDirectory(dir="/usr/local") as place:
        Path(place, "real").mkdir()
        for name in ("real/secret", "file"):
            Path(place, name).write_text("secret")
        Path(place, "link").symlink_to("real")
        Path(place, "short").symlink_to("file")
        source = f"say([os.listdir('{place}/real'), os.listdir('{place}/link'), open('{place}/file').read()])"
        hidden = (*isolated(tmp_path).hidden, f"{place}/link")
        isolation = isolated(tmp_path, hidden=hidden, binds=(Bind("/dev/null", f"{place}/short"),))
        assert await said(it, source, isolation=isolation) == [[], [], ""]


@with_rig
async def test_files_are_on_the_device_of_their_directory(it: Rig, tmp_path: Path) -> None:
    """Programs that stay on one file system, such as `du -x`, would pass over them, and take them for mount points."""
    source = """
before = os.stat("/etc/passwd").st_ino
os.chmod("/etc/passwd", 0o600)
paths = ("/etc", "/etc/passwd", "/usr", os.path.realpath("/usr/bin/env"))
say([len({os.stat(path).st_dev for path in paths}), os.path.ismount("/etc/passwd"),
     os.stat("/etc/passwd").st_ino == before])
"""
    places = (os.stat("/").st_dev, os.stat("/usr/bin").st_dev, os.stat("/etc/passwd").st_dev)
    if len(set(places)) > 1 or mounts.in_user_namespace() or not namespaces.is_administrator():
        pytest.skip("the machine's root is on several file systems, or cannot be overlaid as a whole")
    assert await said(it, source, isolation=isolated(tmp_path)) == [1, False, True]


@with_rig
async def test_a_root_of_its_own_is_made_of_layers(it: Rig, tmp_path: Path) -> None:
    for name, files in {"upper": {"a": "new"}, "lower": {"a": "old", "b": "kept"}}.items():
        (tmp_path / name / "data").mkdir(parents=True)
        for file, text in files.items():
            (tmp_path / name / "data" / file).write_text(text)
    binds = (*system(), *interpreter())
    layers = (str(tmp_path / "upper"), str(tmp_path / "lower"))
    isolation = isolated(tmp_path, layers=layers, hidden=("/tmp",), binds=binds)
    source = """
found = {name: open(f"/data/{name}").read() for name in os.listdir("/data")}
open("/data/a", "w").write("mine")
os.unlink("/data/b")
say([found, os.path.exists("/etc/passwd")])
"""
    assert await said(it, source, isolation=isolation) == [{"a": "new", "b": "kept"}, False]
    assert (tmp_path / "upper" / "data" / "a").read_text() == "new"
    assert (tmp_path / "lower" / "data" / "b").read_text() == "kept"


@pytest.mark.slow
@with_rig
async def test_packages_are_shown_with_what_later_layers_changed(it: Rig, tmp_path: Path) -> None:
    packages, changed = tmp_path / "packages", tmp_path / "changed"
    for place, text in ((packages, "first"), (changed, "second")):
        place.mkdir()
        (place / "version").write_text(text)
    (packages / "kept").write_text("kept")
    source = f"""
problem = ""
try:
    open({str(packages / "version")!r}, "w")
except OSError as error:
    problem = error.strerror
say([open({str(packages / "version")!r}).read(), os.listdir({str(packages)!r}), problem])
"""
    plain = isolated(tmp_path, packages=str(packages))
    text, names, problem = await said(it, source, isolation=plain)
    assert (text, sorted(names), problem) == ("first", ["kept", "version"], "Read-only file system")
    layered = isolated(tmp_path, packages=str(packages), package_layers=(str(changed),))
    text, names, problem = await said(it, source, isolation=layered)
    assert (text, sorted(names), problem) == ("second", ["kept", "version"], "Read-only file system")


@pytest.mark.slow
@with_rig
async def test_binds_are_made_in_their_order_and_read_only_unless_said(it: Rig, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "file").write_text("text")
    binds = (
        Bind(str(tmp_path / "a"), "/deep/inside/a", read_only=False),
        Bind(str(tmp_path / "b"), "/deep/inside/a/b"),
        Bind(str(tmp_path / "file"), "/other/name.txt"),
    )
    (tmp_path / "a" / "b").mkdir()
    source = """
open("/deep/inside/a/written", "w").write("mine")
refused = []
for path in ("/deep/inside/a/b/x", "/other/name.txt"):
    try:
        open(path, "w")
    except OSError as error:
        refused.append(error.strerror)
say([open("/other/name.txt").read(), refused])
"""
    text, refused = await said(it, source, isolation=isolated(tmp_path, binds=binds))
    assert (text, refused) == ("text", ["Read-only file system"] * 2)
    assert (tmp_path / "a" / "written").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["", "/proc/1/root", "/proc/self/root", "/proc/self/cwd"])
@with_rig
async def test_links_of_an_image_lead_nowhere_on_the_machine(it: Rig, tmp_path: Path, way: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    layer = tmp_path / "layer"
    layer.mkdir()
    (layer / "cache").symlink_to(f"{way}{outside}")
    (tmp_path / "data").mkdir()
    (tmp_path / "file").write_text("text")
    added = (Bind(str(tmp_path / "data"), "/cache/data"), Bind(str(tmp_path / "file"), "/cache/file"))
    binds = (*system(), *interpreter(), *added)
    isolation = isolated(tmp_path, layers=(str(layer),), hidden=("/tmp",), binds=binds)
    link, shown = await said(it, "say([os.readlink('/cache'), os.path.exists('/cache/data')])", isolation=isolation)
    assert (link, shown) == (f"{way}{outside}", not way)
    assert os.listdir(outside) == []


@pytest.mark.slow
@with_rig
async def test_devices_are_the_harmless_ones_and_those_that_are_named(it: Rig, tmp_path: Path) -> None:
    source = """
import pty
pty.openpty()
open("/dev/null", "w").write("x")
say([os.listdir("/dev"), len(open("/dev/urandom", "rb").read(4))])
"""
    names, count = await said(it, source, isolation=isolated(tmp_path))
    harmless = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm"}
    assert set(names) == harmless | {"fd", "stdin", "stdout", "stderr"}
    assert count == 4
    names, _ = await said(it, source, isolation=isolated(tmp_path, devices=("/dev/kmsg",)))
    assert set(names) - harmless == {"fd", "stdin", "stdout", "stderr", "kmsg"}


@pytest.mark.slow
@with_rig
async def test_the_machines_devices_can_be_used_and_not_changed(it: Rig, tmp_path: Path) -> None:
    """The harmless ones are its own. Others are the machine's, as they are."""
    source = """
def tried(*changes):
    for change in changes:
        try:
            change()
            yield "done"
        except OSError:
            yield "refused"
own = tried(lambda: os.chmod("/dev/null", 0o600), lambda: os.utime("/dev/null"), lambda: os.unlink("/dev/zero"))
others = tried(lambda: os.chmod("/dev/kmsg", 0o666), lambda: os.utime("/dev/kmsg"), lambda: os.unlink("/dev/kmsg"))
with open("/dev/null", "w") as null, open("/dev/urandom", "rb") as random:
    say([list(own), list(others), null.write("text"), len(random.read(3))])
"""
    before = [os.stat(path) for path in ("/dev/null", "/dev/zero", "/dev/kmsg")]
    isolation = isolated(tmp_path, devices=("/dev/kmsg",))
    own, others, written, read = await said(it, source, isolation=isolation)
    assert set(own) in ({"done"}, {"refused"}), "where it cannot have its own, it has the machine's"
    assert others == ["refused"] * 3
    assert (written, read) == (4, 3)
    after = [os.stat(path) for path in ("/dev/null", "/dev/zero", "/dev/kmsg")]
    facts = [[(one.st_mode, one.st_uid, one.st_mtime_ns) for one in nodes] for nodes in (before, after)]
    assert facts[0] == facts[1]


@pytest.mark.slow
@with_rig
async def test_without_a_network_it_has_itself_and_what_sockets_are_bound_in(it: Rig, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        source = f"""
import socket
names = [name for _, name in socket.if_nameindex()]
with socket.socket() as inner:
    inner.bind(("127.0.0.1", 0))
    inner.listen()
    socket.create_connection(inner.getsockname(), timeout=10).close()
socket.socket(socket.AF_UNIX).connect({str(path)!r})
try:
    socket.create_connection(("192.0.2.1", 80), timeout=10)
except OSError as error:
    say([names, error.strerror])
"""
        isolation = isolated(tmp_path, network=False, binds=(Bind(str(path), str(path), read_only=False),))
        names, problem = await said(it, source, isolation=isolation)
    assert "lo" in names
    assert not [name for name in names if name.startswith(("eth", "en", "wl"))]
    assert problem == "Network is unreachable"


@with_rig
async def test_an_app_without_an_image_has_the_machines_files_and_its_own_processes(it: Rig, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("here")
    lower = tmp_path / "lower"
    lower.mkdir()
    (lower / "a").write_text("from the volume")
    isolation = isolated(
        tmp_path,
        shares_files=True,
        hidden=(),
        binds=(),
        volumes=(VolumeMount(target="/cache-of-kedge", volume="v", lower=str(lower)),),
    )
    source = f"""
text = open({str(tmp_path / "mine")!r}).read()
open({str(tmp_path / "theirs")!r}, "w").write("written")
say([text, open("/cache-of-kedge/a").read(), sorted(filter(str.isdigit, os.listdir("/proc")))])
"""
    assert await said(it, source, isolation=isolation) == ["here", "from the volume", ["1", "2"]]
    assert (tmp_path / "theirs").read_text() == "written"
    assert not os.path.exists("/cache-of-kedge")


# ---------------------------------------------------------------- what it cannot do

ATTEMPTS = """
import ctypes, errno, subprocess
libc = ctypes.CDLL(None, use_errno=True)
def attempt(call, *arguments):
    ctypes.set_errno(0)
    result = getattr(libc, call)(*arguments)
    return errno.errorcode.get(ctypes.get_errno(), "") if result < 0 else "done"
child = subprocess.Popen(["sleep", "60"])
say({
    "mount": attempt("mount", b"tmpfs", b"/tmp", b"tmpfs", ctypes.c_ulong(0), None),
    "remount": attempt("mount", None, b"/proc/sys", None, ctypes.c_ulong(4096 | 32), None),
    "umount": attempt("umount2", b"/proc/sys", 2),
    "unshare user": attempt("unshare", 0x10000000),
    "unshare mounts": attempt("unshare", 0x00020000),
    "unshare files": attempt("unshare", 0x400),
    "setns": attempt("setns", 0, 0),
    "ptrace": attempt("ptrace", 16, child.pid, None, None),
    "mknod": attempt("mknod", b"/tmp/disk", 0o60600, 0x800),
    "sethostname": attempt("sethostname", b"x", 1),
    "reboot": attempt("reboot", 0),
    "clone3": attempt("syscall", ctypes.c_long(435), None, ctypes.c_long(0)),
    "swapon": attempt("swapon", b"/tmp/x", 0),
    "threads": __import__("threading").Thread(target=int).start() or "done",
    "init": (lambda: [None for _ in [0] if not os.path.exists("/proc/1/root/etc")] and "closed")(),
})
child.kill()
"""


@with_rig
async def test_it_cannot_undo_its_walls(it: Rig, tmp_path: Path) -> None:
    found = await said(it, ATTEMPTS, isolation=isolated(tmp_path))
    assert found == {
        "mount": "EPERM",
        "remount": "EPERM",
        "umount": "EPERM",
        "unshare user": "EPERM",
        "unshare mounts": "EPERM",
        "unshare files": "done",
        "setns": "EPERM",
        "ptrace": "EPERM",
        "mknod": "EPERM",
        "sethostname": "EPERM",
        "reboot": "EPERM",
        "clone3": "ENOSYS",
        "swapon": "EPERM",
        "threads": "done",
        "init": "closed",
    }


@pytest.mark.slow
@with_rig
async def test_the_kernels_own_files_cannot_be_written(it: Rig, tmp_path: Path) -> None:
    source = """
refused = []
for path in ("/proc/sys/kernel/core_pattern", "/sys/kernel/uevent_helper", "/sys/power/state"):
    if os.path.exists(path):
        try:
            open(path, "w").write("|/tmp/x")
        except OSError as error:
            refused.append(error.strerror)
        else:
            refused.append("written")
say(sorted(set(refused)))
"""
    assert await said(it, source, isolation=isolated(tmp_path)) == ["Read-only file system"]


@pytest.mark.slow
@with_rig
async def test_abstract_sockets_of_others_cannot_be_reached(it: Rig, tmp_path: Path) -> None:
    if confinement.landlock_version() < 6:
        pytest.skip("this Landlock cannot do that")
    name = f"\0kedge-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        source = f"""
import socket
try:
    socket.socket(socket.AF_UNIX).connect({name!r})
except OSError as error:
    say(error.strerror)
"""
        assert await said(it, source, isolation=isolated(tmp_path)) == "Operation not permitted"


@pytest.mark.slow
@with_rig
async def test_programs_that_it_starts_are_confined_as_well(it: Rig, tmp_path: Path) -> None:
    source = """
import subprocess
status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
fields = dict(line.split(":\\t", 1) for line in status.splitlines() if ":\\t" in line)
say([fields["NoNewPrivs"], fields["Seccomp"], int(fields["CapEff"], 16)])
"""
    no_new, seccomp, capabilities = await said(it, source, isolation=isolated(tmp_path))
    assert (no_new, seccomp) == ("1", "2")
    assert not capabilities >> 21 & 1, "CAP_SYS_ADMIN"
    assert not capabilities >> 27 & 1, "CAP_MKNOD"


# ---------------------------------------------------------------- how it starts and ends


@pytest.mark.slow
@with_rig
async def test_its_own_signals_kill_it(it: Rig, tmp_path: Path) -> None:
    for number in (signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM):
        source = f"import os, signal; signal.signal(15, signal.SIG_DFL); os.kill(os.getpid(), {int(number)})"
        end, _ = await it.run(source, isolation=isolated(tmp_path))
        assert (end.exit_code, end.signal) == (None, number)


@pytest.mark.slow
@with_rig
async def test_it_is_asked_to_leave_and_then_killed(it: Rig, tmp_path: Path) -> None:
    leaves = "import signal, sys; signal.signal(15, lambda *_: sys.exit(5)); " + SLEEP
    stays = "import signal; signal.signal(15, signal.SIG_IGN); " + SLEEP
    for source, code, number in ((leaves, 5, None), (stays, None, signal.SIGKILL)):
        container = it.launch(source, isolation=isolated(tmp_path))
        await it.says(container)
        it.engine.kill(container, 0.5 if number else 60.0)
        end = await it.lost(container)
        assert (end.exit_code, end.signal) == (code, number)


@with_rig
async def test_nothing_of_it_is_left(it: Rig, tmp_path: Path) -> None:
    source = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            print(open("/proc/self/status").read().count("NSpid"), flush=True)
            time.sleep(600)
        os._exit(0)
for _ in range(3):
    os.wait()
open("/tmp/rubbish", "w").write("x" * 10000)
os.mkdir("/var/tmp/locked", 0)
"""
    container = it.launch(source, isolation=isolated(tmp_path))
    started = await it.started(container)
    await it.lost(container)
    await eventually(lambda: not scratches(tmp_path))
    assert mounted(tmp_path) == []
    assert not alive(started.process)


def rooms_of(supervisor: int) -> list[int]:
    """The inits below a supervisor: children of its furnisher."""
    return [init for furnisher in named("kedge-rooms", supervisor) for init in named("kedge-init", furnisher)]


def named(name: str, parent: int) -> list[int]:
    """The children of a process that have this name."""
    found = []
    for process in filter(str.isdecimal, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{process}/stat").read_text()
        except OSError:
            continue
        if f"({name})" in stat and stat.rpartition(")")[2].split()[1] == str(parent):
            found.append(int(process))
    return found


@pytest.mark.slow
def test_containers_rooms_and_files_of_a_killed_supervisor_do_not_outlive_it(tmp_path: Path) -> None:
    async def play() -> None:
        async with rig() as it:
            container = it.launch(SLEEP, isolation=isolated(tmp_path))
            await it.says(container)
            process = (await it.started(container)).process
            await eventually(lambda: len(rooms_of(it.engine.supervisor)) > 1)  # its own, and spares
            rooms = rooms_of(it.engine.supervisor)
            os.kill(it.engine.supervisor, signal.SIGKILL)
            await ended(process, *rooms)
            await it.lost(container)
            assert len(scratches(tmp_path)) == 1, "nobody was there to remove it"
            end, _ = await it.run("print('again')", isolation=isolated(tmp_path))
            assert end.exit_code == 0
            await eventually(lambda: not scratches(tmp_path))

    asyncio.run(play())


@with_rig
async def test_a_furnisher_that_dies_takes_its_rooms_along_and_the_next_container_has_another(
    it: Rig, tmp_path: Path
) -> None:
    container = it.launch(SLEEP, isolation=isolated(tmp_path))
    await it.says(container)
    [furnisher] = named("kedge-rooms", it.engine.supervisor)
    os.kill(furnisher, signal.SIGKILL)
    lost = await it.lost(container)
    assert (lost.signal, lost.reason) == (signal.SIGKILL, "the process that makes rooms has died")
    assert lost.blameless
    end, output = await it.run("print('again')", isolation=isolated(tmp_path))
    assert (end.exit_code, output.strip()) == (0, b"again")
    assert named("kedge-rooms", it.engine.supervisor) not in ([], [furnisher])


@with_rig
async def test_a_container_that_is_not_wanted_any_more_while_it_waits_for_a_room_has_none(
    it: Rig, tmp_path: Path
) -> None:
    await it.run("pass", isolation=isolated(tmp_path))
    [furnisher] = named("kedge-rooms", it.engine.supervisor)
    os.kill(furnisher, signal.SIGSTOP)
    waiting = [it.launch(SLEEP, isolation=isolated(tmp_path)) for _ in range(5)]  # more than there are spares
    it.engine.kill(waiting[-1], 0.0)
    assert (await it.lost(waiting[-1])).reason == "killed before it had a process"
    os.kill(furnisher, signal.SIGCONT)
    for container in waiting[:-1]:
        await it.says(container)
        it.engine.kill(container, 0.0)
        await it.lost(container)


@with_rig
async def test_rooms_that_cannot_be_furnished_leave_nothing_open(it: Rig, tmp_path: Path) -> None:
    await it.run("pass", isolation=isolated(tmp_path))
    [furnisher] = named("kedge-rooms", it.engine.supervisor)
    bad = isolated(tmp_path, binds=(Bind("/usr", "/mnt/usr"), Bind(str(tmp_path / "missing"), "/there")))
    opened = []
    for _ in range(3):
        end, _ = await it.run("pass", isolation=bad)
        assert end.exit_code == 71
        await eventually(lambda: len(named("kedge-init", furnisher)) == 2)  # spares
        opened.append(sorted(os.listdir(f"/proc/{furnisher}/fd")))
    assert opened[0] == opened[1] == opened[2]
    end, _ = await it.run("pass", isolation=isolated(tmp_path))
    assert end.exit_code == 0


@with_rig
async def test_a_room_that_fails_in_an_unforeseen_way_takes_no_other_along(it: Rig, tmp_path: Path) -> None:
    other = it.launch(SLEEP, isolation=isolated(tmp_path))
    await it.says(other)
    furnishers = named("kedge-rooms", it.engine.supervisor)
    volume = VolumeMount(target="/deep" + "/a" * 1500, volume="v", lower=str(tmp_path))
    end, _ = await it.run("pass", isolation=isolated(tmp_path, volumes=(volume,)))
    assert end.exit_code == 71
    assert "recursion" in it.output(end.container, 2).decode()
    assert named("kedge-rooms", it.engine.supervisor) == furnishers
    assert not it.of(ContainerLost, other)


def test_who_makes_rooms_goes_no_further_where_it_cannot_leave_one() -> None:
    process = os.fork()
    if process == 0:
        try:
            os.close(2)
            furnisher.Home(-1, -1).go()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 1


@with_rig
async def test_who_waits_when_the_furnisher_dies_is_not_to_blame(it: Rig, tmp_path: Path) -> None:
    await it.run("pass", isolation=isolated(tmp_path))
    [maker] = named("kedge-rooms", it.engine.supervisor)
    await eventually(lambda: len(named("kedge-init", maker)) == 2)
    os.kill(maker, signal.SIGSTOP)
    waiting = [it.launch(SLEEP, isolation=isolated(tmp_path)) for _ in range(4)]  # two of them get the spares
    await it.started(it.launch(SLEEP))  # what was said before has been heard
    os.kill(maker, signal.SIGKILL)
    for container in waiting:
        lost = await it.lost(container)
        assert lost.blameless, lost
    assert it.of(ContainerLost, waiting[-1])[0].reason.endswith(rooms.DIED)


@pytest.mark.slow
@with_rig
async def test_a_supervisor_without_descriptors_says_so_and_lives_on(it: Rig, tmp_path: Path) -> None:
    await it.run("pass", isolation=isolated(tmp_path))
    supervisor = it.engine.supervisor
    before = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (descriptors(supervisor) + 25, before[1]))
    containers = [it.launch(SLEEP, isolation=isolated(tmp_path, network=bool(each % 3))) for each in range(20)]
    await it.until(lambda: all(it.of(ContainerStarted, each) or it.of(ContainerLost, each) for each in containers))
    reasons = [lost.reason for each in containers for lost in it.of(ContainerLost, each)]
    assert reasons
    assert all("Too many open files" in reason for reason in reasons), reasons
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, before)
    for container in containers:
        it.engine.kill(container, 0.0)
        await it.lost(container)
    end, output = await it.run("print('again')", isolation=isolated(tmp_path))
    assert (end.exit_code, output) == (0, b"again\n")
    assert it.engine.supervisor == supervisor
    await eventually(lambda: len(rooms_of(supervisor)) == 2)


@with_rig
async def test_rooms_that_nobody_wants_any_more_end(it: Rig, tmp_path: Path) -> None:
    await it.run("pass", isolation=isolated(tmp_path))
    [maker] = named("kedge-rooms", it.engine.supervisor)
    os.kill(maker, signal.SIGSTOP)
    waiting = [it.launch(SLEEP, isolation=isolated(tmp_path, network=bool(each % 2))) for each in range(12)]
    for container in waiting:
        it.engine.kill(container, 0.0)
    last = it.launch("pass", isolation=isolated(tmp_path, network=False))  # its room is made after all the others
    os.kill(maker, signal.SIGCONT)
    for container in (*waiting, last):
        await it.lost(container)
    await eventually(lambda: len(named("kedge-init", maker)) == 2)  # spares


def settled(maker: int) -> bool:
    """Whether the inits of a furnisher do nothing but wait."""
    inits = Path(f"/proc/{maker}/task/{maker}/children").read_text().split()
    return bool(inits) and not any(os.listdir(f"/proc/{init}/fd") for init in inits)


def test_who_comes_before_the_death_of_the_furnisher_is_heard_of_is_answered_once(tmp_path: Path) -> None:
    launch = make_launch("ct-x", "pass", isolation=isolated(tmp_path))
    loop = Loop()
    supply = rooms.Rooms(loop, Errands(loop), loop.stop)
    heard: list[rooms.Room | str] = []

    def answer(room: rooms.Room | str) -> None:
        heard.append(room)
        loop.stop()

    try:
        supply.take(launch, [], answer)
        loop.run()
        [maker] = supply.processes()
        end = time.monotonic() + 10.0
        while not settled(maker):  # until then, an init holds the furnisher's end of the way as well
            assert time.monotonic() < end
            time.sleep(0.002)
        os.kill(maker, signal.SIGKILL)
        os.waitid(os.P_PID, maker, os.WEXITED | os.WNOWAIT)
        supply.take(launch, [], answer)
        assert heard[1:] == [rooms.DIED]
        supply.take(launch, [], answer)
        loop.run()
        assert [isinstance(room, rooms.Room) for room in heard] == [True, False, True]
    finally:
        for maker in supply.processes():
            os.kill(maker, signal.SIGKILL)
            os.waitpid(maker, 0)
        loop.run()  # until it has been heard of
        for room in heard:
            if isinstance(room, rooms.Room):
                room.end()
        supply.base.close()


@with_rig
async def test_what_cannot_be_shown_is_named(it: Rig, tmp_path: Path) -> None:
    isolation = isolated(tmp_path, binds=(Bind(str(tmp_path / "missing"), "/there"),))
    first = it.launch("pass", isolation=isolated(tmp_path))  # its fork server has what all of them need
    await it.lost(first)
    end, _ = await it.run("print('never')", isolation=isolation)
    assert end.exit_code == 71
    assert str(tmp_path / "missing") in it.output(end.container, 2).decode()
    assert end.reason == "what it is to find around it cannot be made; its output says why"


@pytest.mark.slow
@with_rig
async def test_one_fork_server_serves_containers_with_other_files_of_their_own(it: Rig, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    for binds in ((), (Bind(str(tmp_path / "code"), "/code"),)):
        await it.run("pass", isolation=isolated(tmp_path, binds=binds))
    assert len(it.of(ForkServerReported)) == 1
    await it.run("pass", isolation=isolated(tmp_path, hidden=("/tmp", "/root", "/home", "/work", "/run", "/var")))
    assert len(it.of(ForkServerReported)) == 2, "another root is another fork server"


@pytest.mark.slow
@with_rig
async def test_a_package_that_forbids_forking_changes_nothing_inside(it: Rig, tmp_path: Path) -> None:
    path = site_packages(tmp_path, held_open="import os; held = os.pipe()")
    isolation = isolated(tmp_path, binds=(Bind(path, path),))
    source = "say([os.getpid(), sorted(filter(str.isdigit, os.listdir('/proc'))), os.path.exists('/tmp/x')])"
    found = await said(it, source, isolation=isolation, sys_path=(*sys.path[1:], path), preload=("held_open",))
    assert it.of(ContainerStarted)[0].how == "spawn"
    assert found == [2, ["1", "2"], False]


@pytest.mark.slow
@with_rig
async def test_an_entrypoint_starts_the_interpreter(it: Rig, tmp_path: Path) -> None:
    script = tmp_path / "entry"
    script.write_text('#!/bin/sh\nexport GREETING=hello\nexec "$@"\n')
    script.chmod(0o755)
    isolation = isolated(tmp_path, binds=(Bind(str(script), "/entry"),), entrypoint=("/entry",))
    end, output = await it.run("import os; print(os.environ['GREETING'])", isolation=isolation)
    assert (end.exit_code, output) == (0, b"hello\n")
    assert it.of(ContainerStarted)[0].how == "spawn"
    assert it.of(ForkServerReported) == []


# ---------------------------------------------------------------- volumes


def volume(directory: Path, name: str, text: str, *, writable: bool = False) -> VolumeMount:
    tree = directory / name
    tree.mkdir()
    (tree / "text").write_text(text)
    if not writable:
        return VolumeMount(target="/data", volume="v", lower=str(tree))
    for part in ("upper", "work"):
        (directory / f"{name}-{part}").mkdir()
    return VolumeMount(
        target="/data",
        volume="v",
        lower=str(tree),
        upper=str(directory / f"{name}-upper"),
        work=str(directory / f"{name}-work"),
    )


@pytest.mark.slow
@with_rig
async def test_changes_of_a_volume_are_kept_apart(it: Rig, tmp_path: Path) -> None:
    mount = volume(tmp_path, "one", "first", writable=True)
    source = "open('/data/new', 'w').write('mine'); os.unlink('/data/text'); say(os.listdir('/data'))"
    assert await said(it, source, isolation=isolated(tmp_path, volumes=(mount,))) == ["new"]
    assert (tmp_path / "one" / "text").read_text() == "first"
    assert (tmp_path / "one-upper" / "new").read_text() == "mine"
    assert not (tmp_path / "one" / "new").exists()


RELOADING = """
import sys, time
held = open("/data/text")
print("holds", held.read(), flush=True)
while not __import__("os").path.exists("/go/on"):
    time.sleep(0.005)
held.close()
print("let go", flush=True)
while open("/data/text").read() != "second":
    time.sleep(0.005)
print("sees second", flush=True)
time.sleep(600)
"""


@with_rig
async def test_another_version_takes_the_place_of_a_volume_unless_its_files_are_open(it: Rig, tmp_path: Path) -> None:
    (tmp_path / "go").mkdir()
    binds = (Bind(str(tmp_path / "go"), "/go"),)
    isolation = isolated(tmp_path, volumes=(volume(tmp_path, "one", "first", writable=True),), binds=binds)
    fresh = volume(tmp_path, "two", "second", writable=True)
    container = it.launch(RELOADING, isolation=isolation)
    await it.says(container, b"holds first")
    it.engine.remount(container, fresh, 1)
    [answer] = await it.until(lambda: it.of(VolumeAnswered))
    assert answer == VolumeAnswered(1, "busy: /data/text in use")
    (tmp_path / "go" / "on").touch()
    await it.says(container, b"let go")

    async def ask(request: int) -> str:
        it.engine.remount(container, fresh, request)
        return (await it.until(lambda: [each for each in it.of(VolumeAnswered) if each.request == request]))[0].error

    request = 2
    while await ask(request):  # the container looks into the file again and again
        request += 1
    await it.says(container, b"sees second")
    assert mounted(tmp_path) == []


@pytest.mark.slow
@with_rig
async def test_who_cannot_be_given_another_version_is_answered(it: Rig, tmp_path: Path) -> None:
    mount = volume(tmp_path, "one", "first")
    it.engine.remount("ct-nobody", mount, 1)
    container = it.launch(SLEEP)
    await it.says(container)
    it.engine.remount(container, mount, 2)
    await it.until(lambda: len(it.of(VolumeAnswered)) == 2)
    assert [answer.error for answer in it.of(VolumeAnswered)] == [
        "the container is not there",
        "containers on the rung process keep the version of a volume that they started with",
    ]


@pytest.mark.slow
@with_rig
async def test_what_the_server_still_needs_of_a_scratch_directory_is_left(it: Rig, tmp_path: Path) -> None:
    isolation = isolated(tmp_path)
    kept = Path(isolation.scratch) / "volumes" / "0"
    kept.mkdir(parents=True)
    await it.run("open('/tmp/x', 'w').write('x')", isolation=isolation)
    await eventually(lambda: os.listdir(isolation.scratch) == ["volumes"])
    assert kept.is_dir()


@pytest.mark.slow
def test_the_launch_of_a_namespace_is_refused_where_its_scratch_cannot_be(tmp_path: Path) -> None:
    async def play() -> None:
        async with rig() as it:
            (tmp_path / "file").write_text("")
            isolation = isolated(tmp_path, scratch=str(tmp_path / "file" / "scratch"))
            it.engine.start(make_launch("ct-x", "pass", isolation=isolation))
            end = await it.lost("ct-x")
            assert end.reason.startswith("what it is to find around it cannot be made: ")

    asyncio.run(play())
