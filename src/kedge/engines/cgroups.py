"""Control groups: where they may be made on this machine, and one per container that has limits.

Version 2 (delegated to this user, or root's) and version 1 are used side by side, each controller where it is found.
All is paths and small files, so that a directory tree can stand in for a kernel. A group is made and bounded before
anything is in it; a process puts itself in (`bounds`), since that takes the kernel 6 to 7 ms now and then, and nobody
else is to wait for that. Groups of a server lie in one directory, whose name says which process looks after them: those
of a process that is gone are removed by the next one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection
from typing import NamedTuple

from kedge.engines import system
from kedge.model.spec import Limits

CONTROLLERS = ("cpu", "memory", "pids")
_PERIOD_US = 100_000
_LEAST_QUOTA_US = 1_000
"""What the kernel accepts."""
_PREFIX = "kedge-"
_OWN = "kedge.server"
"""Where version 2 has the server itself: a group with groups below it must hold no process."""
_ROUNDS = 20


class Hierarchy(NamedTuple):
    """One mounted tree of groups, and where this process is in it."""

    version: int
    mountpoint: str
    own: str


class Home(NamedTuple):
    """Where groups with one controller may be made."""

    version: int
    directory: str


class Found(NamedTuple):
    homes: dict[str, Home]
    """By controller."""
    lacking: dict[str, str]
    """Controller → why there is none."""


def hierarchies(mounts: str, membership: str) -> dict[str, Hierarchy]:
    """What is mounted, by controller of version 1, and version 2 as "unified". Takes the texts of
    /proc/self/mountinfo and /proc/self/cgroup."""
    paths: dict[str, str] = {}
    for line in membership.splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        paths.update(dict.fromkeys(["unified"] if number == "0" and not names else names.split(","), path))
    found: dict[str, Hierarchy] = {}
    for line in mounts.splitlines():
        place, _, kind = line.partition(" - ")
        words, facts = place.split(" "), kind.split(" ")
        if len(words) < 5 or len(facts) < 3 or facts[0] not in ("cgroup", "cgroup2"):
            continue
        root, mountpoint = words[3], words[4].replace("\\040", " ")
        for name in ["unified"] if facts[0] == "cgroup2" else facts[2].split(","):
            if name in paths and name not in found:
                own = mountpoint + _below(paths[name], root)
                found[name] = Hierarchy(2 if name == "unified" else 1, mountpoint, own)
    return found


def _below(path: str, root: str) -> str:
    """The part of a group's path that is seen below a mount of `root`."""
    root = root.rstrip("/")
    inside = path[len(root) :] if path == root or path.startswith(f"{root}/") else ""
    return "" if inside.startswith("/..") else inside.rstrip("/")


def find(process: str = "/proc/self", kin: Collection[int] = ()) -> Found:
    """Where this process may make groups; nothing is changed. `kin` are the processes that may be moved out of its own
    group: the server's."""
    try:
        trees = hierarchies(_read(f"{process}/mountinfo"), _read(f"{process}/cgroup"))
    except OSError:
        trees = {}
    homes: dict[str, Home] = {}
    lacking: dict[str, str] = {}
    unified = trees.get("unified")
    directory, usable, reason = _best(unified, kin) if unified is not None else ("", frozenset[str](), "")
    for name in CONTROLLERS:
        first = trees.get(name)
        if name in usable:
            homes[name] = Home(2, directory)
        elif first is not None and _writable(first.own):
            homes[name] = Home(1, first.own)
        elif first is not None:
            lacking[name] = f"{first.own} cannot be written by this user"
        else:
            lacking[name] = reason or "the kernel, or whoever started this process, offers no such controller"
    return Found(homes, lacking)


def _best(tree: Hierarchy, kin: Collection[int]) -> tuple[str, frozenset[str], str]:
    """The group of version 2 below which most controllers can be used, the nearest one of several: the own one where
    nobody else is in it, else one above it that has no processes."""
    best, most, reason = "", frozenset[str](), ""
    directory = tree.own
    while True:
        offered = _words(f"{directory}/cgroup.controllers") & frozenset(CONTROLLERS)
        if offered and not _writable(directory):
            reason = reason or f"{directory} cannot be written by this user"
        elif offered:
            enabled = offered & _words(f"{directory}/cgroup.subtree_control")
            is_root = not os.path.exists(f"{directory}/cgroup.events")
            usable = offered if is_root or processes(directory) <= set(kin) else enabled
            reason = reason or ("" if usable else f"other programs run in {directory}")
            if len(usable) > len(most):
                best, most = directory, usable
        if directory == tree.mountpoint or len(directory) <= len(tree.mountpoint):
            return best, most, reason
        directory = os.path.dirname(directory)


def _writable(directory: str) -> bool:
    return all(os.access(path, os.W_OK) for path in (directory, f"{directory}/cgroup.procs"))


class Groups:
    """The groups of one server. `open` and `close` on this machine's kernel take a millisecond or so."""

    def __init__(self, found: Found, name: str = "") -> None:
        self._homes = found.homes
        self._name = name or f"{_PREFIX}{os.getpid()}-{_birth(os.getpid())}"
        self.controllers: dict[str, str] = {}
        """Those that work, and the directory under which groups with them are made."""
        self._versions: dict[str, int] = {}

    def open(self, kin: Collection[int] = ()) -> None:
        """Makes room for groups, and removes what servers that are gone have left. Where that fails for a controller,
        there is none."""
        for name, home in self._homes.items():
            directory = os.path.join(home.directory, self._name)
            try:
                sweep(home.directory)
                if home.version == 2:
                    _vacate(home.directory, kin)
                    _write(f"{home.directory}/cgroup.subtree_control", f"+{name}")
                os.makedirs(directory, exist_ok=True)
                if home.version == 2:
                    _write(f"{directory}/cgroup.subtree_control", f"+{name}")
            except OSError:
                continue
            self.controllers[name] = directory
            self._versions[name] = home.version

    def make(self, name: str, limits: Limits) -> Group:
        """A group with those of `limits` that have a controller here; its memory is counted in any case. OSError where
        the kernel refuses."""
        wanted = {"cpu": limits.cpu, "memory": limits.memory, "pids": limits.pids}
        places = {
            controller: Home(self._versions[controller], os.path.join(directory, name))
            for controller, directory in self.controllers.items()
            if wanted[controller] is not None or controller == "memory"
        }
        group = Group(places)
        try:
            for directory in group.directories:
                os.makedirs(directory, exist_ok=True)
            group.bound(limits)
        except OSError:
            group.remove()
            raise
        return group

    def close(self) -> None:
        """Removes all that is left of them; whoever is still in there is killed."""
        for directory in {*self.controllers.values()}:
            _remove_tree(directory)


class Group:
    """The bounds of one container, as directories of one or several hierarchies."""

    def __init__(self, places: dict[str, Home]) -> None:
        self._places = places
        self.directories = tuple(dict.fromkeys(home.directory for home in places.values()))

    @property
    def doors(self) -> tuple[str, ...]:
        """The files in which a process writes "0" to be in it."""
        return tuple(f"{directory}/cgroup.procs" for directory in self.directories)

    def bound(self, limits: Limits) -> None:
        for controller, (version, directory) in self._places.items():
            if controller == "cpu" and limits.cpu is not None:
                quota = max(_LEAST_QUOTA_US, round(limits.cpu * _PERIOD_US))
                if version == 2:
                    _write(f"{directory}/cpu.max", f"{quota} {_PERIOD_US}")
                else:
                    _write(f"{directory}/cpu.cfs_period_us", str(_PERIOD_US))
                    _write(f"{directory}/cpu.cfs_quota_us", str(quota))
            elif controller == "memory" and limits.memory is not None:
                _bound_memory(version, directory, limits.memory * 2**20)
            elif controller == "pids" and limits.pids is not None:
                _write(f"{directory}/pids.max", str(limits.pids))

    def limit_pids(self, count: int) -> None:
        """Another bound from now on; who is there stays."""
        if "pids" in self._places:
            _attempt(lambda: _write(f"{self._places['pids'].directory}/pids.max", str(count)))

    def tasks(self) -> int:
        """Processes and threads in it now."""
        try:
            return int(_read(f"{self._places['pids'].directory}/pids.current"))
        except (OSError, ValueError, KeyError):
            return 0

    def holds(self, controller: str) -> bool:
        return controller in self._places

    def peak_memory(self) -> int | None:
        """MiB that it has held at most, with the files that the kernel keeps in memory for it."""
        version, directory = self._places.get("memory", (0, ""))
        name = "memory.peak" if version == 2 else "memory.max_usage_in_bytes"
        try:
            return round(int(_read(f"{directory}/{name}")) / 2**20) if version else None
        except (OSError, ValueError):  # before Linux 5.19 version 2 does not say
            return None

    @property
    def memory_events(self) -> str:
        """The file that counts processes which were killed for want of memory; empty where nobody counts."""
        version, directory = self._places.get("memory", (0, ""))
        return f"{directory}/{'memory.events' if version == 2 else 'memory.oom_control'}" if version else ""

    def memory_kills(self) -> int:
        """Processes of it that were killed for want of memory, its own or the machine's."""
        version, directory = self._places.get("memory", (0, ""))
        if version == 2:
            return _counter(self.memory_events, "oom_kill")
        # Version 1 counts for each group alone, and an OCI runtime has one of its own below.
        return sum(_counter(f"{path}/memory.oom_control", "oom_kill") for path, _, _ in os.walk(directory))

    def refusals(self) -> int:
        """Processes and threads that it was refused."""
        _, directory = self._places.get("pids", (0, ""))
        return _counter(f"{directory}/pids.events", "max")

    def listen(self) -> int | None:
        """A descriptor that becomes readable when memory runs out in it. None where the kernel ends all of it by
        itself (version 2), or does not say so."""
        version, directory = self._places.get("memory", (0, ""))
        if version != 1 or not hasattr(os, "eventfd"):
            return None
        bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            watched = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _write(f"{directory}/cgroup.event_control", f"{bell} {watched}")
            finally:
                os.close(watched)
        except OSError:
            os.close(bell)
            return None
        return bell

    def remove(self) -> bool:
        """Ends everything in it. Whether it is gone; False while a process of it has not quite ended."""
        left = [directory for directory in self.directories if not _remove_tree(directory)]
        return not left


def _bound_memory(version: int, directory: str, size: int) -> None:
    if version == 2:
        _write(f"{directory}/memory.max", str(size))
        _attempt(lambda: _write(f"{directory}/memory.swap.max", "0"))
        _attempt(lambda: _write(f"{directory}/memory.oom.group", "1"))
    else:
        _write(f"{directory}/memory.limit_in_bytes", str(size))
        if os.path.exists(f"{directory}/memory.memsw.limit_in_bytes"):  # memory and swap together
            _attempt(lambda: _write(f"{directory}/memory.memsw.limit_in_bytes", str(size)))


def nested(name: str) -> str:
    """Where an OCI runtime makes its group: with version 1 below those that it is in itself, so that their limits hold.
    Version 2 has no groups below one that holds a process."""
    return f"/kedge-oci/{name}" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else f"kedge-oci/{name}"


def left_nested(name: str, process: str = "/proc/self") -> Group:
    """What such a runtime may have left of a container, in hierarchies that nobody else here uses too."""
    trees = hierarchies(_read(f"{process}/mountinfo"), _read(f"{process}/cgroup"))
    found = {
        tree.own if tree.version == 1 and not nested(name).startswith("/") else tree.mountpoint
        for tree in trees.values()
    }
    return Group({path: Home(0, f"{path}/kedge-oci/{name}") for path in sorted(found)})


# ---------------------------------------------------------------- what servers leave behind


def sweep(directory: str) -> None:
    """Removes the groups of servers that are not there any more."""
    for name in os.listdir(directory):
        process, _, birth = name.removeprefix(_PREFIX).partition("-")
        ours = name.startswith(_PREFIX) and process.isdecimal() and birth.isdecimal()
        if ours and _birth(int(process)) != int(birth):
            _remove_tree(os.path.join(directory, name))


def _remove_tree(directory: str) -> bool:
    """Kills what is in a group and in those below it, and removes them; whether they are gone."""
    try:
        below = [entry.path for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return True
    for path in below:
        _remove_tree(path)
    _kill(directory)
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def _vacate(directory: str, kin: Collection[int]) -> None:
    """Moves the server's own processes into a group below theirs."""
    inside = processes(directory) & set(kin)
    if inside and os.path.exists(f"{directory}/cgroup.events"):
        own = os.path.join(directory, _OWN)
        os.makedirs(own, exist_ok=True)
        for process in sorted(inside):
            _write(f"{own}/cgroup.procs", str(process))


def _kill(directory: str) -> None:
    """Kills what is in a group: at once where the kernel can, else until nobody is left who could have been forked
    meanwhile."""
    if _attempt(lambda: _write_existing(f"{directory}/cgroup.kill", "1")):
        return
    if os.path.exists(f"{directory}/pids.max"):
        _attempt(lambda: _write(f"{directory}/pids.max", "0"))
    for _ in range(_ROUNDS):
        inside = processes(directory)
        for process in inside:
            system.send_signal(signal.SIGKILL, process, None)
        if not inside:
            return


def processes(directory: str) -> set[int]:
    """Those in a group itself, without the groups below it."""
    try:
        return {int(word) for word in _read(f"{directory}/cgroup.procs").split()} - {0}
    except OSError:
        return set()


# ---------------------------------------------------------------- small files


def _birth(process: int) -> int:
    """When a process began, in ticks since the start of the machine: with its number it has no double. 0: there is
    none."""
    try:
        return int(_read(f"/proc/{process}/stat").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _counter(path: str, name: str) -> int:
    try:
        return sum(int(line.split()[1]) for line in _read(path).splitlines() if line.startswith(f"{name} "))
    except (OSError, ValueError, IndexError):
        return 0


def _words(path: str) -> frozenset[str]:
    try:
        return frozenset(_read(path).split())
    except OSError:
        return frozenset()


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _write_existing(path: str, text: str) -> None:
    with open(path, "r+", encoding="ascii") as file:
        file.write(text)


def _attempt(act: Callable[[], None]) -> bool:
    try:
        act()
    except OSError:
        return False
    return True
