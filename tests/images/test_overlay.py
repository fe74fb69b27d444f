"""Where commands run: who may, and what they find."""

import json

import pytest

from kedge.exception import ImageBuildError
from kedge.images import chamber, overlay
from kedge.images.chamber import Bound, Overlay, Plan


def test_a_plan_travels_as_text():
    plan = Plan(
        directory="/srv",
        stage="/s",
        root=Overlay(("/a", "/b"), "/u", "/w"),
        packages="/p",
        package_overlay=Overlay(("/p",), "/pu", "/pw"),
        binds=(Bound("/x", "/y", read_only=False),),
        files=(("/etc/hosts", "text"),),
        users=((100000, 65536), (100000, 65536)),
    )
    assert chamber.parsed(plan.text()).text() == plan.text()
    assert json.loads(plan.text())["root"]["lower"] == ["/a", "/b"]


@pytest.fixture
def _nobody(monkeypatch):
    """Somebody without root, on a machine without anything."""
    monkeypatch.setattr(overlay.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(overlay, "_user", lambda: "ann")
    monkeypatch.setattr(overlay.shutil, "which", lambda name: None)


@pytest.mark.usefixtures("_nobody")
def test_what_is_missing_without_root_is_named(monkeypatch):
    monkeypatch.setattr(overlay, "_text", lambda path: "0" if path.endswith("unprivileged_userns_clone") else "")
    with pytest.raises(ImageBuildError) as caught:
        overlay.users()
    text = str(caught.value)
    for part in (
        "takes root, or user namespaces with subordinate ids; missing for ann: ",
        "`newuidmap` (apt-get install uidmap)",
        "65536 ids in /etc/subuid (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ann)",
        "sysctl kernel.unprivileged_userns_clone=1",
        "Steps such as pip_install need none of this",
    ):
        assert part in text


@pytest.mark.usefixtures("_nobody")
def test_somebody_with_subordinate_ids_needs_no_root(monkeypatch):
    monkeypatch.setattr(overlay, "_text", lambda path: "ann:200000:65536\n" if "/etc/sub" in path else "")
    monkeypatch.setattr(overlay.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert overlay.users() == ((200000, 65536), (200000, 65536))


def test_ranges_are_found_by_name_or_number_and_must_be_large():
    text = "bob:1:65536\nann:300:10\n1000:400:65536\n"
    assert overlay.subordinate(text, "ann", 1000) == (400, 65536)
    assert overlay.subordinate(text, "eve", 7) is None


def test_indexes_of_this_machine_are_shown_to_commands(tmp_path):
    (tmp_path / "index" / "simple").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    settings = {
        "PIP_EXTRA_INDEX_URL": f"https://pypi.example/simple file://{tmp_path}/index/simple",
        "PIP_FIND_LINKS": f"{tmp_path}/wheels {tmp_path}/nowhere",
    }
    assert overlay.local_indexes(settings) == [f"{tmp_path}/index", f"{tmp_path}/wheels"]


def test_nothing_of_the_machines_variables_but_where_packages_are(tmp_path):
    settings = overlay.index_settings(
        {"HOME": str(tmp_path), "PIP_INDEX_URL": "https://i", "UV_INDEX": "https://u", "AWS_SECRET": "s", "UV_X": "1"}
    )
    assert settings["PIP_INDEX_URL"] == "https://i"
    assert settings["UV_INDEX"] == "https://u"
    assert not {"AWS_SECRET", "UV_X"} & settings.keys()
