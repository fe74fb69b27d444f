"""GPUs by name: which are known, how much memory each has, and which serve a request for another.

Memory is MiB, about what the driver reports. It stands in where devices are declared without theirs; of those that were
discovered, the machine's own number counts.
"""

from __future__ import annotations

from msgspec import Struct

ANY_GPU = "ANY"

MEMORY = {
    "T4": 15360, "L4": 23034, "A10": 23028, "A10G": 23028, "L40S": 46068,
    "A100": 40960, "A100-40GB": 40960, "A100-80GB": 81920,
    "H100": 81559, "H200": 143771, "B200": 183359, "B300": 275040, "GB200": 189471, "GH200": 97871,
    "RTX-PRO-6000": 97887, "A2": 15356, "A30": 24576, "A40": 46068, "A4000": 16376, "A5000": 24564, "A6000": 49140,
    "A800": 81920, "B100": 183359, "H20": 97871, "H800": 81559, "L40": 46068, "P4": 7680, "P100": 16384, "V100": 16384,
    "RTX-2080TI": 11264, "RTX-3060": 12288, "RTX-3070": 8192, "RTX-3080": 10240, "RTX-3090": 24576, "RTX-4060": 8188,
    "RTX-4070": 12282, "RTX-4080": 16376, "RTX-4090": 24564, "RTX-5070": 12227, "RTX-5080": 16303, "RTX-5090": 32607,
    "RTX-6000-ADA": 49140, "MI210": 65536, "MI250": 65536, "MI300X": 196608,
}  # fmt: skip
"""The smallest of its kind where there are several."""

GROUPS = {"B200+": ("B200", "B300"), "A10": ("A10G",), "A10G": ("A10",)}
"""Names that others serve as well: an A10G is what one cloud calls its A10."""

NAMES = (ANY_GPU, *MEMORY, "B200+")
"""All that may be asked for; each but the first and the last also with `!`."""


class GpuDevice(Struct, frozen=True):
    """One GPU of a machine."""

    index: int
    """As the driver counts them (PCI order); of declared ones, in the order of their declaration."""
    name: str
    memory: int = 0
    """MiB; 0: not known, and then it is not shared."""
    uuid: str = ""
    """Empty where it is declared: nothing says that it is there."""
    minor: int = -1
    """Of its device node, /dev/nvidia<minor>."""
    product: str = ""
    """What its driver calls it."""


def matches(have: str, asked: str) -> bool:
    """Whether a device called `have` serves a request for `asked`. A100 means either size of it; `!` means that the
    device must be called so.

    >>> matches("A100-80GB", "A100"), matches("H100", "H100!"), matches("H200", "H100"), matches("A10", "A10G!")
    (True, True, False, False)
    """
    name = asked.removesuffix("!")
    if asked == ANY_GPU or have == name or have.partition("-")[0] == name:
        return True
    return name == asked and have in GROUPS.get(name, ())


def counted(counts: dict[str, int]) -> tuple[GpuDevice, ...]:
    """Devices of these names, numbered in this order."""
    names = [name.upper() for name, count in counts.items() for _ in range(count)]
    return tuple(GpuDevice(index, name, MEMORY.get(name, 0)) for index, name in enumerate(names))
