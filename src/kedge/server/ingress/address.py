"""Which web function an address means, and what of the address its code is told. Pure.

The label stands in the first part of the path (`/LABEL/...`) or in front of one of the server's domains
(`LABEL.localhost`); a host that somebody declared in custom_domains leads to its function directly. Labels are compared
as they were sent: nothing is decoded, folded or resolved before the function is chosen, so no spelling of a path can
lead to another function than its first part says.

Any other host is as good as an address where the server is open to other machines. On the machine itself it is
refused, unless it is an IP address or a name without a dot: else every page in a browser could reach the server of its
user, by a name of its own that leads to 127.0.0.1.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from kedge.core.routes import Route, Routes
from kedge.server.ingress.replies import Refusal, bad_request

_LABEL = re.compile(rb"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{0,5}))?")
_TARGET = re.compile(rb"[!-~\x80-\xff]+")
"""No control characters and no blanks; everything else is the code's business."""
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE)
MAX_NAME = 253
"""Characters of a host name, as DNS has it."""

PLAIN = "plain"
"""An IP address, localhost, or a name without dots: the label is in the path."""
LABELLED = "labelled"
OTHER = "other"


class Host(NamedTuple):
    kind: str
    name: str
    """In lower case, without port, brackets and the dot at the end."""
    label: str = ""


class Place(NamedTuple):
    """A function, and how its code sees the path. `path` is `raw_path` decoded, and both begin with `root_path`."""

    route: Route
    root_path: str
    path: str
    raw_path: bytes
    query: bytes


def locate(
    host: bytes | None, target: bytes, routes: Routes, domains: tuple[str, ...], any_host: bool, for_people: bool
) -> Place:
    """Where a request goes; Refusal where it leads nowhere.

    Args:
        host: The Host header; None where there was none (HTTP/1.0).
        target: As it stood in the request line.
        routes: Every label and host that is taken.
        domains: In front of these a host name has a label.
        any_host: Whether a host that is not known is taken for an address of this server.
        for_people: Whether a browser asks for a page: then `/LABEL` is redirected to `/LABEL/`, so that the links of
            the page lead to where they should.
    """
    if target[:1] != b"/":
        host, target = _absolute(host, target)
    if _TARGET.fullmatch(target) is None or b"#" in target:
        raise bad_request("the address has characters in it that must be percent-encoded")
    raw, _, query = target.partition(b"?")
    found = host_of(host, domains) if host is not None else Host(PLAIN, "")
    route = routes.by_host.get(found.name) if routes.by_host else None
    if route is None and found.kind is LABELLED:
        route = routes.find(found.label)
        if route is None:
            raise _no_such_label(found.label[:63])
    if route is not None:
        return Place(route, "", _decoded(raw), raw, query)
    if found.kind is OTHER and not any_host:
        raise Refusal(
            421,
            f"nothing answers for the host {found.name[:100]} here; name it in custom_domains= of a web function, "
            "start the server with it as --domain, or use http://HOST:PORT/LABEL/ with the address of this server",
        )
    return _in_path(raw, query, routes, for_people)


@lru_cache(1024)
def host_of(header: bytes, domains: tuple[str, ...]) -> Host:
    """What a Host header says, apart from what has been declared; Refusal where it is none.

    >>> host_of(b"Chat.localhost:5334", ("localhost",)).label, host_of(b"[::1]:80", ("localhost",)).kind
    ('chat', 'plain')
    """
    match = _HOST.fullmatch(header.decode("latin-1"))
    if match is None or len(match["name"]) > MAX_NAME or int(match["port"] or 0) > 65535:
        raise bad_request("the Host header is no host name")
    name = match["name"].strip("[]").lower().removesuffix(".")
    if not name:
        raise bad_request("the Host header is no host name")
    for domain in domains:
        if name == domain:
            return Host(PLAIN, name)
        if name.endswith("." + domain):
            return Host(LABELLED, name, name[: -len(domain) - 1])
    return Host(PLAIN if "." not in name or _is_address(name) else OTHER, name)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _absolute(host: bytes | None, target: bytes) -> tuple[bytes | None, bytes]:
    """Host and path of `http://HOST/PATH`, as clients send it that take this server for a proxy."""
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise bad_request("the address in the request line must begin with '/'")
    path = match[2]
    return match[1], path if path[:1] == b"/" else b"/" + path


def _in_path(raw: bytes, query: bytes, routes: Routes, for_people: bool) -> Place:
    first, slash, rest = raw[1:].partition(b"/")
    if not first and not rest:
        raise Refusal(
            404, "this is a kedge server; its web functions answer under http://HOST:PORT/LABEL/ (see `kedge app list`)"
        )
    if _LABEL.fullmatch(first) is None:
        raise _no_such_label(first[:63].decode("latin-1"), _LOST)
    label = first.decode()
    route = routes.find(label)
    if route is None:
        raise _no_such_label(label, _LOST)
    if not slash and for_people:
        there = b"/%b/" % first + (b"?" + query if query else b"")
        raise Refusal(307, f"see {there.decode('latin-1')}", (b"location", there))
    # Who writes f"{url}/x" with a url that ends in a slash means one.
    rest = rest.removeprefix(b"/")
    raw = b"/%b/%b" % (first, rest)
    return Place(route, "/" + label, _decoded(raw), raw, query)


def _decoded(raw: bytes) -> str:
    if b"%" in raw:
        raw = unquote_to_bytes(raw)
        if b"\0" in raw:
            raise bad_request("the address has a NUL character in it")
    return raw.decode("utf-8", "replace")


_LOST = ". The label is the first part of the path: urljoin(url, '/x') and a base_url lose it, url + 'x' does not"


def _no_such_label(label: str, hint: str = "") -> Refusal:
    return Refusal(
        404,
        f"no web function has the label {label!r} here; `kedge app list` shows what there is, `kedge deploy` adds more"
        + hint,
    )
