"""A chat in the browser: one page, one WebSocket per visitor, everyone hears everyone.

    kedge run examples/chat_websocket.py
    kedge deploy examples/chat_websocket.py
    curl http://localhost:5334/chat/

After `kedge deploy`, open that address in two windows. A WebSocket is one input and holds its slot until it closes, so
`max_inputs` is how many people one container bears; `max_containers=1` makes all of them meet in one room. `timeout`
ends visits that are too long: without one, a WebSocket would be over after 300 seconds like any other input.
"""

import asyncio
import json
import urllib.request

import kedge

app = kedge.App("chat")

DAY_S = 24 * 3600

PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Chat</title>
<style>
  body { font: 16px system-ui; max-width: 40em; margin: 2em auto }
  #said { list-style: none; padding: 0; min-height: 10em }
  input { font: inherit; width: 100%; box-sizing: border-box; padding: .5em }
</style>
<h1>Chat</h1>
<ul id="said"></ul>
<form><input id="text" placeholder="Say something" autocomplete="off" autofocus></form>
<script>
  // Relative to this page, so that it works under /chat/ and under chat.localhost alike.
  const url = new URL("room", location.href)
  url.protocol = url.protocol.replace("http", "ws")
  const socket = new WebSocket(url)
  const line = text => said.append(Object.assign(document.createElement("li"), { textContent: text }))
  socket.onmessage = event => { const { who, what } = JSON.parse(event.data); line(`${who}: ${what}`) }
  socket.onclose = () => line("The connection has closed.")
  document.forms[0].onsubmit = event => {
    event.preventDefault()
    if (text.value) socket.send(text.value)
    text.value = ""
  }
</script>
"""


@app.function(max_containers=1, timeout=DAY_S)
@kedge.concurrent(max_inputs=1000)
@kedge.asgi_app(label="chat")
def chat():
    from fastapi import FastAPI, WebSocket, WebSocketDisconnect
    from fastapi.responses import HTMLResponse

    api = FastAPI()
    visitors: dict[WebSocket, str] = {}
    numbers = iter(range(1, 10**9))

    async def tell_all(who: str, what: str) -> None:
        for visitor in list(visitors):
            try:
                await visitor.send_json({"who": who, "what": what})
            except (RuntimeError, WebSocketDisconnect):
                pass  # is leaving just now

    @api.get("/", response_class=HTMLResponse)
    async def page():
        return PAGE

    @api.websocket("/room")
    async def room(socket: WebSocket):
        await socket.accept()
        name = visitors[socket] = f"visitor {next(numbers)}"
        try:
            await tell_all(name, "has come in")
            while True:
                await tell_all(name, await socket.receive_text())
        except WebSocketDisconnect:
            pass
        finally:
            del visitors[socket]
            await tell_all(name, "has left")

    return api


@app.local_entrypoint()
async def main() -> None:
    """Two visitors talk to each other."""
    from websockets.asyncio.client import connect

    url = await chat.get_web_url.aio()
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(f"{url}/").read().decode())
    print("the page is there:", "<title>Chat</title>" in page)
    room = f"{url.replace('http', 'ws', 1)}/room"
    async with connect(room) as ada:
        print("Ada hears", await hear(ada))
        async with connect(room) as bob:
            print("Bob hears", await hear(bob))
            print("Ada hears", await hear(ada))
            await ada.send("Good morning")
            print("Bob hears", await hear(bob))
            print("Ada hears", await hear(ada))
        print("Ada hears", await hear(ada))


async def hear(socket) -> str:
    message = json.loads(await socket.recv())
    return f"{message['who']}: {message['what']}"
