"""Where a container goes: a node with room for its cpu, memory and devices, or the reason why none has it.

Requests bound placement. One that is larger than every node is clamped to the largest, so that a file written for a big
machine still runs on a laptop. Devices are never clamped: what is not there cannot be used (`core.devices`).
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct, structs

from kedge.core.devices import Devices, Share, Slab, impossible, spelled
from kedge.model.gpus import GpuDevice, counted
from kedge.model.spec import FunctionSpec, Resources


class Node(Struct):
    """One machine: what it has, and what is taken."""

    name: str
    cpu: float
    memory: int
    devices: Devices
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
    vram: tuple[int, ...] = ()
    """MiB of each of its devices; empty: it has them whole."""

    @property
    def share(self) -> Share:
        return Share(self.gpu, self.devices, self.vram)


class Unplaceable(Struct, frozen=True):
    """Why there is no place: at this moment (`lasting` False), or with these machines never."""

    reason: str
    lasting: bool = False


class Scheduler:
    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def join(
        self, name: str, cpu: float, memory: int, gpus: dict[str, int], devices: tuple[GpuDevice, ...] = ()
    ) -> None:
        """A machine is there, with these devices, or with so many of each name."""
        self.nodes[name] = Node(name, cpu, memory, Devices(devices or counted(gpus)))

    def leave(self, name: str) -> None:
        self.nodes.pop(name, None)

    def clamped(self, resources: Resources) -> tuple[float, int]:
        """The cpu and memory that are really asked for, given the machines there are."""
        cpu = max((node.cpu for node in self.nodes.values()), default=resources.cpu)
        memory = max((node.memory for node in self.nodes.values()), default=resources.memory)
        return min(resources.cpu, cpu), min(resources.memory, memory)

    def too_large(self, spec: FunctionSpec) -> str:
        """What to say where a function asks for more than the largest machine has; empty where it does not."""
        asked, given = spec.resources, self.clamped(spec.resources)
        found = []
        if asked.cpu > given[0]:
            found.append(f"cpu={asked.cpu:g} is more than the {given[0]:g} cores that there are")
        if asked.memory > given[1]:
            found.append(f"memory={asked.memory} (MiB) is more than the {given[1]} MiB that there are")
        return f"{spec.name}: {' and '.join(found)}: it is given what there is" if found else ""

    def impossible(self, resources: Resources) -> str:
        """Why these devices can never be had here; empty where they can."""
        every = [slab.device for node in self.nodes.values() for slab in node.devices] if resources.gpus else []
        return impossible(resources, every)

    def place(self, resources: Resources, overcommit: bool = False, peak: int = 0) -> Placement | Unplaceable:
        """Takes a place.

        Args:
            resources: What is asked for.
            overcommit: Whether cpu and memory do not bound it: for a container without which nothing moves.
            peak: MiB of a shared device that others of its kind were seen to use.
        """
        if not self.nodes:
            return Unplaceable("no machine has joined yet")
        cpu, memory = self.clamped(resources)
        never = self.impossible(resources)
        if never:
            return Unplaceable(never, lasting=True)
        for gpu in resources.gpus or (None,):
            for node in self.nodes.values():
                fits = node.cpu_used + cpu <= node.cpu + 1e-9 and node.memory_used + memory <= node.memory
                if not (fits or overcommit) or _meet(resources.ports, node.ports):
                    continue
                share = node.devices.choose(gpu, resources.vram, peak)
                if share is not None:
                    return self._take(node, cpu, memory, share, resources.ports)
        return Unplaceable(self._shortage(cpu, memory, resources, peak))

    def would_place(self, resources: Resources, without: list[Placement], peak: int = 0) -> bool:
        """Whether there were a place if these were released."""
        cpu, memory = self.clamped(resources)
        for node in self.nodes.values():
            gone = [place for place in without if place.node == node.name]
            cpu_used = node.cpu_used - sum(place.cpu for place in gone)
            memory_used = node.memory_used - sum(place.memory for place in gone)
            if cpu_used + cpu > node.cpu + 1e-9 or memory_used + memory > node.memory:
                continue
            left = [port for place in gone for port in place.ports]
            if _meet(resources.ports, [port for port in node.ports if port not in left]):
                continue
            if not resources.gpus:
                return True
            devices = node.devices.without(place.share for place in gone if place.gpu)
            if any(devices.choose(gpu, resources.vram, peak) is not None for gpu in resources.gpus):
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
        node.devices.release(placement.share)

    def grown(self, placement: Placement, vram: int) -> Placement:
        """The placement with at least `vram` MiB of each of its shared devices: that much is used, whether it was
        declared or not. Nothing else moves, also where a device is overdrawn by it."""
        node = self.nodes.get(placement.node)
        if node is None or not placement.vram or vram <= min(placement.vram):
            return placement
        bigger = structs.replace(placement, vram=tuple(max(vram, each) for each in placement.vram))
        node.devices.release(placement.share)
        node.devices.take(bigger.share)
        return bigger

    def _take(self, node: Node, cpu: float, memory: int, share: Share, ports: tuple[int, ...]) -> Placement:
        node.devices.take(share)
        node.cpu_used += cpu
        node.memory_used += memory
        node.containers += 1
        node.ports.extend(ports)
        return Placement(node.name, cpu, memory, share.name, share.devices, ports, share.vram)

    def _shortage(self, cpu: float, memory: int, resources: Resources, peak: int) -> str:
        parts, gpus = [], resources.gpus
        if taken := [port for port in resources.ports if all(port in node.ports for node in self.nodes.values())]:
            return (
                f"port {taken[0]} is taken by another container, and one at a time can listen there; let that one take "
                "more inputs (@kedge.concurrent), or return an ASGI app instead of listening on a port"
            )
        for node in self.nodes.values():
            used = f"{node.cpu_used:g} of {node.cpu:g} cpu and {node.memory_used} of {node.memory} MiB are taken"
            free = ", ".join(_free(node.devices))
            parts.append(f"{node.name}: {used}{f' ({free})' if free and gpus else ''}")
        asked = f"{cpu:g} cpu and {memory} MiB"
        if gpus and (resources.vram is not None or gpus[0].fraction):
            of = spelled(gpus[0]) if resources.vram is None else f"{resources.vram} MiB of {spelled(gpus[0])}"
            asked += f" and {of}{f' ({peak} MiB by what was measured)' if peak > (resources.vram or 0) else ''}"
        elif gpus:
            asked += f" and {gpus[0].name}:{gpus[0].count}"
        return f"a container asks for {asked}; {'; '.join(parts)}"


def _free(devices: Iterable[Slab]) -> Iterable[str]:
    """What is left of devices, by name, and of each that is shared."""
    kinds: dict[str, list[Slab]] = {}
    for slab in devices:
        kinds.setdefault(slab.device.name, []).append(slab)
    for name, slabs in kinds.items():
        yield f"{sum(slab.unused for slab in slabs)} of {len(slabs)} {name} free"
        for slab in slabs:
            if slab.sharers:
                left = max(0, slab.device.memory - slab.vram)
                yield f"{left} of {slab.device.memory} MiB left of {name} [{slab.device.index}]"


def _meet(asked: tuple[int, ...], taken: list[int]) -> bool:
    return bool(asked) and any(port in taken for port in asked)
