"""Does it hold? 100 requests a second with spikes to 500, and 95 of 100 answered within 1.5 seconds.

    kedge run examples/load_test.py
    kedge run examples/load_test.py --alone --seconds 1

A server class that takes at most 8 prompts at once per container, behind a web app, and a script that sends it traffic
as a crowd would: requests leave when their time has come, whether or not earlier ones have been answered, and are timed
from that moment. So what waits in the script counts too. The model is a stand-in that takes 100 ms. Every second makes
a row of the table; the verdict is about all requests together, and about each phase.

The script and what it measures share the machine. `--alone` shows the script's own limit: the same traffic against a
bare server without kedge. With `--clients 1` that comes much earlier: in httpx each request walks through all
connections of its client, so many clients with a few connections each are the better crowd.
"""

import asyncio
import dataclasses
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import kedge

if TYPE_CHECKING:
    import httpx

app = kedge.App("load-test")

MODEL_S = 0.1
LOADING_S = 0.5
LIMIT_S = 1.5
CONNECTIONS = 512


# ---------------------------------------------------------------- what is deployed


@app.cls(min_containers=2, max_containers=24)
class LlmServer:
    @kedge.enter()
    def load_model(self) -> None:
        time.sleep(LOADING_S)

    @kedge.method(concurrency_limit=8, timeout=60)
    def generate(self, prompt: str) -> str:
        time.sleep(MODEL_S)
        return f"{prompt}, and so on"


@app.function(min_containers=1)
@kedge.concurrent(max_inputs=500, target_inputs=250)
@kedge.asgi_app()
def web():
    from fastapi import Body, FastAPI

    api = FastAPI()
    server = LlmServer()

    @api.post("/generate")
    async def generate(prompt: str = Body(embed=True)):
        return {"output": await server.generate.remote.aio(prompt)}

    return api


# ---------------------------------------------------------------- what sends the traffic


@dataclasses.dataclass
class Answer:
    phase: int
    seconds: float
    failure: str


class Crowd:
    """Requests at given rates, and what became of them."""

    def __init__(self, url: str, clients: int) -> None:
        import httpx

        share = CONNECTIONS // clients
        limits = httpx.Limits(max_connections=share, max_keepalive_connections=share)
        self.clients = [httpx.AsyncClient(base_url=url, limits=limits, timeout=60) for _ in range(clients)]
        self.sent = 0
        self.answers: list[Answer] = []

    async def send(self, rates: list[int], seconds: float) -> None:
        """Requests at each of these rates in turn, evenly, for so many seconds. Returns when all have been answered."""
        begin = time.perf_counter()
        async with asyncio.TaskGroup() as requests:
            for phase, rate in enumerate(rates):
                for number in range(int(rate * seconds)):
                    due = begin + phase * seconds + number / rate
                    await asyncio.sleep(due - time.perf_counter())
                    requests.create_task(self.ask(phase, due, self.clients[self.sent % len(self.clients)]))
                    self.sent += 1

    async def ask(self, phase: int, due: float, client: "httpx.AsyncClient") -> None:
        try:
            response = await client.post("/generate", json={"prompt": "Once upon a time"})
            failure = "" if response.status_code == 200 else f"status {response.status_code}"
        except Exception as error:
            failure = repr(error)
        self.answers.append(Answer(phase, time.perf_counter() - due, failure))


def percentile(answers: list[Answer], share: float) -> float:
    seconds = sorted(answer.seconds for answer in answers)
    return seconds[min(len(seconds) - 1, int(len(seconds) * share))] if seconds else 0.0


async def containers(alone: bool) -> str:
    """How many there are: of the model, and of the web app."""
    if alone:
        return "-"
    model = await LlmServer().generate.get_current_stats.aio()
    front = await web.get_current_stats.aio()
    return f"{model.num_total_runners} + {front.num_total_runners}"


async def watch(crowd: Crowd, alone: bool) -> None:
    """A row per second, until it is cancelled."""
    print("second  sent  answered  in flight      p50      p95  containers")
    begin, sent, answered, second = time.perf_counter(), 0, 0, 0
    while True:
        second += 1
        await asyncio.sleep(begin + second - time.perf_counter())
        now_sent, now = crowd.sent, crowd.answers[answered:]
        print(
            f"{second:>6}{now_sent - sent:>6}{len(now):>10}{now_sent - answered - len(now):>11}"
            f"{percentile(now, 0.5):>7.3f} s{percentile(now, 0.95):>7.3f} s{await containers(alone):>12}"
        )
        sent, answered = now_sent, answered + len(now)


BARE_SERVER = f"""
import asyncio
ANSWER = b"HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\ncontent-length: 2\\r\\n\\r\\n{{}}"
class Bare(asyncio.Protocol):
    def connection_made(self, transport): self.transport = transport
    def data_received(self, data):
        for _ in range(data.count(b"POST ")):
            asyncio.get_running_loop().call_later({MODEL_S}, self.transport.write, ANSWER)
async def main():
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@contextmanager
def bare_server() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", BARE_SERVER], stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@app.local_entrypoint()
async def main(base: int = 100, spike: int = 500, seconds: float = 5, alone: bool = False, clients: int = 32) -> None:
    """Sends traffic: base, spike, base, spike, base; each for some seconds."""
    rates = [base, spike, base, spike, base]
    with bare_server() if alone else nullcontext(await web.get_web_url.aio()) as url:
        crowd = Crowd(url, clients)
        table = asyncio.create_task(watch(crowd, alone))
        await crowd.send(rates, seconds)
        table.cancel()
        cost = time.process_time() / max(1, crowd.sent)
    print()
    phases = [[answer for answer in crowd.answers if answer.phase == phase] for phase in range(len(rates))]
    for rate, answers in zip(rates, phases, strict=True):
        print(f"{rate:>5} a second: p50 {percentile(answers, 0.5):.3f} s, p95 {percentile(answers, 0.95):.3f} s")
    failures = [answer.failure for answer in crowd.answers if answer.failure]
    print(f"{len(crowd.answers):,} requests, {len(failures)} failed{': ' + failures[0] if failures else ''}")
    print(f"{cost * 1000:.2f} ms of a core per request went into this script")
    holds = not failures and all(percentile(answers, 0.95) < LIMIT_S for answers in phases)
    print(f"p95 below {LIMIT_S} s in every phase: {'yes' if holds else 'NO'}")
