"""Which function an address means: without sockets, and whatever the address looks like."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.core.routes import Routes
from kedge.model.spec import AppSpec, CodeSpec
from kedge.server.ingress.address import Place, host_of, locate
from kedge.server.ingress.replies import Refusal
from tests.server.ingress.hall import ENVIRONMENT, web

DOMAINS = ("localhost", "kedge.example.org")


def routes() -> Routes:
    found = Routes()
    functions = (web("chat"), web("chat-2"), web("shop", custom_domains=("Shop.Example.com", "till")))
    found.claim(AppSpec(app="ap-1", name="demo", functions=functions, code=CodeSpec(), environment=ENVIRONMENT))
    return found


ROUTES = routes()
LABELS = {route.web.label: label for label, route in ROUTES.by_label.items()}
CHAT, CHAT2, SHOP = LABELS["chat"], LABELS["chat-2"], LABELS["shop"]


def find(target: str, host: str | None = "127.0.0.1:5334", any_host: bool = False, for_people: bool = False) -> Place:
    header = None if host is None else host.encode("latin-1")
    return locate(header, target.encode("latin-1"), ROUTES, DOMAINS, any_host, for_people)


def seen(target: str, host: str | None = "127.0.0.1:5334") -> tuple[str, str, str]:
    place = find(target, host)
    assert place.path.startswith(place.root_path)
    return place.route.label, place.root_path, place.path


def refusal(target: str, host: str | None = "127.0.0.1", any_host: bool = False) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        find(target, host, any_host)
    return caught.value.status, caught.value.text


# ---------------------------------------------------------------- labels in the path


@pytest.mark.parametrize("host", ["127.0.0.1:5334", "localhost", "LocalHost.:80", "[::1]:5334", "gpubox", None])
def test_a_label_is_the_first_part_of_the_path(host: str | None) -> None:
    assert seen(f"/{CHAT}/a/b", host) == (CHAT, f"/{CHAT}", f"/{CHAT}/a/b")


@pytest.mark.parametrize(
    ("rest", "path"),
    [
        ("/", "/"),
        ("", "/"),
        ("//", "/"),
        ("//x", "/x"),
        ("///x", "//x"),
        ("/x//y/", "/x//y/"),
        ("/%C3%BC%20b", "/ü b"),
        ("/%2e%2e/x", "/../x"),
        ("/..%2f..%2fetc", "/../../etc"),
        ("/../" + CHAT2 + "/x", "/../" + CHAT2 + "/x"),
        ("/%zz%4", "/%zz%4"),
        ("/%ff", "/\ufffd"),
        ("?x=/" + CHAT2, "/"),
    ],
)
def test_what_follows_belongs_to_the_code(rest: str, path: str) -> None:
    assert seen(f"/{CHAT}{rest}") == (CHAT, f"/{CHAT}", f"/{CHAT}{path}")


def test_path_and_raw_path_say_the_same() -> None:
    place = find(f"/{CHAT}//a%20b?q=%20")
    assert (place.path, place.raw_path, place.query) == (f"/{CHAT}/a b", f"/{CHAT}/a%20b".encode(), b"q=%20")


@pytest.mark.parametrize(
    "target",
    [
        "/unknown/",
        "/Chat/",
        "//" + CHAT + "/",
        "/%63" + CHAT[1:] + "/",
        "/" + CHAT + "%2f",
        "/" + CHAT + "%00/",
        "/../" + CHAT + "/",
        "/./" + CHAT + "/",
        "/-/",
        "/" + CHAT + ";x/",
        "/" + CHAT + "\\/",
        "/" + "a" * 100,
    ],
)
def test_no_other_spelling_of_a_label_leads_anywhere(target: str) -> None:
    status, text = refusal(target)
    assert status == 404
    assert text.startswith("no web function has the label ")
    assert " here; `kedge app list` shows what there is, `kedge deploy` adds more. The label is the first part" in text
    assert CHAT2 not in text


def test_the_root_says_what_this_is() -> None:
    assert refusal("/") == (
        404,
        "this is a kedge server; its web functions answer under http://HOST:PORT/LABEL/ (see `kedge app list`)",
    )
    assert refusal("//")[0] == 404


def test_a_browser_is_sent_to_the_address_with_the_slash() -> None:
    with pytest.raises(Refusal) as caught:
        find(f"/{CHAT}?a=%0d%0a", for_people=True)
    assert caught.value.status == 307
    assert caught.value.headers == [(b"location", f"/{CHAT}/?a=%0d%0a".encode())]
    assert find(f"/{CHAT}/", for_people=True).path == f"/{CHAT}/"


@pytest.mark.parametrize("target", ["chat", "*", "", "ftp://x/y", "http:/x", "chat:80"])
def test_an_address_without_a_path_is_refused(target: str) -> None:
    assert refusal(target) == (400, "the address in the request line must begin with '/'")


@pytest.mark.parametrize("target", ["/a b", "/\x00", "/\x7f", f"/{CHAT}/#x", f"/{CHAT}/?\n"])
def test_an_address_with_control_characters_is_refused(target: str) -> None:
    assert refusal(target) == (400, "the address has characters in it that must be percent-encoded")


def test_a_nul_in_an_address_is_refused() -> None:
    assert refusal(f"/{CHAT}/%00") == (400, "the address has a NUL character in it")


def test_a_whole_url_is_taken_for_what_it_says() -> None:
    assert seen(f"http://localhost:99/{CHAT}/x", "evil.example.com") == (CHAT, f"/{CHAT}", f"/{CHAT}/x")
    assert seen(f"HTTP://{CHAT}.localhost", "127.0.0.1") == (CHAT, "", "/")


# ---------------------------------------------------------------- labels and names in the host


@pytest.mark.parametrize("domain", ["localhost", "localhost:5334", "kedge.example.org", "KEDGE.Example.org.:443"])
def test_a_label_may_stand_in_front_of_a_domain(domain: str) -> None:
    assert seen("/a//b", f"{CHAT}.{domain}") == (CHAT, "", "/a//b")
    assert seen(f"/{CHAT2}/", f"{CHAT.upper()}.{domain}") == (CHAT, "", f"/{CHAT2}/")


def test_a_label_that_nobody_has_is_not_found() -> None:
    assert refusal("/", "nobody.localhost")[1].startswith("no web function has the label 'nobody' here")
    assert refusal("/", f"x.{CHAT}.localhost")[0] == 404
    assert refusal("/", ".localhost")[0] == 404


def test_a_declared_host_leads_to_its_function() -> None:
    assert seen("/x", "shop.example.com") == (SHOP, "", "/x")
    assert seen("/x", "SHOP.example.com:8080") == (SHOP, "", "/x")
    assert seen("/", "till") == (SHOP, "", "/")


def test_another_host_is_refused_on_the_machine_itself() -> None:
    assert refusal(f"/{CHAT}/", "evil.example.com") == (
        421,
        "nothing answers for the host evil.example.com here; name it in custom_domains= of a web function, start the "
        "server with it as --domain, or use http://HOST:PORT/LABEL/ with the address of this server",
    )
    assert find(f"/{CHAT}/", "gpu.lan.example.com", any_host=True).route.label == CHAT


@pytest.mark.parametrize(
    "host", ["", "a b", "a/b", "x:y", "localhost:99999", "[::1", "a\x00", "ä", "a" * 300, "user@localhost", "."]
)
def test_what_is_no_host_is_refused(host: str) -> None:
    assert refusal(f"/{CHAT}/", host) == (400, "the Host header is no host name")


# ---------------------------------------------------------------- whatever comes

PARTS = ["/", "%", "2f", ".", "..", "?", "#", ":", "%2f", "%00", "//", CHAT, "chat", "http://", "x.localhost", "\n"]
ADDRESSES = st.binary(max_size=40) | st.lists(st.sampled_from(PARTS), max_size=8).map(
    lambda parts: "".join(parts).encode()
)
HOSTS = st.none() | st.binary(max_size=20) | st.sampled_from([b"localhost", CHAT.encode() + b".localhost", b"x.y"])


@given(target=ADDRESSES, host=HOSTS, any_host=st.booleans(), for_people=st.booleans())
def test_any_address_means_what_its_first_part_says_or_nothing(
    target: bytes, host: bytes | None, any_host: bool, for_people: bool
) -> None:
    place = refused = None
    try:
        place = locate(host, target, ROUTES, DOMAINS, any_host, for_people)
    except Refusal as refusal:
        refused = refusal
    if place is None:
        assert refused is not None
        assert refused.status in (307, 400, 404, 421)
        assert not any(b"\r" in value or b"\n" in value for _, value in refused.headers)
        return
    assert "\0" not in place.path
    assert place.path.startswith("/")
    if place.root_path:
        assert place.root_path == f"/{place.route.label}"
        assert place.path.startswith(place.root_path + "/")
        assert b"/" + place.route.label.encode() in target
    else:
        assert host is not None or target.lower().startswith(b"http")


@given(st.binary(max_size=60))
def test_any_host_is_read_or_refused(header: bytes) -> None:
    status = 0
    try:
        assert host_of(header, DOMAINS).name
    except Refusal as refusal:
        status = refusal.status
    assert status in (0, 400)
