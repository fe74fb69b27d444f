"""Continuous batching: one copy of a language model answers many requests at once, and new ones join at any token.

    kedge run examples/llm_batching.py
    LLM_GPU=H100 kedge run examples/llm_batching.py

Each step of the model makes the next token of every request that is there, which costs a GPU hardly more than the token
of one. Requests join and leave between two steps: none waits until a batch is full, or until the longest one is done.
With torch and transformers this is a real model of GPT-2's shape with random weights, on a GPU if there is one; without
them a stand-in takes 5 ms for each step, however many requests share it.
"""

import asyncio
import contextlib
import importlib.util
import os
import time
from collections import deque
from collections.abc import AsyncIterator

import kedge

app = kedge.App("llm-batching")

MODELS = {"tiny": (2, 4, 64), "small": (12, 12, 768), "large": (36, 20, 1280)}
"""Layers, heads and width."""
VOCABULARY = 50257
REAL = bool(importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"))


class Request:
    """What one input wants, and what it has got so far."""

    def __init__(self, prompt: list[int], count: int) -> None:
        self.feed = deque(prompt)
        """Tokens that the model has yet to read: first the prompt, then each one that it has made itself."""
        self.left = count
        self.read = 0
        self.tokens: asyncio.Queue[int | None] = asyncio.Queue()
        """What it made; None: that was all."""
        self.gone = False


class StandIn:
    """A step takes as long for many requests as for one."""

    name = "a stand-in"

    def step(self, requests: list[Request]) -> list[int]:
        time.sleep(0.005)
        return [(request.feed[0] * 31 + 7) % VOCABULARY for request in requests]


class Transformer:
    """A causal model of transformers, with a cache whose columns are steps: a request that joins sees nothing of what
    was before it, and columns that nobody sees any more are cut off."""

    def __init__(self, layers: int, heads: int, width: int) -> None:
        import torch
        from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

        self.torch = torch
        self.new_cache = DynamicCache
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.type = torch.bfloat16 if self.device == "cuda" else torch.float32
        torch.manual_seed(0)
        config = GPT2Config(n_layer=layers, n_head=heads, n_embd=width, n_positions=4096, vocab_size=VOCABULARY)
        self.model = GPT2LMHeadModel(config).to(self.device, self.type).eval()
        self.name = f"{sum(p.numel() for p in self.model.parameters()) / 1e6:.0f} M parameters on {self.device}"
        self.shape = heads, width // heads
        self.layers: list[tuple[object, object]] = []
        self.rows: list[Request] = []
        self.mask = torch.zeros((0, 0), dtype=torch.long, device=self.device)

    def step(self, requests: list[Request]) -> list[int]:
        torch = self.torch
        with torch.inference_mode():
            if requests != self.rows:
                self._seat(requests)
            self.mask = torch.cat([self.mask, self.mask.new_ones((len(requests), 1))], 1)
            cache = self.new_cache()
            for number, (keys, values) in enumerate(self.layers):
                cache.update(keys, values, number)
            done = self.model(
                input_ids=torch.tensor([[request.feed[0]] for request in requests], device=self.device),
                position_ids=torch.tensor([[request.read] for request in requests], device=self.device),
                attention_mask=self.mask,
                past_key_values=cache if self.layers else None,
                use_cache=True,
            )
            kept = done.past_key_values
            if hasattr(kept, "layers"):
                self.layers = [(layer.keys, layer.values) for layer in kept.layers]
            else:  # before transformers 4.56
                self.layers = list(zip(kept.key_cache, kept.value_cache, strict=True))
            return done.logits[:, -1].argmax(-1).tolist()

    def _seat(self, requests: list[Request]) -> None:
        """Rows of those that have left go, rows of those that join are empty."""
        torch, columns = self.torch, self.mask.shape[1]
        stay = [self.rows.index(request) for request in requests if request in self.rows]
        joining = len(requests) - len(stay)
        longest = max((request.read for request in requests), default=0)
        first = max(0, columns - longest)  # what is left of it belongs to nobody any more
        index = torch.tensor(stay, dtype=torch.long, device=self.device)
        self.mask = torch.cat([self.mask[index, first:], self.mask.new_zeros((joining, columns - first))])
        if longest == 0:
            self.layers, self.mask = [], self.mask[:, :0]
        heads, width = self.shape
        empty = torch.zeros((joining, heads, columns - first, width), dtype=self.type, device=self.device)
        self.layers = [
            (torch.cat([keys[index, :, first:], empty]), torch.cat([values[index, :, first:], empty]))
            for keys, values in self.layers
        ]
        self.rows = list(requests)


@app.cls(
    gpu=os.environ.get("LLM_GPU"), vram=os.environ.get("LLM_VRAM"), max_containers=1, scaledown_window=60, timeout=600
)
@kedge.concurrent(max_inputs=256)
class Llm:
    size: str = kedge.parameter(default="tiny")

    @kedge.enter()
    async def load(self) -> None:
        self.model = Transformer(*MODELS[self.size]) if REAL else StandIn()
        self.joining: list[Request] = []
        self.wake = asyncio.Event()
        self.steps = self.most = 0
        self.work = asyncio.create_task(self.run())

    async def run(self) -> None:
        """Steps, for as long as the container lives."""
        requests: list[Request] = []
        while True:
            requests = [request for request in requests if request.left and not request.gone] + self.joining
            self.joining = []
            if not requests:
                self.wake.clear()
                await self.wake.wait()
                continue
            self.steps += 1
            self.most = max(self.most, len(requests))
            # In a thread: meanwhile the loop takes inputs and sends what they yield.
            for request, token in zip(requests, await asyncio.to_thread(self.model.step, requests), strict=True):
                request.feed.popleft()
                request.read += 1
                if not request.feed:  # its prompt is read: this is the token that follows
                    request.feed.append(token)
                    request.left -= 1
                    request.tokens.put_nowait(token)
                    if not request.left:
                        request.tokens.put_nowait(None)

    async def answer(self, prompt: list[int], count: int) -> AsyncIterator[int]:
        request = Request(prompt, count)
        self.joining.append(request)
        self.wake.set()
        try:
            while (token := await request.tokens.get()) is not None:
                yield token
        finally:
            request.gone = True  # a cancelled input leaves the batch at the next step

    @kedge.method()
    async def generate(self, prompt: list[int], count: int) -> list[int]:
        return [token async for token in self.answer(prompt, count)]

    @kedge.method()
    async def stream(self, prompt: list[int], count: int) -> AsyncIterator[int]:
        async with contextlib.aclosing(self.answer(prompt, count)) as tokens:
            async for token in tokens:
                yield token

    @kedge.method()
    def device(self) -> str:
        return os.environ.get("CUDA_VISIBLE_DEVICES", "none")

    @kedge.method()
    def about(self) -> tuple[str, int, int]:
        return self.model.name, self.steps, self.most


@app.local_entrypoint()
def main(requests: int = 32, tokens: int = 24) -> None:
    llm = Llm()
    alone = llm.generate.remote([1, 2, 3], tokens)
    name, steps, _ = llm.about.remote()
    print(f"{name}: {len(alone)} tokens of one request in {steps} steps")
    prompts = [[number + 1] * (number % 5 + 1) for number in range(requests)]
    prompts[0] = [1, 2, 3]
    answers = list(llm.generate.map(prompts, [tokens] * requests))
    _, all_steps, most = llm.about.remote()
    made = sum(map(len, answers))
    print(f"{made} tokens of {requests} requests in {all_steps - steps} steps, up to {most} requests in one")
    streamed = list(llm.stream.remote_gen([1, 2, 3], 4))
    print(f"a stream: {len(streamed)} tokens, each as it is made")
