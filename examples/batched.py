"""Single questions from many callers, answered in batches: one pass over the data serves all of them.

    kedge run examples/batched.py
    kedge run examples/batched.py --questions 200

`@kedge.batched` collects inputs: callers send one text and get one vector, the method takes a list of texts and gives a
list of vectors. A full batch goes at once, others when their first input has waited for `wait_ms`. The same shape fits
a model on a GPU, a bulk insert, or an API that takes many items per request. A batch takes one slot, so with
`@kedge.concurrent` several batches run at once in a container.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import math
import operator
import os
import random
import re
import shutil
import statistics
import zlib

import kedge

app = kedge.App("batched")

DIMENSIONS = 512
Vector = list[float]


@app.cls(max_containers=1)
@kedge.concurrent(max_inputs=2)
class Embedder:
    """Texts as points: similar words, near points. What a word weighs depends on how rare it is in the library."""

    @kedge.enter()
    def learn(self) -> None:
        texts = [words_of(text) for text in library().values()]
        self.count = len(texts)
        self.frequency: dict[str, int] = {}
        for word in itertools.chain.from_iterable(map(set, texts)):
            self.frequency[word] = self.frequency.get(word, 0) + 1

    @kedge.batched(max_batch_size=16, wait_ms=50)
    def embed(self, texts: list[str]) -> list[tuple[Vector, int]]:
        """A unit vector for each text, and with how many others it was made."""
        rows = [dict.fromkeys(words_of(text)) for text in texts]
        # Once per batch, not once per text: this is what batches are for.
        weights = {word: math.log(1 + self.count / (1 + self.frequency.get(word, 0))) for row in rows for word in row}
        return [(self.vector(row, weights), len(texts)) for row in rows]

    def vector(self, words: dict[str, None], weights: dict[str, float]) -> Vector:
        point = [0.0] * DIMENSIONS
        for word in words:
            point[zlib.crc32(word.encode()) % DIMENSIONS] += weights[word]
        length = math.hypot(*point) or 1.0
        return [value / length for value in point]


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]{2,}", text.lower())


def library() -> dict[str, str]:
    """What some modules say of their functions: name → first paragraph."""
    found = {}
    for module in (math, os.path, random, shutil, statistics):
        for name, value in inspect.getmembers(module, callable):
            if value.__doc__ and not name.startswith("_"):
                found[f"{module.__name__}.{name}"] = value.__doc__.split("\n\n")[0]
    return found


@app.local_entrypoint()
async def main(questions: int = 64) -> None:
    """Embeds the library in one map, then answers questions that come one by one, as from callers of their own."""
    embed, texts = Embedder().embed, library()
    vectors = [vector async for vector, _ in embed.map.aio(texts.values())]
    print(f"library: {len(vectors) > 100 and 'more than a hundred'} entries")

    async def ask(question: str) -> tuple[str, int]:
        vector, company = await embed.remote.aio(question)
        nearness = [sum(map(operator.mul, vector, other)) for other in vectors]
        return list(texts)[nearness.index(max(nearness))], company

    asked = ["return the square root of x", "move a file or directory to another place", "shuffle a list in place"]
    answers = await asyncio.gather(*(ask(question) for question in itertools.islice(itertools.cycle(asked), questions)))
    for question, (answer, _) in zip(asked, answers, strict=False):
        print(f"{question}: {answer}")
    print(f"{questions} questions, up to {max(company for _, company in answers)} in one batch")
