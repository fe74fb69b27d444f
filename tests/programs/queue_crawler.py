"""Jobs in a `Queue`, results in a `Dict`: functions that take from it run until it is empty."""

import json
import queue

import modal

image = modal.Image.debian_slim(python_version="3.12").uv_pip_install("cowsay==6.1")
app = modal.App("example-queue-crawler", image=image)

LINKS = {"/": ["/a", "/b", "/c"], "/a": ["/a/1", "/a/2"], "/b": ["/"], "/c": ["/a", "/c/1"]}


@app.function(timeout=60, max_containers=4)
def consume(jobs: modal.Queue, seen: modal.Dict, results: modal.Dict) -> int:
    done = 0
    while True:
        try:
            url, depth = jobs.get(timeout=3)
        except queue.Empty:
            return done
        results[url] = depth
        for link in LINKS.get(url, []):
            if seen.put(link, True, skip_if_exists=True):
                jobs.put((link, depth + 1))
        done += 1


@app.local_entrypoint()
def main():
    named = modal.Dict.from_name("crawled", create_if_missing=True)
    with modal.Queue.ephemeral() as jobs, modal.Dict.ephemeral() as seen:
        seen["/"] = True
        jobs.put(("/", 0))
        calls = [consume.spawn(jobs, seen, named) for _ in range(3)]
        counts = [call.get() for call in calls]
    assert sum(counts) == named.len(), (counts, named.len())
    print(json.dumps(dict(sorted(named.items()))))
    modal.Dict.objects.delete("crawled")
