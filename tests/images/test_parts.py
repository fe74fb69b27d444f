"""The pure parts of building: versions, settings of pip, links, advice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kedge.exception import InvalidError
from kedge.images import advice, interpreters, overlay, store, trees, uvtool
from kedge.images.buildlog import BuildLog
from kedge.images.interpreters import Candidate, candidates, choose, missing
from kedge.images.python_steps import dependencies, git_access, repository_address
from kedge.images.running import inherited
from kedge.images.store import Store
from kedge.wire import removal

# ---------------------------------------------------------------- interpreters


def install(directory: Path) -> None:
    program = directory / "bin" / "python3"
    program.parent.mkdir(parents=True)
    program.write_text("")


def test_interpreters_of_uv_and_pyenv_and_the_system_are_found(tmp_path: Path) -> None:
    install(tmp_path / "uv" / "cpython-3.12.4-linux-x86_64-gnu")
    install(tmp_path / "pyenv" / "versions" / "3.12.1")
    install(tmp_path / "pyenv" / "versions" / "pypy3.10-7.3.15")
    system = tmp_path / "usr"
    system.mkdir()
    (system / "python3.12").write_bytes(b"\x7fELF")
    environ = {"UV_PYTHON_INSTALL_DIR": str(tmp_path / "uv"), "PYENV_ROOT": str(tmp_path / "pyenv")}
    found = candidates(environ, tmp_path, [str(system)])
    chosen = choose("3.12", [candidate for candidate in found if candidate.source != "kedge"])
    assert [(candidate.version, candidate.source) for candidate in chosen] == [
        ("3.12.4", "uv"),
        ("3.12.1", "pyenv"),
        ("3.12", "system"),
    ]


def test_a_shim_is_no_interpreter(tmp_path: Path) -> None:
    (tmp_path / "python3.12").write_text("#!/bin/sh\nexec pyenv exec python3.12\n")
    found = candidates({"PYENV_ROOT": str(tmp_path / "none")}, tmp_path, [str(tmp_path)])
    assert [candidate for candidate in found if candidate.source == "system"] == []


def test_an_interpreter_with_several_names_is_one(tmp_path: Path) -> None:
    (tmp_path / "usr").mkdir()
    (tmp_path / "local").mkdir()
    (tmp_path / "usr" / "python3.12").write_bytes(b"\x7fELF")
    (tmp_path / "local" / "python3.12").symlink_to(tmp_path / "usr" / "python3.12")
    (tmp_path / "local" / "python3.11").symlink_to(sys.executable)
    system = [str(tmp_path / "local"), str(tmp_path / "usr")]
    found = candidates({"PYENV_ROOT": str(tmp_path / "none")}, tmp_path, system)
    assert [(candidate.source, candidate.path) for candidate in found] == [
        ("kedge", os.path.realpath(sys.executable)),
        ("system", str(tmp_path / "local" / "python3.12")),
    ]


def test_a_full_version_takes_only_that_one() -> None:
    found = [Candidate("3.12.4", "/a", "uv"), Candidate("3.12.1", "/b", "pyenv"), Candidate("3.12", "/c", "system")]
    assert [candidate.path for candidate in choose("3.12.1", found)] == ["/b", "/c"], "the system's has to be asked"


def test_a_free_threaded_python_is_taken_only_where_it_was_asked_for() -> None:
    found = [Candidate("3.13.1t", "/t", "uv"), Candidate("3.13.1", "/p", "uv")]
    assert [candidate.path for candidate in choose("3.13", found)] == ["/p"]
    assert [candidate.path for candidate in choose("3.13t", found)] == ["/t"]


def test_a_missing_version_is_said_with_what_there_is_and_how_to_get_it() -> None:
    text = missing("3.14", [Candidate("3.12.4", "/opt/python/bin/python3", "uv")])
    assert text == (
        "the image wants Python 3.14, which this machine does not have; found are 3.12.4 (uv: "
        "/opt/python/bin/python3). Install it with `uv python install 3.14` or `pyenv install 3.14`, or ask for a "
        "version that is there with Image.debian_slim(python_version=…)"
    )
    assert "none was found at all" in missing("3.14", [])


def test_a_version_that_containers_cannot_have_is_refused() -> None:
    with pytest.raises(InvalidError, match=r'"?3.9"? is too old|python_version=\'3.9\' is too old: .* 3.10 or newer'):
        interpreters.check("3.9")


# ---------------------------------------------------------------- pip's settings


def test_uv_is_told_what_pip_was_told() -> None:
    environ = {"PIP_INDEX_URL": "https://a/simple", "PIP_EXTRA_INDEX_URL": "https://b https://c", "PIP_CERT": "/ca.pem"}
    told = uvtool.settings(environ, uvtool.pip_settings(environ, []))
    assert told == {
        "UV_DEFAULT_INDEX": "https://a/simple",
        "UV_INDEX": "https://b https://c",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "SSL_CERT_FILE": "/ca.pem",
    }


def test_what_uv_was_told_itself_stays() -> None:
    environ = {"PIP_INDEX_URL": "https://a", "UV_DEFAULT_INDEX": "https://mine", "PIP_FIND_LINKS": "/x /y"}
    assert uvtool.settings(environ, uvtool.pip_settings(environ, [])) == {"UV_FIND_LINKS": "/x,/y"}


def test_pips_configuration_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://a\n[install]\nfind-links = /wheels\n")
    (tmp_path / "broken.conf").write_text("index-url")
    found = uvtool.pip_settings({"PIP_INDEX_URL": "https://b"}, [tmp_path / "broken.conf", tmp_path / "pip.conf"])
    assert found == {"index-url": "https://b", "find-links": "/wheels"}, "variables win"


def test_images_may_lie_behind_a_link(tmp_path: Path) -> None:
    """Paths are written into environments, so two homes with one directory must name it in the same way."""
    (tmp_path / "disk").mkdir()
    for home in ("one", "two"):
        (tmp_path / home).mkdir()
        (tmp_path / home / "images").symlink_to(tmp_path / "disk")
    assert Store(tmp_path / "one").layers == Store(tmp_path / "two").layers == tmp_path / "disk" / "layers"


def test_files_that_uv_reads_are_shown_to_it_in_an_images_root_too(tmp_path: Path) -> None:
    for name in ("wheels", "constraints.txt"):
        (tmp_path / name).mkdir()
    told = {"UV_FIND_LINKS": f"{tmp_path}/wheels,/nowhere", "UV_CONSTRAINT": f"{tmp_path}/constraints.txt"}
    assert uvtool.local_paths(told, ["numpy"]) == [f"{tmp_path}/wheels", f"{tmp_path}/constraints.txt"]


def test_options_of_pip_become_those_of_uv() -> None:
    assert uvtool.pip_options("--no-cache-dir --timeout 5 --no-deps --force-reinstall --trusted-host=h") == [
        "--no-deps",
        "--reinstall",
        "--allow-insecure-host=h",
    ]


def test_builds_get_nothing_of_the_servers_secrets() -> None:
    given = {
        "PATH": "/bin",
        "AWS_SECRET_ACCESS_KEY": "s",
        "KEDGE_TOKEN": "t",
        "https_proxy": "http://p",
        "UV_INDEX": "i",
    }
    assert inherited(given) == {"PATH": "/bin", "https_proxy": "http://p", "UV_INDEX": "i"}


# ---------------------------------------------------------------- steps


def test_dependencies_of_a_project() -> None:
    project = {"project": {"dependencies": ["a"], "optional-dependencies": {"x": ["b", "c"]}}}
    assert dependencies(project, []) == ["a"]
    assert dependencies(project, ["x"]) == ["a", "b", "c"]
    with pytest.raises(InvalidError, match=r"has no optional dependencies 'y'; it has: x"):
        dependencies(project, ["y"])
    with pytest.raises(InvalidError, match=r"has no \[project\] with dependencies"):
        dependencies({"tool": {"poetry": {}}}, [])


def test_private_repositories() -> None:
    assert repository_address("github.com/acme/tools@1.2#subdirectory=x") == (
        "git+https://github.com/acme/tools@1.2#subdirectory=x"
    )
    with pytest.raises(InvalidError, match=r"'acme/tools' is no repository; write github.com/OWNER/NAME@VERSION"):
        repository_address("acme/tools")
    assert git_access("ann", {"github.com": "tok"}) == {
        "GIT_CONFIG_COUNT": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_KEY_0": "url.https://ann:tok@github.com/.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/",
    }


# ---------------------------------------------------------------- advice


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("error: failed to write: No space left on device (os error 28)", "The disk is full"),
        ("  cause: dns error: failed to lookup address information", "The package index cannot be reached"),
        ("cause: Because nosuch was not found in the package registry and you require nosuch", "name is not known"),
        ("Because you require a==1 and a==2, we can conclude that your requirements are unsatisfiable.", "contradicts"),
        ("error: Failed to read `--find-links` directory: /wheels", "absolute path of a directory on the server's"),
        ("error: command 'gcc' failed: No such file or directory", r'\.apt_install\("build-essential"\)'),
        (
            "Error: initializing source docker://a/b:1: pinging container registry r.io: lookup r.io: no such host",
            "The registry cannot be reached",
        ),
        ("fatal: Authentication failed for 'https://github.com/'", "check the token"),
        ("hint: torch has no wheels with a matching Python ABI tag", "no version of a package for the Python"),
    ],
)
def test_known_failures_come_with_advice(line: str, said: str) -> None:
    assert re.search(said, advice.advise("exit code 1", ["first", line]))


def test_an_unknown_failure_has_no_advice() -> None:
    assert advice.advise("exit code 3", ["boom"]) == ""
    assert advice.advise("exit code 2", ["error: the argument '--no-progress' cannot be used multiple times"]) == ""


def test_a_failure_names_step_command_lines_and_log() -> None:
    text = advice.failure(2, 3, "run_commands make", "make", "exit code 2", ["cc -c a.c", "boom"], "/logs/x.log")
    assert text.splitlines() == [
        "image step 2 of 3 failed (run_commands make): exit code 2",
        "  command: make",
        "  its last lines:",
        "    cc -c a.c",
        "    boom",
        "All of its output is in /logs/x.log",
    ]


# ---------------------------------------------------------------- files


def test_a_log_keeps_its_end(tmp_path: Path) -> None:
    log = BuildLog(tmp_path / "x.log", limit=1000)
    for number in range(500):
        log.write(f"line {number}\n".encode())
    log.close()
    lines = (tmp_path / "x.log").read_text().splitlines()
    assert (tmp_path / "x.log").stat().st_size <= 1100
    assert lines[0] == "[earlier output is left out]"
    assert lines[-1] == "line 499"


def test_a_log_bears_one_piece_that_is_too_large(tmp_path: Path) -> None:
    log = BuildLog(tmp_path / "x.log", limit=1000)
    log.write(b"x" * 100_000 + b"end\n")
    log.close()
    assert (tmp_path / "x.log").stat().st_size < 1000
    assert (tmp_path / "x.log").read_bytes().endswith(b"end\n")


def test_a_tree_is_linked_not_copied(tmp_path: Path) -> None:
    source = tmp_path / "a"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_text("x")
    (source / "link").symlink_to("sub/file")
    (source / "left").write_text("y")
    trees.link_tree(source, tmp_path / "b", leave=lambda path: path == "left")
    assert (tmp_path / "b" / "sub" / "file").samefile(source / "sub" / "file")
    assert os.readlink(tmp_path / "b" / "link") == "sub/file"
    assert not (tmp_path / "b" / "left").exists()


def test_what_a_command_has_changed_is_applied(tmp_path: Path) -> None:
    base, upper = tmp_path / "base", tmp_path / "upper"
    for name in ("kept", "changed", "gone"):
        (base / "d").mkdir(parents=True, exist_ok=True)
        (base / "d" / name).write_text("old")
    (upper / "d").mkdir(parents=True)
    (upper / "d" / "changed").write_text("new")
    (upper / "d" / "added").write_text("new")
    try:
        os.mknod(upper / "d" / "gone", 0o20000, 0)
    except PermissionError:
        pytest.skip("only root makes the marks that an overlay makes")
    trees.apply_upper(upper, base)
    assert {path.name: path.read_text() for path in (base / "d").iterdir()} == {
        "kept": "old",
        "changed": "new",
        "added": "new",
    }


def test_nothing_is_put_into_a_directory_that_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(removal, "remove", lambda path: None)
    with pytest.raises(PermissionError, match="what is in this directory cannot be removed"):
        trees.link_file(tmp_path / "file", tmp_path / "there")
    assert not os.listdir(tmp_path / "there")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the walk that gave up
@pytest.mark.parametrize("remove", [store.remove, overlay.remove_tree, trees.discard])
def test_a_layer_of_any_depth_can_be_removed(tmp_path: Path, remove: Callable[[Path], None]) -> None:
    top = tmp_path / "layer"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=here)
        here, above = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(here)
    try:
        remove(top)
        assert not top.exists()
    finally:  # pytest could not remove it either
        subprocess.run(["rm", "-rf", str(top)], check=True)
