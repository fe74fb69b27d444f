"""Directories go, with all that code has made in them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kedge.wire.removal import remove


def test_no_directory_is_too_deep(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    shared = tmp_path / "shared"
    shared.touch(0o444)
    os.link(shared, "file", dst_dir_fd=here)
    os.close(here)
    remove(str(top))
    assert not top.exists()
    assert stat.S_IMODE(shared.stat().st_mode) == 0o444, "a file that has another name keeps its rights"


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove(str(tmp_path / "top"))
    remove(str(tmp_path / "link"))
    remove(str(tmp_path / "nothing"))
    assert os.listdir(tmp_path) == ["kept"]
    assert os.listdir(tmp_path / "kept") == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="an administrator has all rights")
def test_rights_that_were_taken_away_do_not_help(tmp_path: Path) -> None:
    (tmp_path / "top" / "a" / "b").mkdir(parents=True)
    (tmp_path / "top" / "a").chmod(0)
    (tmp_path / "top").chmod(0)
    remove(str(tmp_path / "top"))
    assert not (tmp_path / "top").exists()
