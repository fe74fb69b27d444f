"""Which rung a function gets, what its containers find around them, and what is said where something is missing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kedge.exception import NotFoundError, UnavailableError
from kedge.model.spec import (
    NAMESPACE,
    PROCESS,
    AppSpec,
    Bind,
    BuiltImage,
    CodeSpec,
    EnvironmentSpec,
    FunctionSpec,
    ImageSpec,
    ImageStep,
    Isolation,
    LocalFiles,
    Resources,
    SecretRef,
    VolumeMount,
    VolumeRef,
)
from kedge.server import outfit
from kedge.server.outfit import Outfitter

ALL = {PROCESS: "", NAMESPACE: "", "bubblewrap": "bwrap is not installed", "oci": "no", "gvisor": "no"}
IMAGE = ImageSpec(steps=(ImageStep("debian_slim"),), digest="d", id="im-1")


class Shelf:
    """Images, secrets, volumes and devices that are there."""

    def __init__(self, tmp_path: Path) -> None:
        self.runtime = tmp_path / "runtime"
        self.runtime.mkdir()
        (self.runtime / "kedge").symlink_to(tmp_path)
        self.built = BuiltImage(
            id="im-1",
            python="/images/venv/bin/python",
            python_version="3.12",
            packages="/images/venv",
            visible=("/opt/python",),
            runtime=(str(self.runtime),),
            variables=(("MODE", "fast"), ("PATH", "/special/bin")),
        )

    def find(self, image: str) -> BuiltImage | None:
        return self.built if image == "im-1" else None

    def values(self, ref: SecretRef, environment: str) -> dict[str, str]:
        if ref.name == "gone":
            raise NotFoundError("there is no secret 'gone'")
        return {"TOKEN": f"{ref.name} of {environment}"}

    def mount(self, ref: VolumeRef, environment: str, container: str, number: int) -> VolumeMount:
        return VolumeMount(target=ref.target, volume=ref.name, lower="/tree", upper=f"/upper/{number}", work="w")

    def variables(self, devices: tuple[int, ...]) -> dict[str, str]:
        return {}

    def nodes(self, devices: tuple[int, ...]) -> tuple[str, ...]:
        return tuple(f"/dev/nvidia{device}" for device in devices)

    def libraries(self) -> tuple[str, ...]:
        return ("/usr/lib/libcuda.so.1",)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def outfitter(tmp_path: Path, shelf: Shelf, **more: Any) -> Outfitter:
    everything: dict[str, Any] = {"images": shelf, "vault": shelf, "volumes": shelf, "devices": shelf, "rungs": ALL}
    return Outfitter(tmp_path, "/plane.sock", str(tmp_path / "work"), **(everything | more))


def function(**fields: Any) -> FunctionSpec:
    return FunctionSpec(name="f", module="m", qualname="f", **fields)


def app(*functions: FunctionSpec, **fields: Any) -> AppSpec:
    environment = EnvironmentSpec(
        python="/usr/bin/python3", python_version="3.11", variables=(("HERE", "1"),), directory="/home/ann"
    )
    code = CodeSpec(root="/code/abc", module="m")
    return AppSpec(app="ap-1", name="shop", functions=functions, code=code, environment=environment, **fields)


def environment(outfits: Outfitter, spec: FunctionSpec) -> EnvironmentSpec:
    return outfits.environment(app(spec), spec, outfits.footing(app(spec), spec))


def isolation(outfits: Outfitter, spec: FunctionSpec, devices: tuple[int, ...] = ()) -> Isolation:
    return outfits.isolation(app(spec), spec, outfits.footing(app(spec), spec), "ct-1", devices)


def test_without_an_image_code_runs_as_its_caller_does(tmp_path: Path, shelf: Shelf) -> None:
    plain, outfits = function(), outfitter(tmp_path, shelf)
    assert environment(outfits, plain) == app().environment
    found = isolation(outfits, plain)
    assert (found.rung, found.shares_files, found.scratch, found.binds) == (PROCESS, True, "", ())
    assert found.own == ()


def test_an_app_that_needs_no_rung_does_not_wait_until_rungs_have_been_tried_out(tmp_path: Path, shelf: Shelf) -> None:
    class Asked(dict[str, str]):
        def get(self, *_: object) -> str:  # type: ignore[override]
            raise AssertionError("rungs are tried out for an app without an image")

        __getitem__ = get

    plain = function()
    outfits = outfitter(tmp_path, shelf, rungs=Asked())
    assert isolation(outfits, plain).rung == PROCESS
    assert outfits.objection(app(plain)) is None


def test_with_an_image_it_has_a_root_of_its_own_where_that_can_be_had(tmp_path: Path, shelf: Shelf) -> None:
    built, outfits = function(image=IMAGE), outfitter(tmp_path, shelf)
    found = isolation(outfits, built, (2,))
    assert (found.rung, found.shares_files) == (NAMESPACE, False)
    assert found.scratch == str(tmp_path / "containers" / "ct-1")
    assert found.packages == "/images/venv"
    assert found.devices == ("/dev/nvidia2",)
    assert Bind("/code/abc", "/code/abc") in found.binds
    assert Bind("/opt/python", "/opt/python") in found.binds
    assert Bind(str(shelf.runtime), str(shelf.runtime)) in found.binds
    assert Bind(os.path.realpath(tmp_path), os.path.realpath(tmp_path)) in found.binds, "where the runtime's link leads"
    assert Bind("/plane.sock", "/plane.sock", read_only=False) in found.binds
    assert found.own == (Bind(str(tmp_path / "payloads" / "ct-1"), str(tmp_path / "blobs"), read_only=False),)
    assert not any(bind.source == str(tmp_path / "blobs") for bind in found.binds), "those of all others"
    assert {"/home", "/root", "/tmp", "/run"} - set(os.listdir("/")) <= set(found.hidden) | {"/home"}
    assert not {"/usr", "/etc", "/bin", "/proc", "/dev", "/sys"} & set(found.hidden)


def test_settings_of_the_machine_that_are_not_for_everybody_are_not_for_containers(
    tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    etc = tmp_path / "etc"
    modes = {"passwd": 0o644, "shadow": 0o640, "ssh": 0o755, "ssh/host_key": 0o600, "keys": 0o710, "keys/key": 0o644}
    for name in ("ssh", "keys"):
        (etc / name).mkdir(parents=True)
    for name, mode in modes.items():
        if not (etc / name).is_dir():
            (etc / name).touch()
        (etc / name).chmod(mode)
    (etc / "link").symlink_to("shadow")
    monkeypatch.setattr(outfit, "_SETTINGS", str(etc))
    built = function(image=IMAGE)
    found = isolation(outfitter(tmp_path, shelf), built)
    covered = {bind.target for bind in found.binds if bind.source == "/dev/null"}
    assert covered == {str(etc / "shadow"), str(etc / "ssh/host_key")}
    assert [path for path in found.hidden if path.startswith(str(etc))] == [str(etc / "keys")]


def test_its_environment_is_the_images_and_not_the_callers(
    tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    built = function(image=IMAGE)
    found = environment(outfitter(tmp_path, shelf), built)
    variables = dict(found.variables)
    assert (found.python, found.python_version, found.sys_path) == ("/images/venv/bin/python", "3.12", ())
    assert found.runtime == (str(shelf.runtime),)
    assert found.directory == "/root"
    assert found.python_path == ("/root",)
    assert (variables["MODE"], variables["HOME"]) == ("fast", "/root")
    assert variables["PATH"] == "/images/venv/bin:/special/bin"
    assert "HERE" not in variables
    assert "secret" not in variables.values()


def test_where_there_are_no_namespaces_an_image_gives_its_packages_alone(tmp_path: Path, shelf: Shelf) -> None:
    helpers = LocalFiles("x", "/snapshots/x", "/root")
    built = function(image=replace(IMAGE, mounts=(helpers,), python_path=("/root",)))
    outfits = outfitter(tmp_path, shelf, rungs={PROCESS: "", NAMESPACE: "user namespaces are switched off"})
    found = isolation(outfits, built)
    assert (found.rung, found.shares_files, found.binds) == (PROCESS, True, ())
    own = environment(outfits, built)
    assert own.python_path == ("/snapshots/x",)
    assert own.directory == str(tmp_path / "work"), "the machine's /root is not its own"


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"volumes": (VolumeRef(target="/cache", name="v"),)}, "the volume at /cache"),
        ({"image": replace(IMAGE, mounts=(LocalFiles("x", "/s/x", "/data"),))}, "what the image adds at /data"),
    ],
)
def test_what_needs_a_file_system_of_its_own_says_so_where_none_is_to_be_had(
    tmp_path: Path, shelf: Shelf, fields: dict[str, Any], what: str
) -> None:
    outfits = outfitter(tmp_path, shelf, rungs={PROCESS: "", NAMESPACE: "user namespaces are switched off"})
    needy = function(**fields)
    error = outfits.objection(app(needy))
    assert isinstance(error, UnavailableError)
    assert str(error) == (
        f"f: {what} needs a file system of its own, from isolation 'namespace' on: user namespaces are switched off"
    )


def test_an_image_with_system_packages_needs_one_too(tmp_path: Path, shelf: Shelf) -> None:
    shelf.built = replace(shelf.built, layers=("/layers/2", "/bases/bookworm"))
    outfits, built = outfitter(tmp_path, shelf, preferred=PROCESS), function(image=IMAGE)
    with pytest.raises(UnavailableError, match="an image with system packages or commands needs a file system"):
        outfits.footing(app(built), built)
    found = isolation(outfitter(tmp_path, shelf), built, (0,))
    assert found.layers == ("/layers/2", "/bases/bookworm")
    assert found.hidden == ("/tmp", "/run", "/var/tmp")
    assert Bind("/usr/lib/libcuda.so.1", "/usr/lib/libcuda.so.1") in found.binds


def test_a_volume_alone_gets_a_namespace_and_shares_the_machines_files(tmp_path: Path, shelf: Shelf) -> None:
    holder = function(volumes=(VolumeRef(target="/cache", name="v"),))
    found = isolation(outfitter(tmp_path, shelf), holder)
    assert (found.rung, found.shares_files) == (NAMESPACE, True)
    assert [mount.target for mount in found.volumes] == ["/cache"]


def test_without_a_network_it_has_a_namespace_or_is_refused(tmp_path: Path, shelf: Shelf) -> None:
    spec = function(block_network=True)
    found = isolation(outfitter(tmp_path, shelf), spec)
    assert (found.rung, found.network, found.shares_files) == (NAMESPACE, False, True)
    without = outfitter(tmp_path, shelf, rungs={**ALL, NAMESPACE: "user namespaces are not allowed"})
    with pytest.raises(UnavailableError, match=r"block_network=True needs a network of its own.*are not allowed"):
        without.footing(app(spec), spec)


def test_an_app_gets_the_rung_that_it_asks_for_or_is_told_why_not(tmp_path: Path, shelf: Shelf) -> None:
    outfits = outfitter(tmp_path, shelf, preferred="process")
    plain = function()
    assert outfits.footing(app(plain, isolation="namespace"), plain).rung == "namespace"
    assert outfits.footing(app(plain), plain).rung == "process"
    error = outfits.objection(app(plain, isolation="bubblewrap"))
    assert str(error) == (
        "f: isolation 'bubblewrap' cannot be had on this machine: bwrap is not installed. `kedge doctor` shows what can"
    )


def test_an_image_that_is_gone_is_named(tmp_path: Path, shelf: Shelf) -> None:
    gone = function(image=replace(IMAGE, id="im-2"))
    error = outfitter(tmp_path, shelf).objection(app(gone))
    assert isinstance(error, NotFoundError)
    assert "the image im-2 of f is not there any more: run or deploy the app again" in str(error)


def test_secrets_are_merged_in_their_order_and_a_missing_one_is_an_objection(tmp_path: Path, shelf: Shelf) -> None:
    outfits = outfitter(tmp_path, shelf)
    both = function(secrets=(SecretRef(name="one"), SecretRef(name="two")))
    assert outfits.secrets(app(both), both) == {"TOKEN": "two of main"}
    assert "no secret 'gone'" in str(outfits.objection(app(function(secrets=(SecretRef(name="gone"),)))))


def test_limits_come_from_the_second_of_a_pair(tmp_path: Path, shelf: Shelf) -> None:
    bounded = function(resources=Resources(cpu=1, cpu_limit=2, memory=512, memory_limit=1024, ephemeral_disk=99))
    limits = isolation(outfitter(tmp_path, shelf), bounded).limits
    assert (limits.cpu, limits.memory, limits.disk) == (2, 1024, 99)
    assert isolation(outfitter(tmp_path, shelf), function()).limits.memory is None


def test_files_go_into_a_shared_directory_one_by_one(tmp_path: Path, shelf: Shelf) -> None:
    source = tmp_path / "files"
    source.mkdir()
    (source / "helpers").mkdir()
    (source / "one.py").touch()
    mounts = (LocalFiles("x", str(source), "/root"), LocalFiles("y", str(source / "helpers"), "/srv/data"))
    built = function(image=replace(IMAGE, mounts=mounts))
    binds = isolation(outfitter(tmp_path, shelf), built).binds
    targets = {bind.target: bind.source for bind in binds}
    assert targets["/root/helpers"] == str(source / "helpers")
    assert targets["/root/one.py"] == str(source / "one.py")
    assert targets["/srv/data"] == str(source / "helpers")
    assert "/root" not in targets


def test_nothing_of_this_is_needed_for_a_server_without_all_that(tmp_path: Path) -> None:
    bare, plain = Outfitter(tmp_path, "/plane.sock"), function()
    assert isolation(bare, plain).rung == PROCESS
    assert bare.objection(app(plain)) is None
    assert bare.objection(app(function(image=IMAGE))) is not None
