"""`parameter()` and how the parameters of an instance travel.

Values are str, int, bool or bytes. They are encoded as msgpack of `[[name, value], …]` sorted by name, with the
defaults filled in: equal parameters are equal bytes in any process and any Python, so they meet in one pool.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from kedge.exception import DeserializationError, InvalidError
from kedge.model.payload import Payload
from kedge.model.spec import ParameterSpec
from kedge.model.variants import INTEGERS, MAX_PARAMETERS, PARAMETERS, defaults_of, encode_parameters
from kedge.sdk.usage import keywords_only, nearest

TYPES: dict[str, type] = {"str": str, "int": int, "bool": bool, "bytes": bytes}


class _Missing:
    def __repr__(self) -> str:
        return "<no default>"


MISSING: Any = _Missing()


class Parameter:
    """Class attribute made by `parameter()`. Instances hold the value under the same name."""

    def __init__(self, default: Any, init: bool) -> None:
        self.default = default
        self.init = init
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object | None, owner: type) -> Any:
        if instance is None:
            return self
        if self.default is MISSING:
            raise AttributeError(f"{owner.__name__}.{self.name} has no value yet: it is a parameter() without default")
        return self.default

    def __repr__(self) -> str:
        return f"parameter(default={self.default!r})" if self.default is not MISSING else "parameter()"


def parameter(*, default: Any = MISSING, init: bool = True) -> Any:
    """Declares a typed parameter of a class: each set of values gets its own containers.

    Args:
        default: The value where the caller gives none. Without it the parameter must be given.
        init: False makes it a plain attribute with a default, which callers cannot set.

    Raises:
        InvalidError: by `@app.cls`, where the annotation is missing or not str, int, bool or bytes.

    Example:
        @app.cls()
        class Model:
            name: str = kedge.parameter()
            size: int = kedge.parameter(default=7)

        Model(name="small").predict.remote(3)
    """
    return Parameter(default, init)


if not TYPE_CHECKING:  # pyright knows a field specifier by its plain function only
    parameter = keywords_only("kedge.parameter() or kedge.parameter(default=…)", name="kedge.parameter")(parameter)


def declared(user: type) -> dict[str, Parameter]:
    """The parameters of a class and its bases, bases first."""
    found: dict[str, Parameter] = {}
    for base in reversed(user.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Parameter):
                found[name] = value
            else:
                found.pop(name, None)
    return found


def specs_of(user: type) -> tuple[ParameterSpec, ...]:
    """The parameters that callers may give, checked: InvalidError names the attribute and what to write."""
    specs = []
    for name, value in declared(user).items():
        type_name = _annotation(user, name) if value.init else ""
        if not value.init:
            if value.default is MISSING:
                raise InvalidError(
                    f"{user.__name__}.{name}: parameter(init=False) is never given by a caller, so it needs a default"
                )
            continue
        default = None
        if value.default is not MISSING:
            _check(f"the default of {user.__name__}.{name}", type_name, value.default)
            default = Payload(format=PARAMETERS, data=msgspec.msgpack.encode(value.default))
        specs.append(ParameterSpec(name=name, type=type_name, default=default))
    return tuple(specs)


def _annotation(user: type, name: str) -> str:
    for base in user.__mro__:
        if isinstance(vars(base).get(name), Parameter):
            break
    annotation = inspect.get_annotations(base).get(name, MISSING)
    if annotation is MISSING:
        raise InvalidError(
            f"{user.__name__}.{name} = kedge.parameter(…) has no type; annotate it, for example `{name}: str = "
            f"kedge.parameter(…)` (str, int, bool or bytes)"
        )
    if isinstance(annotation, str) and annotation not in TYPES:
        try:
            annotation = eval(annotation, vars(sys.modules[base.__module__]), dict(vars(base)))
        except Exception:
            pass
    found = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", repr(annotation))
    if found not in TYPES or (not isinstance(annotation, str) and annotation is not TYPES[found]):
        shown = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        raise InvalidError(
            f"{user.__name__}.{name}: a parameter cannot be {shown}; it is str, int, bool or bytes. Give other values "
            f"as arguments of a method, or build them in @kedge.enter()"
        )
    return str(found)


def _check(what: str, type_name: str, value: Any) -> None:
    if type(value) is not TYPES[type_name]:
        raise InvalidError(f"{what} must be {type_name}, not {type(value).__name__} ({value!r})")
    if type_name == "int" and value not in INTEGERS:
        raise InvalidError(f"{what} must fit into 64 bits, got {value}")


def bind(owner: str, specs: tuple[ParameterSpec, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    """All values of an instance: those given, checked, and the defaults of the others."""
    by_name = {spec.name: spec for spec in specs}
    for name, value in given.items():
        if name not in by_name:
            if not by_name:
                raise InvalidError(
                    f"{owner} has no parameters, but got {name}=…; declare `{name}: str = kedge.parameter()`"
                )
            hint = nearest(name, by_name) or f" It has {', '.join(by_name)}."
            raise InvalidError(f"{owner} has no parameter {name!r}.{hint}")
        _check(f"{owner}({name}=…)", by_name[name].type, value)
    values = {**defaults_of(specs), **given}
    missing = [name for name in by_name if name not in values]
    if missing:
        raise InvalidError(f"{owner} needs {', '.join(missing)}; write {owner}({', '.join(f'{n}=…' for n in missing)})")
    return {name: values[name] for name in by_name}


def encode(owner: str, values: Mapping[str, Any]) -> Payload:
    """The one encoding of these values."""
    payload = encode_parameters(values)
    if len(payload.data) > MAX_PARAMETERS:
        raise InvalidError(
            f"the parameters of {owner} take {len(payload.data)} bytes, the limit is {MAX_PARAMETERS}; pass large "
            f"values as arguments of a method"
        )
    return payload


def decode(payload: Payload) -> dict[str, Any]:
    if payload.format != PARAMETERS:
        raise DeserializationError(f"parameters come as msgpack (format {PARAMETERS!r}), not as {payload.format!r}")
    try:
        return dict(msgspec.msgpack.decode(payload.data, type=list[tuple[str, Any]]))
    except msgspec.MsgspecError as error:
        raise DeserializationError(f"the parameters cannot be read: {error}") from None
