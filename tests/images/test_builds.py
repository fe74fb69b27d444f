"""Python images, built for real: with wheels made here, and without a network."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kedge.exception import ConflictError, ImageBuildError, NotFoundError
from kedge.images import prune
from kedge.images.store import Built
from tests.images.kit import Site, step

pytestmark = pytest.mark.slow

BASE = step("debian_slim")


def run(built: Built, code: str) -> str:
    """What code prints in the environment of an image."""
    answer = subprocess.run([built.image.python, "-I", "-c", code], capture_output=True, text=True, check=True)
    return answer.stdout.strip()


def version(built: Built, name: str) -> str:
    return run(built, f"import {name}; print({name}.VERSION)")


def test_packages_are_installed_compiled_locked_and_read_only(site: Site) -> None:
    site.wheel("lib", "1.0")
    site.wheel("user", "2.0", "lib>=1")
    built = site.build(BASE, step("pip_install", packages=["user"]))
    assert version(built, "lib") == "1.0"
    assert built.image.id == f"im-{built.layers[-1]}"
    assert built.image.packages == str(site.store.directory(built.layers[-1]) / "venv")
    lock = Path(site.layer(built).lock).read_text().splitlines()
    assert [line for line in lock if not line.startswith("pip==")] == ["lib==1.0", "user==2.0"]
    packages = site.site_packages(built)
    assert list((packages / "lib" / "__pycache__").glob("__init__.*.pyc"))
    assert not any(path.stat().st_mode & 0o222 for path in [packages, packages / "lib", packages / "lib/__init__.py"])
    assert site.states() == [("started", 1), ("finished", 1), ("started", 2), ("finished", 2), ("built", 0)]


def test_the_environment_is_apart_from_the_servers(site: Site) -> None:
    built = site.build(BASE)
    code = "import importlib.util as u; print([n for n in ('msgspec', 'click', 'kedge') if u.find_spec(n)])"
    assert run(built, code) == "[]"


def test_files_are_linked_from_the_cache_of_uv(site: Site) -> None:
    site.wheel("lib", "1.0")
    one = site.build(BASE, step("pip_install", packages=["lib"]))
    two = site.build(BASE, step("pip_install", packages=["lib", "lib>=1"]))
    first, second = (site.site_packages(built) / "lib" / "__init__.py" for built in (one, two))
    assert first.samefile(second)
    compiled = [next(path.parent.glob("__pycache__/*.pyc")) for path in (first, second)]
    assert compiled[0].samefile(compiled[1]), "and compiled once"


def test_what_is_there_is_not_built_again(site: Site) -> None:
    site.wheel("lib", "1.0")
    steps = BASE, step("pip_install", packages=["lib"]), step("env", vars={"A": "1"})
    first = site.build(*steps)
    again = site.build(*steps)
    assert again.image == first.image
    assert site.states() == [("cached", 1), ("cached", 2), ("cached", 3), ("built", 0)]
    assert site.events[-1].cached


def test_a_later_step_keeps_earlier_packages_as_pip_would(site: Site) -> None:
    for number in ("1.0", "2.0"):
        site.wheel("lib", number)
    site.wheel("app", "1.0", "lib")
    first = site.build(BASE, step("pip_install", packages=["lib==1.0"]))
    kept = site.build(BASE, step("pip_install", packages=["lib==1.0"]), step("pip_install", packages=["app"]))
    assert version(kept, "lib") == "1.0", "it is good enough"
    changed = site.build(BASE, step("pip_install", packages=["lib==1.0"]), step("pip_install", packages=["lib>1"]))
    assert version(changed, "lib") == "2.0"
    assert version(first, "lib") == "1.0", "the layer below is what it was"


def test_programs_of_packages_run_in_the_environment_of_the_last_step(site: Site) -> None:
    site.wheel("tool", "1.0", code="import sys\ndef main():\n    print(sys.prefix)\n", scripts={"tool": "tool:main"})
    site.wheel("lib", "1.0")
    built = site.build(BASE, step("pip_install", packages=["tool"]), step("pip_install", packages=["lib"]))
    printed = subprocess.run([Path(built.image.packages) / "bin" / "tool"], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == built.image.packages


def test_settings_change_what_is_said_of_an_image(site: Site) -> None:
    built = site.build(
        BASE,
        step("env", vars={"A": "1", "B": "2"}),
        step("env", vars={"A": "3"}),
        step("workdir", path="/srv"),
        step("workdir", path="data"),
        step("entrypoint", entrypoint=["/bin/run"]),
        step("cmd", cmd=["x"]),
        step("shell", shell=["/bin/bash", "-c"]),
    )
    assert dict(built.image.variables) == {"A": "3", "B": "2"}
    assert built.image.directory == "/srv/data"
    assert built.image.entrypoint == ("/bin/run",)
    assert (site.layer(built).cmd, site.layer(built).shell) == (("x",), ("/bin/bash", "-c"))
    assert built.image.packages == site.layer(built, 0).image.packages


# ---------------------------------------------------------------- where packages come from


def test_requirements_files_may_name_each_other(site: Site) -> None:
    site.wheel("lib", "1.0")
    site.wheel("user", "2.0")
    files = site.files("reqs", requirements__txt="-r base.txt\nuser\n", base__txt="lib\n")
    built = site.build(BASE, step("pip_install_from_requirements", files, path="requirements.txt"))
    assert (version(built, "lib"), version(built, "user")) == ("1.0", "2.0")
    built = site.build(BASE, step("uv_pip_install", files, packages=["user"], requirements=["base.txt"]))
    assert version(built, "lib") == "1.0"
    assert sorted(path.name for path in site.store.directory(built.layers[-1]).iterdir()) == [
        "layer.json",
        "lock.txt",
        "venv",
    ]


def test_a_projects_dependencies(site: Site) -> None:
    site.wheel("lib", "1.0")
    site.wheel("extra", "1.0")
    text = '[project]\nname = "x"\ndependencies = ["lib"]\noptional-dependencies = {web = ["extra"]}\n'
    files = site.files("project", pyproject__toml=text)
    built = site.build(
        BASE, step("pip_install_from_pyproject", files, path="pyproject.toml", optional_dependencies=["web"])
    )
    assert version(built, "extra") == "1.0"


def test_a_locked_project_is_installed_beside_what_is_there(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    site.wheel("lib", "1.0")
    site.wheel("lib", "2.0")
    site.wheel("other", "1.0")
    project = '[project]\nname = "x"\nversion = "0"\nrequires-python = ">=3.11"\ndependencies = ["lib==1.0"]\n'
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "pyproject.toml").write_text(project)
    from kedge.images import uvtool

    subprocess.run([uvtool.program(), "lock", "-q"], cwd=directory, check=True, env=dict(os.environ))
    lock = (directory / "uv.lock").read_text()
    files = site.files("locked", pyproject__toml=project, uv__lock=lock)
    built = site.build(BASE, step("pip_install", packages=["other"]), step("uv_sync", files, uv_project_dir="."))
    assert (version(built, "lib"), version(built, "other")) == ("1.0", "1.0")
    without = site.files("unlocked", pyproject__toml=project)
    with pytest.raises(ImageBuildError, match=r"there is no uv.lock beside pyproject.toml; make one with `uv lock`"):
        site.build(BASE, step("uv_sync", without, uv_project_dir="."))


def test_options_say_where_packages_are(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    site.wheel("lib", "1.0")
    with pytest.raises(ImageBuildError, match=r"A package of this name is not known"):
        site.build(BASE, step("pip_install", packages=["lib"]))
    built = site.build(BASE, step("pip_install", packages=["lib"], find_links=str(site.wheels)))
    assert version(built, "lib") == "1.0"


def test_versions_before_a_release_only_where_asked_for(site: Site) -> None:
    site.wheel("lib", "1.0")
    site.wheel("lib", "2.0rc1")
    assert version(site.build(BASE, step("pip_install", packages=["lib"])), "lib") == "1.0"
    assert version(site.build(BASE, step("pip_install", packages=["lib"], pre=True)), "lib") == "2.0rc1"


# ---------------------------------------------------------------- locks


def test_an_image_that_was_removed_comes_back_with_the_same_packages(site: Site) -> None:
    site.wheel("lib", "1.0")
    steps = BASE, step("pip_install", packages=["lib"])
    before = site.build(*steps)
    assert prune.prune(site.store, ())["images"] == 1
    assert site.store.image(before.image.id) is None
    site.wheel("lib", "2.0")
    again = site.build(*steps)
    assert again.image.id == before.image.id
    assert version(again, "lib") == "1.0"


def test_a_forced_build_resolves_anew_and_leaves_the_old_image_alone(site: Site) -> None:
    site.wheel("lib", "1.0")
    steps = BASE, step("pip_install", packages=["lib"])
    before = site.build(*steps)
    site.wheel("lib", "2.0")
    forced = site.build(BASE, step("pip_install", packages=["lib"], force_build=True))
    assert version(forced, "lib") == "2.0"
    assert version(before, "lib") == "1.0"
    assert site.build(*steps).image.id == forced.image.id, "who does not force finds what was forced last"


def test_a_build_that_ignores_the_cache_is_its_own(site: Site) -> None:
    site.wheel("lib", "1.0")
    steps = BASE, step("pip_install", packages=["lib"])
    before = site.build(*steps)
    other = site.build(*steps, ignore_cache=True)
    assert other.image.id != before.image.id
    assert site.build(*steps).image.id == before.image.id


def test_versions_that_cannot_be_had_any_more_are_resolved_anew(site: Site) -> None:
    site.wheel("lib", "1.0")
    steps = BASE, step("pip_install", packages=["lib"])
    site.build(*steps)
    prune.prune(site.store, ())
    (site.wheels / "lib-1.0-py3-none-any.whl").unlink()
    site.wheel("lib", "2.0")
    assert version(site.build(*steps), "lib") == "2.0"


# ---------------------------------------------------------------- failures


def failure(site: Site, *steps: Any, **wishes: Any) -> str:
    with pytest.raises(ImageBuildError) as caught:
        site.build(*steps, **wishes)
    return str(caught.value)


def test_pins_that_contradict_each_other(site: Site) -> None:
    site.wheel("lib", "1.0")
    site.wheel("lib", "2.0")
    text = failure(site, BASE, step("pip_install", packages=["lib==1.0", "lib==2.0"]))
    assert text.startswith("image step 2 of 2 failed (pip_install lib==1.0 lib==2.0): exit code 1\n  command: uv pip ")
    assert "you require lib==1.0 and lib==2.0" in text
    assert "What was asked for contradicts itself" in text
    assert f"All of its output is in {site.store.logs}/" in text


def test_a_failed_step_leaves_nothing_and_those_before_it(site: Site) -> None:
    text = failure(site, BASE, step("pip_install", packages=["nosuch"]))
    assert "A package of this name is not known: check its spelling" in text
    assert [site.store.layer(path.name) is not None for path in site.store.layers.iterdir()] == [True]
    assert not site.store.images()


def test_what_a_killed_build_has_left_is_built_over(site: Site) -> None:
    site.wheel("lib", "1.0")
    steps = BASE, step("pip_install", packages=["lib"])
    built = site.build(*steps)
    directory = site.store.directory(built.layers[-1])
    (directory / "layer.json").unlink()
    (directory / "rubbish").write_text("x")
    assert version(site.build(*steps), "lib") == "1.0"
    assert not (directory / "rubbish").exists()


def test_a_version_of_python_that_is_not_there(site: Site) -> None:
    text = failure(site, step("debian_slim", python_version="3.99"))
    assert "the image wants Python 3.99, which this machine does not have; found are" in text
    assert "uv python install 3.99" in text
    assert "is too old: containers need Python 3.10 or newer" in failure(
        site, step("debian_slim", python_version="3.9")
    )


def test_a_step_without_packages(site: Site) -> None:
    assert "Image.pip_install has nothing to install" in failure(site, BASE, step("pip_install"))


def test_an_unknown_kind(site: Site) -> None:
    assert "Image.teleport cannot be built by this version of kedge" in failure(site, BASE, step("teleport"))


def test_files_that_are_gone(site: Site) -> None:
    text = failure(site, BASE, step("pip_install_from_requirements", path="r.txt"))
    assert "the files of Image.pip_install_from_requirements are not on this machine" in text


def test_a_private_repository_needs_a_token(site: Site) -> None:
    steps = BASE, step("pip_install_private_repos", repositories=["github.com/acme/tools@1"], git_user="ann")
    assert "needs a token: give it a secret with GITHUB_TOKEN" in failure(site, *steps)


def test_a_token_is_seen_nowhere(site: Site) -> None:
    site.wheel("lib", "1.0", code="")
    steps = BASE, step("pip_install", packages=["tok-3n-secret"])
    text = failure(site, *steps, secrets={"1": {"GITHUB_TOKEN": "tok-3n-secret"}})
    logs = "".join(path.read_text() for path in site.store.logs.iterdir())
    assert "***" in logs
    shown = logs + "".join(event.text for event in site.events) + text.partition("\n")[2]
    assert "tok-3n-secret" not in shown


# ---------------------------------------------------------------- bases and removal


def test_an_image_can_be_the_base_of_another(site: Site) -> None:
    site.wheel("lib", "1.0")
    site.wheel("more", "1.0")
    base = site.build(BASE, step("pip_install", packages=["lib"]))
    site.store.publish("team/base", base.image.id)
    for first in (step("from_id", image_id=base.image.id), step("from_name", name="team/base")):
        built = site.build(first, step("pip_install", packages=["more"]))
        assert (version(built, "lib"), version(built, "more")) == ("1.0", "1.0")
        assert built.layers[: len(base.layers)] == base.layers
    with pytest.raises(NotFoundError, match=r"no image is published as 'nobody'"):
        site.build(step("from_name", name="nobody"))
    with pytest.raises(NotFoundError, match=r"there is no image 'im-0' on this server"):
        site.build(step("from_id", image_id="im-0"))
    removed = prune.prune(site.store, ())
    assert (removed["images"], removed["kept"]) == (1, 1), "what has a name stays"
    assert version(base, "lib") == "1.0"


def test_prune_spares_what_is_used(site: Site) -> None:
    site.wheel("lib", "1.0")
    used = site.build(BASE, step("pip_install", packages=["lib"]))
    site.build(BASE, step("env", vars={"A": "1"}))
    (site.store.layers / "half").mkdir()
    removed = prune.prune(site.store, [used.image.id])
    assert (removed["images"], removed["layers"], removed["kept"]) == (1, 2, 1)
    assert version(used, "lib") == "1.0"
    assert [image["id"] for image in prune.listed(site.store)] == [used.image.id]


def test_prune_does_not_run_beside_a_build(site: Site) -> None:
    import fcntl

    from kedge.images.builder import BUILDING

    building = site.store.open_turn(BUILDING)
    fcntl.flock(building, fcntl.LOCK_SH)
    with pytest.raises(ConflictError, match=r"an image is being built at this moment"):
        prune.prune(site.store, ())
    os.close(building)


def test_the_log_of_an_image_has_all_its_steps(site: Site) -> None:
    site.wheel("lib", "1.0")
    built = site.build(BASE, step("pip_install", packages=["lib"]))
    text = prune.log_of(site.store, built.image.id[:12])
    assert "== step 2 of 2: pip_install lib" in text
    assert " + lib==1.0" in text
    with pytest.raises(NotFoundError, match=r"there is no image 'im-nothing'; `kedge image list` shows all"):
        prune.log_of(site.store, "im-nothing")
