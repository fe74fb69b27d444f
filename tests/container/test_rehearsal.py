"""What a fork server does once for all of its containers."""

from __future__ import annotations

import warnings

from kedge.container import rehearsal
from kedge.sdk import registry


def test_it_leaves_nothing_behind_and_warns_of_nothing() -> None:
    before = {key: list(handles) for key, handles in registry._handles.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rehearsal.rehearse()
    assert registry.names_in("kedge.container.rehearsal") == []
    assert registry._handles == before


def test_it_declares_functions_and_classes() -> None:
    rehearsal._declare()
    try:
        assert {"_function", "_coroutine", "Model"} <= set(registry.names_in("kedge.container.rehearsal"))
    finally:
        registry.forget("kedge.container.rehearsal")
