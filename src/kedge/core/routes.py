"""Which name in an address leads to which function: labels, and the host names that people declared.

A label belongs to one app at a time. Deployed apps keep theirs from version to version; an app that is run or served
gets labels that end in `-dev`, and, where it is only run, in a part of its id as well, so that two people who try the
same file do not meet.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from kedge.model.ids import function_id
from kedge.model.payload import ErrorInfo
from kedge.model.spec import MAIN_ENVIRONMENT, AppSpec, WebSpec

MAX_LABEL = 63
"""Characters of one part of a host name."""
_NOT_IN_LABELS = re.compile(r"[^a-z0-9]+")


class Route(NamedTuple):
    label: str
    app: str
    """The id under which the app is called: of the deployment, where it is a version of one."""
    function: str
    """Id of the function under that app."""
    name: str
    """`chat`, or `Server.chat` for a method."""
    method: str
    web: WebSpec
    app_name: str


class Routes:
    """Example:
    routes.claim(spec)            # None, or why not
    routes.find("shop-web")       # Route or None
    """

    def __init__(self) -> None:
        self.by_label: dict[str, Route] = {}
        self.by_host: dict[str, Route] = {}
        """Custom domains, in lower case."""
        self._of_app: dict[str, list[Route]] = {}

    def find(self, label: str) -> Route | None:
        return self.by_label.get(label)

    def of_app(self, app: str) -> dict[str, str]:
        """Label by name of function or method."""
        return {route.name: route.label for route in self._of_app.get(app, ())}

    def collision(self, spec: AppSpec) -> ErrorInfo | None:
        """Why this app cannot have its labels; None where it can."""
        owner, mine, hosts = spec.deployment or spec.app, dict[str, Route](), dict[str, Route]()
        for route in routes_of(spec):
            there = mine.setdefault(route.label, route)
            if there is not route:
                text = (
                    f"{there.name} and {route.name} of the app {spec.name} would both be reached under the label "
                    f"{route.label!r}; give one of them another one, such as label='{route.label}-2'"
                )
                return ErrorInfo("InvalidError", text)
            taken = self.by_label.get(route.label)
            if taken is not None and taken.app != owner:
                return _taken(f"the label {route.label!r}", taken, route, "another label=")
            for host in route.web.custom_domains:
                same = hosts.setdefault(host.lower(), route)
                if same is not route:
                    text = (
                        f"{same.name} and {route.name} of the app {spec.name} would both be reached as {host!r}; a "
                        "domain leads to one function: give one of them another one in custom_domains="
                    )
                    return ErrorInfo("InvalidError", text)
                other = self.by_host.get(host.lower())
                if other is not None and other.app != owner:
                    return _taken(f"the domain {host!r}", other, route, "another one in custom_domains=")
        return None

    def claim(self, spec: AppSpec) -> None:
        """From now on the labels of this app lead to it, and none of its earlier ones. What others have taken since
        somebody looked for a `collision` stays theirs."""
        owner = spec.deployment or spec.app
        self.release(owner)
        routes = [route for route in routes_of(spec) if route.label not in self.by_label]
        if routes:
            self._of_app[owner] = routes
        for route in routes:
            self.by_label[route.label] = route
            for host in route.web.custom_domains:
                self.by_host.setdefault(host.lower(), route)

    def release(self, app: str) -> None:
        for route in self._of_app.pop(app, ()):
            self.by_label.pop(route.label, None)
            for host in route.web.custom_domains:
                if self.by_host.get(host.lower()) is route:
                    del self.by_host[host.lower()]

    def check(self) -> None:
        routes = [route for found in self._of_app.values() for route in found]
        assert len(routes) == len(self.by_label)
        assert all(self.by_label[route.label] is route for route in routes)


def routes_of(spec: AppSpec) -> list[Route]:
    """All web functions of an app, with the labels that they get."""
    found = []
    owner = spec.deployment or spec.app
    suffix = "" if spec.environment_name == MAIN_ENVIRONMENT else f"-{spec.environment_name}"
    if suffix.endswith("-dev"):
        suffix += "-env"  # `-dev` at the end belongs to apps that are served
    if spec.ephemeral:
        suffix += "-dev" if spec.deployment else f"-dev-{spec.app[-4:]}"
    for function in spec.functions:
        for method in function.methods:
            if method.web is None:
                continue
            name = f"{function.name}.{method.name}" if method.name else function.name
            label = method.web.label or f"{spec.name}-{name}"
            id = function_id(owner, function.name)
            found.append(Route(label_of(label, suffix), owner, id, name, method.name, method.web, spec.name))
    return found


def label_of(text: str, suffix: str = "") -> str:
    """A label that may stand in a host name; a long one is cut, and told from others by a part of its digest.

    >>> label_of("My_App-Server.chat"), label_of("chat", "-dev")
    ('my-app-server-chat', 'chat-dev')
    """
    label = _NOT_IN_LABELS.sub("-", text.lower()).strip("-") or "web"
    suffix = _NOT_IN_LABELS.sub("-", suffix.lower()).rstrip("-")
    if len(label) + len(suffix) <= MAX_LABEL:
        return label + suffix
    import hashlib

    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return f"{label[: MAX_LABEL - len(suffix) - 7].rstrip('-')}-{digest}{suffix}"


def _taken(what: str, by: Route, wanted: Route, instead: str) -> ErrorInfo:
    text = (
        f"{what} of {wanted.name} belongs to {by.name} of the app {by.app_name} ({by.app}) already; give {wanted.name} "
        f"{instead}, or stop that app first (`kedge app stop {by.app}`)"
    )
    return ErrorInfo("InvalidError", text)
