"""`@app.function` and `@app.cls`: every keyword reaches the spec, and what cannot work is refused by name."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import kedge
from kedge.exception import DeprecationError, InvalidError, NoEffectWarning, UnavailableError
from kedge.model.spec import (
    AutoscalerSettings,
    Concurrency,
    FunctionSpec,
    GpuRequest,
    Resources,
    RetryPolicy,
)
from kedge.sdk import context, options, validation
from kedge.sdk.declaration import is_interactive


def plain(x: Any) -> Any:
    return x


def values(x: int) -> Iterator[int]:
    yield x


def declared(**settings: Any) -> FunctionSpec:
    return kedge.App().function(**settings)(plain).spec


# ---------------------------------------------------------------- keywords and fields


def test_every_keyword_sets_a_field_or_is_refused_or_is_an_old_spelling() -> None:
    apart = {"serialized", "network_file_systems"}
    assert set(options.FUNCTION_KEYWORDS) == {*options.FIELDS, *options.OLD, *apart}
    assert set(options.FIELDS.values()) <= set(FunctionSpec.__struct_fields__)
    assert set(options.OLD.values()) - {"min_containers", "scaledown_window"} <= set(FunctionSpec.__struct_fields__)
    assert set(options.UNAVAILABLE) == apart - {"serialized"}


def test_every_field_comes_from_a_keyword_or_from_what_is_decorated() -> None:
    decorated = {"module", "qualname", "is_class", "parameters", "serialized", "concurrency"}
    assert set(FunctionSpec.__struct_fields__) == {*options.FIELDS.values(), *decorated}


@pytest.mark.filterwarnings("ignore::kedge.exception.NoEffectWarning")
def test_values_arrive_in_the_spec() -> None:
    image = kedge.Image.debian_slim()
    spec = declared(
        image=image,
        env={"B": "2", "A": "1", "C": None},
        gpu=["h100:8", "a100"],
        cpu=(0.5, 2),
        memory=("512Mi", "2Gi"),
        ephemeral_disk=1024,
        min_containers=1,
        max_containers=4,
        buffer_containers=2,
        scaledown_window=30,
        concurrency_limit=9,
        retries=3,
        timeout=0.5,
        startup_timeout=60,
        name="renamed",
        cloud="aws",
        region=["us", "eu"],
        routing_region="us",
        nonpreemptible=True,
        enable_memory_snapshot=True,
        single_use_containers=True,
        i6pn=True,
        include_source=False,
        experimental_options={"preload": ["torch"]},
    )
    assert (spec.name, spec.qualname, spec.module) == ("renamed", "plain", __name__)
    assert spec.image == image.spec
    assert spec.env == (("A", "1"), ("B", "2"))
    gpus = (GpuRequest("H100", 8), GpuRequest("A100"))
    assert spec.resources == Resources(0.5, 2.0, 512, 2048, gpus, 1024)
    assert spec.autoscaler == AutoscalerSettings(1, 4, 2, 30.0)
    assert spec.concurrency_limit == 9
    assert spec.retries == RetryPolicy(3, 1.0, 1.0, 60.0)
    assert (spec.timeout, spec.startup_timeout) == (0.5, 60.0)
    assert (spec.cloud, spec.region, spec.routing_region) == ("aws", ("us", "eu"), "us")
    assert spec.nonpreemptible
    assert spec.enable_memory_snapshot
    assert spec.single_use_containers
    assert spec.i6pn
    assert not spec.include_source
    assert spec.preload == ("torch",)


def test_defaults() -> None:
    spec = declared()
    assert spec == FunctionSpec(name="plain", module=__name__, qualname="plain")
    assert (spec.timeout, spec.startup_timeout, spec.retries.max_retries) == (300.0, None, 0)
    assert spec.resources == Resources(0.125, None, 128, None, (), None)


def test_retries_object_and_app_defaults() -> None:
    policy = kedge.Retries(max_retries=4, initial_delay=2.0)
    image = kedge.Image.debian_slim().pip_install("numpy")
    app = kedge.App("named", image=image, include_source=False)
    spec = app.function(retries=policy)(plain).spec
    assert spec.retries == RetryPolicy(4, 2.0, 2.0, 60.0)
    assert spec.image == image.spec
    assert not spec.include_source
    assert app.function(name="b", image=kedge.Image.micromamba())(plain).spec.image.steps[0].kind == "micromamba"


# ---------------------------------------------------------------- refused values


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"timeout": None},
            r"app.function: timeout cannot be None: give a number of seconds, for example timeout=3600",
        ),
        ({"timeout": 0}, r"timeout must be more than 0 seconds, got 0"),
        ({"timeout": -5}, r"timeout must be more than 0 seconds, got -5"),
        ({"timeout": "5"}, r"timeout must be a number of seconds, not '5' \(str\)"),
        ({"timeout": True}, r"timeout must be a number of seconds, not True"),
        ({"timeout": float("nan")}, r"timeout must be a number of seconds, not nan"),
        ({"startup_timeout": 0}, r"startup_timeout must be more than 0 seconds"),
        ({"min_containers": -1}, r"min_containers must be at least 0, got -1"),
        ({"min_containers": 1.5}, r"min_containers must be a whole number \(at least 0\), not 1.5"),
        ({"max_containers": 0}, r"max_containers must be at least 1, got 0"),
        ({"buffer_containers": -1}, r"buffer_containers must be at least 0"),
        ({"min_containers": 5, "max_containers": 2}, r"min_containers=5 is above max_containers=2"),
        ({"scaledown_window": 0}, r"scaledown_window must be more than 0 seconds"),
        ({"concurrency_limit": 0}, r"concurrency_limit must be at least 1"),
        ({"cpu": 0}, r"cpu must be more than 0 cores"),
        ({"cpu": "2"}, r"cpu is a number of cores, such as cpu=2.0, not '2'"),
        ({"cpu": (4, 2)}, r"the limit 2 is below the request 4; write cpu=\(request, limit\)"),
        ({"cpu": (1, 2, 3)}, r"one value or a pair \(request, limit\)"),
        ({"memory": 0}, r"memory must be at least 1 MiB"),
        ({"memory": "lots"}, r"memory='lots' is no amount of memory; write MiB as a number, or \"16Gi\""),
        ({"memory": "16Qi"}, r"'16Qi' is no amount of memory"),
        ({"memory": 1.5}, r"memory is a whole number of MiB or a string such as \"16Gi\", not 1.5"),
        ({"memory": (2048, "1Gi")}, r"the limit '1Gi' is below the request 2048"),
        ({"ephemeral_disk": "5Gi"}, r"ephemeral_disk \(MiB\) must be a whole number"),
        ({"gpu": "H1000"}, r"no GPU is called 'H1000'. Did you mean 'H100'\?"),
        ({"gpu": "h100:0"}, r"'h100:0' has no usable count; write 'H100:2'"),
        ({"gpu": "h100:x"}, r"has no usable count"),
        ({"gpu": []}, r"gpu=\[\] asks for no device"),
        ({"gpu": 3}, r"gpu is a name such as 'H100', with a count 'H100:8', or a list of those, not 3"),
        ({"retries": -1}, r"retries must be at least 0"),
        ({"retries": "3"}, r"retries is a number or kedge.Retries\(max_retries=…\), not '3'"),
        ({"env": {"A": 1}}, r"A must be a string, not 1 \(int\); write 'A': '1'"),
        ({"env": ["A"]}, r"env must be a dict of strings"),
        ({"env": {"A=B": "1"}}, r"'A=B' cannot be the name of an environment variable"),
        ({"env": {"A": "x\0y"}}, r"A holds a null character"),
        ({"env": {"A": "\ud800"}}, r"'A' holds what is no text"),
        ({"env": {"A": "x" * 131070}}, r"A has 131073 bytes, and the system takes 131072 at most; put what is larger"),
        ({"name": "two words"}, r"name may hold letters, digits, '.', '-' and '_', 64 at most; got 'two words'"),
        ({"image": "debian"}, r"image must be a kedge.Image, such as kedge.Image.debian_slim\(\)"),
        ({"serialized": 1}, r"serialized is True or False"),
        ({"is_generator": "yes"}, r"is_generator is True or False"),
        ({"region": 3}, r"region must be a string or a list of strings"),
        ({"max_inputs": 2}, r"max_inputs=2 can only be 1 .*write @kedge.concurrent\(max_inputs=2\) below it"),
        ({"memori": 2}, r"app.function has no parameter 'memori'. Did you mean 'memory'\?"),
        ({"experimental_options": ["preload"]}, r"experimental_options is a dict"),
    ],
)
def test_values_that_cannot_work_are_refused_before_the_function_is_seen(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidError, match=message):
        kedge.App().function(**settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"network_file_systems": {"/x": object()}}, r"network_file_systems="),
    ],
)
def test_what_does_not_exist_yet_is_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(
        UnavailableError, match=named + r".* does not exist in this version of kedge yet, and is refused"
    ):
        kedge.App().function(**settings)


def test_empty_collections_of_them_are_fine() -> None:
    assert declared(secrets=[], volumes={}, schedule=None, network_file_systems={}).name == "plain"


def test_settings_without_effect_warn() -> None:
    with pytest.warns(
        NoEffectWarning, match="restrict_modal_access=True has no effect yet; code in containers can ask"
    ):
        assert declared(restrict_modal_access=True).restrict_modal_access
    assert declared(block_network=True).block_network
    with pytest.warns(NoEffectWarning, match=r"experimental_options=\{'flash': …\} has no effect"):
        declared(experimental_options={"flash": True})


def test_settings_that_mean_nothing_here_are_accepted_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "_said", set())
    with pytest.warns(NoEffectWarning, match="region= has no effect in kedge: containers run on the machine of their"):
        assert declared(region="eu").region == ("eu",)
    with pytest.warns(NoEffectWarning, match="proxy= has no effect in kedge: containers reach the network from"):
        assert declared(proxy=kedge.Proxy.from_name("static")).proxy == "static"
    assert declared(region="us", cloud="aws").cloud == "aws"  # warnings are errors here
    with pytest.raises(InvalidError, match=r"proxy must be a kedge.Proxy, such as kedge.Proxy.from_name\('NAME'\)"):
        declared(proxy="static")


@pytest.mark.parametrize(
    ("text", "mebibytes"),
    [("16Gi", 16384), ("16gib", 16384), ("512Mi", 512), ("512", 512), (" 1.5 Gi ", 1536), ("1GB", 954), ("2000K", 2)],
)
def test_memory_texts(text: str, mebibytes: int) -> None:
    assert validation.memory_of("memory", text) == (mebibytes, None)


def test_gpu_names_are_known_in_any_case_and_can_be_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert declared(gpu="any").resources.gpus == (GpuRequest("ANY", 1),)
    assert declared(gpu="a100-80gb:2").resources.gpus == (GpuRequest("A100-80GB", 2),)
    with pytest.raises(InvalidError, match="KEDGE_GPUS='NAME=count'"):
        declared(gpu="mychip")
    monkeypatch.setenv("KEDGE_GPUS", "H100=8, MyChip=2")
    assert declared(gpu="mychip:2").resources.gpus == (GpuRequest("MYCHIP", 2),)


# ---------------------------------------------------------------- old spellings


@pytest.mark.parametrize(
    ("settings", "message", "check"),
    [
        (
            {"allow_concurrent_inputs": 7},
            r"write @kedge.concurrent\(max_inputs=7\)",
            lambda spec: spec.concurrency == Concurrency(7, 7, True),
        ),
        ({"keep_warm": 2}, r"write min_containers=2", lambda spec: spec.autoscaler.min_containers == 2),
        (
            {"container_idle_timeout": 90},
            r"write scaledown_window=90",
            lambda spec: spec.autoscaler.scaledown_window == 90.0,
        ),
        ({"max_inputs": 1}, r"write single_use_containers=True", lambda spec: spec.single_use_containers),
    ],
)
def test_old_spellings_work_and_warn_at_the_users_line(
    settings: dict[str, Any], message: str, check: Callable[[FunctionSpec], bool]
) -> None:
    with pytest.warns(DeprecationError, match=message) as caught:
        spec = kedge.App().function(**settings)(plain).spec
    assert check(spec)
    assert [warning.filename for warning in caught] == [__file__]


def test_containers_do_not_repeat_the_warnings_of_the_file_that_they_import(recwarn: pytest.WarningsRecorder) -> None:
    context.set_container(app_id="ap-1")
    try:
        assert kedge.App().function(keep_warm=2, serialized=True)(plain).spec.autoscaler.min_containers == 2
    finally:
        context.clear_container()
    assert not recwarn.list


def test_old_and_new_spelling_together_are_refused() -> None:
    with pytest.raises(InvalidError, match=r"keep_warm is the old spelling of min_containers, which is given too"):
        kedge.App().function(keep_warm=2, min_containers=1)
    with (
        pytest.warns(DeprecationError),
        pytest.raises(InvalidError, match=r"allow_concurrent_inputs= and @kedge.concurrent; keep @kedge.concurrent"),
    ):
        kedge.App().function(allow_concurrent_inputs=2)(kedge.concurrent(max_inputs=2)(lambda: None))


def test_a_limit_below_what_one_container_takes_warns_and_names_max_containers() -> None:
    with pytest.warns(DeprecationError, match=r"concurrency_limit=4 caps .* below the 10 .* write max_containers=4"):
        kedge.App().function(concurrency_limit=4, serialized=True)(kedge.concurrent(max_inputs=10)(plain))
    assert declared(concurrency_limit=64).concurrency_limit == 64


# ---------------------------------------------------------------- what is decorated


def test_wrong_targets() -> None:
    app = kedge.App()
    with pytest.raises(TypeError, match=r"@app.function\(\) is on the class Model; write @app.cls\(\)"):
        app.function()(type("Model", (), {}))
    with pytest.raises(TypeError, match=r"@app.cls\(\) is on the function plain; write @app.function\(\)"):
        app.cls()(plain)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"@app.cls\(\) decorates a class, not 3"):
        app.cls()(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match=r"@app.function was used without parentheses; write @app.function\(\)"):
        app.function(plain)  # type: ignore[call-arg]
    with pytest.raises(InvalidError, match=r"@app.cls was used without parentheses"):
        app.cls(type("Model", (), {}))  # type: ignore[call-arg]
    with pytest.raises(InvalidError, match=r"@app.function decorates a function, not 3"):
        app.function()(3)  # type: ignore[call-overload]
    with pytest.raises(InvalidError, match=r"belongs to an app already"):
        app.function(name="again")(app.function()(plain))  # type: ignore[call-overload]
    with pytest.raises(InvalidError, match=r"is a hook of a class"):
        app.function(name="hook")(kedge.enter()(lambda self: None))
    with pytest.raises(InvalidError, match=r"@app.local_entrypoint was used without parentheses"):
        app.local_entrypoint(plain)  # type: ignore[call-arg]


def test_methods_need_a_class() -> None:
    app = kedge.App()
    with pytest.raises(
        InvalidError, match=r"Model.run is a method: put @app.cls\(\) on the class, and @kedge.method\(\)"
    ):

        class Model:
            @app.function()
            def run(self) -> None: ...

    with pytest.raises(InvalidError, match=r"is a method: put @app.cls\(\) on the class"):
        app.function()(kedge.method()(plain))  # type: ignore[call-overload]


def test_nested_functions_and_lambdas_need_serialized() -> None:
    app = kedge.App()

    def nested() -> None: ...

    with pytest.raises(
        InvalidError, match=r"nested is defined inside of test_nested.*@app.function\(serialized=True\)"
    ):
        app.function()(nested)
    assert app.function(serialized=True)(nested).spec.name == "nested"
    with pytest.raises(InvalidError, match=r"on a lambda, which has no name; give it name= and serialized=True"):
        app.function(serialized=True)(lambda: None)
    assert app.function(serialized=True, name="four")(lambda: 4).local() == 4


def test_generators_have_no_retries() -> None:
    with pytest.raises(InvalidError, match=r"values is a generator, and retries would repeat values.*remove retries="):
        kedge.App().function(retries=2)(values)
    assert kedge.App().function(retries=0)(values).spec.methods[0].is_generator
    with pytest.raises(InvalidError, match=r"is a web function, whose callers retry themselves"):
        kedge.App().function(retries=2, name="web", serialized=True)(kedge.asgi_app()(lambda: None))


def test_the_kind_of_a_function_is_seen() -> None:
    app = kedge.App()

    async def asynchronous() -> None: ...

    method = app.function(serialized=True)(asynchronous).spec.methods[0]
    assert (method.is_async, method.is_generator) == (True, False)
    assert app.function()(values).spec.methods[0].is_generator
    assert app.function(is_generator=True)(plain).is_generator


def test_a_name_is_taken_once() -> None:
    app = kedge.App()
    app.function()(plain)
    with pytest.raises(InvalidError, match=r"two functions or classes 'plain' in this app .*name=f'plain-\{variant\}'"):
        app.function()(plain)


@pytest.mark.parametrize(("file", "expected"), [(None, True), ("<stdin>", True), ("/tmp/program.py", False)])
def test_a_main_module_without_a_file_is_interactive(
    file: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = types.ModuleType("__main__")
    if file is not None:
        main.__file__ = file
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert is_interactive("__main__") is expected
    assert not is_interactive("json")


def test_a_cell_may_declare_a_function_anew_but_not_while_the_old_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    scope: dict[str, Any] = {"__name__": "__main__", "app": kedge.App("book")}
    cell = "@app.function()\ndef f(x): return x"
    exec("import kedge\n" + cell, scope)
    exec(cell, scope)
    scope["app"].started("ap-1")
    with pytest.raises(InvalidError, match=r"App\('book'\) runs with the old 'f'; leave its `with app.run\(\):`"):
        exec(cell, scope)


# ---------------------------------------------------------------- classes


def make(**body: Any) -> type:
    methods = {"run": kedge.method()(lambda self: None)}
    return type("Model", (), {"__module__": __name__, **methods, **body})


def test_constructor_rules() -> None:
    app = kedge.App()
    with pytest.raises(
        InvalidError, match=r"Model.__init__ \(test_declaration.py:\d+\) takes size, name: (?s:.*)parameter\(\)"
    ):
        app.cls(serialized=True)(make(__init__=lambda self, size, name="x": None))
    app.cls(serialized=True)(make(__init__=lambda self: None))
    model: Any = app.registered_classes["Model"]()
    assert model.run.local() is None


@pytest.mark.parametrize(
    ("annotations", "value", "message"),
    [
        (
            {},
            kedge.parameter(),
            r"Model.size = kedge.parameter\(…\) has no type; annotate it, for example `size: str =",
        ),
        ({"size": float}, kedge.parameter(), r"a parameter cannot be float; it is str, int, bool or bytes"),
        ({"size": "list[int]"}, kedge.parameter(), r"a parameter cannot be list\[int\]"),
        ({"size": int}, kedge.parameter(default="x"), r"the default of Model.size must be int, not str \('x'\)"),
        ({"size": int}, kedge.parameter(default=2**70), r"must fit into 64 bits"),
        ({"size": int}, kedge.parameter(init=False), r"never given by a caller, so it needs a default"),
    ],
)
def test_parameter_rules(annotations: dict[str, Any], value: Any, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        kedge.App().cls(serialized=True)(make(__annotations__=annotations, size=value))


def test_snap_needs_memory_snapshots() -> None:
    hook = kedge.enter(snap=True)(lambda self: None)
    with pytest.raises(InvalidError, match=r"needs @app.cls\(enable_memory_snapshot=True\); add it, or drop snap=True"):
        kedge.App().cls(serialized=True)(make(load=hook))
    kedge.App().cls(serialized=True, enable_memory_snapshot=True)(make(load=hook))


def test_a_class_needs_something_to_call_and_no_functions_inside() -> None:
    with pytest.raises(InvalidError, match=r"Empty has nothing to call: put @kedge.method\(\)"):
        kedge.App().cls(serialized=True)(type("Empty", (), {}))
    inner = kedge.App().function()(plain)
    with pytest.raises(InvalidError, match=r"Model.inner has @app.function\(\); inside of an @app.cls\(\) class write"):
        kedge.App().cls(serialized=True)(make(inner=inner))


def test_method_limits_add_up_to_slots_without_concurrent() -> None:
    def slots(concurrent: bool, *limits: int | None) -> Concurrency:
        body = {f"m{i}": kedge.method(concurrency_limit=limit)(lambda self: None) for i, limit in enumerate(limits)}
        user: Any = type("Model", (), {"__module__": __name__, **body})
        app = kedge.App()
        app.cls(serialized=True)(kedge.concurrent(max_inputs=20)(user) if concurrent else user)
        return app.registered_classes["Model"].spec.concurrency

    assert slots(False, 4) == Concurrency(4, 4)
    assert slots(False, 4, None, 2) == Concurrency(7, 7)
    assert slots(False, None, None) == Concurrency(1, 1)
    assert slots(True, 4, None) == Concurrency(20, 20, True)


def test_method_settings_reach_the_spec() -> None:
    user = make(limited=kedge.method(concurrency_limit=4, timeout=60, is_generator=True)(lambda self: None))
    app = kedge.App()
    app.cls(serialized=True)(user)
    method = app.registered_classes["Model"].spec.methods[1]
    assert (method.name, method.concurrency_limit, method.timeout, method.is_generator) == ("limited", 4, 60.0, True)
