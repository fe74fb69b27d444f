"""Inside of an image: calls the function of a `run_function` step. Started with the image's own Python as
`python calling.py FILE`, where FILE says as JSON what to call. Only the standard library is imported here."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
import traceback
from types import TracebackType
from typing import Any


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        order = json.load(file)
    sys.path[0:1] = [path for path in (order["code"], "/root") if path]
    sys.path += order["runtime"]
    if order["alias"]:
        from kedge.sdk import alias

        alias.install()
    args, kwargs = order["given"]
    try:
        result = function_of(order)(*args, **kwargs)
        if inspect.isawaitable(result):

            async def wait() -> None:
                await result

            asyncio.run(wait())
    except Exception as error:
        traceback.print_exception(error.with_traceback(_of_users(error.__traceback__)))
        sys.exit(1)


def _of_users(trace: TracebackType | None) -> TracebackType | None:
    """From where their own code begins; all of it where that is nowhere."""
    ours, here = (os.path.dirname(asyncio.__file__), __file__), trace
    while here is not None and here.tb_frame.f_code.co_filename.startswith(ours):
        here = here.tb_next
    return here or trace


def function_of(order: dict[str, Any]) -> Any:
    if order["pickled"]:
        import cloudpickle

        with open(f"{order['code']}/{order['pickled']}", "rb") as file:
            return cloudpickle.load(file)
    module, _, name = order["function"].partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found.get_raw_f() if hasattr(found, "get_raw_f") else found


if __name__ == "__main__":
    main()
