"""What a caller hears, and the log says, of a container that was ended by a limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedge.engines import cgroups
from kedge.exception import InternalFailure
from tests.e2e import limit_functions
from tests.e2e.commands import Place

pytestmark = pytest.mark.slow


@pytest.mark.skipif("memory" in cgroups.find().lacking, reason="no control group for memory")
def test_out_of_memory_says_the_limit_and_what_to_write(kedge_home: Path, tmp_path: Path) -> None:
    said = "out of memory: it used 128 MiB, and its limit is 128 MiB; write memory=(64, 256) (MiB) to give it twice"
    with limit_functions.app.run():
        assert limit_functions.eat.remote(8) == 8
        with pytest.raises(InternalFailure) as caught:
            limit_functions.eat.remote(1000)
        assert limit_functions.eat.remote(9) == 9
    assert said in str(caught.value)
    place = Place(tmp_path, {"KEDGE_HOME": str(kedge_home)})
    assert f"the container died: {said}" in place.kedge("logs", "limited", "--tail", "100").stdout
