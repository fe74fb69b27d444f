"""`App`: functions, classes and entry points under one name, and the time in which they run.

An app is declared at import time and has no id until it runs. `run()` asks `sdk.runner` to create it on a server and
gives it the id; handles ask the app for it at each call (`require_id`). In a container the id is the container's own.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from msgspec import structs

from kedge.exception import ExecutionError, InvalidError
from kedge.model.payload import Payload
from kedge.model.spec import FunctionSpec, ImageSpec
from kedge.sdk import context, options, registry, validation
from kedge.sdk.app_run import AppRun
from kedge.sdk.cls import Cls
from kedge.sdk.declaration import Declaration, is_interactive
from kedge.sdk.deployable import Deployable
from kedge.sdk.entrypoint import LocalEntrypoint
from kedge.sdk.function import Function
from kedge.sdk.image import Image
from kedge.sdk.later import refuse
from kedge.sdk.parameters import parameter
from kedge.sdk.secret import Secret, references
from kedge.sdk.typed import FunctionDecorator, dataclass_transform
from kedge.sdk.usage import keywords_only, where
from kedge.sdk.volume import Volume
from kedge.sdk.volume_mounts import references as volumes_at

if TYPE_CHECKING:
    from typing import Unpack

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

CODE_WARNING = 256 * 1024
"""Bytes of code by value from which one is told: usually a large object was captured by accident."""
CODE_LIMIT = 16 * 1024 * 1024


class App(Deployable):
    """Functions and classes that run together.

    Args:
        name: Shown to people, and the name of a deployment. Default: the name of the program.
        tags: Labels.
        image: For functions that give none.
        secrets: Variables for all of its functions; their own secrets come after them.
        volumes: For all of its functions, by path: `{"/data": volume}`; their own win at the same path.
        include_source: Whether containers get the source of the program.
        isolation: How containers are kept apart: process, namespace, bubblewrap, oci or gvisor. Default: as the server
            decides, which is the best that the machine has for apps with an image.

    Example:
        app = kedge.App("squares")

        @app.function()
        def square(x: int) -> int:
            return x * x

        if __name__ == "__main__":
            with app.run():
                print(square.remote(12))
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        tags: Mapping[str, str] | None = None,
        image: Image | None = None,
        secrets: Sequence[Secret] = (),
        volumes: Mapping[Any, Volume] | None = None,
        include_source: bool = True,
        isolation: str | None = None,
    ) -> None:
        if name is not None:
            validation.name("App: name", name)
        self._volumes = volumes_at("App: volumes", volumes or {})
        self._secrets = references("App: secrets", secrets)
        self.name = name
        self.tags = dict(validation.environment("App: tags", tags or {}))
        self.include_source = validation.flag("App: include_source", include_source)
        self.isolation = validation.isolation("App: isolation", isolation)
        self._image: Image | None = None
        self.image = image
        self._id: str | None = None
        self._ended = ""
        """Why it does not run any more, once it has run."""
        self._hosts: list[App] = []
        """Apps that include this one."""
        self._handles: dict[str, Function[..., Any, Any] | Cls] = {}
        self._entrypoints: dict[str, LocalEntrypoint[..., Any]] = {}
        self._by_value: dict[str, Any] = {}
        """User code that is sent by value, by registered name."""
        self._payloads: dict[str, Payload | None] = {}

    # ------------------------------------------------------------ declaring

    @keywords_only("@app.function()", name="app.function", accepts=options.FUNCTION_KEYWORDS, bound=True)
    def function(self, **settings: Unpack[options.FunctionOptions]) -> FunctionDecorator:
        """Registers a function: calls of it run in containers that come and go with the load.

        Args:
            image: What containers have installed. Default: the app's.
            env: Environment variables.
            gpu: Name of a device, with a count (`"H100:8"`) or a part of one (`"H100:0.5"`), or a list of acceptable
                ones in order of preference.
            vram: MiB of each device's memory, or `"20Gi"`: the rest of it is for others. Alone it means any device.
            cpu: Cores, or a pair (request, limit). Default 0.125.
            memory: MiB or text such as `"16Gi"`, or a pair (request, limit). Default 128 MiB.
            ephemeral_disk: MiB that a container may write to files of its own.
            min_containers: Containers that are always kept. Default 0.
            max_containers: Containers at most.
            buffer_containers: Idle containers kept in addition while the function is in use.
            scaledown_window: Seconds after which an idle container goes. Default 60.
            concurrency_limit: Inputs in flight over all containers; the rest wait.
            retries: How often an input whose code failed is tried again: a number, or `kedge.Retries`.
            timeout: Seconds that one input may run. Default 300.
            startup_timeout: Seconds for imports and enter hooks. Default: as `timeout`.
            queue_timeout: Seconds that an input may wait for its first slot; then it ends with QueueTimeoutError.
                Default: any time.
            max_queued_inputs: Inputs that may wait at once. One more is refused with ResourceExhaustedError, whose
                `retry_after` says in how many seconds another try may succeed; `.map` waits and tries again by itself.
            name: Default: the function's own name.
            is_generator: Default: whether it is a generator function.
            serialized: Sends the code by value, so that nested functions and lambdas work.
            single_use_containers: Each container takes one input.
            block_network: Containers have no network but the way to their server. They run on the rung `namespace` at
                least.
            include_source: Whether containers get the source of the program. Default: the app's.
            enable_memory_snapshot, nonpreemptible, restrict_modal_access, i6pn, cloud, region, routing_region:
                accepted, without effect.
            experimental_options: `{"preload": ["torch"]}` names modules that a fork server should hold.
            schedule: `kedge.Cron` or `kedge.Period`: while the app is deployed, the function runs by itself at these
                times, without arguments.
            secrets: Variables that are kept apart from code, such as `[kedge.Secret.from_name("openai")]`; later ones
                win, and `env` wins over all.
            volumes: File systems that outlive containers, by the path where they are mounted:
                `{"/models": kedge.Volume.from_name("models", create_if_missing=True)}`.
            network_file_systems: does not exist, and is refused; a volume is what to use instead.
            proxy: accepted, without effect.

        Example:
            @app.function(cpu=2.0, memory="4Gi", timeout=600)
            def convert(path: str) -> bytes: ...
        """
        declare: Any = self.declare("app.function", settings).function
        return declare  # type: ignore[no-any-return]

    @dataclass_transform(field_specifiers=(parameter,), kw_only_default=True)
    def cls(self, **settings: Unpack[options.ClsOptions]) -> Callable[[type[T]], type[T]]:
        """Registers a class: a container makes one object of it and serves the methods marked by `@kedge.method()`.

        Takes what `app.function` takes, except schedule, name and is_generator.

        Example:
            @app.cls(gpu="H100")
            class Model:
                size: str = kedge.parameter(default="small")

                @kedge.enter()
                def load(self) -> None:
                    self.greeting = f"Hello from {self.size}"

                @kedge.method()
                def greet(self, name: str) -> str:
                    return f"{self.greeting}, {name}"

            Model(size="large").greet.remote("Ada")
        """
        return self.declare("app.cls", settings).cls  # type: ignore[return-value]

    if not TYPE_CHECKING:  # pyright reads dataclass_transform from a plain function only
        cls = keywords_only("@app.cls()", name="app.cls", accepts=options.CLS_KEYWORDS, bound=True)(cls)

    def declare(self, owner: str, settings: Mapping[str, Any]) -> Declaration:
        """The checked keywords of one decorator that users know as `owner`."""
        image = self._image.spec if self._image is not None else ImageSpec()
        return Declaration(self, owner, settings, image, self.include_source, self._secrets, self._volumes)

    @keywords_only("@app.local_entrypoint()", name="app.local_entrypoint", bound=True)
    def local_entrypoint(self, *, name: str | None = None) -> Callable[[Callable[P, R]], LocalEntrypoint[P, R]]:
        """Marks the function that `kedge run` runs here, in the caller's process; its parameters become options.

        Example:
            @app.local_entrypoint()
            def main(count: int = 10):
                print(sum(square.map(range(count))))
        """

        def decorate(function: Callable[P, R]) -> LocalEntrypoint[P, R]:
            plain: object = function
            if not inspect.isfunction(plain):
                raise InvalidError(f"@app.local_entrypoint() decorates a plain function, not {function!r}")
            chosen = validation.name("app.local_entrypoint: name", name or function.__name__)
            if chosen in self._entrypoints and not is_interactive(function.__module__):
                raise InvalidError(f"there are two local entry points {chosen!r}; give one of them name=")
            entrypoint = LocalEntrypoint(self, chosen, function)
            self._entrypoints[chosen] = entrypoint
            return entrypoint

        return decorate

    def register(self, handle: Function[..., Any, Any] | Cls, user: Any, *, by_value: bool) -> None:
        """Takes a handle in. InvalidError where its name is taken."""
        name = handle.spec.name
        taken = self._handles.get(name)
        if taken is not None and not is_interactive(user.__module__):
            raise InvalidError(
                f"there are two functions or classes {name!r} in this app ({taken.spec.module}.{taken.spec.qualname} "
                f"and {where(user) or repr(user)}); give one of them name=, such as name=f'{name}-{{variant}}' "
                "in a loop"
            )
        if taken is not None and self._id is not None:
            raise InvalidError(f"{self} runs with the old {name!r}; leave its `with app.run():`, then declare it anew")
        self._handles[name] = handle
        if by_value:
            self._by_value[name] = user
        registry.register(user.__module__, name, handle)

    def include(self, other_app: App, /, inherit_tags: bool = True) -> App:
        """Adds everything of another app to this one, and gives this one back."""
        if not isinstance(other_app, App):
            raise InvalidError(f"App.include takes another App, not {other_app!r}")
        for name, handle in other_app._handles.items():
            if self._handles.get(name, handle) is not handle:
                raise InvalidError(f"both apps have a function or class {name!r}; give one of them name=")
        self._handles.update(other_app._handles)
        other_app._hosts.append(self)
        if inherit_tags:
            self.tags = {**other_app.tags, **self.tags}
        return self

    # ------------------------------------------------------------ what it holds

    @property
    def image(self) -> Image | None:
        """The image of functions that give none; setting it counts for functions declared afterwards."""
        return self._image

    @image.setter
    def image(self, image: Image | None) -> None:
        if image is not None:
            options.image_of("App", image)
        self._image = image

    @property
    def registered_functions(self) -> dict[str, Function[..., Any, Any]]:
        return {name: handle for name, handle in self._handles.items() if isinstance(handle, Function)}

    @property
    def registered_classes(self) -> dict[str, Cls]:
        return {name: handle for name, handle in self._handles.items() if isinstance(handle, Cls)}

    @property
    def registered_entrypoints(self) -> dict[str, LocalEntrypoint[..., Any]]:
        return dict(self._entrypoints)

    @property
    def registered_web_endpoints(self) -> list[str]:
        return [name for name, handle in self._handles.items() if any(method.web for method in handle.spec.methods)]

    @property
    def app_id(self) -> str | None:
        """The id while it runs, or under which it is deployed."""
        return self._id or self._deployment

    @property
    def runs(self) -> bool:
        """Whether we are inside of its `with app.run():`."""
        return self._id is not None

    @property
    def description(self) -> str | None:
        return self.name

    def function_specs(self) -> tuple[FunctionSpec, ...]:
        """Everything declared, ready to be sent: code that goes by value is pickled now."""
        self._payloads.clear()
        return tuple(handle.app.complete(handle.spec) for handle in self._handles.values())

    def complete(self, spec: FunctionSpec) -> FunctionSpec:
        """`spec` with its code, where that goes by value."""
        name = spec.name
        if name not in self._by_value or spec.serialized is not None:
            return spec
        if name not in self._payloads:
            # Code that refers to its own handle comes back here: inside of itself it goes without its code.
            self._payloads[name] = None
            try:
                self._payloads[name] = _code_payload(name, self._by_value[name])
            except BaseException:
                del self._payloads[name]
                raise
        return structs.replace(spec, serialized=self._payloads[name])

    # ------------------------------------------------------------ running

    def run(
        self,
        name: str | None = None,
        client: Any = None,
        detach: bool = False,
        interactive: bool = False,
        environment_name: str | None = None,
    ) -> AppRun:
        """Runs the app for the time of a `with` or `async with` block: inside, its functions can be called.

        Args:
            name: Another name for this run.
            detach: The app goes on after the block, and after the program.
            environment_name: Default: `KEDGE_ENVIRONMENT`, else the profile's, else "main".

        Example:
            with app.run():
                print(square.remote(12))
        """
        if interactive:
            refuse("app.run(interactive=True)")
        return AppRun(self, name, detach, environment_name)

    def require_id(self, callee: str) -> str:
        """The id under which it runs; ExecutionError says why a call of `callee` is not possible."""
        found = self._id or self._deployment or self._find_id()
        if found is None:
            raise ExecutionError(self._reason(callee))
        return found

    def _find_id(self) -> str | None:
        for host in self._hosts:
            found = host._id or host._deployment or host._find_id()
            if found is not None:
                return found
        here = context.container()
        return here.app_id if here is not None and self._is_of(here) else None

    def _is_of(self, here: context.ContainerContext) -> bool:
        """Whether this app is the one whose container we are: by name, by inclusion, or by the function it serves (a
        run may have a name of its own)."""
        if self.name is None or self.name == here.app_name or self._hosts:
            return True
        return here.function is not None and here.function.name in self._handles

    def _reason(self, callee: str) -> str:
        if context.container() is not None:
            return f"{callee} belongs to {self}, which is not the app of this container; only its own app can be called"
        if self._ended:
            return f"{callee} cannot be called any more: {self} {self._ended}. Call it inside of `with app.run():`"
        return (
            f"{callee} cannot be called yet: {self} is not running. Start the program with `kedge run`, or call it "
            f"inside of `with app.run():`; {callee}.local(…) runs it here. Where the app is deployed, "
            f"kedge.Function.from_name(…) and kedge.Cls.from_name(…) find it"
        )

    def started(self, app_id: str) -> None:
        """Said by whoever created the app on a server: from now on its handles work."""
        self._id = app_id
        self._ended = ""

    def stopped(self, reason: str = "has stopped") -> None:
        """Said at the end: handles refuse calls with `reason`."""
        self._id = None
        self._ended = reason

    def __repr__(self) -> str:
        return f"App({self.name!r})" if self.name else "App()"

    def __reduce__(self) -> Any:
        return _restore_app, (self.name, self._id or self._deployment or self._find_id())

    def __getattr__(self, name: str) -> Any:
        if name in _LATER:
            refuse(f"App.{name}", "")
        raise AttributeError(f"App has no attribute {name!r}")


_LATER = frozenset(
    [
        "info",
        "stats",
        "logs",
        "get_dashboard_url",
        "server",
        "from_name",
        "interactive_shell",
    ]
)


def _code_payload(name: str, user: Any) -> Payload:
    from kedge.sdk import serializer

    payload = serializer.by_value_payload(user, None, f"the code of {name}")
    size = len(payload.data)
    hint = "a large object is captured by the function; load it inside, or pass it as an argument"
    if size > CODE_LIMIT:
        raise InvalidError(f"the code of {name} takes {size} bytes by value, the limit is {CODE_LIMIT}: {hint}")
    if size > CODE_WARNING:
        warnings.warn(f"the code of {name} takes {size} bytes by value: {hint}", stacklevel=2)
    return payload


def _restore_app(name: str | None, app_id: str | None) -> App:
    app = App(name)
    if app_id is not None:
        app.started(app_id)
    return app
