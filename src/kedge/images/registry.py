"""Images of registries as bases. Those of Debian and Python need none: they are what kedge has by itself.

Others are fetched by podman, or by skopeo and umoci, whichever is installed, and unpacked into `root/` of the step's
own layer. Their Python becomes the image's Python, unless `add_python` asks for one of this machine.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from kedge.exception import ImageBuildError, InvalidError
from kedge.images import debian, interpreters, overlay, python_base
from kedge.images.chamber import Bound, Plan
from kedge.images.running import CommandFailed, inherited
from kedge.images.steps import Handler, Workspace
from kedge.images.store import Layer

_DEBIAN = re.compile(r"(?:docker\.io/)?(?:library/)?debian(?::(?P<tag>[\w.-]+))?")
_PYTHON = re.compile(r"(?:docker\.io/)?(?:library/)?python:(?P<version>3\.\d+)(?:\.\d+)?(?P<rest>-[\w.-]+)?")
_OTHER_LIBRARY = re.compile(r"alpine|windows|nanoserver")
_LINKED = "/run/kedge-probe"


class Settings(Struct, frozen=True, kw_only=True):
    """What an image of a registry says about itself."""

    variables: tuple[tuple[str, str], ...] = ()
    directory: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()


# ---------------------------------------------------------------- steps


def from_registry(workspace: Workspace) -> Layer:
    from kedge.images import dockerfile, dockerlines

    layer = base(workspace, str(workspace.argument("tag", "")), workspace.argument("add_python"))
    lines = workspace.texts("setup_dockerfile_commands")
    return dockerfile.build(workspace.upon(layer), dockerlines.parse(lines)) if lines else layer


def from_scratch(workspace: Workspace) -> Layer:
    raise InvalidError(
        "Image.from_scratch has no files at all, not even those that Python needs; begin with Image.debian_slim(), or "
        "with Image.from_registry(…) for other files"
    )


def base(workspace: Workspace, tag: str, add_python: str | None) -> Layer:
    """The layer that stands for an image of a registry."""
    if tag == "scratch":
        return from_scratch(workspace)
    version, note = known(tag, debian.machine().suite)
    if version is not None:
        if note:
            workspace.say(note)
        return python_base.with_python(workspace, add_python or version or interpreters.own_version())
    root = workspace.directory / "root"
    settings = _fetched(workspace, tag, root)
    _furnish(root)
    if add_python:  # it is this machine's, so its environment is made outside
        workspace = workspace.upon(python_base.with_python(workspace, add_python))
    layer = workspace.layer(
        layers=(str(root),),
        variables=settings.variables,
        directory=settings.directory or "/",
        entrypoint=settings.entrypoint,
        cmd=settings.cmd,
    )
    return layer if add_python else _own_python(workspace.upon(layer), tag)


def known(tag: str, suite: str) -> tuple[str | None, str]:
    """(Python version, a note) of an image that needs no registry: an empty version means any. None for all others.

    >>> known("python:3.12-slim", "bookworm")
    ('3.12', '')
    >>> known("nvidia/cuda:12.4.0-devel-ubuntu22.04", "bookworm")[0] is None
    True
    """
    python, plain = _PYTHON.fullmatch(tag), _DEBIAN.fullmatch(tag)
    if python is not None:
        rest, version = python["rest"] or "", python["version"]
    elif plain is not None:
        rest, version = f"-{plain['tag'] or ''}", ""
    else:
        return None, ""
    if _OTHER_LIBRARY.search(rest):
        return None, ""
    suites = ("buster", "bullseye", "bookworm", "trixie", "forky", "sid")
    asked = next((name for name in suites if name in rest), suite)
    note = f"{tag}: files are those of Debian {suite}, as on this machine" if asked != suite else ""
    return version, note


# ---------------------------------------------------------------- fetching


def _fetched(workspace: Workspace, tag: str, root: Path) -> Settings:
    podman, skopeo, umoci = (shutil.which(name) for name in ("podman", "skopeo", "umoci"))
    login = workspace.directory / "login.json"
    access = credentials(workspace.step.kind, tag, workspace.secrets)
    if access is None and workspace.step.kind == "from_aws_ecr":
        access = _of_amazon(workspace, tag)
    if access is not None:
        workspace.runner.hide(access[1])
        secret = base64.b64encode(":".join(access).encode()).decode()
        workspace.runner.hide(secret)
        descriptor = os.open(login, os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(descriptor, msgspec.json.encode({"auths": {host(tag): {"auth": secret}}}))
        os.close(descriptor)
    file = ["--authfile", str(login)] if access is not None else []
    try:
        if podman:
            return _by_podman(workspace, podman, tag, root, file)
        if skopeo and umoci:
            return _by_skopeo(workspace, skopeo, umoci, tag, root, file)
    except CommandFailed as failure:
        if any("unauthorized" in line.lower() or "denied" in line.lower() for line in failure.lines) and access is None:
            failure.lines.append(
                "the registry wants a login: give the step a secret with REGISTRY_USERNAME and REGISTRY_PASSWORD"
            )
        raise
    finally:
        login.unlink(missing_ok=True)
    raise ImageBuildError(
        f"{tag} comes from a registry, and nothing is installed here that can fetch it; on this machine: `apt-get "
        "install podman` (or skopeo and umoci). Images of Debian and Python (debian:bookworm, python:3.12-slim) need "
        "neither"
    )


def _by_podman(workspace: Workspace, podman: str, tag: str, root: Path, login: list[str]) -> Settings:
    present = _ask([podman, "image", "exists", tag]) is not None
    if not present:
        tag = qualified(tag)  # podman knows no registry by itself
    if not present or workspace.fresh:
        workspace.run(
            [podman, "pull", "--quiet", *login, tag], variables=inherited(os.environ), shown=f"podman pull {tag}"
        )
    found = _ask([podman, "image", "inspect", "--format", "{{json .Config}}", tag])
    created = (_ask([podman, "create", tag, "/bin/true"]) or "").strip()
    if found is None or not created:
        raise ImageBuildError(f"podman has fetched {tag}, but cannot read it; `podman create {tag}` says why")
    root.mkdir()
    # As the user of the layer: in a user namespace where that is not root.
    plan = Plan(users=overlay.users())
    script = 'set -o pipefail; "$0" export "$1" | tar -x --numeric-owner -C "$2"'
    try:
        if plan.users:
            archive = workspace.directory / "root.tar"
            workspace.run(
                [podman, "export", "-o", str(archive), created], variables=inherited(os.environ), shown="unpack"
            )
            words = ["tar", "-x", "--numeric-owner", "-C", str(root), "-f", str(archive)]
            workspace.run(overlay.chambered(plan, words), variables=inherited(os.environ), shown=f"unpack {tag}")
            archive.unlink()
        else:
            words = ["bash", "-c", script, podman, created, str(root)]
            workspace.run(words, variables=inherited(os.environ), shown=f"unpack {tag}")
    finally:
        _ask([podman, "rm", "-f", created])
    return settings_of(msgspec.json.decode(found))


def _by_skopeo(workspace: Workspace, skopeo: str, umoci: str, tag: str, root: Path, login: list[str]) -> Settings:
    if os.geteuid() != 0:
        raise ImageBuildError("skopeo and umoci unpack images only as root; without root, podman does: install podman")
    store, bundle = workspace.directory / "oci", workspace.directory / "bundle"
    words = [skopeo, "copy", "--quiet", *login, f"docker://{tag}", f"oci:{store}:image"]
    workspace.run(words, variables=inherited(os.environ), shown=f"skopeo copy {tag}")
    workspace.run(
        [umoci, "unpack", "--image", f"{store}:image", str(bundle)],
        variables=inherited(os.environ),
        shown=f"umoci unpack {tag}",
    )
    found = _ask([skopeo, "inspect", "--config", f"oci:{store}:image"])
    (bundle / "rootfs").rename(root)
    overlay.remove_tree(bundle)
    overlay.remove_tree(store)
    return settings_of(msgspec.json.decode(found or "{}").get("config", {}))


def settings_of(config: Mapping[str, Any]) -> Settings:
    """Of the configuration that the OCI format has.

    >>> settings_of({"Env": ["A=1"], "WorkingDir": "/app", "Cmd": ["sh"]}).variables
    (('A', '1'),)
    """
    pairs = [str(line).partition("=") for line in config.get("Env") or ()]
    return Settings(
        variables=tuple((name, value) for name, _, value in pairs),
        directory=str(config.get("WorkingDir") or ""),
        entrypoint=tuple(config.get("Entrypoint") or ()),
        cmd=tuple(config.get("Cmd") or ()),
    )


def host(tag: str) -> str:
    """The registry of a tag.

    >>> host("ghcr.io/acme/tool:1"), host("acme/tool")
    ('ghcr.io', 'docker.io')
    """
    first, slash, _ = tag.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"


def qualified(tag: str) -> str:
    """A tag with its registry: those without one are meant for Docker Hub, as everywhere else.

    >>> qualified("nvidia/cuda:12.8.1"), qualified("alpine"), qualified("ghcr.io/acme/tool:1")
    ('docker.io/nvidia/cuda:12.8.1', 'docker.io/library/alpine', 'ghcr.io/acme/tool:1')
    """
    if host(tag) == tag.partition("/")[0]:
        return tag
    return f"docker.io/{tag}" if "/" in tag else f"docker.io/library/{tag}"


def credentials(kind: str, tag: str, secrets: Mapping[str, str]) -> tuple[str, str] | None:
    """User and password, from the secret of the step."""
    if not secrets:
        return None
    if kind == "from_gcp_artifact_registry":
        key = secrets.get("SERVICE_ACCOUNT_JSON")
        if not key:
            raise InvalidError("Image.from_gcp_artifact_registry needs a secret with SERVICE_ACCOUNT_JSON")
        return "_json_key", key
    if kind == "from_aws_ecr":
        return None
    names = ("REGISTRY_USERNAME", "REGISTRY_PASSWORD")
    missing = [name for name in names if not secrets.get(name)]
    if missing:
        raise InvalidError(f"Image.from_registry({tag!r}): its secret has no {' and no '.join(missing)}")
    return secrets[names[0]], secrets[names[1]]


def _of_amazon(workspace: Workspace, tag: str) -> tuple[str, str]:
    aws = shutil.which("aws")
    if aws is None:
        raise ImageBuildError("Image.from_aws_ecr logs in with Amazon's command line, which is not installed: `aws`")
    parts = host(tag).split(".")
    region = workspace.secrets.get("AWS_REGION") or (parts[3] if len(parts) > 3 else "")
    words = [aws, "ecr", "get-login-password", *(["--region", region] if region else [])]
    password = _ask(words, {**inherited(os.environ), **workspace.secrets})
    if not password:
        raise ImageBuildError(f"`aws ecr get-login-password` gave no password for {host(tag)}; check the step's secret")
    return "AWS", password.strip()


def _ask(words: list[str], variables: Mapping[str, str] | None = None) -> str | None:
    """What a command says; None where it fails."""
    environment = dict(variables) if variables is not None else inherited(os.environ)
    found = subprocess.run(
        words, capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL
    )
    return found.stdout if found.returncode == 0 else None


# ---------------------------------------------------------------- what containers need in it


def _furnish(root: Path) -> None:
    """Directories and files that every root has."""
    for name in ("proc", "sys", "dev", "tmp", "run", "root", "etc"):
        if not os.path.lexists(root / name):
            (root / name).mkdir(mode=0o1777 if name == "tmp" else 0o755)
    for name, text in (("hosts", "127.0.0.1 localhost\n::1 localhost\n"), ("resolv.conf", "")):
        if not os.path.lexists(root / "etc" / name):
            (root / "etc" / name).write_text(text)


def _own_python(workspace: Workspace, tag: str) -> Layer:
    """An environment over the Python that the image itself has, with all its packages."""
    packages = workspace.directory / "venv"
    packages.mkdir()
    probe = workspace.directory / "probe"
    probe.mkdir()
    script = (
        "python=$(command -v python3 || command -v python) || exit 42; "
        '"$python" -m venv --without-pip --system-site-packages "$1" && '
        '"$python" -c \'import sys; print("%d.%d" % sys.version_info[:2])\' > ' + f"{_LINKED}/version"
    )
    with overlay.entered(workspace) as place:
        bound = Bound(str(probe), _LINKED, read_only=False)
        words = place.command(["/bin/sh", "-c", script, "sh", str(packages)], "/", [bound])
        try:
            workspace.run(words, variables=place.variables(workspace.variables()), shown="python3 -m venv")
        except CommandFailed as failure:
            if failure.reason == "exit code 42":
                raise ImageBuildError(
                    f'{tag} has no Python; add one of this machine: Image.from_registry({tag!r}, add_python="3.12")'
                ) from None
            raise
    version = (probe / "version").read_text().strip()
    overlay.remove_tree(probe)
    return workspace.layer(python=f"{packages}/bin/python", python_version=version, packages=str(packages))


HANDLERS: dict[str, Handler] = {
    "from_registry": from_registry,
    "from_aws_ecr": from_registry,
    "from_gcp_artifact_registry": from_registry,
    "from_scratch": from_scratch,
}
