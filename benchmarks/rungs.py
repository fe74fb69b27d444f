"""The function whose cold starts are measured: the same one on every rung of the isolation ladder, with an image."""

from __future__ import annotations

import kedge
from kedge.model.spec import RUNGS

image = kedge.Image.debian_slim()


def cold(value: int) -> int:
    return value


apps = {rung: kedge.App(f"benchmarks-{rung}", isolation=rung) for rung in RUNGS}
bare = {rung: app.function(image=image, scaledown_window=1)(cold) for rung, app in apps.items()}
