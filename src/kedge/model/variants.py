"""How the parameters of an instance are written, and how the pool of a variant is named: by callers and by the ingress
alike, so that equal parameters meet in one pool wherever they come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from kedge.model.payload import Payload
from kedge.model.spec import FunctionSpec, ParameterSpec

PARAMETERS = "m"
"""Payload format: msgpack, used for parameters and their defaults."""
MAX_PARAMETERS = 16 * 1024
"""Bytes of one parameter set. Parameters name a pool; data belongs into arguments."""
INTEGERS = range(-(2**63), 2**64)
"""What msgpack can carry."""


def defaults_of(specs: tuple[ParameterSpec, ...]) -> dict[str, Any]:
    return {spec.name: msgspec.msgpack.decode(spec.default.data) for spec in specs if spec.default is not None}


def encode_parameters(values: Mapping[str, Any]) -> Payload:
    """The one encoding of these values: msgpack of `[[name, value], …]` sorted by name."""
    return Payload(format=PARAMETERS, data=msgspec.msgpack.encode(sorted(values.items())))


def variant_digest(declared: FunctionSpec, spec: FunctionSpec, parameters: Payload | None) -> str:
    """Names a pool by what differs from the declaration: equal options and parameters meet in one from any process."""
    names = [field for field in FunctionSpec.__struct_fields__ if field not in ("serialized", "module")]
    changed = [(n, getattr(spec, n)) for n in names if getattr(spec, n) != getattr(declared, n)]
    if not changed and parameters is None:
        return ""
    import hashlib  # not at the top, for the time of `import kedge`

    data = msgspec.json.encode([changed, parameters.data if parameters else None], order="deterministic")
    return hashlib.sha256(data).hexdigest()[:16]
