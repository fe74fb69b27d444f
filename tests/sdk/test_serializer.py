"""Values to payloads and back: by reference, by value, in files, and what is said where that fails."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path

import numpy as np
import pytest

from kedge.exception import DeserializationError, SerializationError
from kedge.model.payload import INLINE_LIMIT, PICKLE, PICKLE_BY_VALUE, Payload
from kedge.sdk import serializer
from kedge.sdk.blobs import BlobStore
from kedge.sdk.serializer import arguments_payload, by_value_payload, from_payload, to_payload


class Point:
    def __init__(self, x: int) -> None:
        self.x = x


class Stubborn:
    def __reduce__(self) -> object:
        raise RuntimeError("it never leaves home")


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(str(tmp_path))


def files(blobs: BlobStore) -> list[str]:
    return os.listdir(blobs.directory) if os.path.isdir(blobs.directory) else []


@pytest.mark.parametrize("value", [None, 1, "text", b"bytes", [1, {"a": (2, 3)}], {1, 2}, 2.5, ...], ids=repr)
def test_plain_values_go_by_reference_inline_and_come_back(value: object, blobs: BlobStore) -> None:
    payload = to_payload(value, blobs)
    assert payload.format == PICKLE
    assert not payload.blob
    assert from_payload(payload, blobs) == value


def test_instances_of_importable_classes_go_by_reference(blobs: BlobStore) -> None:
    payload = to_payload(Point(3), blobs)
    assert payload.format == PICKLE
    assert from_payload(payload, blobs).x == 3


def test_what_pickle_cannot_handle_goes_by_value_and_says_which_python_made_it(blobs: BlobStore) -> None:
    factor = 5
    payload = to_payload(lambda x: x * factor, blobs)
    assert payload.format == PICKLE_BY_VALUE
    assert payload.python == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert from_payload(payload, blobs)(2) == 10


def test_code_by_value_of_another_python_is_refused_with_both_versions(blobs: BlobStore) -> None:
    payload = Payload(PICKLE_BY_VALUE, pickle.dumps(1), python="3.2")
    with pytest.raises(DeserializationError, match=rf"made by Python 3\.2, and this is Python {serializer.PYTHON}"):
        from_payload(payload, blobs)


def test_small_arrays_stay_inline(blobs: BlobStore) -> None:
    array = np.arange(100)
    payload = to_payload(array, blobs)
    assert not payload.blob
    assert (from_payload(payload, blobs) == array).all()
    assert files(blobs) == []


def test_a_large_array_goes_to_a_private_file_and_comes_back_writable_without_a_copy(blobs: BlobStore) -> None:
    array = np.arange(INLINE_LIMIT, dtype=np.int64)
    payload = to_payload(array, blobs)
    path = Path(blobs.directory, payload.blob)
    assert payload.data == b""
    assert payload.size >= array.nbytes
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    back = from_payload(payload, blobs)
    assert not back.flags.owndata, "the array lies in the file's pages"
    back[0] = 77
    assert from_payload(payload, blobs)[0] == 0, "what a reader writes stays with it"
    assert (back[1:] == array[1:]).all()


def test_a_consumed_file_is_gone_while_its_value_lives_on(blobs: BlobStore) -> None:
    payload = to_payload({"a": np.ones(INLINE_LIMIT), "b": np.zeros(INLINE_LIMIT)}, blobs)
    value = from_payload(payload, blobs, consume=True)
    assert files(blobs) == []
    assert value["a"].sum() == INLINE_LIMIT
    assert value["b"].sum() == 0


def test_long_streams_without_buffers_go_to_files_too(blobs: BlobStore) -> None:
    value = b"x" * (INLINE_LIMIT + 1)
    payload = to_payload(value, blobs)
    assert payload.blob
    assert from_payload(payload, blobs) == value


def test_more_buffers_than_one_write_takes(blobs: BlobStore) -> None:
    value = [np.full(200, i) for i in range(2000)]
    back = from_payload(to_payload(value, blobs), blobs)
    assert all((a == b).all() for a, b in zip(value, back, strict=True))


def test_without_a_place_for_files_everything_is_inline() -> None:
    array = np.arange(INLINE_LIMIT)
    payload = to_payload(array, None)
    assert not payload.blob
    assert (from_payload(payload, None) == array).all()


def test_a_missing_file_is_named_as_the_cause(blobs: BlobStore) -> None:
    payload = to_payload(b"x" * (INLINE_LIMIT + 1), blobs)
    blobs.remove(payload.blob)
    with pytest.raises(DeserializationError, match=r"the result of f \(\d+ bytes\) is in a file that this process"):
        from_payload(payload, blobs, what="the result of f")


@pytest.mark.parametrize("name", ["../secret", "a/b", "", "a.b"])
def test_only_names_of_payload_files_are_opened(name: str, blobs: BlobStore) -> None:
    with pytest.raises(ValueError, match="not the name of a payload file"):
        blobs.read(name)


def test_a_truncated_file_is_refused(blobs: BlobStore) -> None:
    payload = to_payload(np.arange(INLINE_LIMIT), blobs)
    os.truncate(os.path.join(blobs.directory, payload.blob), 5000)
    with pytest.raises(DeserializationError, match="not written to its end"):
        from_payload(payload, blobs)


def test_a_file_of_something_else_is_refused(blobs: BlobStore) -> None:
    payload = to_payload(np.arange(INLINE_LIMIT), blobs)
    Path(blobs.directory, payload.blob).write_bytes(b"something else entirely, and long enough")
    with pytest.raises(DeserializationError, match="not a payload file"):
        from_payload(payload, blobs)


def test_a_failed_write_leaves_no_file(blobs: BlobStore) -> None:
    blobs.write([b"the first makes the directory"])
    before = files(blobs)
    with pytest.raises(TypeError):
        blobs.write([b"fine", "not bytes"])  # type: ignore[list-item]
    assert files(blobs) == before


def test_the_argument_that_cannot_be_sent_is_named(blobs: BlobStore) -> None:
    with pytest.raises(SerializationError, match=r"argument 1 of square, of type _thread\.lock, cannot be sent"):
        arguments_payload((1, threading.Lock()), {}, blobs, "square")
    with pytest.raises(SerializationError, match=r"argument 'source' of square, of type builtins\.generator"):
        arguments_payload((1,), {"source": (i for i in ())}, blobs, "square")


def test_an_unpicklable_value_says_why_and_what_to_do(blobs: BlobStore) -> None:
    with pytest.raises(SerializationError, match=r"RuntimeError: it never leaves home.*Send plain data"):
        to_payload(Stubborn(), blobs, "the result of f")


def test_a_class_that_is_missing_here_is_named(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("far_away")
    module.Thing = type("Thing", (), {"__module__": "far_away"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "far_away", module)
    payload = to_payload(module.Thing(), blobs)
    monkeypatch.delitem(sys.modules, "far_away")
    with pytest.raises(DeserializationError, match="Install or add the module 'far_away' here"):
        from_payload(payload, blobs, what="the result of f")
    monkeypatch.setitem(sys.modules, "far_away", types.ModuleType("far_away"))
    with pytest.raises(DeserializationError, match=r"the result of f cannot be loaded.*define it in a module both"):
        from_payload(payload, blobs, what="the result of f")


def test_serialized_code_takes_its_own_module_along(tmp_path: Path, blobs: BlobStore) -> None:
    (tmp_path / "private_module.py").write_text(
        "BASE = 10\ndef helper(x): return x + BASE\ndef f(x): return helper(x)\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        import private_module  # type: ignore[import-not-found]

        payload = by_value_payload(private_module.f, blobs)
    finally:
        sys.path.remove(str(tmp_path))
        del sys.modules["private_module"]
    assert payload.format == PICKLE_BY_VALUE
    assert from_payload(payload, blobs)(1) == 11


def test_serialized_code_that_captures_what_cannot_travel_says_so(blobs: BlobStore) -> None:
    lock = threading.Lock()
    with pytest.raises(SerializationError, match=r"the code of f.*cannot be sent"):
        by_value_payload(lambda: lock, blobs, "the code of f")


def run_script(tmp_path: Path, text: str) -> str:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(text))
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout.strip()


def test_names_of_a_main_script_go_by_value_unless_it_is_shipped(tmp_path: Path) -> None:
    output = run_script(
        tmp_path,
        """
        from kedge.sdk import serializer
        class Thing: pass
        def make(): return Thing()
        print(serializer.to_payload(Thing(), None).format)
        serializer.ship_main()
        print(serializer.to_payload(Thing(), None).format)
        by_value = serializer.to_payload(lambda: make(), None)
        print(by_value.format, isinstance(serializer.from_payload(by_value, None)(), Thing))
        """,
    )
    assert output.split("\n") == ["v", "p", "v True"]


def test_results_named_after_the_main_script_of_a_container_find_the_callers_own(tmp_path: Path) -> None:
    output = run_script(
        tmp_path,
        """
        from kedge.model.payload import Payload
        from kedge.sdk import serializer
        class Thing: pass
        data = serializer.to_payload(Thing(), None)
        serializer.ship_main()
        data = serializer.to_payload(Thing(), None).data.replace(b"__main__", b"__kedge_main__")
        data = data.replace(b"\\x8c\\x08__kedge", b"\\x8c\\x0e__kedge")
        import pickle, struct
        body = data[11:]
        data = data[:3] + struct.pack("<Q", len(body)) + body
        print(type(serializer.from_payload(Payload("p", data), None)) is Thing)
        """,
    )
    assert output == "True"
