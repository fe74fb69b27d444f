"""Serverless Python without a cloud: decorate a function, call it, and it runs in containers.

    import kedge

    app = kedge.App()

    @app.function()
    @kedge.concurrent(max_inputs=50)
    def work(x): ...

Names are imported on first use where they cost time; what comes in a later version imports too, and says so when used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kedge._version import __version__
from kedge.exception import Error
from kedge.sdk.app import App
from kedge.sdk.cls import Cls
from kedge.sdk.context import current_function_call_id, current_input, current_input_id, is_local
from kedge.sdk.decorators import batched, concurrent, enter, exit, method
from kedge.sdk.function import Function
from kedge.sdk.image import Image
from kedge.sdk.implicit import cls, function
from kedge.sdk.output import enable_output
from kedge.sdk.parameters import parameter
from kedge.sdk.retries import Retries
from kedge.sdk.schedule import Cron, Period
from kedge.sdk.secret import Secret
from kedge.sdk.shield import shield
from kedge.sdk.volume import Volume
from kedge.sdk.web import asgi_app, fastapi_endpoint, web_endpoint, web_server, wsgi_app

if TYPE_CHECKING:
    from kedge import exception, experimental, gpu
    from kedge.sdk.dicts import Dict
    from kedge.sdk.function_call import FunctionCall
    from kedge.sdk.later import NetworkFileSystem, Proxy
    from kedge.sdk.patterns import FilePatternMatcher
    from kedge.sdk.queues import Queue

__all__ = [
    "App",
    "Cls",
    "Cron",
    "Dict",
    "Error",
    "FilePatternMatcher",
    "Function",
    "FunctionCall",
    "Image",
    "NetworkFileSystem",
    "Period",
    "Proxy",
    "Queue",
    "Retries",
    "Secret",
    "Volume",
    "asgi_app",
    "batched",
    "cls",
    "concurrent",
    "current_function_call_id",
    "current_input",
    "current_input_id",
    "enable_output",
    "enter",
    "exception",
    "exit",
    "experimental",
    "fastapi_endpoint",
    "function",
    "gpu",
    "is_local",
    "method",
    "parameter",
    "shield",
    "web_endpoint",
    "web_server",
    "wsgi_app",
]

_LAZY = {
    "Dict": "kedge.sdk.dicts",
    "FilePatternMatcher": "kedge.sdk.patterns",
    "FunctionCall": "kedge.sdk.function_call",
    "NetworkFileSystem": "kedge.sdk.later",
    "Proxy": "kedge.sdk.later",
    "Queue": "kedge.sdk.queues",
}
_SUBMODULES = ("exception", "experimental", "gpu")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value: Any = getattr(importlib.import_module(_LAZY[name]), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"kedge.{name}")
    elif name == "Stub":
        from kedge.sdk.usage import old_spelling

        old_spelling("kedge.Stub", "kedge.App")
        return App
    else:
        value = _later(name)
    globals()[name] = value
    return value


def _later(name: str) -> Any:
    from kedge.sdk.later import PLACEHOLDERS, later
    from kedge.sdk.usage import nearest

    if name in PLACEHOLDERS:
        return later(name, PLACEHOLDERS[name])
    raise AttributeError(
        f"module 'kedge' has no attribute {name!r}.{'' if name.startswith('_') else nearest(name, __all__)}"
    )


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
