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
    ScheduleSpec,
    Variant,
    WebSpec,
)
from kedge.model.web import ResponseStarted, SocketClosed
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


def web(kind: str = "asgi_app", **options: Any) -> MethodSpec:
    return MethodSpec(web=WebSpec(kind=kind, **options))


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
    Bad(declared(resources=Resources(gpus=(GpuRequest("H100", 1, 2.0),))), r"resources\.gpus\.fraction is 2\.0"),
    Bad(declared(resources=Resources(vram=0)), r"resources\.vram is 0"),
    Bad(declared(autoscaler=AutoscalerSettings(min_containers=-1)), r"autoscaler\.min_containers is -1"),
    Bad(declared(autoscaler=AutoscalerSettings(scaledown_window=inf)), r"autoscaler\.scaledown_window is inf"),
    Bad(
        p.AppCreated(1, replace(app(), functions=(replace(app().functions[0], name=""),))), r"functions\.name is empty"
    ),
    Bad(
        p.VariantBound(Variant(function="f", variant="v", spec=replace(app().functions[0], timeout=nan))),
        r"VariantBound\.variant\.spec\['square'\]\.timeout is nan",
    ),
    Bad(declared(methods=(web(kind="cgi"),)), r"methods\[''\]\.web\.kind is 'cgi'; it must be one of fastapi_end"),
    Bad(declared(methods=(web(port=70_000),)), r"web\.port is 70000; it must be from 1 to 65535"),
    Bad(declared(methods=(web(label="x" * 600),)), r"web\.label has 600 characters"),
    Bad(declared(methods=(web(startup_timeout=nan),)), r"web\.startup_timeout is nan"),
    Bad(declared(methods=(web(custom_domains=("a.b",) * 101),)), r"custom_domains has 101 entries; at most 100"),
    Bad(declared(methods=(web(custom_domains=("a" * 300,)),)), r"custom_domains has 300 characters"),
    Bad(declared(schedule=ScheduleSpec(cron="*" * 600)), r"schedule\.cron has 600 characters"),
    Bad(declared(schedule=ScheduleSpec(timezone="x" * 65)), r"schedule\.timezone has 65 characters"),
    Bad(declared(schedule=ScheduleSpec(period=(("eons", 1.0),))), r"schedule\.period is 'eons'; it must be one of"),
    Bad(declared(schedule=ScheduleSpec(period=(("days", inf),))), r"schedule\.period\.days is inf"),
    Bad(declared(schedule=ScheduleSpec(period=(("days", 1.0),) * 8)), r"schedule\.period has 8 entries"),
    Bad(p.AppCreated(1, replace(app(), environment_name="Über")), r"environment_name is 'Über'; it must match"),
    Bad(
        p.AppCreated(1, replace(app(), deployment="ap-2")), r"app\.deployment, version and origin_version are given by"
    ),
    Bad(p.AppDeployed(1, replace(app(), version=3)), r"AppDeployed\.app\.deployment, version and origin_version"),
    Bad(p.AppDeployed(1, replace(app(), name="")), r"AppDeployed\.app\.name is empty; a deployed app is found by its"),
    Bad(p.AppDeployed(1, replace(app(), tag="x" * 600)), r"AppDeployed\.app\.tag has 600 characters"),
    Bad(p.AppDeployed(-1, app()), r"AppDeployed\.request is -1"),
    Bad(p.AppRolledBack(1, "x" * 600), r"AppRolledBack\.name has 600 characters"),
    Bad(p.AppRolledBack(1, "x", version=-1), r"AppRolledBack\.version is -1"),
    Bad(p.AppRolledBack(1, "x", ""), r"AppRolledBack\.environment is ''; it must match"),
    Bad(p.FunctionRequested(1, app="x" * 600), r"FunctionRequested\.app has 600 characters"),
    Bad(p.FunctionRequested(1, version=2**40), r"FunctionRequested\.version is 1099511627776"),
    Bad(p.CodeUploaded(1, "../../etc"), r"CodeUploaded\.digest is '\.\./\.\./etc'; it must match \[0-9a-f\]\{32\}"),
    Bad(p.CodeUploaded(1, "0" * 32, [("x" * 1025, b"")]), r"CodeUploaded\.files has 1025 characters; at most 1024"),
    Bad(p.FilesOffered(1, "x"), r"FilesOffered\.digest is 'x'; it must match \[0-9a-f\]\{32\}"),
    Bad(
        p.FilesOffered(1, "0" * 32, [("a", "../x", 1, False)]),
        r"FilesOffered\.entries\.hash is '\.\./x'; it must match",
    ),
    Bad(p.FilesOffered(1, "0" * 32, [("a", "0" * 64, -1, False)]), r"FilesOffered\.entries\.size is -1; it must be"),
    Bad(p.FilesSent(1, "../../etc/passwd", False, 0, b""), r"FilesSent\.hash is '\.\./\.\./etc/passwd'; it must match"),
    Bad(p.FilesSent(1, "0" * 64, False, -1, b""), r"FilesSent\.offset is -1; it must be"),
    Bad(
        p.FilesSent(1, "0" * 64, False, 0, b"x" * (8 * 2**20 + 1)), r"FilesSent\.data is 8388609; it must be from 0 to"
    ),
    Bad(p.CodeUploaded(1, "0" * 32, [("x", b"")] * 5001), r"CodeUploaded\.files has 5001 entries; at most 5000"),
    Bad(p.ContainerStopRequested(1, ""), r"ContainerStopRequested\.container is ''"),
    Bad(p.AppsRequested(1, "a b"), r"AppsRequested\.environment is 'a b'"),
    Bad(p.AppsRequested(1, name="x" * 600), r"AppsRequested\.name has 600 characters"),
    Bad(p.ContainersRequested(1, "a/b"), r"ContainersRequested\.app is 'a/b'"),
    Bad(p.ContainersRequested(1, container="a/b"), r"ContainersRequested\.container is 'a/b'"),
    Bad(p.FunctionsRequested(1, function="x" * 2000), r"FunctionsRequested\.function has 2000 characters"),
    Bad(p.CallsRequested(1, "fu-1", 0), r"CallsRequested\.limit is 0; it must be from 1 to 10000"),
    Bad(p.CallsRequested(1, "fu-1", 10**6), r"CallsRequested\.limit is 1000000"),
    Bad(p.TokensChanged(1, "create", name="x" * 129), r"TokensChanged\.name has 129 characters; at most 128"),
    Bad(p.TokensChanged(1, "x" * 600), r"TokensChanged\.action has 600 characters"),
    Bad(p.ServerRequested(2**60), r"ServerRequested\.request is"),
    Bad(p.WebSent("fc-1", [ResponseStarted(42)]), r"WebSent\.events\.status is 42; it must be from 100 to 999"),
    Bad(p.WebSent("fc-1", [SocketClosed(10**6)]), r"WebSent\.events\.code is 1000000"),
    Bad(p.WebSent("fc 1", []), r"WebSent\.call is 'fc 1'"),
    Bad(p.WebCredited("fc-1", -1), r"WebCredited\.size is -1"),
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
        p.AppDeployed(1, app()),
        declared(methods=(web(custom_domains=("a.example",)),), schedule=ScheduleSpec(period=(("days", 1.0),))),
        p.AppRolledBack(1, "demo"),
        p.FunctionRequested(1, app="demo"),
        p.CodeUploaded(1, "0" * 32, [("pkg/a.py", b"")], last=True),
        p.FilesOffered(1, "0" * 32, [("pkg/a.bin", "0" * 64, 5, False)]),
        p.FilesSent(1, "0" * 64, True, 5, b"data", last=True),
        p.AppsRequested(1),
        p.ContainersRequested(1),
        p.FunctionsRequested(1),
        p.TokensChanged(1, "list"),
        p.WebSent("fc-1", [ResponseStarted(200)]),
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
