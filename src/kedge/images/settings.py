"""Steps that change what is said about an image, or begin with another one, and change none of its files."""

from __future__ import annotations

import posixpath

from kedge.exception import NotFoundError
from kedge.images.steps import Workspace
from kedge.images.store import Built, Layer, Store


def env(workspace: Workspace) -> Layer:
    """Variables; later ones win."""
    variables = dict(workspace.parent.image.variables) | workspace.argument("vars", {})
    return workspace.layer(variables=tuple(variables.items()))


def workdir(workspace: Workspace) -> Layer:
    """Where code runs; a relative path starts from where it ran before."""
    return workspace.layer(directory=posixpath.join(workspace.parent.image.directory, workspace.argument("path", "/")))


def entrypoint(workspace: Workspace) -> Layer:
    return workspace.layer(entrypoint=tuple(workspace.texts("entrypoint")))


def cmd(workspace: Workspace) -> Layer:
    return workspace.layer(cmd=tuple(workspace.texts("cmd")))


def shell(workspace: Workspace) -> Layer:
    return workspace.layer(shell=tuple(workspace.texts("shell")))


def from_id(workspace: Workspace) -> Layer:
    """An image that was built before, as a base."""
    base = base_of(workspace.store, workspace.argument("image_id", ""))
    last = workspace.store.layer(base.layers[-1])
    if last is None:
        raise NotFoundError(f"a layer of {base.image.id} has been removed; build that image again")
    workspace.parent = last
    return workspace.layer()


def base_of(store: Store, image: str) -> Built:
    """NotFoundError where it is not there."""
    found = store.image(image)
    if found is None:
        raise NotFoundError(f"there is no image {image!r} on this server; `kedge image list` shows all")
    return found


HANDLERS = {"env": env, "workdir": workdir, "entrypoint": entrypoint, "cmd": cmd, "shell": shell, "from_id": from_id}
