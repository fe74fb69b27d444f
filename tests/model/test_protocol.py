"""The messages: one place to import them from, one name on the wire for each."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import pytest
from msgspec import Struct

from kedge.model import protocol as p

CONVERSATIONS = {
    found.name: importlib.import_module(f"{p.__name__}.{found.name}") for found in pkgutil.iter_modules(p.__path__)
}
UNIONS = (p.FromClient, p.ToClient, p.FromContainer, p.ToContainer, p.FromSupervisor, p.ToSupervisor)
INSIDE = {
    p.StartContainer, p.ContainerDisconnected, p.NodeJoined, p.NodeLost, p.VramMeasured, p.TimePassed,
    p.DeploymentChanged, p.OutputsRecorded, p.PayloadReleased, p.OutputsWanted, p.CallWanted, p.CallRestored,
    p.Remarked, p.AppOver,
}  # fmt: skip
"""Never cross a socket: between the plane, its shell, its store and its engine."""


def structs_of(module: ModuleType) -> dict[str, type[Struct]]:
    """What a file defines itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Struct) and value.__module__ == module.__name__
    }


MESSAGES = [
    struct
    for module in CONVERSATIONS.values()
    for struct in structs_of(module).values()
    if issubclass(struct, p.Message) and struct is not p.Message
]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_everybody_imports_a_conversation_from_the_protocol(name: str) -> None:
    structs = structs_of(CONVERSATIONS[name])
    assert structs
    assert {struct: vars(p).get(struct) for struct in structs} == structs
    assert structs.keys() <= set(p.__all__), "name it in __all__ of kedge.model.protocol as well"


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_protocol_says_what_a_conversation_is_about(name: str) -> None:
    assert f"* `{name}`: " in (p.__doc__ or "")


def test_the_tag_on_the_wire_is_the_name_of_the_class_and_is_used_once() -> None:
    tags = [message.__struct_config__.tag for message in MESSAGES]
    assert tags == [message.__name__ for message in MESSAGES]
    assert len(tags) == len(set(tags)), "two conversations have a message of the same name"


def test_a_message_is_in_a_union_or_never_leaves_the_server() -> None:
    heard = {message for union in UNIONS for message in union.__args__}
    assert heard | INSIDE == set(MESSAGES), "who may say it? Add it to a union of kedge.model.protocol"
    assert not heard & INSIDE
