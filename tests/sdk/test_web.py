"""Web decorators: what they make of their arguments, and what they refuse at their own line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import kedge
from kedge.exception import DeprecationError, InvalidError
from kedge.model.spec import FunctionSpec, WebSpec


def spec_of(decorator: Any, function: Any = None, **settings: Any) -> FunctionSpec:
    handle = kedge.App().function(serialized=True, name="web", **settings)(decorator(function or (lambda: None)))
    return handle.spec


def web_of(decorator: Any, **settings: Any) -> WebSpec:
    (method,) = spec_of(decorator, **settings).methods
    assert method.web is not None
    return method.web


# ---------------------------------------------------------------- what is declared


def test_the_spec_says_how_a_function_answers() -> None:
    assert web_of(kedge.asgi_app()) == WebSpec("asgi_app")
    assert web_of(kedge.wsgi_app(label="shop", requires_proxy_auth=True)) == WebSpec(
        "wsgi_app", label="shop", requires_proxy_auth=True
    )
    endpoint = kedge.fastapi_endpoint(method="post", docs=True, custom_domains=["Shop.example.com", "b.example.org"])
    assert web_of(endpoint) == WebSpec(
        "fastapi_endpoint", method="POST", docs=True, custom_domains=("shop.example.com", "b.example.org")
    )
    assert web_of(kedge.web_server(8000, startup_timeout=60)) == WebSpec("web_server", port=8000, startup_timeout=60.0)


def test_a_web_server_without_a_port_is_an_asgi_app() -> None:
    assert web_of(kedge.web_server()) == WebSpec("asgi_app")
    assert web_of(kedge.web_server(label="x")).label == "x"


def test_a_server_on_a_port_has_one_container_unless_somebody_says_otherwise() -> None:
    server = kedge.web_server(8000)
    assert spec_of(server).autoscaler.max_containers == 1
    assert spec_of(server, min_containers=2).autoscaler.max_containers == 2
    assert spec_of(server, max_containers=3).autoscaler.max_containers == 3
    assert spec_of(kedge.web_server()).autoscaler.max_containers is None


def test_a_class_may_have_several_web_methods() -> None:
    @kedge.App().cls(serialized=True)
    class Shop:
        @kedge.asgi_app()
        def site(self) -> Any: ...

        @kedge.fastapi_endpoint(method="PUT")
        async def put(self, name: str) -> str: ...

        @kedge.web_server(8000)
        def files(self) -> None: ...

        @kedge.method()
        def plain(self) -> None: ...

    spec = Shop.__kedge_cls__.spec  # type: ignore[attr-defined]
    kinds = {method.name: method.web and method.web.kind for method in spec.methods}
    assert kinds == {"site": "asgi_app", "put": "fastapi_endpoint", "files": "web_server", "plain": None}
    assert spec.autoscaler.max_containers == 1


def test_the_old_name_works_and_says_the_new_one() -> None:
    with pytest.warns(DeprecationError, match="kedge.web_endpoint is an old spelling; write kedge.fastapi_endpoint"):
        assert web_of(kedge.web_endpoint(method="POST")) == WebSpec("fastapi_endpoint", method="POST")


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: kedge.fastapi_endpoint("POST"), r"takes keyword arguments only, but got 'POST' by position"),
        (lambda: kedge.fastapi_endpoint(lambda: None), r'write @kedge.fastapi_endpoint\(method="POST"\)'),
        (lambda: kedge.fastapi_endpoint(verb="GET"), r"kedge.fastapi_endpoint has no parameter 'verb'"),
        (lambda: kedge.fastapi_endpoint(method="FETCH"), r"method is one of GET, POST, .*, not 'FETCH'"),
        (lambda: kedge.fastapi_endpoint(method=None), r"method must be a non-empty string, not None"),
        (lambda: kedge.fastapi_endpoint(docs="yes"), r"kedge.fastapi_endpoint: docs is True or False, not 'yes'"),
        (lambda: kedge.asgi_app(lambda: None), r"@kedge.asgi_app was used without parentheses; write @kedge.asgi_app"),
        (
            lambda: kedge.asgi_app(label="My_App"),
            r"label='My_App' cannot stand in a host name .*; write label='my-app'",
        ),
        (lambda: kedge.asgi_app(label="a" * 64), r"label='a+' cannot stand in a host name"),
        (lambda: kedge.asgi_app(label="-x"), r"write label='x'"),
        (lambda: kedge.asgi_app(label=""), r"kedge.asgi_app: label must be a non-empty string, not ''"),
        (lambda: kedge.asgi_app(label=7), r"kedge.asgi_app: label must be a non-empty string, not 7"),
        (lambda: kedge.asgi_app(requires_proxy_auth=1), r"kedge.asgi_app: requires_proxy_auth is True or False, not 1"),
        (
            lambda: kedge.wsgi_app(custom_domains="a.test"),
            r"kedge.wsgi_app: custom_domains is a list of host names, such as \['shop.example.com'\], not 'a.test'",
        ),
        (
            lambda: kedge.wsgi_app(custom_domains=["https://a.test/"]),
            r"custom_domains: 'https://a.test/' is no host name; write it without scheme, port and path",
        ),
        (lambda: kedge.wsgi_app(custom_domains=["a.test:80"]), r"custom_domains: 'a.test:80' is no host name"),
        (lambda: kedge.wsgi_app(custom_domains=["*.a.test"]), r"custom_domains: '\*.a.test' is no host name"),
        (lambda: kedge.wsgi_app(custom_domains=["localhost"]), r"custom_domains: 'localhost' is no host name"),
        (lambda: kedge.wsgi_app(custom_domains=[1]), r"custom_domains: 1 is no host name"),
        (lambda: kedge.web_server(lambda: None), r"without parentheses; write @kedge.web_server\(8000\)"),
        (lambda: kedge.web_server("8000"), r"kedge.web_server: port must be a whole number \(1 to 65535\), not '8000'"),
        (lambda: kedge.web_server(0), r"kedge.web_server: port must be 1 to 65535, got 0"),
        (lambda: kedge.web_server(80, startup_timeout=0), r"startup_timeout must be more than 0 seconds, got 0"),
        (lambda: kedge.web_server(80, label="A"), r"kedge.web_server: label='A' cannot stand .*; write label='a'"),
    ],
)
def test_nonsense_is_refused_where_it_is_written(make: Any, told: str) -> None:
    with pytest.raises(InvalidError, match=told):
        make()


def test_what_is_decorated_must_fit() -> None:
    async def asynchronous() -> None: ...

    def with_parameter(x: int) -> None: ...

    def with_default(x: int = 1) -> None: ...

    def many() -> Iterator[int]:
        yield 1

    with pytest.raises(InvalidError, match=r"asynchronous: @kedge.web_server needs a plain function; write `def`"):
        kedge.web_server(8000)(asynchronous)
    with pytest.raises(InvalidError, match=r"runs once per container, without arguments; remove x"):
        kedge.asgi_app()(with_parameter)
    with pytest.raises(
        InvalidError, match=r"@kedge.asgi_app cannot be a generator; return a StreamingResponse instead"
    ):
        kedge.asgi_app()(many)
    with pytest.raises(InvalidError, match=r"@kedge.batched and @kedge.asgi_app cannot be combined"):
        kedge.asgi_app()(kedge.batched(max_batch_size=2, wait_ms=1)(lambda: None))
    with pytest.raises(InvalidError, match=r"has @kedge.method and @kedge.asgi_app; drop @kedge.method"):
        kedge.asgi_app()(kedge.method()(lambda self: None))
    with pytest.raises(InvalidError, match=r"asgi_app decorates a function, not the class int"):
        kedge.asgi_app()(int)  # type: ignore[type-var]
    kedge.asgi_app()(with_default)


def test_what_excludes_a_web_function_is_refused() -> None:
    with pytest.raises(InvalidError, match=r"web: is_generator=True and @kedge.asgi_app exclude each other"):
        spec_of(kedge.asgi_app(), is_generator=True)
    with pytest.raises(InvalidError, match=r"web is a web function, whose callers retry themselves; remove retries="):
        spec_of(kedge.asgi_app(), retries=2)
    with pytest.raises(InvalidError, match=r"Two has two methods with @kedge.web_server\(8000\); give them two ports"):

        @kedge.App().cls(serialized=True)
        class Two:
            @kedge.web_server(8000)
            def one(self) -> None: ...

            @kedge.web_server(8000)
            def other(self) -> None: ...


def test_a_web_function_is_not_called() -> None:
    handle: Any = kedge.App().function(serialized=True, name="web")(kedge.asgi_app()(lambda: "app"))
    for call in (handle.remote, handle.spawn, handle.remote_gen):
        with pytest.raises(
            InvalidError, match=r"web is a web function \(@kedge.asgi_app\): .* web.get_web_url\(\) gives"
        ):
            call()
    with pytest.raises(InvalidError, match=r"cannot call it"):
        list(handle.map([1]))
    assert handle.local() == "app"
