"""The GPUs of one machine: who has which of them whole, and how much memory those have promised away that are shared.

A container takes whole devices, or memory of devices that others use as well; a device is the one or the other at a
time. Whole ones come from those that nobody uses. Memory comes from the device that is fullest and has room, so that
others stay free for who needs them whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from kedge.model.gpus import GpuDevice, matches
from kedge.model.spec import GpuRequest, Resources


class Share(Struct, frozen=True):
    """Devices for one container."""

    name: str = ""
    """Empty: it asks for none."""
    devices: tuple[int, ...] = ()
    vram: tuple[int, ...] = ()
    """MiB of each; empty where it has them whole."""


NONE = Share()


class Slab(Struct):
    """What is taken of one device."""

    device: GpuDevice
    whole: int = 0
    """1 while a container has all of it."""
    sharers: int = 0
    vram: int = 0
    """MiB that they were promised, or were seen to use."""

    @property
    def unused(self) -> bool:
        return not self.whole and not self.sharers

    def has_room(self, vram: int) -> bool:
        return not self.whole and 0 < vram <= self.device.memory - self.vram


class Devices:
    def __init__(self, devices: Iterable[GpuDevice] = ()) -> None:
        self.slabs = {device.index: Slab(device) for device in devices}

    def __iter__(self) -> Iterator[Slab]:
        return iter(self.slabs.values())

    def __bool__(self) -> bool:
        return bool(self.slabs)

    def take(self, share: Share) -> None:
        self._book(share, 1)

    def release(self, share: Share) -> None:
        self._book(share, -1)

    def _book(self, share: Share, sign: int) -> None:
        if not share.vram:
            for index in share.devices:
                self.slabs[index].whole += sign
        for index, vram in zip(share.devices, share.vram, strict=False):
            self.slabs[index].sharers += sign
            self.slabs[index].vram += sign * vram

    def without(self, shares: Iterable[Share]) -> Devices:
        """As they were if these had been released."""
        left = Devices()
        left.slabs = {
            index: Slab(slab.device, slab.whole, slab.sharers, slab.vram) for index, slab in self.slabs.items()
        }
        for share in shares:
            left.release(share)
        return left

    def choose(self, gpu: GpuRequest | None, vram: int | None, peak: int) -> Share | None:
        """A place for a container that asks for `gpu`, and `vram` MiB of each; None where there is none.

        Args:
            gpu: What it asks for; None: nothing.
            vram: MiB of each device; None: all of it, or the fraction that `gpu` names.
            peak: MiB that others of its kind were seen to use of one device.
        """
        if gpu is None:
            return NONE
        if vram is None and not gpu.fraction:
            for name, slabs in self._kinds(gpu).items():
                free = [slab.device.index for slab in slabs if slab.unused]
                if len(free) >= gpu.count:
                    return Share(name, tuple(free[: gpu.count]))
            return None
        best: tuple[tuple[int, int, int], Share] | None = None
        for name, slabs in self._kinds(gpu).items():
            fits = [(slab, need(slab.device, gpu, vram, peak)) for slab in slabs]
            ranked = sorted((_rank(slab, mib), slab.device.index, mib) for slab, mib in fits if slab.has_room(mib))
            if len(ranked) >= gpu.count:
                chosen = ranked[: gpu.count]
                share = Share(name, tuple(index for _, index, _ in chosen), tuple(mib for _, _, mib in chosen))
                if best is None or chosen[0][0] < best[0]:
                    best = chosen[0][0], share
        return best[1] if best is not None else None

    def _kinds(self, gpu: GpuRequest) -> dict[str, list[Slab]]:
        """Devices that may serve, by name: containers get devices of one kind."""
        kinds: dict[str, list[Slab]] = {}
        for slab in self.slabs.values():
            if matches(slab.device.name, gpu.name):
                kinds.setdefault(slab.device.name, []).append(slab)
        return kinds


def need(device: GpuDevice, gpu: GpuRequest, vram: int | None, peak: int) -> int:
    """MiB that a container takes of a device: what was declared, or what was measured where that is more."""
    declared = vram if vram is not None else math.ceil(device.memory * gpu.fraction)
    return max(declared, min(peak, device.memory))


def _rank(slab: Slab, vram: int) -> tuple[int, int, int]:
    """Lower is better: shared already, then little left."""
    return int(slab.unused), slab.device.memory - slab.vram - vram, slab.device.index


# ---------------------------------------------------------------- in words


def inventory(devices: Iterable[GpuDevice]) -> str:
    """`H100=8 of 79.6 GiB, L4=1 of 22.5 GiB`."""
    kinds: dict[tuple[str, int], int] = {}
    for device in devices:
        kinds[device.name, device.memory] = kinds.get((device.name, device.memory), 0) + 1
    return ", ".join(
        f"{name}={count}{f' of {gib(memory)}' if memory else ''}" for (name, memory), count in kinds.items()
    )


def gib(mebibytes: int) -> str:
    return f"{mebibytes / 1024:.1f} GiB".replace(".0 ", " ")


def spelled(gpu: GpuRequest) -> str:
    return f"{gpu.name}:{gpu.fraction:g}" if gpu.fraction else f"{gpu.name}:{gpu.count}" if gpu.count > 1 else gpu.name


def asked(resources: Resources) -> str:
    """What a function asks for, as it would be written."""
    names = " or ".join(spelled(gpu) for gpu in resources.gpus)
    return f"{names} with vram {gib(resources.vram)}" if resources.vram is not None else names


def impossible(resources: Resources, devices: Sequence[GpuDevice]) -> str:
    """Why no machine can ever serve this, with what there is and what would work; empty where one can.

    `devices` are those of all machines, which are taken for one."""
    if not resources.gpus or any(_serves(devices, gpu, resources.vram) for gpu in resources.gpus):
        return ""
    have = inventory(devices) or "no GPU"
    return f"gpu {asked(resources)} was asked for, and this machine has {have}: {_advice(resources, devices)}"


def _serves(devices: Sequence[GpuDevice], gpu: GpuRequest, vram: int | None) -> bool:
    counts: dict[str, int] = {}
    for device in devices:
        if matches(device.name, gpu.name) and (vram is None or vram <= device.memory) and _is_divisible(device, gpu):
            counts[device.name] = counts.get(device.name, 0) + 1
    return max(counts.values(), default=0) >= gpu.count


def _is_divisible(device: GpuDevice, gpu: GpuRequest) -> bool:
    return bool(device.memory) or not gpu.fraction


def _advice(resources: Resources, devices: Sequence[GpuDevice]) -> str:
    first, vram = resources.gpus[0], resources.vram
    declared = first.name.removesuffix("!") if first.name not in ("ANY", "B200+") else "H100"
    dry = f'declare devices with KEDGE_GPUS="{declared}={first.count}"'
    if not devices:
        return f"{dry}, or leave out {'gpu= and vram=' if vram is not None else 'gpu='}"
    named = [device for device in devices if any(matches(device.name, gpu.name) for gpu in resources.gpus)]
    shared = vram is not None or bool(first.fraction)
    if shared and named and not any(device.memory for device in named):
        return f'how much memory it has is not known: declare it with KEDGE_GPUS="{named[0].name}=1:24Gi"'
    most = max((device.memory for device in named or devices), default=0)
    if named and vram is not None and vram > most:
        return f'a device has {gib(most)} at most: write vram="{most // 1024}Gi" or less (it is counted per device)'
    counts = _counts(named or devices)
    name = max(counts, key=lambda kind: counts[kind])
    if named:
        return f'write gpu="{f"{name}:{counts[name]}" if counts[name] > 1 else name}"'
    text = f'write gpu="{name}", or gpu=["{spelled(first)}", "{name}"] for the first that there is'
    if any(device.uuid for device in devices):
        return text
    return f"{text}, or {dry}"


def _counts(devices: Sequence[GpuDevice]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for device in devices:
        counts[device.name] = counts.get(device.name, 0) + 1
    return counts
