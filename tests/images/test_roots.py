"""Steps that change the root of an image, for real: over a Debian base, in namespaces. Root or subordinate ids, and
mmdebstrap, or they are skipped."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from kedge.exception import ImageBuildError
from kedge.images import debian, micromamba, overlay, registry
from kedge.images.builder import Request
from kedge.images.chamber import Overlay
from kedge.images.interpreters import own_version
from kedge.model.spec import ImageStep, LocalFiles
from tests.images.kit import Site, recipe, step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SLIM = step("debian_slim", python_version=own_version())


def _run(*commands: str, **arguments: object) -> ImageStep:
    return step("run_commands", commands=list(commands), **arguments)


@pytest.fixture(scope="session")
def bases() -> Path:
    """Where test runs of this user share one base: making it takes 20 s."""
    try:
        overlay.users()
        debian.tool()
    except ImageBuildError as error:
        pytest.skip(str(error))
    directory = Path(os.environ.get("KEDGE_TEST_BASES") or f"{tempfile.gettempdir()}/kedge-bases-{os.getuid()}")
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    found = debian.machine()
    if debian.read(directory / debian.name_of(found)) is None and not found.settings:
        mirror = found.sources[0].split("://")[1].split("/")[0]
        try:
            socket.create_connection((mirror.partition(":")[0], int(mirror.partition(":")[2] or 80)), 10).close()
        except OSError as error:
            pytest.skip(f"the Debian mirror {mirror} cannot be reached: {error}")
    return directory


@pytest.fixture
def rooted(site: Site, bases: Path) -> Site:
    """A site whose images can have a root."""
    (site.store.path / "bases").symlink_to(bases)
    with open(bases / ".lock", "w") as lock:  # test runs beside each other have different KEDGE_HOMEs
        fcntl.flock(lock, fcntl.LOCK_EX)
        if debian.read(bases / debian.name_of(debian.machine())) is None:
            site.build(SLIM, _run("true"))
    return site


def _said(site: Site) -> str:
    return "\n".join(event.text for event in site.events if event.state == "output")


def _all_files(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in path.rglob("*"))


def _commands_with(text: str) -> list[int]:
    """Processes of this machine that have it in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if text.encode() in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


# ---------------------------------------------------------------- apt


def test_a_debian_package_is_there_for_later_steps_and_its_lists_are_not(rooted: Site) -> None:
    built = rooted.build(SLIM, step("apt_install", packages=["hello"]), _run("hello --greeting=ahoy"))
    assert "ahoy" in _said(rooted)
    upper = Path(rooted.layer(built, 1).image.layers[0])
    assert (upper / "usr/bin/hello").is_file()
    assert list((upper / "var/lib/apt/lists").glob("*_Packages*")) == []
    assert built.image.layers[-1].endswith("/root")
    assert not (upper / "etc/resolv.conf").exists()


def test_an_unknown_package_is_named(rooted: Site) -> None:
    with pytest.raises(ImageBuildError, match="there is no package no-such-thing, nor-this in Debian") as caught:
        rooted.build(SLIM, step("apt_install", packages=["hello", "no-such-thing", "nor-this"]))
    assert "command: apt-get install hello no-such-thing nor-this" in str(caught.value)
    assert list(rooted.store.layers.glob("*/fs")) == []


# ---------------------------------------------------------------- commands


def test_files_of_one_step_are_there_in_the_next_and_can_be_deleted(rooted: Site) -> None:
    built = rooted.build(
        SLIM,
        _run("mkdir -p /opt/a && echo one > /opt/a/x && echo two > /opt/a/y && echo base > /etc/motd"),
        _run("cat /opt/a/x", "rm /opt/a/x /etc/motd", "rm -r /opt/a && mkdir /opt/a && echo new > /opt/a/z"),
        _run("ls -A /opt/a", "test ! -e /etc/motd"),
    )
    assert "one" in _said(rooted)
    assert _said(rooted).rstrip().endswith("z")
    upper = Path(rooted.layer(built, 2).image.layers[0])
    assert stat.S_ISCHR((upper / "etc/motd").lstat().st_mode)
    assert len(built.image.layers) == 3  # the last step has written nothing


def test_commands_see_neither_files_nor_variables_nor_processes_of_the_machine(
    rooted: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEDGE_OWN_TOKEN", "something")
    rooted.build(
        SLIM,
        _run(
            f"test ! -e {rooted.home}/images/logs",
            'test -z "$KEDGE_OWN_TOKEN"',
            "ls -d /proc/[0-9]* | wc -l",
            "if mount -t tmpfs none /mnt; then exit 9; fi",
            "python -c 'import sys; print(sys.prefix)'",
        ),
    )
    assert f"{rooted.store.layers}/" in _said(rooted)
    processes = [int(line) for line in _said(rooted).splitlines() if line.isdigit()]
    assert processes
    assert processes[0] < 8


def test_each_command_is_shown_and_the_failing_one_is_named_with_its_last_lines(rooted: Site) -> None:
    with pytest.raises(ImageBuildError) as caught:
        rooted.build(SLIM, _run("echo first", "echo words; echo more >&2; exit 7", "echo never"))
    text = str(caught.value)
    assert "exit code 7" in text
    assert "command: echo words; echo more >&2; exit 7" in text
    assert "    words\n    more" in text
    assert "never" not in _said(rooted)


def test_secrets_are_in_the_environment_and_nowhere_else(rooted: Site) -> None:
    value = f"hush-{uuid.uuid4().hex}"
    built = rooted.build(
        SLIM,
        _run('test -n "$TOKEN" && echo "token is $TOKEN, mode is $MODE"', env={"MODE": "fast"}),
        secrets={"1": {"TOKEN": value}},
    )
    assert "token is ***, mode is fast" in _said(rooted)
    for path in rooted.home.rglob("*"):
        if path.is_file() and path.stat().st_size < 10**6 and "/bases/" not in str(path):
            assert value.encode() not in path.read_bytes(), path
    assert built.image.variables == ()


def test_what_a_command_leaves_running_ends_with_it(rooted: Site) -> None:
    mark = f"9{uuid.uuid4().int % 10**9}"
    rooted.build(SLIM, _run(f"(setsid sleep {mark} &) ; echo started"))
    assert _commands_with(mark) == []


def test_a_step_that_hangs_is_ended_with_all_it_has_started(rooted: Site) -> None:
    mark = f"9{uuid.uuid4().int % 10**9}"
    rooted.build(SLIM)
    with pytest.raises(ImageBuildError, match="not done after 2 s, so it was ended"):
        rooted.build(SLIM, _run(f"setsid sleep {mark} & sleep {mark}"), timeout=2.0)
    assert _commands_with(mark) == []


def test_much_output_is_bounded_and_its_end_is_shown(rooted: Site) -> None:
    with pytest.raises(ImageBuildError, match="the very end"):
        rooted.build(
            SLIM, _run("yes 0123456789012345678901234567890123456789 | head -c 60000000; echo the very end; false")
        )
    sizes = [path.stat().st_size for path in rooted.store.logs.iterdir()]
    assert max(sizes) < 25 * 2**20


def test_a_build_that_is_killed_leaves_no_process_and_no_mount_and_can_be_repeated(rooted: Site) -> None:
    mark = f"9{uuid.uuid4().int % 10**9}"
    steps = (SLIM, _run(f"if test -e /opt/go; then exit 1; fi; touch /opt/go; sleep {mark}"))
    request = Request(home=str(rooted.home), image=recipe(*steps))
    process = subprocess.Popen(
        [sys.executable, "-m", "kedge.images"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(request) + b"\n")
    process.stdin.flush()
    with process:
        try:
            _wait(lambda: any(_argv(pid)[:1] == [b"sleep"] for pid in _commands_with(mark)))
        finally:
            os.kill(process.pid, signal.SIGKILL)
    _wait(lambda: not _commands_with(mark))
    assert str(rooted.home) not in Path("/proc/self/mountinfo").read_text()
    again = rooted.build(SLIM, _run("test ! -e /opt/go && echo clean"))
    assert "clean" in _said(rooted)
    assert _all_files(Path(again.image.packages).parent)


def _argv(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _wait(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


# ---------------------------------------------------------------- Python in the root


def test_pip_works_inside_and_later_python_steps_keep_what_it_did(
    rooted: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(rooted.wheels))
    for name in ("first", "second", "third"):
        rooted.wheel(name, "1.0")
    built = rooted.build(
        SLIM,
        step("pip_install", packages=["first"]),
        _run("pip install second", "python -c 'import first, second'"),
        _run("python -m pip uninstall -y first"),
        step("pip_install", packages=["third"]),
        _run("python -c 'import second, third'", "if python -c 'import first'; then exit 1; fi"),
    )
    names = {path.name for path in rooted.site_packages(built).iterdir()}
    assert {"second", "third"} <= names
    assert "first" not in names
    assert built.image.package_layers == ()
    middle = rooted.layer(built, 2)
    assert len(middle.image.package_layers) == 1
    assert "second==1.0" in Path(middle.lock).read_text()


def test_a_function_runs_with_the_images_python_its_arguments_and_its_secrets(rooted: Site) -> None:
    code = rooted.home.parent / "code"
    code.mkdir()
    (code / "prepare.py").write_text(
        "import os, pathlib\nimport kedge\napp = kedge.App('x')\n"
        "def fetch(name, size=1):\n"
        "    pathlib.Path('/root/weights').write_text(f'{name}{size}{os.environ[\"TOKEN\"]}')\n"
        "    print('fetched', name)\n"
        "async def broken():\n    raise ValueError('no such model')\n"
    )
    files = LocalFiles("d", str(code))
    fetch = step("run_function", files, function="prepare:fetch", given='[["m"], {"size": 3}]', key="k", timeout=60)
    built = rooted.build(SLIM, fetch, _run("ls /root"), secrets={"1": {"TOKEN": "t"}})
    assert "fetched m" in _said(rooted)
    assert (Path(built.image.layers[0]) / "root/weights").read_text() == "m3t"
    with pytest.raises(ImageBuildError) as caught:
        rooted.build(SLIM, step("run_function", files, function="prepare:broken", given="[[], {}]", key="k2"))
    text = str(caught.value)
    assert "ValueError: no such model" in text
    assert "calling.py" not in text


def test_volumes_are_written_to_beside_the_image(rooted: Site) -> None:
    tree, upper, work = (str(rooted.home / name) for name in ("tree", "upper", "work"))
    for directory in (tree, upper, work):
        os.mkdir(directory)
    Path(tree, "old").write_text("old")
    writable = Overlay((tree,), upper, work)
    built = rooted.build(
        SLIM,
        _run("cat /cache/old > /cache/new", "rm /cache/old", "echo kept > /cached"),
        _run("cat /seen/new > /seen-there", "test ! -e /seen/old", "! touch /seen/more"),
        _run("test ! -e /only/new", "! touch /only/more"),
        volumes={
            "1": {"/cache": writable},
            "2": {"/seen": Overlay((upper, tree))},
            "3": {"/only": Overlay((tree,))},
        },
    )
    assert sorted(os.listdir(upper)) == ["new", "old"], "one of them stands for what was removed"
    assert sorted(os.listdir(tree)) == ["old"]
    written = [name for layer in built.image.layers[:2] for name in os.listdir(layer)]
    assert sorted(written) == ["cached", "seen-there"]


# ---------------------------------------------------------------- files and Dockerfiles


def test_copied_files_go_where_links_of_the_image_lead(rooted: Site) -> None:
    tool = rooted.files("tool", tool__sh="#!/bin/sh\necho tool\n")
    os.chmod(Path(tool.root) / "tool.sh", 0o555)
    data = rooted.files("data", a__txt="A", b__txt="B")
    rooted.build(
        SLIM,
        step("add_local_file", msgspec.structs.replace(tool, target="/bin/tool", is_file=True), copy=True),
        step("add_local_dir", msgspec.structs.replace(data, target="/tmp"), copy=True),
        _run("tool", "cat /tmp/a.txt /tmp/b.txt", "test -L /bin", "stat -c %a /tmp", "echo more >> /tmp/a.txt"),
    )
    assert "tool\n" in _said(rooted)
    assert "AB" in _said(rooted)
    assert "1777" in _said(rooted)


DOCKERFILE = """
# syntax=docker/dockerfile:1
ARG VERSION
FROM python:${VERSION}-slim AS main
ARG WHO=world
ENV GREETING="hello $WHO" \\
    PATH=/opt/bin:$PATH
LABEL x=y
EXPOSE 80
WORKDIR /srv
WORKDIR app
COPY a.txt *.md ./
COPY --chmod=755 run.sh /opt/bin/run
RUN echo "$GREETING" > greeting && \\
    # a comment
    cat greeting a.txt
RUN <<EOF
set -e
run
pwd
EOF
COPY <<EOF /etc/who
who=$WHO
EOF
RUN ["cat", "/etc/who"]
SHELL ["/bin/bash", "-c"]
RUN [[ -f notes.md ]] && echo bash
ENTRYPOINT ["env"]
CMD ["python"]
"""


def test_a_dockerfile_is_built(rooted: Site) -> None:
    context = rooted.files("context", a__txt="A\n", notes__md="N\n", run__sh="#!/bin/sh\necho ran\n")
    built = rooted.build(
        step(
            "from_dockerfile",
            context,
            commands=DOCKERFILE.strip().splitlines(),
            build_args={"VERSION": own_version(), "WHO": "moon"},
        ),
        _run('echo "$GREETING from $(pwd)"'),
    )
    said = _said(rooted)
    for line in ("hello moon", "ran", "/srv/app", "who=moon", "bash", "hello moon from /srv/app"):
        assert line in said.splitlines(), line
    assert dict(built.image.variables)["GREETING"] == "hello moon"
    assert built.image.directory == "/srv/app"
    assert built.image.entrypoint == ("env",)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["RUN true", "RUN exit 3"], r"exit code 3 \(line 2 of the Dockerfile\)"),
        (["COPY nothing /x"], "line 1 of the Dockerfile: COPY nothing /x: the build context has no nothing"),
        (["COPY --from=build /a /b"], r"files of another image or stage \(build\) cannot be copied here"),
        (["ADD https://example.org/a /a"], r"files of the network are fetched with RUN"),
        (["RUN --mount=type=secret,id=x cat /run/secrets/x"], r"use COPY for files, and secrets=\[…\] for secrets"),
    ],
)
def test_what_fails_in_a_dockerfile_is_said_with_its_line(rooted: Site, lines: list[str], message: str) -> None:
    context = rooted.files("context", a__txt="A")
    with pytest.raises(ImageBuildError, match=message):
        rooted.build(SLIM, step("dockerfile_commands", context, commands=lines))


def test_settings_alone_need_no_root(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "tool", lambda: pytest.fail("nothing has to be made"))
    built = site.build(SLIM, step("dockerfile_commands", commands=["ENV A=1", "ENV B=${A}2", 'ENTRYPOINT ["env"]']))
    assert built.image.variables == (("A", "1"), ("B", "12"))
    assert built.image.layers == ()


# ---------------------------------------------------------------- registries


@pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed")
def test_an_image_that_podman_has_is_a_base_with_its_own_python_and_settings(rooted: Site, bases: Path) -> None:
    tag = f"localhost/kedge-test-{uuid.uuid4().hex[:8]}:1"
    archive = rooted.home / "base.tar"
    root = bases / debian.name_of(debian.machine()) / "root"
    subprocess.run(["tar", "-C", root, "--exclude=./usr/share", "-cf", archive, "."], check=True)
    settings = ["--change", "ENV MODE=fast", "--change", "WORKDIR /app", "--change", 'ENTRYPOINT ["env"]']
    imported = subprocess.run(
        ["podman", "import", *settings, archive, tag], capture_output=True, text=True, check=False
    )
    if imported.returncode != 0:
        pytest.skip(f"podman does not work here: {imported.stderr[-200:]}")
    rooted.wheel("lib", "1.0")
    try:
        built = rooted.build(
            step("from_registry", tag=tag),
            _run('echo "$MODE in $(pwd)"', "python -c 'import sys; print(sys.base_prefix)'"),
            step("pip_install", packages=["lib"]),
            _run("python -c 'import lib; print(lib.VERSION)'"),
        )
        assert _said(rooted).splitlines()[-1] == "1.0"
        assert {"fast in /app", "/usr"} <= set(_said(rooted).splitlines())
        assert (built.image.directory, built.image.entrypoint) == ("/app", ("env",))
        added = rooted.build(step("from_registry", tag=tag, add_python=own_version()), _run("python -c 'import sys'"))
        assert added.image.visible
    finally:
        subprocess.run(["podman", "rmi", "-f", tag], capture_output=True, check=False)


def test_an_image_of_a_registry_needs_a_tool(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.shutil, "which", lambda name: None)
    with pytest.raises(
        ImageBuildError, match=r"nothing is installed here that can fetch it; .* `apt-get install podman`"
    ):
        site.build(step("from_registry", tag="ghcr.io/acme/tool:1"))


def test_micromamba_needs_a_tool(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micromamba.shutil, "which", lambda name: None)
    with pytest.raises(ImageBuildError, match="needs one of micromamba, mamba, conda on the PATH of the server"):
        site.build(step("micromamba", python_version=own_version()))


# ---------------------------------------------------------------- packages of the machine


def test_packages_that_the_machine_has_are_accepted_without_a_layer(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "missing_on_host", lambda packages: [name for name in packages if name != "jq"])
    built = site.build(SLIM, step("apt_install", packages=["jq"]), host_apt=True)
    assert built.image.layers == ()
    with pytest.raises(
        ImageBuildError, match=r"where nope, nor-this are not installed; on it: `apt-get install nope nor-this`"
    ):
        site.build(SLIM, step("apt_install", packages=["jq", "nope", "nor-this"]), host_apt=True)
    assert not re.search("mmdebstrap", _said(site))
