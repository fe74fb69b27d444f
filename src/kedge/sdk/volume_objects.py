"""`Volume.objects`: making, listing and deleting volumes by name; and volumes that go with a `with` block."""

from __future__ import annotations

import asyncio

from kedge.exception import AlreadyExistsError
from kedge.model.protocol import VolumeChanged, VolumeRequested, VolumesRequested
from kedge.model.spec import VolumeRef
from kedge.sdk import config, validation
from kedge.sdk.client import Client
from kedge.sdk.threaded import both
from kedge.sdk.volume import Volume


class VolumeObjects:
    """The volumes of an environment."""

    def _create(
        self,
        name: str,
        *,
        allow_existing: bool = False,
        environment_name: str | None = None,
        version: int | None = None,
    ) -> None:
        """Makes an empty volume. AlreadyExistsError where the name is taken, unless `allow_existing`."""
        validation.name("Volume.objects.create: name", name)
        environment = config.environment(environment_name)
        try:
            Client.current().request(lambda n: VolumeChanged(n, "create", "", name, environment))
        except AlreadyExistsError:
            if not allow_existing:
                raise

    def _list(
        self,
        *,
        max_objects: int | None = None,
        created_before: float | None = None,
        environment_name: str | None = None,
    ) -> list[Volume]:
        """Those of an environment, newest first."""
        environment = config.environment(environment_name)
        found = Client.current().request(lambda n: VolumesRequested(n, environment))
        found.sort(key=lambda facts: -facts["created_at"])
        return [
            Volume(VolumeRef(target="", name=facts["name"], environment=facts["environment"]))
            for facts in found
            if created_before is None or facts["created_at"] < created_before
        ][:max_objects]

    def _delete(self, name: str, *, allow_missing: bool = False, environment_name: str | None = None) -> None:
        """Deletes a volume and all that is in it."""
        Volume.delete(name, environment_name=environment_name, allow_missing=allow_missing)

    create = both(_create)
    list = both(_list)
    delete = both(_delete)


class Ephemeral:
    """A new volume for the time of a block. It goes with this program at the latest."""

    def __enter__(self) -> Volume:
        facts = Client.current().request(lambda n: VolumeRequested(n, ephemeral=True))
        self._id: str = facts["id"]
        return Volume.from_id(self._id)

    def __exit__(self, *_: object) -> None:
        Client.current().request(lambda n: VolumeChanged(n, "release", self._id))

    async def __aenter__(self) -> Volume:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.__exit__)
