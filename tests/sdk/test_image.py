"""Images are immutable recipes with a digest."""

from __future__ import annotations

import json
from typing import Any

import pytest

import kedge
from kedge.exception import InvalidError, UnavailableError
from kedge.model.spec import ImageSpec
from kedge.sdk import context

CONSTANT = 1


def download(name: str) -> int:
    return CONSTANT


def base() -> kedge.Image:
    return kedge.Image.debian_slim(python_version="3.12")


def arguments(image: kedge.Image) -> dict[str, Any]:
    return {key: json.loads(value) for key, value in image.spec.steps[-1].arguments}


def test_every_method_gives_a_new_image() -> None:
    first = base()
    second = first.pip_install("numpy")
    assert [step.kind for step in first.spec.steps] == ["debian_slim"]
    assert [step.kind for step in second.spec.steps] == ["debian_slim", "pip_install"]
    assert repr(second) == "<Image debian_slim → pip_install>"
    assert kedge.Image().spec == ImageSpec()


def test_equal_recipes_have_equal_digests_and_any_change_shows() -> None:
    image = base().pip_install("a", "b").env({"X": "1", "Y": "2"})
    assert image.digest == base().pip_install(["a", "b"]).env({"Y": "2", "X": "1"}).digest
    assert image == base().pip_install("a", ["b"], pre=False).env({"X": "1", "Y": "2"})
    assert hash(image) == hash(base().pip_install("a", "b").env({"X": "1", "Y": "2"}))
    others = [
        base().pip_install("b", "a").env({"X": "1", "Y": "2"}),
        base().pip_install("a", "b", pre=True).env({"X": "1", "Y": "2"}),
        base().env({"X": "1", "Y": "2"}).pip_install("a", "b"),
        kedge.Image.debian_slim().pip_install("a", "b").env({"X": "1", "Y": "2"}),
    ]
    assert len({image.digest, *(other.digest for other in others)}) == 5
    assert base().pip_install("a", force_build=True).digest == base().pip_install("a").digest


def test_a_container_that_finds_the_files_elsewhere_comes_to_the_same_digest() -> None:
    def declared(directory: str, secret: kedge.Secret) -> kedge.Image:
        return (
            base()
            .pip_install_from_requirements(f"{directory}/requirements.txt", secrets=[secret])
            .workdir("/app")
            .add_local_file(f"{directory}/a.txt", "/a.txt")
            .add_local_dir(directory, "/data", ignore=kedge.FilePatternMatcher.from_file(f"{directory}/.gitignore"))
        )

    here = declared("/home/me/project", kedge.Secret.from_dict({"A": "1"}))
    there = declared("/kedge/code/12ab", kedge.Secret.from_dict({"A": "2"}))
    assert here.digest == there.digest
    assert here != there
    assert base().workdir("/a").digest != base().workdir("/b").digest
    assert base().add_local_file("a", "/x").digest != base().add_local_file("b", "/x").digest


def test_the_whole_chain() -> None:
    secret = kedge.Secret.from_name("token")
    image = (
        kedge.Image.from_registry("nvidia/cuda:12.4", secret, add_python="3.12", setup_dockerfile_commands=["RUN x"])
        .apt_install("git", ["curl"])
        .pip_install("torch", index_url="https://example.org", gpu="T4", secrets=[secret])
        .uv_pip_install("numpy", extra_options="--no-deps")
        .uv_sync("./project", frozen=False, groups=["dev"])
        .pip_install_from_requirements("requirements.txt", extra_index_url="https://example.org")
        .pip_install_from_pyproject("pyproject.toml", ["extra"])
        .pip_install_private_repos("github.com/a/b@1", git_user="me", secrets=[secret])
        .poetry_install_from_file("pyproject.toml", "poetry.lock", without=("dev",))
        .micromamba_install("cudatoolkit", channels=["conda-forge"])
        .run_commands("echo a", ["echo b"], volumes={"/v": kedge.Volume.from_name("v")})
        .dockerfile_commands("ENV A=1", context_dir=".")
        .run_function(download, args=("x",), cpu=2, memory="4Gi")
        .workdir("/app")
        .cmd(["python"])
        .entrypoint([])
        .shell(["/bin/bash", "-c"])
        .add_local_file("a.txt", "/a.txt", copy=True)
        .add_local_dir(".", "/root/data", ignore=["*.pyc"])
        .add_local_python_source("helpers", "pkg.sub")
    )
    assert len(image.spec.steps) == 20
    assert len(image.digest) == 64
    assert dict(image.spec.steps[2].arguments)["secrets"] == "[\"Secret 'token'\"]"
    assert "hunter2" not in repr(base().pip_install("x", secrets=[kedge.Secret.from_dict({"A": "hunter2"})]).spec)


def test_other_bases() -> None:
    makers = [
        kedge.Image.micromamba(),
        kedge.Image.from_dockerfile("Dockerfile", build_args={"A": "1"}, ignore=["*.log"]),
        kedge.Image.from_name("x"),
        kedge.Image.from_id("im-1"),
    ]
    assert len({image.digest for image in makers}) == len(makers)


def test_bases_that_make_no_sense_here_say_what_does() -> None:
    with pytest.raises(UnavailableError, match=r"a container needs Python in it; begin with Image.debian_slim\(\)"):
        kedge.Image.from_scratch()
    with pytest.raises(UnavailableError, match=r"write Image.from_registry\('x', .* `aws ecr get-login-password`"):
        kedge.Image.from_aws_ecr("x")
    with pytest.raises(UnavailableError, match=r"write Image.from_registry\('x', .* `gcloud auth print-access-token`"):
        kedge.Image.from_gcp_artifact_registry("x")


def test_run_function_is_keyed_by_source_constants_and_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    step = arguments(base().run_function(download, args=("a",)))
    assert step["function"] == f"{__name__}:download"
    assert arguments(base().run_function(download, args=("a",)))["key"] == step["key"]
    assert arguments(base().run_function(download, args=("b",)))["key"] != step["key"]
    monkeypatch.setattr(f"{__name__}.CONSTANT", 2)
    assert arguments(base().run_function(download, args=("a",)))["key"] != step["key"]
    handle = kedge.App().function()(download)
    assert arguments(base().run_function(handle))["function"] == f"{__name__}:download"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: base().add_local_file("a", "/a").pip_install("x"),
            r"Image.pip_install comes after add_local_file, .*copy=T",
        ),
        (
            lambda: base().add_local_dir("a", "data"),
            r"the remote path must be absolute, such as '/root/data', not 'data'",
        ),
        (
            lambda: base().add_local_python_source("./helpers.py"),
            r"takes module names such as 'helpers', not './helpers.py'",
        ),
        (lambda: base().add_local_file("a", "/x/../etc/passwd"), r"'/x/../etc/passwd' has '..' in it"),
        (lambda: base().add_local_python_source(), r"needs the name of a module, such as 'helpers'"),
        (lambda: base().add_local_dir("a", "/a", ignore=3), r"ignore is a list of patterns .* not 3"),
        (lambda: base().add_local_dir("a", "/a", ignore=["["]), r"the pattern '\[' has a '\[' without its '\]'"),
        (lambda: base().run_commands("x", secrets="NAME"), r"secrets"),
        (lambda: base().pip_install(3), r"Image.pip_install takes strings, or lists of strings, not 3"),
        (lambda: kedge.Image.debian_slim(3.1), r"python_version is a string such as '3.12', not 3.1"),
        (lambda: kedge.Image.from_registry("x", add_python="4"), r"add_python is a string such as '3.12', not '4'"),
        (lambda: base().run_function(lambda: None), r"<lambda> is defined inside of another function"),
        (lambda: base().run_function(3), r"Image.run_function takes a function, not 3"),
        (lambda: base().run_function(download, args=(object(),)), r"args and kwargs must be plain values"),
        (lambda: base().run_function(download, memory="x"), r"'x' is no amount of memory"),
        (lambda: base().env({"A": 1}), r"A must be a string"),
        (lambda: base().pip_install("x", gpu="nope"), r"no GPU is called 'NOPE'"),
        (lambda: base().pipe(lambda image: None), r"Image.pipe: .* must return an Image, but returned None"),
    ],
)
def test_wrong_recipes(make: Any, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        make()


def test_mounts_may_follow_mounts_and_copies_may_be_built_on() -> None:
    assert (
        base().add_local_file("a", "/a", copy=True).pip_install("x").add_local_dir("b", "/b").add_local_file("c", "/c")
    )


def test_pipe_puts_a_function_into_the_chain() -> None:
    def tools(image: kedge.Image, *packages: str) -> kedge.Image:
        return image.apt_install(*packages)

    assert base().pipe(tools, "git", "curl") == base().apt_install("git", "curl")


def test_imports_are_deferred_here_and_raised_in_containers_of_the_image() -> None:
    image = base().pip_install("missing-package")
    app = kedge.App(image=image)
    mine, other = app.function()(download).spec, kedge.App().function()(download).spec
    with image.imports():
        import missing_package_of_the_image  # type: ignore[import-not-found]
    try:
        context.set_container(app_id="ap-1", function=other)
        with image.imports():
            import missing_package_of_the_image
        context.set_container(app_id="ap-1", function=mine)
        with pytest.raises(ImportError, match="missing_package"), image.imports():
            import missing_package_of_the_image  # noqa: F401
    finally:
        context.clear_container()
    with pytest.raises(ZeroDivisionError), image.imports():
        _ = 1 / 0
