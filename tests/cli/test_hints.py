"""What is said below the traceback of code that missed something in a container of an image."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

import pytest

import kedge
from kedge.cli.hints import missed, on_failure, on_import
from kedge.sdk import tracebacks


def from_container(error: BaseException, *, function: str = "f") -> BaseException:
    tracebacks.attach(error, [("/app/script.py", 3, function, "")], "")
    try:
        raise error
    except type(error) as caught:
        return caught


def not_found(name: str) -> FileNotFoundError:
    return FileNotFoundError(2, "No such file or directory", name)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "data.csv").write_text("1\n")
    (tmp_path / "assets").mkdir()
    (tmp_path / "helpers.py").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            not_found("data.csv"),
            "data.csv is on this machine: containers of an image do not see it. Add .add_local_file(",
        ),
        (not_found("assets"), "Add .add_local_dir('assets', '/…') to the image"),
        (ModuleNotFoundError("No module named 'helpers.x'", name="helpers.x"), ".add_local_python_source('helpers')"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "torch is not in it: add .pip_install('torch')"),
    ],
)
def test_it_names_the_step_that_brings_it(project: Path, error: BaseException, said: str) -> None:
    assert said in missed(from_container(error), str(project), [str(project)])


def test_an_absolute_name_is_that_of_this_machine(project: Path) -> None:
    name = str(project / "data.csv")
    assert f".add_local_file({name!r}, '/…')" in missed(from_container(not_found(name)), "/", [])


@pytest.mark.parametrize("place", ["/root", f"/home/k/code/{'0a' * 16}"])
def test_what_code_looks_for_beside_itself_is_added_beside_it(project: Path, place: str) -> None:
    (project / "assets" / "big.bin").write_text("")
    path = ["/x/lib/site-packages", str(project)]
    assert missed(from_container(not_found(f"{place}/assets/big.bin")), "/", path) == (
        "assets/big.bin is beside your code on this machine, and not in the container: add "
        f".add_local_dir('{project}/assets', '/root/assets') to the image."
    )
    said = missed(from_container(not_found(f"{place}/data.csv")), "/", path)
    assert f".add_local_file('{project}/data.csv', '/root/data.csv')" in said
    assert missed(from_container(not_found(f"{place}/nowhere.csv")), "/", path) == ""


def test_a_command_is_no_file(project: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        subprocess.run(["ffmpeg-of-nobody"])
    error = from_container(not_found("ffmpeg-of-nobody"), function="_execute_child")
    assert error.filename == caught.value.filename  # type: ignore[attr-defined]
    assert "no command 'ffmpeg-of-nobody': .apt_install(…)" in missed(error, str(project), [])


@pytest.mark.parametrize(
    "error", [not_found("nowhere.csv"), FileNotFoundError("nothing"), ImportError("no"), ValueError("bad")]
)
def test_what_an_image_does_not_decide_has_no_hint(project: Path, error: BaseException) -> None:
    assert missed(from_container(error), str(project), [str(project)]) == ""


def test_what_failed_in_this_process_is_not_about_containers(project: Path) -> None:
    assert missed(not_found("data.csv"), str(project), []) == ""


def test_a_file_that_got_too_large_names_the_limit() -> None:
    app = kedge.App()
    app.function(serialized=True, name="f", ephemeral_disk=64)(lambda: None)
    error = OSError(27, "File too large")
    assert on_failure(error, app) == "", "it is this process whose file got too large"
    assert on_failure(from_container(error), app) == (
        "No file of a container gets larger than its function's ephemeral_disk=64 (MiB): give it more there."
    )
    assert on_failure(from_container(OSError(28, "No space left on device")), app) == ""
    app.function(serialized=True, name="g", ephemeral_disk=128)(lambda: None)
    assert "ephemeral_disk=… (MiB) of its function" in on_failure(from_container(OSError(27, "File too large")), app)


def test_without_a_limit_a_file_that_got_too_large_has_no_hint() -> None:
    app = kedge.App()
    app.function(serialized=True, name="f")(lambda: None)
    assert on_failure(from_container(OSError(27, "File too large")), app) == ""


def test_apps_without_an_image_have_no_hint() -> None:
    error = from_container(ModuleNotFoundError("No module named 'torch'", name="torch"))
    plain, with_image = kedge.App(), kedge.App(image=kedge.Image.debian_slim())
    for app in (plain, with_image):
        app.function(serialized=True, name="f")(lambda: None)
    assert on_failure(error, plain) == ""
    assert ".pip_install('torch')" in on_failure(error, with_image)


def test_an_import_that_fails_here_may_be_meant_for_an_image() -> None:
    error = ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")
    assert on_import(error).startswith("Where torch is in an image only: import it inside of the functions")
    assert "`with image.imports():`" in on_import(error)
    assert on_import(ImportError("no")) == ""


@pytest.mark.parametrize(("initial", "module"), [("pack/__init__.py", "pack.inner.job"), ("", "inner.job")])
def test_a_file_of_a_package_is_given_as_a_module(tmp_path: Path, initial: str, module: str) -> None:
    file = tmp_path / "pack" / "inner" / "job.py"
    file.parent.mkdir(parents=True)
    file.write_text("from .words import WORD\n")
    if initial:
        (tmp_path / initial).write_text("")
    with pytest.raises(ImportError) as caught:
        runpy.run_path(str(file))
    directory = tmp_path if initial else tmp_path / "pack"
    assert on_import(caught.value) == (
        f"It belongs to a package: write `-m {module}` instead of the file, in the directory {directory}."
    )
