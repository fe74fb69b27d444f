"""Values that decode and make no sense are refused by name; what honest programs send is not."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kedge.model import protocol as p
from kedge.model.payload import ErrorInfo, Payload, Result
from kedge.model.spec import (
    AutoscalerSettings,
    Concurrency,
    GpuRequest,
    MethodSpec,
    Resources,
    RetryPolicy,
    Variant,
)
from kedge.server.door import refusal
from tests.server.shell import app, inputs
from tests.wire.values import messages

PEERS = sorted({*get_args(p.FromClient), *get_args(p.FromContainer)}, key=lambda kind: kind.__name__)


@dataclass
class Bad:
    message: Any
    reason: str


def declared(**options: Any) -> p.AppCreated:
    return p.AppCreated(1, app(**options))


def finished(result: Result, run_s: float = 0.0) -> p.InputsFinished:
    return p.InputsFinished([p.Finished(1, result, run_s)])


BAD = [
    Bad(inputs("a", first=-1), r"InputsSubmitted\.first is -1; it must be from 0 to 2147483648"),
    Bad(inputs("a", first=2**63), r"first is 9223372036854775808"),
    Bad(inputs("a", "b", total=1), r"total is 1; it must be from 2"),
    Bad(inputs("a", total=2**40), r"total is 1099511627776"),
    Bad(inputs("a", total=-2), r"total is -2"),
    Bad(inputs("a", call="../x"), r"call is '\.\./x'; it must match"),
    Bad(inputs("a", method="m" * 600), r"method and parent have more than 512 characters"),
    Bad(p.InputsSubmitted("fc-1", "fu-1", 0, [Payload()] * 100_001), r"payloads has 100001 entries; at most 100000"),
    Bad(p.InputsSubmitted("fc-1", "fu-1", 0, [Payload(blob="../../etc/passwd")]), r"payloads\.blob is '\.\./\.\./etc"),
    Bad(p.InputsSubmitted("fc-1", "fu-1", 0, [Payload(blob="ab", size=-1)]), r"payloads\.size is -1"),
    Bad(p.CallClosed("fc-1", -1), r"CallClosed\.total is -1"),
    Bad(p.CallClosed("fc-1", 2**64 - 1), r"CallClosed\.total is 18446744073709551615"),
    Bad(p.CallCancelled("fc-1", indices=[0] * 100_001), r"CallCancelled\.indices has 100001 entries"),
    Bad(p.OutputsRequested("fc-1", -3), r"OutputsRequested\.start is -3"),
    Bad(p.OutputsRequested("fc-1", 5, 4), r"OutputsRequested\.end is 4; it must be from 5"),
    Bad(p.OutputsRequested("fc-1", request=-1), r"OutputsRequested\.request is -1"),
    Bad(p.StreamCredited("fc-1", 0, -1), r"StreamCredited\.values is -1"),
    Bad(p.StatisticsRequested(2**60), r"StatisticsRequested\.request is"),
    Bad(p.CallRequested(1, "fc 1"), r"CallRequested\.call is 'fc 1'"),
    Bad(p.OutputSubscribed("../../etc"), r"OutputSubscribed\.app is"),
    Bad(p.AutoscalerUpdated(1, "fu-1", min_containers=-1), r"AutoscalerUpdated\.min_containers is -1"),
    Bad(p.AutoscalerUpdated(1, "fu-1", max_containers=10**9), r"max_containers is 1000000000"),
    Bad(p.AutoscalerUpdated(1, "fu-1", scaledown_window=nan), r"scaledown_window is nan; it must be a number from 0"),
    Bad(p.AppCreated(1, app("../../etc")), r"AppCreated\.app\.app is '\.\./\.\./etc'"),
    Bad(declared(concurrency=Concurrency(10**9, 1)), r"functions\['square'\]\.concurrency\.max_inputs is 1000000000"),
    Bad(declared(concurrency=Concurrency(5, 6)), r"concurrency\.target_inputs is 6; it must be from 1 to 5"),
    Bad(declared(concurrency_limit=0), r"concurrency_limit is 0; it must be from 1"),
    Bad(declared(methods=(MethodSpec("m", concurrency_limit=0),)), r"methods\['m'\]\.concurrency_limit is 0"),
    Bad(declared(timeout=nan), r"timeout is nan"),
    Bad(declared(startup_timeout=-1.0), r"startup_timeout is -1\.0"),
    Bad(declared(retries=RetryPolicy(10**6)), r"retries\.max_retries is 1000000"),
    Bad(declared(retries=RetryPolicy(3, initial_delay=inf)), r"retries\.initial_delay is inf"),
    Bad(declared(resources=Resources(cpu=nan)), r"resources\.cpu is nan"),
    Bad(declared(resources=Resources(memory=-1)), r"resources\.memory is -1"),
    Bad(declared(resources=Resources(gpus=(GpuRequest("H100", 0),))), r"resources\.gpus\.count is 0"),
    Bad(declared(autoscaler=AutoscalerSettings(min_containers=-1)), r"autoscaler\.min_containers is -1"),
    Bad(declared(autoscaler=AutoscalerSettings(scaledown_window=inf)), r"autoscaler\.scaledown_window is inf"),
    Bad(
        p.AppCreated(1, replace(app(), functions=(replace(app().functions[0], name=""),))), r"functions\.name is empty"
    ),
    Bad(
        p.VariantBound(Variant(function="f", variant="v", spec=replace(app().functions[0], timeout=nan))),
        r"VariantBound\.variant\.spec\['square'\]\.timeout is nan",
    ),
    Bad(finished(Result(), nan), r"InputsFinished\.inputs\.run_s is nan"),
    Bad(finished(Result(), -1.0), r"run_s is -1\.0"),
    Bad(finished(Result(payload=Payload(blob="a/b"))), r"inputs\.payload\.blob is 'a/b'"),
    Bad(finished(Result(error=ErrorInfo("E", "m", payload=Payload(blob="a/b")))), r"inputs\.error\.payload\.blob"),
    Bad(p.InputsStarted([1] * 100_001), r"InputsStarted\.leases has 100001 entries"),
    Bad(p.ContainerReady(["x" * 600]), r"ContainerReady\.imports has 600 characters; at most 512"),
    Bad(p.StreamValues("fc-1", 0, -1, []), r"StreamValues\.first is -1"),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.reason[:40])
def test_absurd_values_are_refused_by_name(bad: Bad) -> None:
    reason = refusal(bad.message)
    import re

    assert re.search(bad.reason, reason), reason
    assert reason.startswith(type(bad.message).__name__ + ".")
    assert len(reason) < 400


@pytest.mark.parametrize(
    "message",
    [
        inputs("a", "b", total=-1),
        inputs(),
        p.InputsSubmitted("fc-1", "fu-1", 0, [Payload(blob="0a" * 16, size=10**9)]),
        p.CallRequested(0, ""),
        p.OutputsRequested("fc-1", 3, 3),
        p.AutoscalerUpdated(1, "fu-1", max_containers=0),
        declared(concurrency=Concurrency(1000, 800, declared=True), retries=RetryPolicy(10, 10.0)),
        declared(autoscaler=AutoscalerSettings(5, 4)),
        p.SessionClosed("bye"),
        p.Heartbeat(3, nan),
        finished(Result(), 3.5),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_honest_programs_say_passes(message: Any) -> None:
    assert refusal(message) == ""


@settings(max_examples=100, deadline=None)
@given(message=st.one_of(list(map(messages, PEERS))))
def test_any_message_is_passed_or_refused_with_a_text(message: Any) -> None:
    assert isinstance(refusal(message), str)
