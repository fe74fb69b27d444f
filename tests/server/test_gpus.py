"""Which GPUs a server has: declared ones, or those that NVML knows; what containers are told of them; what they use."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from kedge.core.plane import Plane
from kedge.engines.process import ProcessEngine
from kedge.model import protocol as p
from kedge.model.gpus import MEMORY, GpuDevice
from kedge.model.payload import Payload
from kedge.model.spec import GpuRequest, Resources
from kedge.server import gpus
from kedge.server.directory import StateDirectory
from kedge.server.gpumeter import GpuMeter, by_container, samples_of
from kedge.server.gpus import Gpus, device_nodes, discover, driver_libraries, facts, name_of, parse_gpus
from kedge.server.house import House
from kedge.server.settings import Settings, load
from tests.core.conftest import app, function
from tests.server.fake_nvml import Device, FakeNvml, Process

GIB = 1024
H100 = Device("NVIDIA H100 80GB HBM3", 81559)


def names(devices: tuple[GpuDevice, ...]) -> list[tuple[int, str]]:
    return [(device.index, device.name) for device in devices]


# ---------------------------------------------------------------- declared


def test_declared_devices_are_numbered_by_name() -> None:
    assert names(parse_gpus(" H100=2, l4=1,h100 = 1,")) == [(0, "H100"), (1, "H100"), (2, "H100"), (3, "L4")]
    assert parse_gpus("") == ()
    assert parse_gpus("none") == ()
    assert [device.memory for device in parse_gpus("T4=1,MYCHIP=1,ours=1:24Gi,other=1:1000")] == [
        MEMORY["T4"],
        0,
        24576,
        1000,
    ]
    assert not any(device.uuid for device in parse_gpus("T4=4"))


@pytest.mark.parametrize("text", ["two H100s", "H100=-1", "H100=99999", "H100", "=3", "H100=1:24Xi", "H100=1:big"])
def test_what_is_no_declaration_is_said(text: str) -> None:
    with pytest.raises(ValueError, match=r"--gpus: .* is not NAME=COUNT; write for example KEDGE_GPUS=\"H100=8,L4=1\""):
        parse_gpus(text, "--gpus")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("H100=8", "H100=8"),
        ({"H100": 8, "L4": 1}, "H100=8,L4=1"),
        (["H100=8", "L4=1"], "H100=8,L4=1"),
        ([{"name": "H100", "count": 8}, {"name": "mine", "memory": "24Gi"}], "H100=8,mine=1:24Gi"),
    ],
)
def test_all_ways_to_declare_them_in_the_configuration(value: Any, text: str) -> None:
    assert gpus.as_text("kedge.toml", value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8, 'kedge.toml: gpus is a text such as "H100=8", or tables'),
        ([{"count": 8}], "kedge.toml: [[gpus]] needs a name"),
        ([{"name": "H100", "number": 8}], "kedge.toml: [[gpus]] has no key 'number'; write name = \"H100\", count = 8"),
        ([{"name": "H100", "count": "8"}], "count is a number"),
    ],
)
def test_what_makes_no_sense_in_the_configuration(value: Any, text: str) -> None:
    with pytest.raises(ValueError) as error:
        gpus.as_text("kedge.toml", value)
    assert text in str(error.value)


# ---------------------------------------------------------------- found


@pytest.mark.parametrize(
    ("product", "memory", "name"),
    [
        ("Tesla T4", 15360, "T4"),
        ("NVIDIA L4", 23034, "L4"),
        ("NVIDIA L40S", 46068, "L40S"),
        ("NVIDIA L40", 46068, "L40"),
        ("NVIDIA A10G", 23028, "A10G"),
        ("NVIDIA A10", 23028, "A10"),
        ("NVIDIA A100-SXM4-40GB", 40960, "A100-40GB"),
        ("NVIDIA A100-PCIE-40GB", 40960, "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", 81920, "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", 81559, "H100"),
        ("NVIDIA H100 PCIe", 81559, "H100"),
        ("NVIDIA H100 NVL", 95830, "H100"),
        ("NVIDIA H200", 143771, "H200"),
        ("NVIDIA H200 NVL", 143771, "H200"),
        ("NVIDIA B200", 183359, "B200"),
        ("NVIDIA B300 SXM6 AC", 275040, "B300"),
        ("NVIDIA GB200", 189471, "GB200"),
        ("NVIDIA GH200 480GB", 97871, "GH200"),
        ("Tesla V100-SXM2-16GB", 16384, "V100"),
        ("NVIDIA RTX A6000", 49140, "A6000"),
        ("NVIDIA RTX 6000 Ada Generation", 49140, "RTX-6000-ADA"),
        ("NVIDIA GeForce RTX 4090", 24564, "RTX-4090"),
        ("NVIDIA GeForce RTX 2080 Ti", 11264, "RTX-2080TI"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97887, "RTX-PRO-6000"),
        ("NVIDIA GeForce GTX 1080", 8192, "GTX-1080"),
        ("NVIDIA", 8192, "GPU"),
    ],
)
def test_products_have_names(product: str, memory: int, name: str) -> None:
    assert name_of(product, memory) == name


def test_what_the_driver_knows_is_found() -> None:
    found = discover(FakeNvml(H100, Device(b"NVIDIA L4", 23034, minor=7)), {})
    assert found.devices == (
        GpuDevice(0, "H100", 81559, "GPU-0000-aa", 0, "NVIDIA H100 80GB HBM3"),
        GpuDevice(1, "L4", 23034, "GPU-1000-aa", 7, "NVIDIA L4"),
    )
    assert (found.notes, found.driver, found.error) == ((), "570.1", "")


def test_divided_and_broken_devices_are_left_out_with_the_reason() -> None:
    found = discover(FakeNvml(H100, Device("NVIDIA A100-SXM4-40GB", 40960, mig=True), Device("x", 1, broken=True)), {})
    assert names(found.devices) == [(0, "H100")]
    divided, broken = found.notes
    assert divided.startswith("GPU 1 (NVIDIA A100-SXM4-40GB) is divided by MIG, and is not used")
    assert "`nvidia-smi -i 1 -mig 0` ends that" in divided
    assert broken == "GPU 2 does not answer, and is not used: GPU is lost"
    assert names(discover(FakeNvml(Device("NVIDIA A100-SXM4-40GB", 40960, mig=False)), {}).devices) == [
        (0, "A100-40GB")
    ]


def test_a_driver_that_cannot_be_asked_is_no_gpu_and_says_why() -> None:
    found = discover(FakeNvml(H100, init_error=FakeNvml.NVMLError("Driver/library version mismatch")), {})
    assert found.devices == ()
    assert found.error == ("there is a GPU driver, and it cannot be asked (NVMLError: Driver/library version mismatch)")


def test_a_driver_that_hangs_is_not_waited_for() -> None:
    released = threading.Event()
    nvml = FakeNvml(H100)
    nvml.nvmlInit = lambda: released.wait(60)  # type: ignore[assignment,method-assign,return-value]
    found = discover(nvml, {}, 0.05)
    released.set()
    assert (found.devices, found.error) == (
        (),
        "NVML did not answer within 0.05 s: no GPU is used; is the driver stuck?",
    )


def test_without_a_driver_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "DRIVER", ("/nowhere",))
    monkeypatch.setattr(gpus, "load", lambda: pytest.fail("it was loaded"))
    assert discover() == gpus.Found()
    assert facts() == {"devices": [], "notes": [], "driver": "", "error": ""}


def test_a_missing_library_is_said_where_there_is_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise ImportError("No module named 'pynvml'")

    monkeypatch.setattr(gpus, "DRIVER", ("/dev/null",))
    monkeypatch.setattr(gpus, "load", missing)
    assert "cannot be asked (ImportError: No module named 'pynvml')" in facts()["error"]


@pytest.mark.parametrize(
    ("variables", "seen"),
    [
        ({}, [0, 1, 2, 3]),
        ({"CUDA_VISIBLE_DEVICES": "1,3"}, [1, 3]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-2"}, [2]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0,9,1"}, [0]),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, [0, 1, 2, 3]),
        ({"NVIDIA_VISIBLE_DEVICES": "0,1"}, [0, 1]),
        ({"NVIDIA_VISIBLE_DEVICES": "none"}, []),
        ({"NVIDIA_VISIBLE_DEVICES": "4,5,6,7"}, [0, 1, 2, 3]),
        ({"NVIDIA_VISIBLE_DEVICES": "0,1,2", "CUDA_VISIBLE_DEVICES": "2,3"}, [2]),
    ],
)
def test_a_server_has_what_it_was_given(variables: dict[str, str], seen: list[int]) -> None:
    found = discover(FakeNvml(H100, H100, H100, H100), variables)
    assert [device.index for device in found.devices] == seen
    assert bool(found.notes) == (len(seen) < 4)
    if found.notes:
        assert found.notes[0].startswith(f"{len(seen)} of 4 GPUs are used: this server was started with ")


# ---------------------------------------------------------------- what containers get

REAL = (GpuDevice(0, "H100", 81559, "GPU-aa", 4), GpuDevice(1, "H100", 81559, "GPU-bb", 5))


def test_containers_see_exactly_their_devices() -> None:
    assert Gpus(REAL).variables((1,)) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "GPU-bb",
        "NVIDIA_VISIBLE_DEVICES": "GPU-bb",
    }
    assert Gpus(parse_gpus("L4=1,H100=2")).variables((1, 2))["CUDA_VISIBLE_DEVICES"] == "1,2"
    assert Gpus(REAL).variables(()) == {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void"}
    assert Gpus(parse_gpus("H100=1")).variables(()) == {}, "there is nothing to hide"


def test_device_nodes_are_those_of_the_devices_and_what_all_need() -> None:
    there = {"/dev/nvidia4", "/dev/nvidia5", "/dev/nvidiactl", "/dev/nvidia-uvm"}
    assert device_nodes(REAL[:1], there.__contains__) == ("/dev/nvidia4", "/dev/nvidiactl", "/dev/nvidia-uvm")
    assert device_nodes(REAL, there.__contains__)[:2] == ("/dev/nvidia4", "/dev/nvidia5")
    assert device_nodes((), there.__contains__) == ()
    assert device_nodes(parse_gpus("H100=2"), there.__contains__) == (), "declared ones are not there"


def test_the_driver_s_libraries_are_the_machine_s() -> None:
    cache = """3 libs found in cache `/etc/ld.so.cache'
\tlibnvidia-ml.so.1 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1
\tlibcuda.so.1 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libcuda.so.1
\tlibcudart.so.12 (libc6,x86-64) => /usr/local/cuda/lib64/libcudart.so.12
\tlibc.so.6 (libc6,x86-64, OS ABI: Linux 3.2.0) => /lib/x86_64-linux-gnu/libc.so.6
"""
    found = [path for path in driver_libraries(cache) if path.startswith("/usr/lib/x86")]
    assert found == ["/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", "/usr/lib/x86_64-linux-gnu/libcuda.so.1"]
    assert Gpus(parse_gpus("H100=1")).libraries() == ()


# ---------------------------------------------------------------- what they use


def test_memory_is_added_up_by_container() -> None:
    """A container is a tree of processes; the device of which it uses most counts."""
    parents = {11: [10, 1], 12: [11, 10, 1], 20: [1], 99: [1]}
    samples = [(0, 11, 100 << 20), (0, 12, 50 << 20), (1, 12, 120 << 20), (0, 20, 1), (1, 99, 5 << 30)]
    found = by_container(samples, {10: "ct-a", 20: "ct-b"}, lambda process: parents[process])
    assert found == {"ct-a": 150, "ct-b": 1}


def test_what_the_driver_does_not_count_is_left_out() -> None:
    device = Device("x", 1, processes=[Process(1, 100), Process(2, None)], drawing=[Process(1, 100), Process(3, 7)])
    assert samples_of(FakeNvml(device), [0]) == [(0, 1, 100), (0, 3, 7)]


class Measured:
    """A plane with one container on a shared device, or on a whole one, and a meter that looks all the time."""

    def __init__(self, resources: Resources, nvml: FakeNvml) -> None:
        numbers = iter(range(1, 100))
        self.plane = Plane(lambda prefix: f"{prefix}-{next(numbers)}")
        devices = (GpuDevice(0, "H100", 81559, "GPU-aa", 0),)
        self.plane.handle(p.NodeJoined("local", 4.0, 8192, devices=devices), 0.0)
        self.plane.handle(p.AppCreated(1, app(function(resources=resources))), 0.0, "se-1")
        self.plane.handle(p.InputsSubmitted("fc-1", "fu-1-f", 0, [Payload(data=b"")]), 0.0, "se-1")
        (self.container,) = self.plane.containers.values()
        self.plane.handle(p.ContainerStarted(self.container.id, 1), 0.0)
        self.reports: list[p.VramMeasured] = []
        self.meter = GpuMeter(self.plane, Gpus(devices), self.reports.append, lambda: nvml, every_s=0.001)

    async def watch(self, enough: Any) -> None:
        self.meter.open()
        async with asyncio.timeout(20):
            while not enough():
                await asyncio.sleep(0.001)
        self.meter.close()


def test_what_shared_containers_use_is_told_to_the_plane() -> None:
    nvml = FakeNvml(Device("x", 81559, processes=[Process(1, 3 << 30)]))

    async def run() -> None:
        measured = Measured(Resources(gpus=(GpuRequest("H100"),), vram=1024), nvml)
        await measured.watch(lambda: measured.reports)
        assert measured.reports[0] == p.VramMeasured({measured.container.id: 3072})

    asyncio.run(run())


def test_nothing_is_asked_while_nobody_shares() -> None:
    nvml = FakeNvml(Device("x", 81559, processes=[Process(1, 3 << 30)]))

    async def run() -> None:
        measured = Measured(Resources(gpus=(GpuRequest("H100"),)), nvml)
        looks = 0

        def shared() -> tuple[dict[int, str], list[int]]:
            nonlocal looks
            looks += 1
            return GpuMeter._shared(measured.meter)

        measured.meter._shared = shared  # type: ignore[method-assign]
        await measured.watch(lambda: looks > 5)
        assert measured.reports == []

    asyncio.run(run())
    assert nvml.asked == 0


def test_a_driver_that_fails_meanwhile_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    nvml = FakeNvml(Device("x", 81559, processes=[Process(1, 3 << 30)], broken=True))

    async def run() -> None:
        measured = Measured(Resources(gpus=(GpuRequest("H100"),), vram=1024), nvml)
        await measured.watch(lambda: "could not be measured (NVMLError: GPU is lost)" in caplog.text)
        assert measured.reports == []
        nvml.devices[0].broken = False
        await measured.watch(lambda: measured.reports)

    asyncio.run(run())


def test_declared_devices_are_not_measured() -> None:
    async def run() -> None:
        meter = GpuMeter(Plane(str), Gpus(parse_gpus("H100=1")), pytest.fail)
        meter.open()
        assert meter._task is None

    asyncio.run(run())


def test_the_configuration_declares_devices_as_tables(tmp_path: Path) -> None:
    file = tmp_path / "kedge.toml"
    file.write_text('[[gpus]]\nname = "H100"\ncount = 2\n\n[[gpus]]\nname = "ours"\nmemory = "24Gi"\n')
    environment = {"KEDGE_CONFIG": str(file)}
    found = load({"home": str(tmp_path)}, environment).gpus
    assert found is not None
    assert [(each.name, each.memory) for each in found] == [("H100", 81559), ("H100", 81559), ("OURS", 24576)]
    assert load({"home": str(tmp_path), "gpus": "none"}, environment).gpus == ()
    assert load({"home": str(tmp_path)}, {"KEDGE_CONFIG": str(tmp_path / "other")}).gpus is None


@pytest.mark.parametrize(("declared", "there"), [(None, ["H100"]), ((), []), (parse_gpus("L4=2"), ["L4", "L4"])])
def test_a_server_finds_its_devices_unless_they_are_declared(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    declared: tuple[GpuDevice, ...] | None,
    there: list[str],
) -> None:
    monkeypatch.setattr(gpus, "DRIVER", ("/dev/null",))
    monkeypatch.setattr(gpus, "load", lambda: FakeNvml(H100, Device("NVIDIA A30", 24576, mig=True)))

    async def run() -> list[str]:
        with StateDirectory(tmp_path, private=True) as directory:
            house = House(Settings(home=tmp_path, private=True, gpus=declared), directory, ProcessEngine())
            try:
                await house.open()
                (node,) = house._driver.plane.scheduler.nodes.values()
                found = [slab.device.name for slab in node.devices]
                await house.close()
            finally:
                await house.clear()
        return found

    assert asyncio.run(run()) == there
    assert ("GPU 1 (NVIDIA A30) is divided by MIG" in caplog.text) == (declared is None)
