"""What may be asked of, and changed about, a function while it runs: numbers, scaling, concurrency, its address."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import structs

from kedge.exception import InvalidError
from kedge.model.spec import AutoscalerSettings
from kedge.model.variants import defaults_of
from kedge.sdk import options
from kedge.sdk.decorators import concurrency_changes
from kedge.sdk.dual import Dual
from kedge.sdk.handle import Handle
from kedge.sdk.usage import keywords_only, old_spelling

if TYPE_CHECKING:
    from kedge.model.protocol import FunctionRequested
    from kedge.sdk.function_call import FunctionStats

_SCALING_FORM = "f.update_autoscaler(min_containers=1, max_containers=10)"
_SLOTS_FORM = "f.update_concurrency(max_inputs=20, target_inputs=15)"
_scaling_only = keywords_only(_SCALING_FORM, name="update_autoscaler", bound=True)
_slots_only = keywords_only(_SLOTS_FORM, name="update_concurrency", bound=True)


class Live(Handle):
    """A handle, with what concerns the function as it runs."""

    def _get_current_stats(self) -> FunctionStats:
        """Live numbers of the pool: backlog, num_total_runners, num_running_inputs, input_headroom."""
        from kedge.sdk import invocation

        return invocation.statistics(self.target())

    async def _get_current_stats_async(self) -> FunctionStats:
        from kedge.sdk import invocation

        await self._ready()
        return await invocation.statistics_async(self.target())

    @_scaling_only
    def _update_autoscaler(
        self,
        *,
        min_containers: int | None = None,
        max_containers: int | None = None,
        buffer_containers: int | None = None,
        scaledown_window: float | None = None,
    ) -> None:
        """Changes scaling of the running function until its app is started anew. None leaves a setting as it is."""
        from kedge.sdk import invocation

        settings = self._scaling(min_containers, max_containers, buffer_containers, scaledown_window)
        invocation.update_autoscaler(self.target(), **settings)

    @_scaling_only
    async def _update_autoscaler_async(
        self,
        *,
        min_containers: int | None = None,
        max_containers: int | None = None,
        buffer_containers: int | None = None,
        scaledown_window: float | None = None,
    ) -> None:
        from kedge.sdk import invocation

        await self._ready()
        settings = self._scaling(min_containers, max_containers, buffer_containers, scaledown_window)
        await invocation.update_autoscaler_async(self.target(), **settings)

    @_slots_only
    def _update_concurrency(self, *, max_inputs: int | None = None, target_inputs: int | None = None) -> None:
        """Changes how many inputs a container of the running function takes at once, until its app is started anew.

        None leaves a number as it is. Nothing that runs is interrupted: a lower number holds for the inputs that start
        from now on, a higher one counts at once. See `kedge.concurrent` for what the numbers mean. Where a function
        that had one slot gets more, its sync inputs run on threads from then on, not on the main thread any more.

        Raises:
            InvalidError: no number, below 1, not a whole number, or a target above the maximum.

        Example:
            f.update_concurrency(max_inputs=20, target_inputs=15)
            f.update_concurrency(target_inputs=10)
        """
        from kedge.sdk import invocation

        invocation.update_concurrency(self.target(), **self._slots(max_inputs, target_inputs))

    @_slots_only
    async def _update_concurrency_async(
        self, *, max_inputs: int | None = None, target_inputs: int | None = None
    ) -> None:
        from kedge.sdk import invocation

        await self._ready()
        await invocation.update_concurrency_async(self.target(), **self._slots(max_inputs, target_inputs))

    get_current_stats = Dual(_get_current_stats, _get_current_stats_async)
    update_autoscaler = Dual(_update_autoscaler, _update_autoscaler_async)
    update_concurrency = Dual(_update_concurrency, _update_concurrency_async)

    def _refuse_bound_method(self, how: str) -> None:
        if self._method.name and self._obj is not None:
            raise InvalidError(
                f"{self.name} is a method, and methods share the containers of their instance: write "
                f"{self.spec.name}(…).{how}(…)"
            )

    def _slots(self, max_inputs: Any, target_inputs: Any) -> dict[str, int | None]:
        self._refuse_bound_method("update_concurrency")
        return concurrency_changes(self.name, max_inputs, target_inputs)

    def _scaling(self, *values: Any) -> dict[str, Any]:
        self._refuse_bound_method("update_autoscaler")
        names = ("min_containers", "max_containers", "buffer_containers", "scaledown_window")
        settings = dict(zip(names, values, strict=True))
        options.apply("update_autoscaler", structs.replace(self.spec, autoscaler=AutoscalerSettings()), settings)
        return settings

    # ------------------------------------------------------------ its address

    def _get_web_url(self) -> str | None:
        """The address of a web function, ending in a slash; None for any other function.

        That of a method holds the parameters of its instance, where they are not all defaults. ExecutionError where the
        app is not running.

        Example:
            url = chat.get_web_url()  # http://127.0.0.1:5334/shop-chat/
        """
        from kedge.sdk.client import Client

        if self._method.web is None:
            return None
        client = Client.current()
        reply = client.request(self._request_of(self.object_id))
        return self._address(client.web(), reply["labels"])

    async def _get_web_url_async(self) -> str | None:
        from kedge.sdk.client import Client

        await self._ready()
        if self._method.web is None:
            return None
        client = Client.current()
        reply = await client.request_async(self._request_of(self.object_id))
        return self._address(await client.web_async(), reply["labels"])

    get_web_url = Dual(_get_web_url, _get_web_url_async)

    @property
    def web_url(self) -> str | None:
        """The old spelling of `get_web_url()`."""
        old_spelling(f"{self.name}.web_url", f"{self.name}.get_web_url()")
        return self._get_web_url()

    @staticmethod
    def _request_of(function: str) -> Any:
        from kedge.model.protocol import FunctionRequested

        def make(number: int) -> FunctionRequested:
            return FunctionRequested(number, function)

        return make

    def _address(self, web: str, labels: dict[str, str]) -> str:
        url = f"{web}/{labels[self._method.name]}/"
        if self._parameters is None:
            return url
        from urllib.parse import quote, urlencode

        from kedge.sdk import parameters

        defaults = defaults_of(self.spec.parameters)
        values = parameters.decode(self._parameters)
        names = [spec.name for spec in self.spec.parameters]
        given = [(name, _in_query(values[name])) for name in names if defaults.get(name) != values[name]]
        return f"{url}?{urlencode(given, quote_via=quote)}"


def _in_query(value: Any) -> str | bytes:
    """A parameter as addresses have it."""
    return value if isinstance(value, bytes) else str(value).lower() if isinstance(value, bool) else str(value)
