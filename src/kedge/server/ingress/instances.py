"""Which instance of a class a request is for: the query names the values of its declared parameters. Pure."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl

from kedge.model.ids import pool_id
from kedge.model.spec import FunctionSpec, ParameterSpec, Variant
from kedge.model.variants import INTEGERS, MAX_PARAMETERS, defaults_of, encode_parameters, variant_digest
from kedge.server.ingress.replies import Refusal

MAX_FIELDS = 1000
"""Fields of a query that are looked at for parameters."""
_WHOLE = re.compile(rb"[+-]?[0-9]{1,20}")
_BOOLS = {b"true": True, b"1": True, b"yes": True, b"false": False, b"0": False, b"no": False}


def variant_of(function: str, spec: FunctionSpec, query: bytes) -> Variant | None:
    """The variant for the parameters in `query`, made as a caller would make it; None where all are defaults. Refusal
    names the parameter that is missing or does not fit.

    Args:
        function: Id of the class.
        spec: As it was declared.
        query: Of the address, as it was sent.
    """
    defaults = defaults_of(spec.parameters)
    values = {**defaults, **_given(spec, query)}
    missing = [parameter.name for parameter in spec.parameters if parameter.name not in values]
    if missing:
        example = "&".join(f"{name}=..." for name in missing)
        raise Refusal(400, f"{spec.name} needs {', '.join(missing)}: add ?{example} to the address")
    if values == defaults:
        return None
    parameters = encode_parameters(values)
    if len(parameters.data) > MAX_PARAMETERS:
        raise Refusal(
            400, f"the parameters of {spec.name} take more than {MAX_PARAMETERS} bytes; send data in the body"
        )
    return Variant(function=function, variant=variant_digest(spec, spec, parameters), parameters=parameters, spec=spec)


def pool_of(variant: Variant) -> str:
    return pool_id(variant.function, variant.variant)


def _given(spec: FunctionSpec, query: bytes) -> dict[str, Any]:
    by_name = {parameter.name.encode().decode("latin-1"): parameter for parameter in spec.parameters}
    try:
        text = query.decode("latin-1")
        fields = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, encoding="latin-1")
    except ValueError:
        raise Refusal(400, f"the query has more than {MAX_FIELDS} fields") from None
    given: dict[str, Any] = {}
    for name, value in fields:
        parameter = by_name.get(name)
        if parameter is None:
            continue
        if parameter.name in given:
            raise Refusal(400, f"the parameter {parameter.name} is given twice; {spec.name} takes one value")
        given[parameter.name] = _value(parameter, value.encode("latin-1"))
    return given


def _value(parameter: ParameterSpec, text: bytes) -> Any:
    if parameter.type == "bytes":
        return text
    if parameter.type == "str":
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise _unfit(parameter, text, "text in UTF-8") from None
    if parameter.type == "bool":
        value = _BOOLS.get(text.lower())
        if value is None:
            raise _unfit(parameter, text, "true or false")
        return value
    if _WHOLE.fullmatch(text) is None or int(text) not in INTEGERS:
        raise _unfit(parameter, text, "a whole number of at most 64 bits")
    return int(text)


def _unfit(parameter: ParameterSpec, text: bytes, wanted: str) -> Refusal:
    shown = text[:40].decode("utf-8", "backslashreplace")
    return Refusal(400, f"the parameter {parameter.name} is {shown!r}; it must be {wanted}")
