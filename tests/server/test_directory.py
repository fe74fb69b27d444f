"""One machine's server per home, private ones beside it, and nothing left of those that were killed."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest

from kedge.server.directory import SOCKET_PATH_LIMIT, StateDirectory, is_taken
from kedge.server.main import await_turn


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_machine_has_one_server_per_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with StateDirectory(home, private=False) as directory:
        assert directory.path == home / "server"
        assert directory.socket == str(home / "server" / "plane.sock")
        with (
            pytest.raises(ValueError, match=r"a server is running already in .*home/server; stop it first, or use"),
            StateDirectory(home, private=False),
        ):
            pass
        with StateDirectory(home, private=True) as private, StateDirectory(home, private=True) as other:
            assert private.path.parent == other.path.parent == home / "private"
            assert private.path != other.path
        assert not private.path.exists()
    with StateDirectory(home, private=False):
        pass
    assert directory.path.exists()


def test_everything_is_private_to_its_user(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "server").mkdir(parents=True, mode=0o755)
    (home / "server").chmod(0o755)
    with StateDirectory(home, private=False) as directory, StateDirectory(home, private=True) as private:
        directory.publish({"token": "secret"})
        assert json.loads((directory.path / "server.json").read_text()) == {"token": "secret"}
        for path in (directory.path, home / "private", private.path):
            assert mode(path) == 0o700, path
        for path in (directory.path / "server.json", directory.path / "lock", home / "private.lock"):
            assert mode(path) == 0o600, path
    assert not (directory.path / "server.json").exists()


def test_on_a_full_disk_the_address_takes_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.open

    def full(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        if str(path).endswith(".new"):
            raise OSError(28, "No space left on device")
        return original(path, flags, mode, **options)

    with StateDirectory(tmp_path, private=False) as directory:
        monkeypatch.setattr(os, "open", full)
        with pytest.raises(OSError, match=r"server\.json cannot be written: No space left on device"):
            directory.publish({"process": 1})
        (directory.path / "server.json").write_text(json.dumps({"process": 123456, "more": "x" * 100}))
        directory.publish({"process": 2})
        assert json.loads((directory.path / "server.json").read_text()) == {"process": 2}


def test_private_directories_of_dead_servers_are_removed_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    with StateDirectory(tmp_path, private=True) as alive:
        dead = tmp_path / "private" / "dead"
        dead.mkdir()
        (dead / "lock").touch()
        (dead / "state.db").write_bytes(b"x")
        unknown = tmp_path / "private" / "unknown"
        unknown.mkdir()
        with StateDirectory(tmp_path, private=False):
            assert alive.path.exists()
            assert not dead.exists()
            assert unknown.exists()


def test_a_socket_of_a_long_path_lies_elsewhere_and_is_removed_even_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    home = tmp_path / ("long" * 30)
    with StateDirectory(home, private=False) as directory:
        first = Path(directory.socket)
        assert len(os.fsencode(first)) <= SOCKET_PATH_LIMIT
        assert mode(first.parent) == 0o700
    assert not first.parent.exists()
    crashed = StateDirectory(home, private=False)
    crashed.__enter__()
    left = Path(crashed.socket).parent
    assert crashed._lock is not None
    crashed._lock.close()
    with StateDirectory(home, private=False) as again:
        assert again.socket == crashed.socket
    assert not left.exists()
    left.mkdir(mode=0o755)
    with pytest.raises(ValueError, match="is not private to this user: remove it"), StateDirectory(home, private=False):
        pass
    left.rmdir()


def test_a_token_stays_the_same(tmp_path: Path) -> None:
    with StateDirectory(tmp_path, private=False) as directory:
        token = directory.token()
        assert mode(directory.path / "token") == 0o600
    with StateDirectory(tmp_path, private=False) as directory:
        assert directory.token() == token
    with StateDirectory(tmp_path, private=True) as private:
        assert private.token() != token


def test_a_directory_is_taken_as_long_as_its_server_lives(tmp_path: Path) -> None:
    path = tmp_path / "server"
    assert not is_taken(path)
    with StateDirectory(tmp_path, private=False):
        assert is_taken(path)
    assert not is_taken(path)


def test_a_server_waits_for_its_turn_as_long_as_somebody_wants_it(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    await_turn(tmp_path, writer)
    assert os.read(reader, 10) == b" ", "loaded, and nobody is before it"
    with StateDirectory(tmp_path, private=False):
        os.close(reader)
        with pytest.raises(OSError, match="whoever has started this server to take the place of another one is gone"):
            await_turn(tmp_path, writer)
    os.close(writer)
