"""Does once, in a fork server, what every module of a user does when a container imports it: declares.

The first time that Python code runs it is slow, and it writes to what it touches: expressions are compiled, caches are
filled, bytecode is specialized. What a fork server has done, its containers find done, in memory that they share.
"""

from __future__ import annotations

from kedge.sdk import registry
from kedge.sdk.app import App
from kedge.sdk.decorators import concurrent, enter, method
from kedge.sdk.image import Image
from kedge.sdk.secret import Secret

TIMES = 3
"""The second and the third time are for bytecode, which is specialized when it has run a little."""


def rehearse() -> None:
    """Leaves nothing behind."""
    for _ in range(TIMES):
        _declare()
    registry.forget(__name__)


def _declare() -> None:
    image = Image.debian_slim().pip_install("package==1").env({"NAME": "value"})
    app = App("rehearsal", image=image)
    app.function(cpu=1.0, memory=128, timeout=60, secrets=[Secret.from_name("name")])(_function)
    app.function(max_containers=2, scaledown_window=60)(_coroutine)
    app.cls(image=image)(type("Model", (_Model,), {"__module__": __name__}))
    app.local_entrypoint()(_entrypoint)


def _function(value: int, text: str = "") -> str:
    return text


@concurrent(max_inputs=2)
async def _coroutine(value: int) -> int:
    return value


def _entrypoint(number: int = 1) -> None:
    pass


class _Model:
    @enter()
    def load(self) -> None:
        pass

    @method()
    def one(self, value: int) -> int:
        return value
