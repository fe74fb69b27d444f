#!/usr/bin/env python
"""Stands in for an inference engine: opens its port after a delay, streams tokens slowly, and counts what it is doing.

`vllm serve MODEL --port N` answers as an OpenAI server does, `text-embeddings-router --model-id MODEL --port N` answers
/embed. Every answer says which process gave it and how many requests that has had at once, at most.
"""

import argparse
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LOADING_S = float(os.environ.get("ENGINE_LOADING_S", "0.5"))
TOKEN_S = 0.02

arguments = argparse.ArgumentParser()
arguments.add_argument("command", nargs="?")
arguments.add_argument("model", nargs="?")
arguments.add_argument("--model-id")
arguments.add_argument("--host", default="0.0.0.0")
arguments.add_argument("--port", type=int, default=8000)
given, ignored = arguments.parse_known_args()
model = given.model_id or given.model

gate = threading.Lock()
in_flight = in_flight_max = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        match self.path:
            case "/health":
                self.answer({})
            case "/v1/models":
                self.answer({"object": "list", "data": [{"id": model, "object": "model"}]})
            case "/metrics":
                self.answer(self.facts())
            case _:
                self.send_error(404)

    def do_POST(self):
        global in_flight, in_flight_max
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with gate:
            in_flight += 1
            in_flight_max = max(in_flight_max, in_flight)
        try:
            if self.path == "/v1/chat/completions":
                self.chat(body)
            elif self.path == "/embed":
                time.sleep(TOKEN_S * 10)
                vectors = [[float(len(text)), float(sum(map(ord, text)) % 97)] for text in body["inputs"]]
                self.answer({"embeddings": vectors, **self.facts()})
            else:
                self.send_error(404)
        finally:
            with gate:
                in_flight -= 1

    def chat(self, body):
        words = f"You said: {body['messages'][-1]['content']}".split()
        if not body.get("stream"):
            time.sleep(TOKEN_S * len(words))
            self.answer({"choices": [{"message": {"content": " ".join(words)}}], **self.facts()})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for word in words:
            time.sleep(TOKEN_S)
            self.event({"object": "chat.completion.chunk", "choices": [{"delta": {"content": f"{word} "}}]})
        self.event({"object": "chat.completion.chunk", "choices": [{"delta": {}}], **self.facts()})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def event(self, value):
        self.chunk(f"data: {json.dumps(value)}\n\n".encode())

    def chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def facts(self):
        return {
            "engine": f"{os.environ.get('MODAL_TASK_ID', '')}/{os.getpid()}",
            "model": model,
            "in_flight_max": in_flight_max,
            "weights": found,
            "device": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        }

    def log_message(self, format, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


weights = Path(os.environ.get("HF_HOME", "/root/.cache/huggingface")) / f"{str(model).replace('/', '--')}.safetensors"
found = "cached" if weights.exists() else "downloaded"
print(f"{Path(sys.argv[0]).name} {model}: {found}", flush=True)
if not weights.exists():
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(b"weights")
time.sleep(LOADING_S)
Server((given.host, given.port), Handler).serve_forever()
