"""What a base is made of: package sources, names, and the words that make it."""

import pytest

from kedge.exception import ImageBuildError
from kedge.images import debian
from kedge.images.debian import Machine, command, deb822, default_sources, is_of_debian, name_of, not_among, one_lines
from kedge.images.registry import credentials, host, known

FOUND = Machine(suite="bookworm", architecture="amd64", sources=("deb http://mirror.example/debian bookworm main",))


def test_one_line_entries_without_comments_and_source_packages():
    text = "# deb http://old x main\ndeb  http://a/debian bookworm main # near\ndeb-src http://a/debian bookworm main\n"
    assert one_lines(text) == ["deb http://a/debian bookworm main"]


def test_deb822_entries_become_one_line_each():
    text = (
        "Types: deb deb-src\n# why\nURIs: http://a/debian http://b/debian\nSuites: bookworm\n bookworm-updates\n"
        "Components: main contrib\nSigned-By: /usr/share/keyrings/k.gpg\n\n"
        "Types: deb\nURIs: http://off/debian\nSuites: bookworm\nComponents: main\nEnabled: no\n\n"
        "Types: deb-src\nURIs: http://src/debian\nSuites: bookworm\nComponents: main\n"
    )
    assert deb822(text) == [
        f"deb [signed-by=/usr/share/keyrings/k.gpg] {uri} {suite} main contrib"
        for uri in ("http://a/debian", "http://b/debian")
        for suite in ("bookworm", "bookworm-updates")
    ]


def test_a_key_inside_of_an_entry_is_left_to_apts_own_keys():
    key = "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n ."
    text = f"Types: deb\nURIs: http://a\nSuites: sid\nComponents: main\n{key}"
    assert deb822(text) == ["deb http://a sid main"]


@pytest.mark.parametrize(
    ("line", "ours"),
    [
        ("deb http://a/debian bookworm main", True),
        ("deb [arch=amd64 signed-by=/k] http://a/debian-security bookworm-security main", True),
        ("deb http://a/debian trixie main", False),
        ("deb https://download.docker.com/linux/debian bookworm stable", False),
        ("deb https://packages.example/apt sdk-bookworm main", False),
        ("deb https://flat.example/ ./", False),
    ],
)
def test_only_debian_itself_is_taken_over(line, ours):
    assert is_of_debian(line, "bookworm") is ours


def test_the_machines_own_mirrors_are_used(tmp_path):
    (tmp_path / "os-release").write_text('ID=debian\nVERSION_CODENAME="trixie"\n')
    (tmp_path / "apt" / "sources.list.d").mkdir(parents=True)
    (tmp_path / "apt" / "sources.list").write_text("deb http://near/debian trixie main\n")
    (tmp_path / "apt" / "sources.list.d" / "x.sources").write_text(
        "Types: deb\nURIs: http://near/security\nSuites: trixie-security\nComponents: main\n"
    )
    (tmp_path / "apt" / "sources.list.d" / "y.list").write_text("deb https://third.example/apt trixie tools\n")
    (tmp_path / "apt" / "sources.list.d" / "z.list.disabled").write_text("deb http://off/debian trixie main\n")
    found = debian.machine(tmp_path)
    assert found.suite == "trixie"
    assert found.sources == ("deb http://near/debian trixie main", "deb http://near/security trixie-security main")


def test_a_machine_that_is_not_debian_gets_the_stable_one(tmp_path):
    (tmp_path / "os-release").write_text("ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n")
    found = debian.machine(tmp_path)
    assert found.suite == "bookworm"
    assert found.sources == default_sources("bookworm")
    assert found.sources[0] == "deb http://deb.debian.org/debian bookworm main"


def test_another_mirror_is_no_other_base_and_another_suite_is():
    elsewhere = Machine(suite="bookworm", architecture="amd64", sources=("deb http://other/debian bookworm main",))
    newer = Machine(suite="trixie", architecture="amd64")
    assert name_of(FOUND) == name_of(elsewhere)
    assert name_of(FOUND).startswith("bookworm-amd64-")
    assert name_of(newer) != name_of(FOUND)


def test_mmdebstrap_is_told_the_sources_and_the_proxies():
    proxied = Machine(
        suite="bookworm",
        architecture="arm64",
        sources=("deb http://a/debian bookworm main", "deb http://a/security bookworm-security main"),
        settings=('Acquire::http::Proxy "http://proxy:3142";',),
    )
    words = command("/usr/bin/mmdebstrap", False, proxied, "/t")
    assert words[-4:] == ["bookworm", "/t", *proxied.sources]
    assert "--architectures=arm64" in words
    assert '--aptopt=Acquire::http::Proxy "http://proxy:3142"' in words
    assert "--mode=root" in words
    assert "--mode=unshare" in command("/usr/bin/mmdebstrap", True, proxied, "/t")


def test_debootstrap_is_told_the_first_mirror():
    words = command("/usr/sbin/debootstrap", False, FOUND, "/t")
    assert words[-3:] == ["bookworm", "/t", "http://mirror.example/debian"]


def test_without_a_tool_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(debian.shutil, "which", lambda name: None)
    with pytest.raises(
        ImageBuildError, match=r"nothing is installed here that makes one; .* `apt-get install mmdebstrap`"
    ):
        debian.tool()


def test_debootstrap_alone_needs_root(monkeypatch):
    monkeypatch.setattr(debian.shutil, "which", lambda name: "/usr/sbin/debootstrap" if name == "debootstrap" else None)
    monkeypatch.setattr(debian.os, "geteuid", lambda: 1000)
    with pytest.raises(ImageBuildError, match="debootstrap makes one only as root"):
        debian.tool()


def test_packages_that_the_machine_lacks():
    shown = ["jq\t\tinstalled", "mawk\tawk\tinstalled", "libx1\tlibx (= 1), liby\tinstalled", "gone\t\tconfig-files"]
    assert not_among(["jq", "awk", "jq=1.6", "jq:amd64", "libx", "liby"], shown) == []
    assert not_among(["jq", "gone", "never"], shown) == ["gone", "never"]


@pytest.mark.parametrize(
    ("tag", "version"),
    [
        ("debian:bookworm-slim", ""),
        ("debian", ""),
        ("python:3.12", "3.12"),
        ("python:3.12.4-slim-bookworm", "3.12"),
        ("docker.io/library/python:3.11-slim", "3.11"),
        ("python:3.12-alpine", None),
        ("nvidia/cuda:12.4.0-devel-ubuntu22.04", None),
        ("acme/python:3.12", None),
        ("ubuntu:22.04", None),
    ],
)
def test_which_images_need_no_registry(tag, version):
    assert known(tag, "bookworm")[0] == version


def test_another_suite_than_the_machines_is_said():
    assert known("python:3.12-slim-bullseye", "bookworm")[1] == (
        "python:3.12-slim-bullseye: files are those of Debian bookworm, as on this machine"
    )
    assert known("debian:bookworm", "bookworm")[1] == ""


def test_logins_of_registries():
    given = {"REGISTRY_USERNAME": "ann", "REGISTRY_PASSWORD": "p"}
    assert credentials("from_registry", "ghcr.io/a/b", given) == ("ann", "p")
    assert credentials("from_registry", "ghcr.io/a/b", {}) is None
    assert credentials("from_gcp_artifact_registry", "x", {"SERVICE_ACCOUNT_JSON": "{}"}) == ("_json_key", "{}")
    with pytest.raises(Exception, match="its secret has no REGISTRY_PASSWORD"):
        credentials("from_registry", "ghcr.io/a/b", {"REGISTRY_USERNAME": "ann"})
    assert [host(tag) for tag in ("a", "a/b", "ghcr.io/a/b", "localhost:5000/a")] == [
        "docker.io",
        "docker.io",
        "ghcr.io",
        "localhost:5000",
    ]


def test_a_full_disk_is_said_before_a_base_is_begun(tmp_path, monkeypatch):
    debian.check_room(tmp_path)
    monkeypatch.setattr(debian, "ROOM", 1 << 60)
    with pytest.raises(
        ImageBuildError, match=r"No space left on device: making the Debian base takes \d+ MiB, and \d+"
    ):
        debian.check_room(tmp_path)


def test_bases_that_no_image_needs_are_removed_but_for_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(debian, "machine", lambda: FOUND)
    names = [name_of(FOUND), "trixie-amd64-used", "trixie-amd64-unused", "bookworm-amd64-half"]
    for name in names:
        (tmp_path / "bases" / name / "root").mkdir(parents=True)
        if name != names[3]:
            (tmp_path / "bases" / name / "base.json").write_text('{"suite": "x", "architecture": "amd64"}')
    needed = {str(tmp_path / "bases" / names[1] / "root")}
    debian.sweep(tmp_path, needed)
    assert sorted(path.name for path in (tmp_path / "bases").iterdir()) == sorted(names[:2])
    debian.sweep(tmp_path, needed, everything=True)
    assert [path.name for path in (tmp_path / "bases").iterdir()] == [names[1]]
