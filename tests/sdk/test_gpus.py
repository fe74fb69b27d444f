"""How GPUs are asked for: names, counts, parts, memory, and what is refused where it is written."""

from __future__ import annotations

from typing import Any

import pytest

import kedge
from kedge.exception import InvalidError
from kedge.model.gpus import MEMORY, NAMES, counted, matches
from kedge.model.spec import GpuRequest, Resources
from kedge.sdk.validation import gpus_of, vram_of


def work() -> None:
    """Something to declare."""


class Model:
    @kedge.method()
    def run(self) -> None:
        """Something to call."""


def asked(**settings: Any) -> Resources:
    return kedge.App("gpus").function(**settings)(work).spec.resources


@pytest.mark.parametrize(
    ("value", "requests"),
    [
        ("T4", [("T4", 1, 0.0)]),
        ("h100:8", [("H100", 8, 0.0)]),
        (" H100 : 2 ", [("H100", 2, 0.0)]),
        ("H100!", [("H100!", 1, 0.0)]),
        ("h100!:2", [("H100!", 2, 0.0)]),
        ("a100-80gb", [("A100-80GB", 1, 0.0)]),
        ("B200+", [("B200+", 1, 0.0)]),
        ("B300:4", [("B300", 4, 0.0)]),
        ("any", [("ANY", 1, 0.0)]),
        ("H100:0.5", [("H100", 1, 0.5)]),
        ("any:.25", [("ANY", 1, 0.25)]),
        ("H100:1.0", [("H100", 1, 0.0)]),
        (["h100", "a100", "any"], [("H100", 1, 0.0), ("A100", 1, 0.0), ("ANY", 1, 0.0)]),
        (("H100:0.5", "L4"), [("H100", 1, 0.5), ("L4", 1, 0.0)]),
        (None, []),
        (False, []),
    ],
)
def test_what_can_be_asked_for(value: Any, requests: list[tuple[str, int, float]]) -> None:
    assert [(gpu.name, gpu.count, gpu.fraction) for gpu in gpus_of("gpu", value, "")] == requests


def test_containers_take_the_names_that_their_caller_knew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_IS_REMOTE", "1")
    assert gpus_of("gpu", "mychip:2", "") == (GpuRequest("MYCHIP", 2),)


@pytest.mark.parametrize("name", ["T4", "A10G", "A10", "L4", "L40S", "A100", "H100", "H200", "B200", "B300"])
def test_every_name_has_its_memory(name: str) -> None:
    assert name in NAMES
    assert MEMORY[name] > 15_000


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"gpu": "H1000"}, r"no GPU is called 'H1000'\. Did you mean 'H100'\?"),
        ({"gpu": "A100-90GB"}, r"no GPU is called 'A100-90GB'\. Did you mean 'A100-80GB'\?"),
        ({"gpu": "any!"}, r"no GPU is called 'ANY!'"),
        ({"gpu": "H100:0"}, r"'H100:0' has no usable count; write 'H100:2' for two devices, or 'H100:0.5' for half"),
        ({"gpu": "H100:0.0"}, r"'H100:0.0' asks for 0.0 devices; a part of one is below 1 \('H100:0.5'\)"),
        ({"gpu": "H100:1.5"}, r"'H100:1.5' asks for 1.5 devices; .* several are whole \('H100:2'\)"),
        ({"gpu": "H100:-0.5"}, r"has no usable count"),
        ({"gpu": "H100:nan"}, r"has no usable count"),
        ({"gpu": True}, r"gpu is a name such as 'H100'.* not True \(bool\)"),
        ({"vram": "20 apples"}, r"vram='20 apples' is no amount of memory; write MiB as a number, or \"16Gi\""),
        ({"vram": 0}, r"vram must be at least 1 MiB"),
        ({"vram": ("1Gi", "2Gi")}, r'vram is one amount for each device, such as "20Gi"'),
        ({"gpu": "H100:0.5", "vram": "20Gi"}, r"gpu='H100:0.5' and vram='20Gi' both say how much of a device"),
        ({"gpu": False, "vram": "20Gi"}, r"vram='20Gi' is memory of a device, and gpu= asks for none"),
    ],
)
def test_what_makes_no_sense_is_refused_where_it_is_written(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidError, match=text):
        asked(**settings)


def test_memory_alone_means_any_device() -> None:
    assert asked(vram="20Gi") == Resources(gpus=(GpuRequest("ANY"),), vram=20480)
    assert asked(vram=1000).vram == 1000
    assert asked(gpu="H100:2", vram="20Gi") == Resources(gpus=(GpuRequest("H100", 2),), vram=20480)
    assert vram_of("vram", "1.5GB") == 1431


def test_classes_and_variants_ask_as_functions_do() -> None:
    app = kedge.App("gpus")
    assert app.cls(gpu="L4", vram="8Gi")(Model).spec.resources.vram == 8192
    base = app.function(gpu="L4", vram="8Gi")(work)

    def varied(**options: Any) -> Resources:
        return base.with_options(**options).spec.resources

    assert varied(vram="4Gi") == Resources(gpus=(GpuRequest("L4"),), vram=4096)
    assert varied(gpu="H100") == Resources(gpus=(GpuRequest("H100"),), vram=8192), "None leaves a setting as it is"
    assert varied(gpu="H100:0.5") == Resources(gpus=(GpuRequest("H100", 1, 0.5),)), "the part says how much"
    assert varied(gpu=False) == Resources()
    part = kedge.App("gpus").function(gpu="L4:0.5")(work)
    assert part.with_options(vram="4Gi").spec.resources == Resources(gpus=(GpuRequest("L4"),), vram=4096)


@pytest.mark.parametrize(
    ("have", "want", "answer"),
    [
        ("H100", "H100", True),
        ("H100", "H100!", True),
        ("H200", "H100", False),
        ("A100-40GB", "A100", True),
        ("A100-80GB", "A100", True),
        ("A100-80GB", "A100-40GB", False),
        ("A10", "A10G", True),
        ("A10G", "A10", True),
        ("A10", "A10G!", False),
        ("A10G", "A10G!", True),
        ("B300", "B200+", True),
        ("B200", "B200+", True),
        ("B300", "B200", False),
        ("L4", "L40S", False),
        ("MYCHIP", "ANY", True),
    ],
)
def test_which_device_serves_which_name(have: str, want: str, answer: bool) -> None:
    assert matches(have, want) is answer


def test_counted_devices_have_the_usual_memory() -> None:
    assert [(each.index, each.name, each.memory) for each in counted({"l4": 1, "MYCHIP": 1})] == [
        (0, "L4", 23034),
        (1, "MYCHIP", 0),
    ]
