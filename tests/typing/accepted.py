"""Must pass under mypy --strict and pyright: the user's own types reach every form of a call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, assert_type

import kedge

app = kedge.App("types", image=kedge.Image.debian_slim().pip_install("numpy"), tags={"team": "x"})


@app.function(gpu="H100:2", memory="16Gi", retries=kedge.Retries(max_retries=2), timeout=60)
@kedge.concurrent(max_inputs=10, target_inputs=8)
def square(x: int, *, scale: float = 1.0) -> float:
    return x * x * scale


@app.function()
async def fetch(url: str) -> bytes:
    return url.encode()


@app.function()
def count(limit: int) -> Iterator[int]:
    yield from range(limit)


@app.function()
async def ticks(limit: int) -> AsyncIterator[str]:
    for number in range(limit):
        yield str(number)


@app.function()
@kedge.batched(max_batch_size=4, wait_ms=10)
def lengths(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


@app.function()
@kedge.concurrent(max_inputs=2)
@kedge.batched(max_batch_size=4, wait_ms=10)
async def widths(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


@kedge.cls()
class Ruler:
    unit: str = kedge.parameter(default="cm")

    @kedge.batched(max_batch_size=4, wait_ms=10)
    def measure(self, texts: list[str]) -> list[float]:
        return [len(text) / 2 for text in texts]


@kedge.function(cpu=(0.5, 2.0))
def alone(x: str) -> str:
    return x


@kedge.cls(cpu=2.0)
@kedge.concurrent(max_inputs=4)
class Model:
    name: str = kedge.parameter()
    size: int = kedge.parameter(default=7)

    @kedge.enter()
    def load(self) -> None:
        print(self.name)

    @kedge.enter()
    async def connect(self) -> None:
        print(self.size)

    @kedge.method(concurrency_limit=4, timeout=60)
    def generate(self, prompt: str, *, top: int = 3) -> list[str]:
        assert_type(self.name, str)
        return [prompt] * top

    @kedge.method()
    async def embed(self, prompt: str) -> list[float]:
        return [float(len(prompt))]

    @kedge.method()
    def stream(self, prompt: str) -> Iterator[str]:
        assert_type(self.generate.remote(prompt), list[str])
        assert_type(self.generate.local(prompt), list[str])
        yield prompt

    @kedge.exit()
    def close(self) -> None: ...


@app.local_entrypoint()
def main(limit: int = 3) -> None:
    assert_type(square.remote(3, scale=2.0), float)
    assert_type(square.local(3), float)
    assert_type(square.map(range(limit)), Iterator[float])
    assert_type(square.starmap([(1,), (2,)], order_outputs=False), Iterator[float])
    square.for_each([1, 2], ignore_exceptions=True)
    call = square.spawn(3)
    assert_type(call, kedge.FunctionCall[float])
    assert_type(call.get(timeout=5), float)
    assert_type(square.spawn_map([1, 2]), kedge.FunctionCall[float])
    assert_type(fetch.remote("x"), bytes)
    waiting: Coroutine[Any, Any, bytes] = fetch.local("x")
    waiting.close()
    assert_type(fetch.map(["a"]), Iterator[bytes])
    assert_type(count.remote_gen(3), Iterator[int])
    assert_type(count.local(3), Iterator[int])
    assert_type(ticks.remote_gen(3), Iterator[str])
    assert_type(alone.remote("x"), str)
    assert_type(lengths.remote("text"), int)
    assert_type(lengths.local(["text"]), list[int])
    assert_type(widths.map(["text"]), Iterator[int])
    assert_type(Ruler(unit="in").measure.remote("text"), float)
    assert_type(Ruler().measure.local(["text"]), list[float])
    assert_type(square.with_options(gpu="A100", timeout=5).remote(3), float)
    assert_type(square.with_concurrency(max_inputs=5).remote(3), float)
    assert_type(square.with_options(queue_timeout=1.5).spawn(3), kedge.FunctionCall[float])
    square.update_concurrency(max_inputs=20, target_inputs=10)

    model = Model(name="small")
    assert_type(model, Model)
    assert_type(model.size, int)
    assert_type(model.generate.remote("x", top=2), list[str])
    assert_type(model.embed.remote("x"), list[float])
    assert_type(model.embed.with_options(timeout=5).remote("x"), list[float])
    assert_type(model.stream.remote_gen("x"), Iterator[str])
    assert_type(kedge.current_input_id(), str | None)
    assert_type(kedge.is_local(), bool)


async def concurrently() -> None:
    assert_type(await square.remote.aio(3), float)
    assert_type(await fetch.remote.aio("x"), bytes)
    assert_type(await fetch.local("x"), bytes)
    assert_type(await widths.remote.aio("x"), int)
    assert_type(await widths.local(["x"]), list[int])
    assert_type(await Model(name="x", size=3).embed.remote.aio("x"), list[float])
    assert_type(square.map.aio(range(3)), AsyncIterator[float])
    assert_type(await square.spawn.aio(3), kedge.FunctionCall[float])
    async for value in count.remote_gen.aio(3):
        assert_type(value, int)
    async for text in ticks.local(3):
        assert_type(text, str)
    async with app.run() as running:
        assert_type(running, kedge.App)
    assert_type(await app.deploy.aio(tag="v1"), kedge.App)
    assert_type(await kedge.App.lookup.aio("shop"), kedge.App)
    assert_type(await square.get_web_url.aio(), str | None)
    await square.update_autoscaler.aio(min_containers=1)
    await square.update_concurrency.aio(target_inputs=5)


def take(function: kedge.Function[[int], float], any_function: kedge.Function[..., Any]) -> float:
    return function.remote(3)


def deployed() -> None:
    assert_type(app.deploy(), kedge.App)
    assert_type(kedge.App.lookup("shop"), kedge.App)
    assert_type(square.get_web_url(), str | None)
    found = kedge.Function.from_name("shop", "square")
    assert_type(found, kedge.Function[..., Any, Any])
    assert_type(found.with_options(timeout=5), kedge.Function[..., Any, Any])
    assert_type(kedge.Cls.from_name("shop", "Model"), kedge.Cls)


with app.run(detach=True) as running, kedge.enable_output():
    assert_type(running, kedge.App)
    main(3)
