"""A gateway in front of a slow service: so many calls in flight and no more, others are told when to try again.

    kedge run examples/gateway.py
    kedge run examples/gateway.py --clients 100
    kedge deploy examples/gateway.py
    curl -i "http://localhost:5334/gateway-gateway/answer?question=why"

Waiting is not always kind: a client that hears 503 with Retry-After can go elsewhere, one that waits in a queue cannot.
The gateway is a bare ASGI app, and one container of it sees all requests (`max_containers=1`), so a number that is
counted there is the number of calls in flight. kedge's own bound of the queue, `max_queued_inputs=`, says the same over
all containers of a function and without code; the one here may look at who asks, and let some of them pass.
"""

import asyncio
import collections
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import kedge

app = kedge.App("gateway")

CAP = 16
SERVICE_S = 0.5


@app.function(max_containers=2)
@kedge.concurrent(max_inputs=8)
async def answer(question: str) -> str:
    await asyncio.sleep(SERVICE_S)  # stands for a model, a database, or somebody else's API
    return f"{question}? Because."


class Gateway:
    def __init__(self) -> None:
        self.in_flight = 0

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return  # a gateway of two lines needs no lifespan
        if self.in_flight >= CAP:
            await reply(send, 503, f"{CAP} calls are in flight; try again", (b"retry-after", b"1"))
            return
        self.in_flight += 1
        try:
            query = urllib.parse.parse_qs(scope["query_string"].decode())
            await reply(send, 200, await answer.remote.aio(query.get("question", ["why"])[0]))
        finally:
            self.in_flight -= 1


async def reply(send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    plain = (b"content-type", b"text/plain; charset=utf-8")
    await send({"type": "http.response.start", "status": status, "headers": [plain, *headers]})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})


@app.function(max_containers=1)
@kedge.concurrent(max_inputs=1000)
@kedge.asgi_app()
def gateway():
    return Gateway()


@app.local_entrypoint()
def main(clients: int = 64) -> None:
    """So many clients ask at the same time, and ask again as often as they are told to."""
    url = f"{gateway.get_web_url()}/answer?question=why"

    def ask(number: int) -> int:
        refusals = 0
        while True:
            try:
                with urllib.request.urlopen(url) as response:
                    assert response.read() == b"why? Because.\n"
                    return refusals
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
                refusals += 1
                time.sleep(int(error.headers["Retry-After"]))

    with ThreadPoolExecutor(clients) as threads:
        refusals = collections.Counter(threads.map(ask, range(clients)))
    print(f"{clients} clients: all of them answered")
    print(f"{refusals[0]} at once, {clients - refusals[0]} when they came back")
