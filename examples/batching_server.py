"""Single requests over HTTP, answered in batches: what serves a model that likes to work on many inputs at once.

    kedge run examples/batching_server.py
    kedge run examples/batching_server.py --requests 200
    kedge deploy examples/batching_server.py
    curl "http://localhost:5334/batching-server-score?text=a+fine+day"

Each request is one call of `Scorer.score`, with one text. The calls of all requests meet in `@kedge.batched`: a batch
goes when it has 16 texts, or when its first one has waited for 30 ms. A pass over a batch takes 100 ms however many
texts it has, as on a GPU, so 64 requests at once take a few passes and not 64.
"""

import collections
import json
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import kedge

app = kedge.App("batching-server")

PASS_S = 0.1


@app.cls(max_containers=1)
class Scorer:
    @kedge.enter()
    def load(self) -> None:
        self.weights = {"fine": 2, "good": 1, "bad": -1, "awful": -2}

    @kedge.batched(max_batch_size=16, wait_ms=30)
    def score(self, texts: list[str]) -> list[dict[str, int]]:
        time.sleep(PASS_S)  # one pass for all of them
        scores = (sum(self.weights.get(word, 0) for word in text.lower().split()) for text in texts)
        return [{"score": score, "batch": len(texts)} for score in scores]


@app.function()
@kedge.concurrent(max_inputs=200)
@kedge.fastapi_endpoint()
async def score(text: str):
    return await Scorer().score.remote.aio(text)


@app.local_entrypoint()
def main(requests: int = 64) -> None:
    """Sends many requests at once, each with a text of its own."""
    url = score.get_web_url()

    def ask(number: int) -> dict[str, int]:
        text = f"{'a fine day' if number % 2 else 'an awful one'} number {number}"
        with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode({'text': text})}") as response:
            return json.load(response)

    with ThreadPoolExecutor(requests) as threads:
        answers = list(threads.map(ask, range(requests)))
    scores = collections.Counter(answer["score"] for answer in answers)
    print(f"{requests} requests: {scores[2]} fine, {scores[-2]} awful")
    passes = round(sum(1 / answer["batch"] for answer in answers))
    print(f"{passes} passes, up to {max(answer['batch'] for answer in answers)} requests in one")
