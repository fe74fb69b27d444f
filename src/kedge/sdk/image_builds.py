"""Images on their way to a server: what they read is taken along, they are built all at once, and their ids go into the
specs of the functions.

What is built already costs one round trip for all images together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import structs

from kedge.exception import InvalidError
from kedge.model.protocol import ImageProgressed, ImageRequested
from kedge.model.spec import AppSpec, CodeSpec, FunctionSpec, ImageSpec, ImageStep, SecretRef, VolumeRef
from kedge.sdk import alias, config, context, image_files, output, secret, server_process, shipping, snapshot
from kedge.sdk.calls import Request

if TYPE_CHECKING:
    from kedge.sdk.app import App
    from kedge.sdk.client import Client

FORCE = "FORCE_BUILD"
IGNORE_CACHE = "IGNORE_CACHE"
_FALSE = ("", "0", "false", "no", "off")


# ---------------------------------------------------------------- here


def bound(
    specs: tuple[FunctionSpec, ...], code: CodeSpec, home: str, environment_name: str
) -> tuple[FunctionSpec, ...]:
    """Functions whose images have their files, as they are now."""
    known: dict[ImageSpec, ImageSpec] = {}
    for spec in specs:
        if spec.image.steps and spec.image not in known:
            image = image_files.bound(spec.image, code, home)
            image = _with_secrets(image, lambda reference: _of_environment(reference, environment_name))
            known[spec.image] = _with_volumes(image, environment_name)
    return _replaced(specs, known)


def _of_environment(reference: SecretRef, environment_name: str) -> SecretRef:
    if not reference.name or reference.environment:
        return reference
    return structs.replace(reference, environment=environment_name)


def _with_secrets(image: ImageSpec, change: Callable[[SecretRef], SecretRef]) -> ImageSpec:
    """The image with the references of its steps changed."""

    def changed(step: ImageStep) -> ImageStep:
        arguments = dict(step.arguments)
        for key, kind in (("secret", SecretRef), ("secrets", list[SecretRef])):
            if key in arguments:
                value: Any = msgspec.json.decode(arguments[key], type=kind)
                value = [change(one) for one in value] if isinstance(value, list) else change(value)
                arguments[key] = msgspec.json.encode(value, order="deterministic").decode()
        return structs.replace(step, arguments=tuple(sorted(arguments.items())))

    return structs.replace(image, steps=tuple(changed(step) for step in image.steps))


def _with_volumes(image: ImageSpec, environment_name: str) -> ImageSpec:
    """The image with volumes of this environment, where its steps name no other."""

    def changed(step: ImageStep) -> ImageStep:
        arguments = dict(step.arguments)
        if "volumes" not in arguments:
            return step
        found = msgspec.json.decode(arguments["volumes"], type=list[VolumeRef])
        own = [structs.replace(ref, environment=ref.environment or environment_name) for ref in found]
        arguments["volumes"] = msgspec.json.encode(own, order="deterministic").decode()
        return structs.replace(step, arguments=tuple(sorted(arguments.items())))

    return structs.replace(image, steps=tuple(map(changed, image.steps)))


def _replaced(specs: tuple[FunctionSpec, ...], images: Mapping[ImageSpec, ImageSpec]) -> tuple[FunctionSpec, ...]:
    if not images:
        return specs
    return tuple(structs.replace(spec, image=images[spec.image]) if spec.image in images else spec for spec in specs)


# ---------------------------------------------------------------- at a server


def at_server(
    client: Client, specs: tuple[FunctionSpec, ...], here: CodeSpec, there: CodeSpec
) -> tuple[FunctionSpec, ...]:
    """Functions whose images have their files and secrets where the server finds them.

    Args:
        client: Leads to the server.
        specs: With images that are bound.
        here: The app's code, as it lies on this machine.
        there: The same at the server.
    """
    keep = secret.keeper(client)
    kept: dict[SecretRef, SecretRef] = {}

    def known(reference: SecretRef) -> SecretRef:
        if reference not in kept:
            kept[reference] = secret.bind(reference, keep)
        return kept[reference]

    def moved(image: ImageSpec) -> ImageSpec:
        def step_of(step: ImageStep) -> ImageStep:
            files = step.files
            if files is None:
                return step
            if files.root == here.root:
                return structs.replace(step, files=structs.replace(files, root=there.root))
            return structs.replace(step, files=shipping.files_at_server(client, files))

        ready = _with_secrets(image, known)
        return structs.replace(
            ready,
            steps=tuple(step_of(step) for step in ready.steps),
            mounts=tuple(shipping.files_at_server(client, files) for files in image.mounts),
        )

    return _replaced(specs, {spec.image: moved(spec.image) for spec in specs if spec.image.steps})


class _Build(Request):
    """A build that is waited for."""

    __slots__ = ("name", "sink")

    def __init__(self, message: ImageRequested, name: str, sink: output.OutputSink | None) -> None:
        super().__init__(message)
        self.name = name
        self.sink = sink

    def hear(self, message: ImageProgressed) -> None:
        if self.sink is not None:
            self.sink.building(self.name, message)

    def over(self, state: str, seconds: float = 0.0) -> None:
        """The whole of it has ended."""
        self.hear(ImageProgressed(self.message.request, state, seconds=seconds))


def built(client: Client, app: AppSpec) -> AppSpec:
    """The app with the ids of its images, which the server has from now on.

    Raises ImageBuildError with the step that failed and its last lines.
    """
    images: dict[tuple[ImageStep, ...], list[str]] = {}
    for spec in app.functions:
        if spec.image.steps:
            images.setdefault(spec.image.steps, []).append(spec.name)
    if not images:
        return app
    secret.look_up(client, app.functions, app.environment_name)  # a misspelt name is told before the minutes of a build
    names = [", ".join(users) if len(images) > 1 else "" for users in images.values()]
    aliased = app.environment.alias_modal
    specs = [ImageSpec(steps) for steps in images]
    ids = dict(zip(images, build_all(client, specs, names, aliased=aliased), strict=True))
    functions = tuple(
        structs.replace(spec, image=structs.replace(spec.image, id=ids[spec.image.steps])) if spec.image.steps else spec
        for spec in app.functions
    )
    return structs.replace(app, functions=functions)


def build_all(
    client: Client, images: Sequence[ImageSpec], names: Sequence[str], *, aliased: bool = False, publish: str = ""
) -> list[str]:
    """Ids of images that are all asked for before the first is waited for."""
    link, sink = client.link(), output.current()
    force, ignore_cache = wished(FORCE, aliased), wished(IGNORE_CACHE, aliased)
    builds: list[_Build] = []
    try:
        for image, name in zip(images, names, strict=True):
            number = link.registry.next_request()
            message = ImageRequested(number, image, force, ignore_cache, publish)
            build = _Build(message, name, sink)
            link.registry.requests[number] = build
            builds.append(build)
        for build in builds:
            link.send([build.message])  # one frame each: together they could be too much for one
        for build in builds:
            link.wait(build)
            if build.failure is not None:
                raise build.failure
            build.over("cached" if build.value.get("cached") else "finished", build.value.get("seconds", 0.0))
    finally:
        for build in builds:
            link.registry.requests.pop(build.message.request, None)
            if not build.ready or build.failure is not None:
                build.over("failed")
    return [build.value["id"] for build in builds]


def wished(what: str, aliased: bool) -> bool:
    """Whether KEDGE_… asks for it, or MODAL_… of a program that says `import modal`."""
    for name in (f"KEDGE_{what}", *((f"MODAL_{what}",) if aliased else ())):
        if os.environ.get(name, "").lower() not in _FALSE:
            return True
    return False


def build(spec: ImageSpec, app: App | None, publish: str = "") -> str:
    """The id of an image that is built now, by the server in use or else that of the machine. In a container, which
    imports the same file, nothing happens."""
    from kedge.sdk.runner import Session

    if context.container() is not None:
        return ""
    if not spec.steps:
        raise InvalidError("kedge.Image() is the caller's own environment: there is nothing to build")
    home = server_process.home()
    code = snapshot.take(app.function_specs() if app is not None else (), home)
    function = FunctionSpec(name="image", module="", qualname="", image=spec)
    specs = bound((function,), code, home, config.environment())
    session = Session.join(machine=True)
    try:
        there = shipping.at_server(session.client, code, private=session.private)
        (function,) = at_server(session.client, specs, code, there)
        image = ImageSpec(function.image.steps)
        return build_all(session.client, [image], [""], aliased=alias.is_installed(), publish=publish)[0]
    finally:
        session.leave()
