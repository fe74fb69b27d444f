"""What images read of this machine: found, bounded, copied, and named by what it holds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import kedge
from kedge.exception import InvalidError, ModuleNotMountable, NotFoundError
from kedge.model.spec import CodeSpec, ImageSpec, LocalFiles
from kedge.sdk import image_files, local_files, recipe, snapshot
from kedge.sdk.serializer import PYTHON
from kedge.wire import trees


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory."""
    made = tmp_path / "project"
    made.mkdir()
    monkeypatch.chdir(made)
    return made


def write(project: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def bound(image: kedge.Image, project: Path, code: CodeSpec = CodeSpec()) -> ImageSpec:  # noqa: B008
    return image_files.bound(image.spec, code, str(project.parent / "home"))


def base() -> kedge.Image:
    return kedge.Image.debian_slim()


def contents(files: LocalFiles | None) -> dict[str, str]:
    assert files is not None
    root = Path(files.root)
    return {path.relative_to(root).as_posix(): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


def arguments(spec: ImageSpec, step: int = -1) -> dict[str, Any]:
    return {key: json.loads(value) for key, value in spec.steps[step].arguments}


# ---------------------------------------------------------------- steps


def test_the_callers_python_version_is_put_in_and_the_digest_stays(project: Path) -> None:
    image = base().pip_install("numpy")
    spec = bound(image, project)
    assert arguments(spec, 0) == {"python_version": PYTHON}
    assert arguments(bound(kedge.Image.debian_slim("3.10"), project), 0) == {"python_version": "3.10"}
    assert spec.digest == image.digest
    assert bound(kedge.Image(), project) == ImageSpec()
    assert [step.kind for step in bound(kedge.Image().env({"A": "1"}), project).steps] == ["debian_slim", "env"]


def test_requirements_bring_what_they_name_and_equal_ones_are_equal_anywhere(project: Path) -> None:
    write(
        project,
        {
            "requirements.txt": "numpy\n-r more/a.txt  # more\n-c=more/c.txt\n-e git+https://x/y\nz @ https://x/y.whl\n",
            "more/a.txt": "fastapi\n--requirement ../b.txt\n-rb.txt\n",
            "more/b.txt": "flask\n",
            "more/c.txt": "numpy<3",
            "b.txt": "-r requirements.txt",
        },
    )
    spec = bound(base().pip_install_from_requirements("requirements.txt"), project)
    assert arguments(spec)["path"] == "requirements.txt"
    there = sorted(contents(spec.steps[-1].files))
    assert there == ["b.txt", "more/a.txt", "more/b.txt", "more/c.txt", "requirements.txt"]
    other = project / "elsewhere"
    other.mkdir()
    for name in there:
        (other / name).parent.mkdir(exist_ok=True)
        (other / name).write_text((project / name).read_text())
    assert bound(base().pip_install_from_requirements(other / "requirements.txt"), project).steps == spec.steps
    spec = bound(base().uv_pip_install(requirements=["more/b.txt", "b.txt"]), project)
    assert arguments(spec)["requirements"] == ["more/b.txt", "b.txt"]


def test_projects(project: Path) -> None:
    workspace = '[project]\nname="a"\n[tool.uv.workspace]\nmembers=["packages/*"]\n'
    write(
        project,
        {
            "pyproject.toml": workspace,
            "uv.lock": "lock",
            "packages/one/pyproject.toml": "x",
            "poetry.lock": "p",
            "main.py": "",
        },
    )
    spec = bound(base().uv_sync(), project)
    assert sorted(contents(spec.steps[-1].files)) == ["packages/one/pyproject.toml", "pyproject.toml", "uv.lock"]
    assert arguments(spec)["uv_project_dir"] == "."
    spec = bound(base().pip_install_from_pyproject(project / "pyproject.toml"), project)
    assert list(contents(spec.steps[-1].files)) == ["pyproject.toml"]
    spec = bound(base().poetry_install_from_file("pyproject.toml"), project)
    assert (arguments(spec)["path"], arguments(spec)["lock"]) == ("pyproject.toml", "poetry.lock")
    assert sorted(contents(spec.steps[-1].files)) == ["poetry.lock", "pyproject.toml"]
    write(project, {"environment.yaml": "dependencies: []"})
    spec = bound(kedge.Image.micromamba().micromamba_install(spec_file=project / "environment.yaml"), project)
    assert arguments(spec) == {"spec_file": "environment.yaml"}
    assert list(contents(spec.steps[-1].files)) == ["environment.yaml"]


def test_a_dockerfile_takes_along_what_it_copies(project: Path) -> None:
    dockerfile = (
        "FROM python:3.12\n# COPY nothing /\nCOPY --chown=me a.txt pkg/ \\\n  /app/\nCOPY --from=x /b /b\n"
        'ADD ["*.md", "/docs/"]\nADD https://example.org/x /x\nRUN ls\n'
    )
    write(
        project,
        {
            "Dockerfile": dockerfile,
            "a.txt": "a",
            "pkg/m.py": "m",
            "pkg/m.log": "l",
            "r.md": "r",
            "sub/s.md": "s",
            "z.txt": "z",
        },
    )
    (project / ".dockerignore").write_text("**/*.log\n")
    spec = bound(kedge.Image.from_dockerfile("Dockerfile", build_args={"A": "1"}), project)
    assert contents(spec.steps[0].files) == {"a.txt": "a", "pkg/m.py": "m", "r.md": "r"}
    assert arguments(spec) == {"commands": dockerfile.splitlines(), "build_args": {"A": "1"}}
    spec = bound(base().dockerfile_commands("COPY . /x", "ENV A=1", context_dir="pkg", ignore=[]), project)
    assert contents(spec.steps[-1].files) == {"m.py": "m", "m.log": "l"}
    assert arguments(spec) == {"commands": ["COPY . /x", "ENV A=1"]}
    assert bound(base().dockerfile_commands("ENV A=1"), project).steps[-1].files is None


def test_added_files_are_mounts_or_layers(project: Path) -> None:
    write(project, {"a.txt": "a", "data/b.csv": "b", "data/c.txt": "c", "data/deep/d.csv": "d"})
    os.chmod(project / "a.txt", 0o700)
    spec = bound(
        base()
        .add_local_file("a.txt", "/x/", copy=True)
        .add_local_dir("data", "/root/data/", ignore=kedge.FilePatternMatcher("**/*.csv", "!deep/*.csv"))
        .add_local_file("a.txt", "/root/b.txt"),
        project,
    )
    assert [step.kind for step in spec.steps] == ["debian_slim", "add_local_file"]
    copied = spec.steps[-1].files
    assert copied is not None
    assert (copied.target, copied.is_file) == ("/x/a.txt", True)
    assert contents(copied) == {"a.txt": "a"}
    assert os.access(Path(copied.root, "a.txt"), os.X_OK)
    assert [(files.target, files.is_file) for files in spec.mounts] == [("/root/data", False), ("/root/b.txt", True)]
    assert contents(spec.mounts[0]) == {"c.txt": "c", "deep/d.csv": "d"}
    assert spec.python_path == ()
    assert str(project) not in repr(spec.steps[-1].arguments)
    taken = bound(base().add_local_dir("data", "/d", ignore=lambda path: path.suffix == ".csv"), project)
    assert contents(taken.mounts[0]) == {"c.txt": "c"}


def test_python_source_is_found_by_name_and_only_python(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        project,
        {
            "pack/__init__.py": "",
            "alone.py": "a = 1",
            "pack/m.py": "",
            "pack/data.txt": "d",
            "pack/inner/__init__.py": "",
            "pack/inner/n.py": "n",
        },
    )
    (project / "pack" / "__pycache__").mkdir()
    (project / "pack" / "__pycache__" / "m.pyc").write_text("")
    monkeypatch.syspath_prepend(str(project))
    spec = bound(base().add_local_python_source("alone", "pack"), project)
    (files,) = spec.mounts
    assert (files.target, spec.python_path) == ("/root", ("/root",))
    assert sorted(contents(files)) == [
        "alone.py",
        "pack/__init__.py",
        "pack/inner/__init__.py",
        "pack/inner/n.py",
        "pack/m.py",
    ]
    spec = bound(base().add_local_python_source("pack.inner", copy=True), project)
    assert sorted(contents(spec.steps[-1].files)) == ["pack/__init__.py", "pack/inner/__init__.py", "pack/inner/n.py"]
    assert spec.mounts == ()
    spec = bound(base().add_local_python_source("pack", ignore=["m.py"]), project)
    assert "pack/data.txt" in contents(spec.mounts[0])
    for nothing in ([], ()):
        everything = bound(base().add_local_python_source("pack", ignore=nothing), project)
        assert {"pack/data.txt", "pack/m.py"} <= contents(everything.mounts[0]).keys(), "no pattern leaves nothing out"
    assert not any("__pycache__" in path for path in contents(spec.mounts[0]))


def test_of_a_namespace_package_what_is_installed_is_left_to_the_image(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        project,
        {"here/firm/text.py": "", "here/firm/deep/m.py": "", "site/firm/n.py": "", "site/firm/only/__init__.py": ""},
    )
    for place in ("site", "here"):
        monkeypatch.syspath_prepend(str(project / place))
    monkeypatch.setattr(snapshot.site, "getsitepackages", lambda: [str(project / "site")])
    shipped = {
        name: sorted(contents(bound(base().add_local_python_source(name), project).mounts[0]))
        for name in ("firm", "firm.deep", "firm.only")
    }
    assert shipped == {
        "firm": ["firm/deep/m.py", "firm/text.py"],
        "firm.deep": ["firm/deep/m.py"],
        "firm.only": ["firm/only/__init__.py"],
    }
    with pytest.raises(ModuleNotMountable, match=r"there is no firm\.nope in .*/here/firm"):
        bound(base().add_local_python_source("firm.nope"), project)


def weights(name: str) -> str:
    return name


def test_a_function_that_runs_at_build_time_is_known_by_its_key(project: Path) -> None:
    image = base().run_function(weights, args=("tiny",))
    write(project, {"tests/sdk/test_image_files.py": "def weights(name): ..."})
    code = CodeSpec(digest="d" * 32, root=str(project), module="tests", is_package=True)
    step = bound(image, project, code).steps[-1]
    assert step.files is not None
    assert step.files.root == str(project)
    key = dict(step.arguments)["key"].strip('"')
    assert step.files.digest == key[:32], "other changes of the code do not run it again"
    main = recipe.step("run_function", {"function": "__main__:weights", "key": key, "given": "[[],{}]"})
    bound_main = image_files.bound(
        ImageSpec((main,)), CodeSpec(root="/code", module="app", main=True), str(project.parent / "home")
    )
    assert arguments(bound_main)["function"] == "app:weights"
    recipe.notes[main] = recipe.Note(function=weights)
    step = image_files.bound(ImageSpec((main,)), CodeSpec(), str(project.parent / "home")).steps[-1]
    assert dict(step.arguments)["pickled"] == '"function.pickle"'
    assert step.files is not None
    assert os.listdir(step.files.root) == ["function.pickle"]


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: base().add_local_file("nope.txt", "/a"),
            NotFoundError,
            r"Image.add_local_file \(.*test_image_files.py:\d+\): there is no file .*/project/nope.txt\.",
        ),
        (lambda: base().add_local_dir("a.txt", "/a"), InvalidError, r"a.txt is a file; use add_local_file"),
        (lambda: base().add_local_file("dir", "/a"), InvalidError, r"dir is a directory, and a file is needed"),
        (
            lambda: base().add_local_file("test_image_files.py", "/a"),
            NotFoundError,
            r"there is one beside the file that declares it: write Path\(__file__\).parent / 'test_image_files.py'",
        ),
        (lambda: base().uv_sync("dir"), NotFoundError, r"there is no pyproject.toml in .*/dir"),
        (
            lambda: base().uv_sync("."),
            NotFoundError,
            r"no uv.lock in .*; make one with `uv lock`, or write frozen=False",
        ),
        (
            lambda: base().pip_install_from_requirements("broken.txt"),
            NotFoundError,
            r"broken.txt names .*/missing.txt, which is not there",
        ),
        (
            lambda: base().pip_install_from_requirements("absolute.txt"),
            InvalidError,
            r"line 2 of .*absolute.txt names /etc/requirements.txt of this machine; write it relative",
        ),
        (
            lambda: base().pip_install_from_requirements("local.txt"),
            InvalidError,
            r"line 1 of .*local.txt installs ./dir, which the build does not have; bring it with",
        ),
        (
            lambda: base().uv_pip_install(requirements=["wheel.txt"]),
            InvalidError,
            r"line 2 of .*wheel.txt installs ../x.whl, which the build does not have",
        ),
        (
            lambda: base().add_local_python_source("no_such_module_here"),
            ModuleNotMountable,
            r"there is no module 'no_such_module_here' that could be imported here",
        ),
        (lambda: base().add_local_python_source("sys"), ModuleNotMountable, r"sys is a part of Python itself"),
        (lambda: base().add_local_python_source("json.nope"), ModuleNotMountable, r"there is no json.nope in .*json"),
        (lambda: base().dockerfile_commands("COPY nope /x"), NotFoundError, r"COPY nope: no file of the build context"),
        (lambda: base().dockerfile_commands("COPY ../x /x"), NotFoundError, r"../x lies outside of the build context"),
        (
            lambda: base().add_local_dir("links", "/x"),
            InvalidError,
            r"links/out is a link that leads out of .*/links, to /etc; leave it out with ignore=\['out'\]",
        ),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(make: Any, kind: type, message: str, project: Path) -> None:
    write(
        project,
        {
            "a.txt": "",
            "dir/b.txt": "",
            "pyproject.toml": "",
            "broken.txt": "-r missing.txt",
            "absolute.txt": "numpy\n-r /etc/requirements.txt",
            "local.txt": "-e ./dir",
            "wheel.txt": "numpy\nx @ file:../x.whl",
            "links/a.txt": "",
        },
    )
    os.symlink("/etc", project / "links" / "out")
    with pytest.raises(kind, match=message):
        bound(make(), project)


def test_too_much_is_refused_with_the_numbers(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(project, {"d/a": "12345", "d/b": "1", "d/c": ""})
    monkeypatch.setattr(local_files, "SIZE_LIMIT", 5)
    with pytest.raises(InvalidError, match=r"3 files with 0.0 GiB are too much; .* The largest: a \(0.0 GiB\), b"):
        bound(base().add_local_dir("d", "/d"), project)
    monkeypatch.setattr(local_files, "ENTRY_LIMIT", 2)
    with pytest.raises(InvalidError, match=r"/d has more than 2 files; leave some out with ignore="):
        bound(base().add_local_dir("d", "/d"), project)


# ---------------------------------------------------------------- copies


def test_links_stay_inside_and_are_followed(project: Path) -> None:
    write(project, {"d/a": "a", "d/sub/b": "b"})
    os.symlink("a", project / "d" / "link")
    os.symlink("sub", project / "d" / "other")
    os.symlink(".", project / "d" / "loop")
    os.symlink("nowhere", project / "d" / "broken")
    os.mkfifo(project / "d" / "pipe")
    files = bound(base().add_local_dir("d", "/d"), project).mounts[0]
    assert contents(files) == {"a": "a", "link": "a", "sub/b": "b", "other/b": "b"}
    assert not any(path.is_symlink() for path in Path(files.root).rglob("*"))


def test_an_unchanged_directory_is_not_read_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        write(project, {f"d/f{number}": str(number)})
        os.utime(project / "d" / f"f{number}", (1e9, 1e9))
    monkeypatch.setattr(local_files, "SETTLED_NS", -(10**12))  # as if they had been there for long
    image = base().add_local_dir("d", "/d")
    first = bound(image, project)
    read: list[str] = []
    entry = trees.Trees.take
    monkeypatch.setattr("builtins.open", _watching(read, project))
    assert bound(image, project) == first
    assert read == []
    (project / "d" / "f3").write_text("changed")
    second = bound(image, project)
    assert read == [str(project / "d" / "f3")]
    assert second.mounts[0].digest != first.mounts[0].digest
    assert contents(first.mounts[0])["f3"] == "3", "what was taken stays as it was"
    assert trees.Trees.take is entry
    same = os.stat(Path(first.mounts[0].root, "f4")).st_ino == os.stat(Path(second.mounts[0].root, "f4")).st_ino
    assert same, "equal contents lie there once"


def _watching(read: list[str], project: Path) -> Any:
    original = open

    def opened(path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if mode == "rb" and str(path).startswith(str(project)):
            read.append(str(path))
        return original(path, mode, *rest, **options)

    return opened


def test_contents_that_were_removed_are_read_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        write(project, {f"d/f{number}": str(number)})
    monkeypatch.setattr(local_files, "SETTLED_NS", -(10**12))
    image = base().add_local_dir("d", "/d")
    first = bound(image, project)
    shelf = trees.Trees(str(project.parent / "home" / "files"))
    shelf.sweep([], -10.0, 2e9)
    assert not os.path.exists(first.mounts[0].root)
    assert bound(image, project) == first
    assert len(contents(first.mounts[0])) == 40


def test_trees_in_use_stay_and_their_contents_with_them(project: Path) -> None:
    write(project, {"a": "a", "b": "b"})
    kept = bound(base().add_local_file("a", "/a"), project).mounts[0]
    gone = bound(base().add_local_file("b", "/b"), project).mounts[0]
    shelf = trees.Trees(str(project.parent / "home" / "files"))
    shelf.sweep([kept.digest], -10.0, 2e9)
    assert contents(kept) == {"a": "a"}
    assert not os.path.exists(gone.root)
    assert len(os.listdir(shelf.objects)) == 1
