"""A stand-in for the module `pynvml`, with devices that tests make up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class NVMLError(Exception):
    pass


@dataclass
class Memory:
    total: int


@dataclass
class Process:
    pid: int
    usedGpuMemory: int | None


@dataclass
class Device:
    name: str | bytes
    memory: int
    """MiB."""
    minor: int = -1
    mig: bool | None = None
    broken: bool = False
    processes: list[Process] = field(default_factory=list)
    drawing: list[Process] = field(default_factory=list)


class FakeNvml:
    NVMLError = NVMLError

    def __init__(self, *devices: Device, init_error: Exception | None = None) -> None:
        self.devices = list(devices)
        self.init_error = init_error
        self.asked = 0
        """How often somebody wanted to know what processes use."""

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise self.init_error

    def __getattr__(self, name: str) -> Any:
        return {
            "nvmlDeviceGetCount": lambda: len(self.devices),
            "nvmlDeviceGetHandleByIndex": self._handle,
            "nvmlDeviceGetName": lambda index: self.devices[index].name,
            "nvmlDeviceGetUUID": lambda index: f"GPU-{index}000-aa",
            "nvmlDeviceGetMemoryInfo": lambda index: Memory(self.devices[index].memory * 2**20),
            "nvmlDeviceGetMinorNumber": self._minor,
            "nvmlDeviceGetMigMode": self._mig,
            "nvmlSystemGetDriverVersion": lambda: "570.1",
            "nvmlDeviceGetComputeRunningProcesses": self._computing,
            "nvmlDeviceGetGraphicsRunningProcesses": lambda index: self.devices[index].drawing,
        }[name]

    def _handle(self, index: int) -> int:
        if self.devices[index].broken:
            raise NVMLError("GPU is lost")
        return index

    def _minor(self, index: int) -> int:
        minor = self.devices[index].minor
        return index if minor < 0 else minor

    def _mig(self, index: int) -> tuple[int, int]:
        mig = self.devices[index].mig
        if mig is None:
            raise NVMLError("Not Supported")
        return int(mig), int(mig)

    def _computing(self, index: int) -> list[Process]:
        self.asked += 1
        return self.devices[index].processes
