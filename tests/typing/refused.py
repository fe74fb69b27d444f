"""Every line marked `# E` must be an error under mypy --strict and pyright, and no other line."""

from __future__ import annotations

import kedge

app = kedge.App("types")


@app.function()
def square(x: int) -> float:
    return x * x


@app.function()
async def fetch(url: str) -> bytes:
    return url.encode()


@kedge.cls()
class Model:
    name: str = kedge.parameter()

    @kedge.method()
    def generate(self, prompt: str) -> str:
        return prompt


square.remote("three")  # E
square.remote()  # E
square.remote(3, scale=2)  # E
square.spawn("three")  # E
square.local("three")  # E
square(3)  # E
text: str = square.remote(3)  # E
square.with_options(timeout="soon")  # E
square.with_options(queue_timeout="2")  # E
square.with_options(colour="red")  # E
square.update_concurrency(max_inputs="20")  # E
square.update_concurrency(20)  # E
square.with_concurrency(target_inputs=3)  # E

Model(size=3)  # E
Model()  # E
Model(name="x").generate.remote(3)  # E
Model(name="x").missing  # E

kedge.concurrent(10)  # E
kedge.concurrent(target_inputs=10)  # E
kedge.concurrent(max_inputs="10")  # E
kedge.batched(max_batch_size=3)  # E
kedge.Retries(max_retries="3")  # E
app.function(memory=[1])  # E
app.function(timeout="5")  # E
app.function(timeuot=5)  # E


async def concurrently() -> None:
    number: int = await fetch.remote.aio("x")  # E
    await fetch.remote.aio(3)  # E
    await square.remote(3)  # E
