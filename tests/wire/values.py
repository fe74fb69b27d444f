"""Any value of any message, for hypothesis: strategies are read off the declarations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import msgspec
from hypothesis import strategies as st

from kedge.model import protocol as p

UNIONS = {
    "FromClient": p.FromClient,
    "ToClient": p.ToClient,
    "FromContainer": p.FromContainer,
    "ToContainer": p.ToContainer,
    "ToSupervisor": p.ToSupervisor,
    "FromSupervisor": p.FromSupervisor,
}
SPOKEN = [(name, kind) for name, union in UNIONS.items() for kind in get_args(union)]
"""Every message with every union in which it crosses a socket."""

_text = st.text(st.characters(codec="utf-8"), max_size=20)
_whole = st.integers(-(2**63), 2**64 - 1)
_real = st.floats(allow_nan=False)
_plain = st.none() | st.booleans() | _whole | _text | _real
_anything = st.recursive(
    _plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3), max_leaves=8
)


def messages(
    *kinds: type,
    text: st.SearchStrategy[str] = _text,
    whole: st.SearchStrategy[int] = _whole,
    real: st.SearchStrategy[float] = _real,
) -> st.SearchStrategy[Any]:
    """Messages of these kinds, with `text`, `whole` and `real` for their strings, integers and floats."""

    def of(info: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
        return _of(info, of, text, whole, real)

    return st.one_of([of(msgspec.inspect.type_info(kind)) for kind in kinds])


def _of(
    info: msgspec.inspect.Type,
    of: Callable[[msgspec.inspect.Type], st.SearchStrategy[Any]],
    text: st.SearchStrategy[str],
    whole: st.SearchStrategy[int],
    real: st.SearchStrategy[float],
) -> st.SearchStrategy[Any]:
    match info:
        case msgspec.inspect.IntType():
            return whole
        case msgspec.inspect.FloatType():
            return real
        case msgspec.inspect.StrType():
            return text
        case msgspec.inspect.BytesType():
            return st.binary(max_size=40)
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.AnyType():
            return _anything
        case msgspec.inspect.ListType(item_type=item):
            return st.lists(of(item), max_size=3)
        case msgspec.inspect.VarTupleType(item_type=item):
            return st.lists(of(item), max_size=3).map(tuple)
        case msgspec.inspect.TupleType(item_types=items):
            return st.tuples(*map(of, items))
        case msgspec.inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(of(key), of(value), max_size=3)
        case msgspec.inspect.UnionType(types=types):
            return st.one_of(list(map(of, types)))
        case msgspec.inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: of(field.type) for field in fields})
    raise AssertionError(f"no strategy for {info}")
