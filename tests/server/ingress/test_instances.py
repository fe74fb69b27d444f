"""Which instance of a class the query of an address means."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kedge
from kedge.model.ids import function_id
from kedge.model.payload import Payload
from kedge.model.spec import FunctionSpec, ParameterSpec
from kedge.server.ingress.instances import MAX_FIELDS, pool_of, variant_of
from kedge.server.ingress.replies import Refusal


def spec(**parameters: Any) -> FunctionSpec:
    """`name=str` must be given, `name=7` has a default."""

    def declared(name: str, given: Any) -> ParameterSpec:
        if isinstance(given, type):
            return ParameterSpec(name, given.__name__)
        return ParameterSpec(name, type(given).__name__, Payload("m", msgspec.msgpack.encode(given)))

    found = tuple(declared(name, given) for name, given in parameters.items())
    return FunctionSpec(name="Model", module="script", qualname="Model", is_class=True, parameters=found)


def values(query: bytes, **parameters: Any) -> dict[str, Any] | None:
    variant = variant_of("fu-1-Model", spec(**parameters), query)
    if variant is None:
        return None
    assert variant.parameters is not None
    return dict(msgspec.msgpack.decode(variant.parameters.data))


def refusal(query: bytes, **parameters: Any) -> str:
    with pytest.raises(Refusal) as caught:
        variant_of("fu-1-Model", spec(**parameters), query)
    assert caught.value.status == 400
    return caught.value.text


def test_values_are_read_by_the_type_of_their_parameter() -> None:
    assert values(b"s=a%20b%C3%BC&i=-42&b=TRUE&y=%00%ff", s=str, i=int, b=bool, y=bytes) == {
        "s": "a bü",
        "i": -42,
        "b": True,
        "y": b"\x00\xff",
    }
    assert values(b"other=1&s=&b=no", s=str, b=bool) == {"s": "", "b": False}


def test_what_is_not_given_has_its_default() -> None:
    assert values(b"size=3", name="small", size=7) == {"name": "small", "size": 3}
    assert values(b"", name="small", size=7) is None
    assert values(b"size=7", name="small", size=7) is None


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (b"", "Model needs name, size: add ?name=...&size=... to the address"),
        (b"size=1", "Model needs name: add ?name=... to the address"),
        (b"name=a&size=1.5", "the parameter size is '1.5'; it must be a whole number of at most 64 bits"),
        (b"name=a&size=", "the parameter size is ''; it must be a whole number of at most 64 bits"),
        (b"name=a&size=18446744073709551616", "the parameter size is '18446744073709551616'; it must be a whole "),
        (b"name=%ff&size=1", "the parameter name is '\\\\xff'; it must be text in UTF-8"),
        (b"name=a&name=b&size=1", "the parameter name is given twice; Model takes one value"),
    ],
)
def test_what_does_not_fit_is_named(query: bytes, says: str) -> None:
    assert refusal(query, name=str, size=int).startswith(says)


def test_a_flag_is_true_or_false() -> None:
    assert refusal(b"on=maybe", on=bool) == "the parameter on is 'maybe'; it must be true or false"


def test_there_are_bounds() -> None:
    assert refusal(b"&".join([b"a=1"] * (MAX_FIELDS + 1)), s=str) == f"the query has more than {MAX_FIELDS} fields"
    assert refusal(b"s=" + b"x" * 20_000, s=str) == (
        "the parameters of Model take more than 16384 bytes; send data in the body"
    )


def test_callers_and_addresses_meet_in_one_pool() -> None:
    app = kedge.App("demo")

    @app.cls(serialized=True)
    class Model:
        name: str = kedge.parameter()
        size: int = kedge.parameter(default=7)

        @kedge.method()
        def run(self) -> None: ...

    app.started("ap-77")
    target = Model(name="small").run.target()  # type: ignore[call-arg,attr-defined]
    assert target.variant is not None
    mine = variant_of(function_id("ap-77", "Model"), target.variant.spec, b"name=small")
    assert mine is not None
    assert mine.parameters == target.variant.parameters
    assert pool_of(mine) == target.pool


@given(query=st.binary(max_size=60))
def test_any_query_means_something_or_is_refused(query: bytes) -> None:
    status = 0
    try:
        variant_of("fu-1-Model", spec(s=str, i=1, b=False, y=b""), query)
    except Refusal as refusal:
        status = refusal.status
    assert status in (0, 400)
