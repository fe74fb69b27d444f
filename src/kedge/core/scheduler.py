"""Where a container goes: a node with room for its cpu, memory and devices, or the reason why none has it.

Requests bound placement. One that is larger than every node is clamped to the largest, so that a file written for a big
machine still runs on a laptop. Devices are never clamped: what is not there cannot be used.
"""

from __future__ import annotations

from msgspec import Struct

from kedge.model.spec import GpuRequest, Resources

ANY_GPU = "ANY"


class Node(Struct):
    """One machine: what it has, and what is taken."""

    name: str
    cpu: float
    memory: int
    devices: dict[str, list[int]]
    """Free device indices by GPU name."""
    capacity: dict[str, int]
    cpu_used: float = 0.0
    memory_used: int = 0
    containers: int = 0
    ports: list[int] = []
    """Those that containers have."""


class Placement(Struct, frozen=True):
    """A place that is taken until it is released."""

    node: str
    cpu: float
    memory: int
    gpu: str = ""
    devices: tuple[int, ...] = ()
    ports: tuple[int, ...] = ()


class Unplaceable(Struct, frozen=True):
    """Why there is no place: at this moment (`lasting` False), or with these machines never."""

    reason: str
    lasting: bool = False


class Scheduler:
    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def join(self, name: str, cpu: float, memory: int, gpus: dict[str, int]) -> None:
        free, first = {}, 0
        for gpu, count in gpus.items():
            free[gpu.upper()] = list(range(first, first + count))
            first += count
        self.nodes[name] = Node(name, cpu, memory, free, {gpu: len(ids) for gpu, ids in free.items()})

    def leave(self, name: str) -> None:
        self.nodes.pop(name, None)

    def clamped(self, resources: Resources) -> tuple[float, int]:
        """The cpu and memory that are really asked for, given the machines there are."""
        cpu = max((node.cpu for node in self.nodes.values()), default=resources.cpu)
        memory = max((node.memory for node in self.nodes.values()), default=resources.memory)
        return min(resources.cpu, cpu), min(resources.memory, memory)

    def place(self, resources: Resources, overcommit: bool = False) -> Placement | Unplaceable:
        """Takes a place. With `overcommit` cpu and memory do not bound it: for a container without which nothing
        moves."""
        if not self.nodes:
            return Unplaceable("no machine has joined yet")
        cpu, memory = self.clamped(resources)
        never = self._impossible(resources.gpus)
        if never:
            return Unplaceable(never, lasting=True)
        for gpu in resources.gpus or (None,):
            for node in self.nodes.values():
                fits = node.cpu_used + cpu <= node.cpu + 1e-9 and node.memory_used + memory <= node.memory
                name = self._device(node, gpu)
                if name is not None and (fits or overcommit) and not _shared(resources.ports, node.ports):
                    return self._take(node, cpu, memory, name, gpu.count if gpu else 0, resources.ports)
        return Unplaceable(self._shortage(cpu, memory, resources))

    def would_place(self, resources: Resources, without: list[Placement]) -> bool:
        """Whether there were a place if these were released."""
        cpu, memory = self.clamped(resources)
        for node in self.nodes.values():
            gone = [place for place in without if place.node == node.name]
            cpu_used = node.cpu_used - sum(place.cpu for place in gone)
            memory_used = node.memory_used - sum(place.memory for place in gone)
            if cpu_used + cpu > node.cpu + 1e-9 or memory_used + memory > node.memory:
                continue
            left = [port for place in gone for port in place.ports]
            if _shared(resources.ports, [port for port in node.ports if port not in left]):
                continue
            for gpu in resources.gpus or (None,):
                if gpu is None:
                    return True
                for name, free in node.devices.items():
                    freed = sum(len(place.devices) for place in gone if place.gpu == name)
                    if (gpu.name == ANY_GPU or matches(name, gpu.name)) and len(free) + freed >= gpu.count:
                        return True
        return False

    def release(self, placement: Placement) -> None:
        node = self.nodes.get(placement.node)
        if node is None:
            return
        node.cpu_used -= placement.cpu
        node.memory_used -= placement.memory
        node.containers -= 1
        for port in placement.ports:
            node.ports.remove(port)
        if placement.gpu:
            node.devices[placement.gpu] = sorted([*node.devices[placement.gpu], *placement.devices])

    def _take(self, node: Node, cpu: float, memory: int, gpu: str, count: int, ports: tuple[int, ...]) -> Placement:
        devices = tuple(node.devices[gpu][:count]) if gpu else ()
        if gpu:
            del node.devices[gpu][:count]
        node.cpu_used += cpu
        node.memory_used += memory
        node.containers += 1
        node.ports.extend(ports)
        return Placement(node.name, cpu, memory, gpu, devices, ports)

    def _device(self, node: Node, gpu: GpuRequest | None) -> str | None:
        """The name under which `node` has these devices free; "" where none are asked for; None where it has not."""
        if gpu is None:
            return ""
        names = list(node.devices) if gpu.name == ANY_GPU else [n for n in node.devices if matches(n, gpu.name)]
        return next((name for name in names if len(node.devices[name]) >= gpu.count), None)

    def _impossible(self, gpus: tuple[GpuRequest, ...]) -> str:
        for gpu in gpus:
            for node in self.nodes.values():
                for name, count in node.capacity.items():
                    if count >= gpu.count and (gpu.name == ANY_GPU or matches(name, gpu.name)):
                        return ""
        if not gpus:
            return ""
        asked = " or ".join(f"{gpu.name}:{gpu.count}" if gpu.count > 1 else gpu.name for gpu in gpus)
        have = [f"{name}={count}" for node in self.nodes.values() for name, count in node.capacity.items()]
        return (
            f"gpu {asked} was asked for, and this machine has {', '.join(have) or 'no GPU'}: "
            f'declare devices with KEDGE_GPUS="{gpus[0].name}={gpus[0].count}", or leave out gpu='
        )

    def _shortage(self, cpu: float, memory: int, resources: Resources) -> str:
        parts, gpus = [], resources.gpus
        if taken := [port for port in resources.ports if all(port in node.ports for node in self.nodes.values())]:
            return (
                f"port {taken[0]} is taken by another container, and one at a time can listen there; let that one take "
                "more inputs (@kedge.concurrent), or return an ASGI app instead of listening on a port"
            )
        for node in self.nodes.values():
            used = f"{node.cpu_used:g} of {node.cpu:g} cpu and {node.memory_used} of {node.memory} MiB are taken"
            free = ", ".join(f"{len(ids)} of {node.capacity[gpu]} {gpu} free" for gpu, ids in node.devices.items())
            parts.append(f"{node.name}: {used}{f' ({free})' if free and gpus else ''}")
        asked = f"{cpu:g} cpu and {memory} MiB" + (f" and {gpus[0].name}:{gpus[0].count}" if gpus else "")
        return f"a container asks for {asked}; {'; '.join(parts)}"


def _shared(asked: tuple[int, ...], taken: list[int]) -> bool:
    return bool(asked) and any(port in taken for port in asked)


def matches(have: str, asked: str) -> bool:
    """Whether a device called `have` serves a request for `asked`: A100 means either size of it.

    >>> matches("A100-80GB", "A100"), matches("H100", "H100!"), matches("A100", "H100")
    (True, True, False)
    """
    asked = asked.removesuffix("!")
    return have == asked or have.partition("-")[0] == asked
