"""What user code may ask of the container it runs in. Names and behaviour may still change."""

from __future__ import annotations

from typing import Any

from kedge.exception import ExecutionError
from kedge.sdk import context, validation
from kedge.sdk.later import refuse

__all__ = ["get_local_input_concurrency", "set_local_input_concurrency", "stop_fetching_inputs"]

_LATER = ("clustered", "get_cluster_info", "http_server", "image_delete", "list_deployed_apps", "stop_app", "stream")


def _control(name: str) -> context.ContainerControl:
    here = context.container()
    if here is None:
        raise ExecutionError(f"kedge.experimental.{name} asks the container it runs in; call it inside of a function")
    if here.control is None:
        raise ExecutionError(
            f"kedge.experimental.{name} can be called once the container takes inputs, not while it starts"
        )
    return here.control


def get_local_input_concurrency() -> int:
    """How many inputs this container takes at once. More may still run where that was lowered.

    Example:
        print(f"{kedge.experimental.get_local_input_concurrency()} at once")

    Raises:
        ExecutionError: outside a container.
    """
    return _control("get_local_input_concurrency").get_concurrency()


def set_local_input_concurrency(concurrency: int) -> None:
    """Changes how many inputs this container takes at once, up to `max_inputs`. Running ones are not interrupted.

    It holds for what starts from then on, in this container alone, and stays in force when `update_concurrency` changes
    `max_inputs`. May be called from any thread or task.

    Example:
        if gpu_memory_is_short():
            kedge.experimental.set_local_input_concurrency(2)

    Raises:
        InvalidError: below 1 or not a whole number.
        ExecutionError: outside a container.
    """
    validation.whole_number("set_local_input_concurrency: concurrency", concurrency, least=1)
    _control("set_local_input_concurrency").set_concurrency(concurrency)


def stop_fetching_inputs() -> None:
    """Lets this container finish what it works on and then leave; others take the inputs that follow.

    Example:
        if connection.is_broken():
            kedge.experimental.stop_fetching_inputs()

    Raises:
        ExecutionError: outside a container.
    """
    _control("stop_fetching_inputs").stop_fetching_inputs()


def __getattr__(name: str) -> Any:
    if name in _LATER:
        refuse(f"kedge.experimental.{name}")
    raise AttributeError(f"kedge.experimental has no attribute {name!r}")
