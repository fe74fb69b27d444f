"""What was declared in this process: every handle under the module and name it was registered with.

The container finds the user's code here after importing its module: a name is distinct where a qualified name is not
(functions made in a loop), and an app need not live in the module that registers a function on it.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from kedge.sdk.app import App
    from kedge.sdk.cls import Cls
    from kedge.sdk.function import Function

    Handle: TypeAlias = Function[..., Any, Any] | Cls

_handles: dict[tuple[str, str], list[Handle]] = {}
_implicit_apps: dict[str, App] = {}


def register(module: str, name: str, handle: Handle) -> None:
    """Remembers a handle; one of the same app and name (a module imported again) takes the place of the old one."""
    handles = _handles.setdefault((module, name), [])
    handles[:] = [other for other in handles if other.app is not handle.app and other.app.name != handle.app.name]
    handles.append(handle)


def find(module: str, name: str, app_name: str = "") -> Handle | None:
    """The handle registered under a name by a module; `app_name` decides where several apps have one."""
    handles = _handles.get((module, name), [])
    named = [handle for handle in handles if handle.app.name == app_name]
    found = named or handles
    return found[-1] if found else None


def forget(module: str) -> None:
    """As if the module had never declared anything."""
    for key in [key for key in _handles if key[0] == module]:
        del _handles[key]
    _implicit_apps.pop(module, None)


def names_in(module: str) -> list[str]:
    return sorted(name for owner, name in _handles if owner == module)


def implicit_app(module: str) -> App:
    """The app of `kedge.function(…)` and `kedge.cls(…)` in a module; the same one every time."""
    app = _implicit_apps.get(module)
    if app is None:
        from kedge.sdk.app import App

        app = _implicit_apps[module] = App()
    return app


def apps_in(module: ModuleType) -> dict[str, App]:
    """The apps of a module by variable name; the implicit one under an empty name, where it has functions."""
    from kedge.sdk.app import App

    found = {key: value for key, value in vars(module).items() if isinstance(value, App)}
    implicit = _implicit_apps.get(module.__name__)
    return found if implicit is None else {**found, "": implicit}
