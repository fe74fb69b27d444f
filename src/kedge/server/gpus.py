"""The GPUs of this machine: declared in its configuration, or found through NVML; and what containers need to use them.

NVML is the driver's own library, asked through `nvidia-ml-py`: no torch, no CUDA context. It is loaded where there is a
driver, in a thread of its own, and not waited for longer than `PATIENCE_S`. A machine without it simply has no GPU.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from msgspec import Struct

from kedge.model.gpus import MEMORY, GpuDevice

PATIENCE_S = 15.0
"""A driver that must load first takes seconds; one that takes this long is stuck."""
DRIVER = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg")
"""One of these is there where a driver is (the last one under WSL)."""
MAX_DEVICES = 1024
"""GPUs of one kind in one machine."""
NO_GPUS = "none"
SHARED_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
"""Device nodes that every program with a GPU needs."""

_T = TypeVar("_T")
_SIZES = {"": 1, "M": 1, "MI": 1, "MIB": 1, "G": 1024, "GI": 1024, "GIB": 1024}
_DECLARED = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9.+_-]*)\s*=\s*(\d+)\s*(?::\s*(\d+)\s*([A-Za-z]*)\s*)?")


class Found(Struct, frozen=True):
    """What was found, and what people should know about it."""

    devices: tuple[GpuDevice, ...] = ()
    notes: tuple[str, ...] = ()
    driver: str = ""
    error: str = ""
    """Why nothing could be found out; empty also where there simply is no driver."""


# ---------------------------------------------------------------- declared


def parse_gpus(text: str, source: str = "KEDGE_GPUS") -> tuple[GpuDevice, ...]:
    """Devices out of `H100=8,A100-40GB=2`, with their memory where it is not the usual one: `MYCHIP=2:24Gi`. `none` is
    no device, whatever the machine has. ValueError names `source`.

    >>> [(device.index, device.name, device.memory) for device in parse_gpus("H100=1, mychip=1:24Gi")]
    [(0, 'H100', 81559), (1, 'MYCHIP', 24576)]
    """
    devices: list[GpuDevice] = []
    if text.strip().lower() == NO_GPUS:
        return ()
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _DECLARED.fullmatch(part)
        unit = _SIZES.get((match[4] or "").upper()) if match else None
        if match is None or unit is None or int(match[2]) > MAX_DEVICES:
            raise ValueError(
                f'{source}: {part!r} is not NAME=COUNT; write for example KEDGE_GPUS="H100=8,L4=1", or with its memory '
                '"MYCHIP=2:24Gi"'
            )
        name = match[1].upper()
        memory = int(match[3]) * unit if match[3] else MEMORY.get(name, 0)
        devices += [GpuDevice(0, name, memory)] * int(match[2])
    # Those of one name are numbered in a row, however they were written.
    names = list(dict.fromkeys(device.name for device in devices))
    ordered = sorted(devices, key=lambda device: names.index(device.name))
    return tuple(GpuDevice(index, each.name, each.memory) for index, each in enumerate(ordered))


def as_text(file: str, value: Any) -> str:
    """What `gpus` of a configuration says, in the form of KEDGE_GPUS: a text, a table of counts, a list of texts, or a
    list of tables (`[[gpus]]`) with name, count and memory. ValueError names the file."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return ",".join(f"{name}={count}" for name, count in value.items())
    if isinstance(value, list):
        return ",".join(_table(file, item) if isinstance(item, dict) else as_text(file, item) for item in value)
    raise ValueError(f'{file}: gpus is a text such as "H100=8", or tables [[gpus]] with name and count, not {value!r}')


def _table(file: str, table: dict[str, Any]) -> str:
    unknown = [key for key in table if key not in ("name", "count", "memory")]
    name, count, memory = table.get("name"), table.get("count", 1), table.get("memory")
    if unknown or not isinstance(name, str) or isinstance(count, bool) or not isinstance(count, int):
        what = f"has no key {unknown[0]!r}" if unknown else "needs a name, and count is a number"
        raise ValueError(
            f'{file}: [[gpus]] {what}; write name = "H100", count = 8 and, where it is not the usual, memory = "80Gi"'
        )
    return f"{name}={count}" + (f":{memory}" if memory is not None else "")


# ---------------------------------------------------------------- found


def discover(nvml: Any = None, environment: Mapping[str, str] = os.environ, patience_s: float = PATIENCE_S) -> Found:
    """The GPUs that NVML knows and that this process may see. Never fails, and never takes longer than `patience_s`."""
    if nvml is None and not has_driver():
        return Found()
    found = bounded(lambda: _ask(nvml, environment), patience_s)
    if found is None:
        return Found(error=f"NVML did not answer within {patience_s:g} s: no GPU is used; is the driver stuck?")
    return found


def has_driver() -> bool:
    return any(os.path.exists(path) for path in DRIVER)


def bounded(work: Callable[[], _T], patience_s: float) -> _T | None:
    """What `work` gives, done in a thread; None where that takes too long. A thread that is stuck in a driver cannot be
    ended: it is left behind, and holds up nothing."""
    results: list[_T] = []
    thread = threading.Thread(target=lambda: results.append(work()), name="nvml", daemon=True)
    thread.start()
    thread.join(patience_s)
    return results[0] if results else None


def load() -> Any:
    """The module of NVML. ImportError where it is not installed."""
    return importlib.import_module("pynvml")


def _ask(nvml: Any, environment: Mapping[str, str]) -> Found:
    try:
        nvml = nvml or load()
        nvml.nvmlInit()
    except Exception as error:  # NVMLError has no common base with ImportError, and neither may end the server
        return Found(error=f"there is a GPU driver, and it cannot be asked ({type(error).__name__}: {error})")
    try:
        return _listed(nvml, environment)
    except Exception as error:
        return Found(error=f"the GPU driver failed while it was asked ({type(error).__name__}: {error})")


def _listed(nvml: Any, environment: Mapping[str, str]) -> Found:
    devices, notes = [], []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            product = _text(nvml.nvmlDeviceGetName(handle))
            if _is_divided(nvml, handle):
                notes.append(
                    f"GPU {index} ({product}) is divided by MIG, and is not used: kedge shares devices that are whole. "
                    f"`nvidia-smi -i {index} -mig 0` ends that"
                )
                continue
            memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total) >> 20
            uuid = _text(nvml.nvmlDeviceGetUUID(handle))
            minor = int(nvml.nvmlDeviceGetMinorNumber(handle))
        except nvml.NVMLError as error:
            notes.append(f"GPU {index} does not answer, and is not used: {error}")
            continue
        devices.append(GpuDevice(index, name_of(product, memory), memory, uuid, minor, product))
    seen, hidden = visible(devices, environment)
    driver = _text(nvml.nvmlSystemGetDriverVersion())
    return Found(tuple(seen), (*notes, *([hidden] if hidden else [])), driver)


def _is_divided(nvml: Any, handle: Any) -> bool:
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:  # it cannot be divided
        return False
    return bool(current)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


_KINDS = sorted((name.split("-") for name in MEMORY), key=lambda words: -sum(map(len, words)))


def name_of(product: str, memory: int) -> str:
    """The name that a request uses, for what the driver calls a device.

    >>> [name_of(*each) for each in (("NVIDIA A100-SXM4-80GB", 81920), ("Tesla T4", 15360), ("NVIDIA A10G", 23028))]
    ['A100-80GB', 'T4', 'A10G']
    """
    spelled = re.sub(r"(\d) TI\b", r"\1TI", product.upper())
    words = re.findall(r"[A-Z0-9]+", spelled)
    for kind in _KINDS:
        if any(words[start : start + len(kind)] == kind for start in range(len(words))):
            name = "-".join(kind)
            if name.startswith("A100"):
                return "A100-80GB" if memory > 60_000 else "A100-40GB"
            return name
    own = [word for word in words if word not in ("NVIDIA", "TESLA", "GEFORCE", "QUADRO")]
    return "-".join(own) or "GPU"


def visible(devices: Sequence[GpuDevice], environment: Mapping[str, str]) -> tuple[list[GpuDevice], str]:
    """Those that this process was given, and a note where that is not all of them."""
    left, names = list(devices), []
    for variable in ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        given = environment.get(variable)
        if given is None or (variable.startswith("NVIDIA") and given.strip() in ("", "all")):
            continue
        wanted = [part.strip() for part in given.split(",") if part.strip()]
        if variable.startswith("NVIDIA") and len(wanted) == len(devices) and wanted[0] not in ("none", "void"):
            continue  # in a container of a runtime that has numbered the rest anew
        chosen = []
        for part in wanted:
            match = [each for each in devices if part == str(each.index) or _is_uuid(part, each.uuid)]
            if not match:
                break  # as CUDA does: what follows a name that means nothing is not seen
            chosen += match
        left = [device for device in left if device in chosen]
        names.append(f"{variable}={given}")
    if len(left) == len(devices):
        return left, ""
    return left, f"{len(left)} of {len(devices)} GPUs are used: this server was started with {' and '.join(names)}"


def _is_uuid(part: str, uuid: str) -> bool:
    return part.startswith("GPU-") and uuid.startswith(part)


# ---------------------------------------------------------------- what containers need


class Gpus:
    """The devices of this machine, for who fits containers out."""

    def __init__(self, devices: Iterable[GpuDevice] = ()) -> None:
        self.devices: dict[int, GpuDevice] = {}
        self.set(devices)

    def set(self, devices: Iterable[GpuDevice]) -> None:
        self.devices = {device.index: device for device in devices}

    @property
    def real(self) -> list[GpuDevice]:
        """Those that were found, and not only declared."""
        return [device for device in self.devices.values() if device.uuid]

    def variables(self, devices: tuple[int, ...]) -> dict[str, str]:
        """What tells CUDA which devices these are. Without any, nothing is to be seen of those that there are."""
        chosen = [self.devices[index] for index in devices if index in self.devices]
        if not devices:
            return {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void"} if self.real else {}
        # A UUID means the same device wherever others cannot be seen; an index does not.
        names = [each.uuid or str(each.index) for each in chosen] or [str(index) for index in devices]
        joined = ",".join(names)
        return {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": joined,
            "NVIDIA_VISIBLE_DEVICES": joined,
        }

    def nodes(self, devices: tuple[int, ...]) -> tuple[str, ...]:
        """Device nodes that a container of these devices is given."""
        return device_nodes([self.devices[index] for index in devices if index in self.devices])

    def libraries(self) -> tuple[str, ...]:
        """What a container with a root of its own must see of the machine."""
        return driver_libraries() if self.real else ()


def device_nodes(devices: Sequence[GpuDevice], exists: Callable[[str], bool] = os.path.exists) -> tuple[str, ...]:
    """Device nodes of these devices; none for those that are only declared."""
    own = [f"/dev/nvidia{each.minor if each.minor >= 0 else each.index}" for each in devices if each.uuid]
    return tuple(path for path in (*own, *SHARED_NODES, "/dev/dxg") if exists(path)) if own else ()


_LIBRARY = re.compile(r"\s(?:libcuda|libnvidia-|libnvcuvid|libnvoptix|libcudadebugger)\S*\s.*=> (/\S+)")


def driver_libraries(cache: str | None = None) -> tuple[str, ...]:
    """Paths of the driver's libraries and tools on this machine: they belong to its kernel module, so an image cannot
    bring them. `cache` is what `ldconfig -p` prints."""
    if cache is None:
        try:
            cache = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, timeout=10, check=False).stdout
        except (OSError, subprocess.SubprocessError):
            cache = ""
    paths: dict[str, None] = {}
    for line in cache.splitlines():
        match = _LIBRARY.search(f" {line.strip()}")
        if match:
            paths |= dict.fromkeys((match[1], os.path.realpath(match[1])))
    tools = ("/usr/bin/nvidia-smi", "/usr/lib/wsl")
    return (*paths, *(path for path in tools if os.path.exists(path)))


def facts(nvml: Any = None, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """For people who ask what there is: {"devices": [...], "notes": [...], "driver", "error"}."""
    found = discover(nvml, environment)
    return {
        "devices": [
            {"index": each.index, "name": each.name, "memory": each.memory, "product": each.product, "uuid": each.uuid}
            for each in found.devices
        ],
        "notes": list(found.notes),
        "driver": found.driver,
        "error": found.error,
    }
