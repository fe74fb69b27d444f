"""Labels and host names: who has them, and what is said to who cannot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kedge.core.routes import MAX_LABEL, Routes, label_of, routes_of
from kedge.model.spec import AppSpec, FunctionSpec, MethodSpec, WebSpec
from tests.core.conftest import app, function


def web(name: str, label: str | None = None, domains: tuple[str, ...] = (), method: str = "") -> FunctionSpec:
    spec = WebSpec(kind="asgi_app", label=label, custom_domains=domains)
    return function(name, methods=(MethodSpec(name=method, web=spec),))


def shop(*functions: FunctionSpec, id: str = "ap-1", **fields: object) -> AppSpec:
    return replace(app(*functions, id=id, ephemeral=False), name="Shop", **fields)


def labels(spec: AppSpec) -> list[str]:
    return [route.label for route in routes_of(spec)]


def test_labels_come_from_the_names_unless_they_are_given() -> None:
    assert labels(shop(web("web_ui"), web("Server", method="chat"), web("x", "Front"))) == [
        "shop-web-ui",
        "shop-server-chat",
        "front",
    ]


def test_labels_of_environments_and_of_apps_that_are_only_tried() -> None:
    assert labels(shop(web("f", "front"), environment_name="test")) == ["front-test"]
    assert labels(shop(web("f"), ephemeral=True, deployment="ap-2")) == ["shop-f-dev"]
    assert labels(shop(web("f"), environment_name="dev")) == ["shop-f-dev-env"]
    assert labels(shop(web("f"), id="ap-00112233aabb", ephemeral=True)) == ["shop-f-dev-aabb"]


def test_a_long_label_is_cut_and_stays_its_own() -> None:
    one, other = label_of("a" * 80, "-dev"), label_of("a" * 81, "-dev")
    assert len(one) == len(other) == MAX_LABEL
    assert one != other
    assert one.endswith("-dev")


@given(st.text(), st.sampled_from(["", "-dev", "-Test_2"]))
def test_every_label_may_stand_in_a_host_name(text: str, suffix: str) -> None:
    label = label_of(text, suffix)
    assert 0 < len(label) <= MAX_LABEL
    assert label.isascii()
    assert label.replace("-", "").isalnum()
    assert not label.startswith("-")


def test_two_functions_of_an_app_cannot_share_a_label() -> None:
    error = Routes().collision(shop(web("f", "front"), web("g", "Front")))
    assert error is not None
    assert error.message == (
        "f and g of the app Shop would both be reached under the label 'front'; give one of them another one, such as "
        "label='front-2'"
    )


def test_a_label_belongs_to_one_app() -> None:
    routes = Routes()
    routes.claim(shop(web("f", "front", ("shop.example.com",))))
    error = routes.collision(shop(web("g", "front"), id="ap-2"))
    assert error is not None
    assert error.message == (
        "the label 'front' of g belongs to f of the app Shop (ap-1) already; give g another label=, or stop that app "
        "first (`kedge app stop ap-1`)"
    )
    error = routes.collision(shop(web("g", None, ("SHOP.example.com",)), id="ap-2"))
    assert error is not None
    assert "the domain 'SHOP.example.com' of g belongs to f of the app Shop (ap-1) already" in error.message
    routes.release("ap-1")
    routes.check()
    assert routes.collision(shop(web("g", "front"), id="ap-2")) is None
    assert routes.by_host == {}


@pytest.mark.parametrize("names", [("f",), ("f", "g"), ("g",)])
def test_a_version_takes_over_all_labels_of_the_one_before(names: tuple[str, ...]) -> None:
    routes = Routes()
    routes.claim(shop(web("f", None, ("a.example.com",)), deployment="ap-d"))
    new = shop(*(web(name) for name in names), id="ap-2", deployment="ap-d")
    assert routes.collision(new) is None
    routes.claim(new)
    routes.check()
    assert sorted(routes.by_label) == sorted(f"shop-{name}" for name in names)
    assert routes.by_host == {}
    assert all(route.app == "ap-d" and route.function == f"fu-d-{route.name}" for route in routes.by_label.values())


def test_a_domain_leads_to_one_function_of_an_app() -> None:
    error = Routes().collision(shop(web("f", domains=("x.org",)), web("g", domains=("X.org",))))
    assert error is not None
    assert error.message == (
        "f and g of the app Shop would both be reached as 'X.org'; a domain leads to one function: give one of them "
        "another one in custom_domains="
    )


def test_a_claim_takes_nothing_from_others() -> None:
    routes = Routes()
    routes.claim(shop(web("f", "shop", ("x.org",))))
    routes.claim(shop(web("f", "shop", ("x.org",)), web("g"), id="ap-2"))
    found = routes.find("shop"), routes.by_host["x.org"], routes.find("shop-g")
    assert [route.app if route else None for route in found] == ["ap-1", "ap-1", "ap-2"]
    routes.release("ap-2")
    assert (list(routes.by_label), list(routes.by_host)) == (["shop"], ["x.org"])
    routes.check()
