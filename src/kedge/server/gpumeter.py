"""What containers that share GPUs really use of their memory: measured through NVML every few seconds, and told to the
plane. Nothing is measured while no container shares a device that is really there.

NVML counts by process; a container is a tree of them. Processes that belong to no container are left out: the memory
that they use is not kedge's to give, and not kedge's to count.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil

from kedge.model.protocol import VramMeasured
from kedge.server import gpus

if TYPE_CHECKING:
    from kedge.core.plane import Plane
    from kedge.server.gpus import Gpus

log = logging.getLogger("kedge.server")

EVERY_S = 2.0
"""Models fill memory over seconds; to ask costs a millisecond per device."""
PATIENCE_S = 10.0

Sample = tuple[int, int, int]
"""(device index, process, bytes)."""


def by_container(
    samples: Iterable[Sample], containers: Mapping[int, str], parents: Callable[[int], Iterable[int]]
) -> dict[str, int]:
    """MiB that each container uses of the device of which it uses most.

    Args:
        samples: What every process has on every device.
        containers: The containers by the process that began them.
        parents: The ancestors of a process, the nearest first.
    """
    sums: dict[tuple[str, int], int] = {}
    owners: dict[int, str | None] = {}
    for device, process, used in samples:
        if process not in owners:
            owners[process] = next(
                (containers[each] for each in (process, *parents(process)) if each in containers), None
            )
        owner = owners[process]
        if owner is not None:
            sums[owner, device] = sums.get((owner, device), 0) + used
    most: dict[str, int] = {}
    for (owner, _), used in sums.items():
        most[owner] = max(most.get(owner, 0), -(-used // 2**20))
    return most


def samples_of(nvml: Any, devices: Iterable[int]) -> list[Sample]:
    """What processes use of these devices. What cannot be said (a process of somebody else, a driver that does not
    count) is left out."""
    found: list[Sample] = []
    for index in devices:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        seen: dict[int, int] = {}
        # One that computes and draws is in both lists.
        for list_of in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
            for process in list_of(handle):
                if process.usedGpuMemory is not None:
                    seen[process.pid] = max(seen.get(process.pid, 0), int(process.usedGpuMemory))
        found += [(index, pid, used) for pid, used in seen.items()]
    return found


def ancestors(process: int) -> list[int]:
    try:
        return [parent.pid for parent in psutil.Process(process).parents()]
    except psutil.Error:
        return []


class GpuMeter:
    """Measures while there is something to measure. `close` ends it."""

    def __init__(
        self,
        plane: Plane,
        devices: Gpus,
        report: Callable[[VramMeasured], None],
        nvml: Callable[[], Any] = gpus.load,
        every_s: float = EVERY_S,
    ) -> None:
        self._plane = plane
        self._devices = devices
        self._report = report
        self._nvml = nvml
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        if self._devices.real:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            containers, devices = self._shared()
            if not containers:
                continue
            try:
                measure = partial(self._measure, containers, devices)
                used = await asyncio.to_thread(gpus.bounded, measure, PATIENCE_S)
            except Exception:
                log.exception("GPU memory cannot be measured any more")
                return
            if used is None:
                log.warning("NVML does not answer: GPU memory is not measured any more, only what is declared counts")
                return
            if used:
                self._report(VramMeasured(used))

    def _shared(self) -> tuple[dict[int, str], list[int]]:
        """Containers that share devices, by process, and these devices."""
        containers: dict[int, str] = {}
        devices: dict[int, None] = {}
        for container in self._plane.containers.values():
            if container.placement.vram and container.process:
                containers[container.process] = container.id
                devices |= dict.fromkeys(container.placement.devices)
        return containers, list(devices)

    def _measure(self, containers: Mapping[int, str], devices: Iterable[int]) -> dict[str, int]:
        try:
            nvml = self._nvml()
            nvml.nvmlInit()
            return by_container(samples_of(nvml, devices), containers, ancestors)
        except Exception as error:  # a driver that is updated, a device that fell off the bus
            log.warning("GPU memory could not be measured (%s: %s)", type(error).__name__, error)
            return {}
