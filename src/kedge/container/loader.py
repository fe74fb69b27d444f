"""From a Launch to a service that has entered: path and variables, the user's module, the instance, the hooks.

* The snapshot answers first for its own module; everything else comes from the caller's `sys.path`, and kedge's runtime
  from the end of it.
* With `alias_modal`, `import modal` means kedge, also where modal is installed.
* A main script is loaded as `__kedge_main__`; a serialized function or class needs no module at all.
* Sync hooks run on the main thread, async ones on the user's loop, each when the one before it has returned.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import os
import sys
import threading
import traceback
from collections.abc import Coroutine
from types import ModuleType
from typing import Any

from kedge.container import waits
from kedge.container.imports import ImportCosts
from kedge.container.snapshot import Snapshot, import_main
from kedge.exception import InputCancellation
from kedge.model.spec import HOME, Launch
from kedge.sdk.blobs import BlobStore
from kedge.sdk.serializer import MAIN, from_payload
from kedge.sdk.service import Service, find_service, service_of


class UserLoop:
    """The one event loop of user code, on the main thread; made when first needed. uvloop's where it is installed.

    Its own threads (`asyncio.to_thread`) are enough for one per input: Python's default, four more than there are CPUs,
    would be a second and hidden limit of how many inputs really run at once."""

    def __init__(self, max_inputs: int = 1) -> None:
        self._max_inputs = max_inputs
        self._main = threading.get_ident()
        self._loop: asyncio.AbstractEventLoop | None = None

    def get(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            try:
                import uvloop

                self._loop = uvloop.new_event_loop()
            except ImportError:
                self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
            if self._max_inputs > (os.cpu_count() or 1) + 4:
                from concurrent.futures import ThreadPoolExecutor

                self._loop.set_default_executor(ThreadPoolExecutor(self._max_inputs, "asyncio"))
        return self._loop

    def finish(self, value: Any) -> Any:
        """`value`, or what it gives when awaited: on the user's loop from the main thread, on a loop of its own from
        others, where a plain function of theirs returned a coroutine."""
        if not inspect.isawaitable(value):
            return value
        try:
            if threading.get_ident() != self._main:
                return asyncio.run(_awaited_on_thread(value))
            return self._run_on_main(_awaited(value))
        finally:
            waits.leave_loop(None)

    def _run_on_main(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        loop = self.get()
        task = loop.create_task(coroutine)

        def end_wait() -> bool:
            waits_now = asyncio.current_task(loop) is None
            if waits_now:
                loop.call_soon_threadsafe(task.cancel)
            return waits_now

        waits.leave_loop(end_wait)
        try:
            return loop.run_until_complete(task)
        except InputCancellation:
            # It may have hit the loop, or a task beside it: let the coroutine clean up as well.
            task.cancel()
            loop.run_until_complete(asyncio.wait([task]))
            raise


def settle(launch: Launch) -> None:
    """Path, variables and directory of the user. Those of its environment are there: this process, or its fork server,
    has begun with them."""
    environment, function = launch.environment, launch.function
    known = set(environment.sys_path)
    if known:
        sys.path[:] = [*environment.sys_path, *(entry for entry in sys.path if entry not in known)]
    if environment.python_path:
        before = environment.python_path
        sys.path[:] = [*before, *(entry for entry in sys.path if entry not in before)]
    names = dict(function.env)
    names |= {"KEDGE_CONTAINER_ID": launch.container, "KEDGE_IS_REMOTE": "1"}
    names["KEDGE_ENVIRONMENT"] = launch.environment_name
    if environment.alias_modal:
        names |= {"MODAL_TASK_ID": launch.container, "MODAL_IS_REMOTE": "1"}
    if launch.devices:
        names["CUDA_VISIBLE_DEVICES"] = ",".join(str(device) for device in launch.devices)
    names |= dict(launch.device_variables)
    os.environ.update(names)
    try:
        if not launch.isolation.shares_files:  # its own files: nobody else minds
            os.makedirs(environment.directory, exist_ok=True)
        os.chdir(environment.directory)
    except OSError as error:
        print(f"kedge: running in {os.getcwd()}: cannot enter {environment.directory}: {error}", file=sys.stderr)


class Loaded:
    """User code that is there: `enter` comes before inputs, `exit` after the last one."""

    def __init__(self, launch: Launch, blobs: BlobStore, loop: UserLoop) -> None:
        """Imports the user's code. Whatever that raises passes through."""
        self._launch = launch
        self._loop = loop
        self._snapshot: Snapshot | None = None
        if launch.code.root:
            self._snapshot = Snapshot(launch.code, "" if launch.isolation.shares_files else HOME)
            self._snapshot.quote_stored_lines()
            sys.meta_path.insert(0, self._snapshot)
        if launch.environment.alias_modal:
            from kedge.sdk import alias

            alias.install()
        self.costs = ImportCosts()
        with self.costs:
            self.service = self._find(blobs)

    @property
    def imports(self) -> list[str]:
        """What a fork server should hold for the next container."""
        return self.costs.heavy(self._launch.preload)

    def enter(self) -> None:
        """Makes the instance of a class and runs its enter hooks."""
        self.service.create(self._launch.parameters)
        for hook in self.service.enter_hooks:
            self._loop.finish(hook())

    def exit(self) -> None:
        """Runs every exit hook; one that fails is printed and does not stop the others."""
        for hook in self.service.exit_hooks:
            try:
                self._loop.finish(hook())
            except BaseException:
                traceback.print_exc()

    def _find(self, blobs: BlobStore) -> Service:
        spec = self._launch.function
        if spec.serialized is not None:
            return service_of(from_payload(spec.serialized, blobs, what=f"the function {spec.name}"), spec)
        return find_service(self._import(spec.module), spec, self._launch.app_name)

    def _import(self, name: str) -> ModuleType:
        code = self._launch.code
        if self._snapshot is not None and code.main and name in ("__main__", MAIN, code.module):
            return import_main(self._snapshot)
        if self._snapshot is not None and code.main:
            # The function's module is imported by the script, perhaps for its side effects: as it is at the caller's.
            import_main(self._snapshot)
        return importlib.import_module(name)


async def _awaited(value: Any) -> Any:
    return await value


async def _awaited_on_thread(value: Any) -> Any:
    waits.leave_loop(functools.partial(asyncio.get_running_loop().call_soon_threadsafe, _nothing))
    return await value


def _nothing() -> None:
    """An event loop that is asked to do this runs for a moment."""
