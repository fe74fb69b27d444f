"""`kedge.function` and `kedge.cls`: registration for programs without an app of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from kedge.sdk import options, registry
from kedge.sdk.parameters import parameter
from kedge.sdk.typed import FunctionDecorator, dataclass_transform
from kedge.sdk.usage import calling_module, keywords_only

if TYPE_CHECKING:
    from typing import Unpack

T = TypeVar("T")


@keywords_only("@kedge.function()", name="kedge.function", accepts=options.FUNCTION_KEYWORDS)
def function(**settings: Unpack[options.FunctionOptions]) -> FunctionDecorator:
    """`@app.function()` for programs without an app: registers on the implicit app of the calling module.

    Example:
        @kedge.function()
        def square(x: int) -> int:
            return x * x
    """
    declare: Any = registry.implicit_app(calling_module()).declare("kedge.function", settings).function
    return declare  # type: ignore[no-any-return]


@dataclass_transform(field_specifiers=(parameter,), kw_only_default=True)
def cls(**settings: Unpack[options.ClsOptions]) -> Callable[[type[T]], type[T]]:
    """`@app.cls()` for programs without an app: registers on the implicit app of the calling module."""
    return registry.implicit_app(calling_module()).declare("kedge.cls", settings).cls  # type: ignore[return-value]


if not TYPE_CHECKING:  # pyright reads dataclass_transform from a plain function only
    cls = keywords_only("@kedge.cls()", name="kedge.cls", accepts=options.CLS_KEYWORDS)(cls)
