"""A language model behind HTTP: loaded once per container, at most four answers at once in each, tokens as they come.

    kedge run examples/llm_server.py
    kedge deploy examples/llm_server.py
    curl --json '{"prompt": "return the"}' http://localhost:5334/llm-server-web/generate
    curl -N "http://localhost:5334/llm-server-web/stream?prompt=the%20name&tokens=8"

`kedge run` tries it for the time of the program, `kedge deploy` keeps it: its address stays when the program, the
terminal and the server have ended and come back. The model learns which word follows which in the standard library's
docstrings; 10 ms per token stand for the work of a GPU. The web app holds no model: it takes many requests at once and
passes each to a container that has room. When a client goes away in the middle of a stream, the model stops too.
"""

import asyncio
import collections
import inspect
import itertools
import json
import math
import os
import random
import re
import shutil
import urllib.request
from collections.abc import AsyncIterator

import kedge

app = kedge.App("llm-server")

TOKEN_S = 0.01


@app.cls(max_containers=2)
class Llm:
    @kedge.enter()
    def load(self) -> None:
        """Expensive, so once per container: what follows each word, and how often."""
        self.followers: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for module in (math, os, os.path, random, shutil, json):
            for _, value in inspect.getmembers(module, callable):
                words = re.findall(r"[a-z]+", (value.__doc__ or "").lower())
                for word, follower in itertools.pairwise(words):
                    self.followers[word][follower] += 1

    async def tokens(self, prompt: str, count: int) -> AsyncIterator[str]:
        chance = random.Random(prompt)
        word = (re.findall(r"[a-z]+", prompt.lower()) or ["the"])[-1]
        for _ in range(count):
            await asyncio.sleep(TOKEN_S)
            following = self.followers.get(word) or self.followers["the"]
            (word,) = chance.choices(list(following), list(following.values()))
            yield word

    # Two methods with a limit each, and no @concurrent on the class: a container has 4 + 4 slots.
    @kedge.method(concurrency_limit=4, timeout=60)
    async def generate(self, prompt: str, count: int) -> str:
        return " ".join([token async for token in self.tokens(prompt, count)])

    @kedge.method(concurrency_limit=4, timeout=60)
    async def stream(self, prompt: str, count: int) -> AsyncIterator[str]:
        async for token in self.tokens(prompt, count):
            yield token


@app.function()
@kedge.concurrent(max_inputs=100)
@kedge.asgi_app()
def web():
    from fastapi import Body, FastAPI, Query
    from fastapi.responses import StreamingResponse

    api = FastAPI(title="A small language model")
    llm = Llm()

    @api.post("/generate")
    async def generate(prompt: str = Body(embed=True), tokens: int = Body(16, ge=1, le=1000)):
        return {"text": await llm.generate.remote.aio(prompt, tokens)}

    @api.get("/stream")
    async def stream(prompt: str, tokens: int = Query(16, ge=1, le=1000)):
        async def events() -> AsyncIterator[str]:
            async for token in llm.stream.remote_gen.aio(prompt, tokens):
                yield f"data: {json.dumps({'token': token})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return api


@app.local_entrypoint()
def main(prompt: str = "return the") -> None:
    """Asks for one text at once, and reads another one as it is made."""
    url = web.get_web_url()
    body = json.dumps({"prompt": prompt, "tokens": 6}).encode()
    request = urllib.request.Request(f"{url}/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        print(f"{prompt} …", json.load(response)["text"])
    with urllib.request.urlopen(f"{url}/stream?prompt=the%20name&tokens=12") as response:
        lines = [line.decode().strip().removeprefix("data: ") for line in response if line.strip()]
    print("the name …", " ".join(json.loads(line)["token"] for line in lines[:-1]), lines[-1])
