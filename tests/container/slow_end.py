"""An app that takes its time to end."""

from __future__ import annotations

import kedge
from tests.container.gallery import allowed, note

app = kedge.App("slow-end")


@app.cls()
class SlowEnd:
    @kedge.asgi_app()
    def site(self):
        async def answer(scope, receive, send):
            assert scope["type"] == "lifespan"
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            note("ending")
            await allowed("end")
            note("ended")
            await send({"type": "lifespan.shutdown.complete"})

        return answer

    @kedge.exit()
    def close(self):
        note("exit")
