"""`Deployable`: how an app is deployed, stopped, and found again by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from kedge.sdk import validation
from kedge.sdk.dual import Dual, StaticDual

if TYPE_CHECKING:
    from kedge.sdk.app import App


def _lookup(
    name: str, *, client: Any = None, environment_name: str | None = None, create_if_missing: bool = False
) -> App:
    """The handle of a deployed app; NotFoundError where there is none.

    Args:
        name: What it was deployed as.
        environment_name: Default: `KEDGE_ENVIRONMENT`, else the profile's, else "main".
        create_if_missing: Deploys an empty app of this name where there is none.

    Example:
        kedge.App.lookup("squares").stop()
    """
    from kedge.sdk import runner

    return runner.find_app(name, environment_name, create_if_missing)


async def _lookup_async(
    name: str, *, client: Any = None, environment_name: str | None = None, create_if_missing: bool = False
) -> App:
    import asyncio

    from kedge.sdk import runner

    return await asyncio.to_thread(runner.find_app, name, environment_name, create_if_missing)


class Deployable:
    """The part of an app that lives on a server without a program."""

    tags: dict[str, str]
    _deployment: str | None = None
    """The id under which it is deployed: what its handles call while no run of it is going on."""
    _version = 0
    """The version that was deployed or found."""

    def deployed(self, deployment_id: str, version: int = 0) -> None:
        """Said once it is deployed: from now on its handles call whichever version is current, outside of runs."""
        self._deployment = deployment_id
        self._version = version

    def _deploy(
        self,
        name: str | None = None,
        environment_name: str | None = None,
        tag: str = "",
        client: Any = None,
        strategy: str = "rolling",
    ) -> App:
        """Deploys the app: its functions can be called by name, its web functions answer, until it is stopped.

        One container of each function is started first. Where one cannot come up, this raises what went wrong there,
        and the version before it goes on serving.

        Args:
            name: What it is called by. Default: the name of the app.
            environment_name: Default: `KEDGE_ENVIRONMENT`, else the profile's, else "main".
            tag: A name for this version, such as its commit.
            client: Has no meaning in kedge; programs connect by themselves.
            strategy: "rolling" lets old containers finish while new ones take what comes; "recreate" lets the old ones
                go first, so that the new ones can have what those hold (a GPU, a port).

        Example:
            app.deploy(tag="2026-01-31")
            square.remote(12)
        """
        from kedge.sdk import runner

        app = cast("App", self)
        runner.deploy_app(app, name=name, environment_name=environment_name, tag=tag, strategy=strategy)
        return app

    async def _deploy_async(
        self,
        name: str | None = None,
        environment_name: str | None = None,
        tag: str = "",
        client: Any = None,
        strategy: str = "rolling",
    ) -> App:
        import asyncio

        return await asyncio.to_thread(self._deploy, name, environment_name, tag, client, strategy)

    def _stop(self) -> None:
        """Ends the app where it runs or is deployed: what waits or runs is cancelled, its addresses answer no more."""
        from kedge.sdk import runner

        runner.stop_app(cast("App", self))

    async def _stop_async(self) -> None:
        import asyncio

        await asyncio.to_thread(self._stop)

    deploy = Dual(_deploy, _deploy_async)
    stop = Dual(_stop, _stop_async)

    lookup = StaticDual(_lookup, _lookup_async)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Gives the app labels, in the place of those that it has. They stay in this program."""
        self.tags = dict(validation.environment("App.set_tags: tags", tags))

    def get_tags(self) -> dict[str, str]:
        """The labels that were given here or by `kedge.App(tags=…)`."""
        return dict(self.tags)
