"""Programs in the shape of those that people run elsewhere (`tests/programs`): `import modal` means kedge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from kedge.exception import NotFoundError
from kedge.images import interpreters
from kedge.model.spec import NAMESPACE
from tests.docs.packages import require
from tests.docs.site import LONG, Site, eventually, site_in
from tests.engines.sandbox import missing
from tests.images.test_roots import bases  # noqa: F401 - a fixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROGRAMS = Path(__file__).parents[1] / "programs"
GPUS = "H100=2,A10G=2,L40S=2"
FASTAPI = "fastapi[standard]==0.115.4"
TOKEN = "HF_TOKEN=hf_stub"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, bases: Path) -> Iterator[Site]:  # noqa: F811
    """One server for all programs, where images have what their steps ask for."""
    if reason := missing(NAMESPACE):
        pytest.skip(f"containers cannot have files of their own here: {reason}")
    for version in ("3.11", "3.12"):
        try:
            interpreters.find(version)
        except NotFoundError as error:
            pytest.skip(str(error))
    directory = tmp_path_factory.mktemp("programs")
    require(directory / "packages", "cowsay==6.1", "aiohttp", "httpx", FASTAPI)
    images = directory / "images"
    images.mkdir()
    (images / "bases").symlink_to(bases)
    shutil.copytree(PROGRAMS, directory / "site", ignore=shutil.ignore_patterns("__pycache__"))
    with site_in(directory / "site", images, KEDGE_GPUS=GPUS) as site:
        site.kedge("secret", "create", "huggingface-secret", TOKEN)
        yield site


def run(site: Site, program: str, *options: str) -> tuple[list[Any], str]:
    """What a program prints as JSON, line by line, and all that is to be read on the terminal."""
    said = site.kedge("run", program, *options, seconds=4 * LONG)
    return [json.loads(line) for line in said.splitlines() if line.startswith(("{", "["))], said


def at_once(times: int, ask: Any) -> list[Any]:
    with ThreadPoolExecutor(times) as threads:
        return list(threads.map(ask, range(times)))


# ---------------------------------------------------------------- engines


def test_an_engine_has_its_maximum_of_requests_at_once_and_never_more(site: Site) -> None:
    (engines,), _ = run(site, "vllm_inference.py", "--requests", "100")
    assert sum(engine["answers"] for engine in engines) == 100
    assert max(engine["in_flight_max"] for engine in engines) == 32
    assert {engine["device"] for engine in engines} < {"0", "1", "2", "3", "4", "5"}
    assert eventually(lambda: "gpt-oss-20b.safetensors" in site.kedge("volume", "ls", "huggingface-cache"))
    (engines,), _ = run(site, "vllm_inference.py", "--requests", "1")
    assert [engine["weights"] for engine in engines] == ["cached"]


def test_an_engine_that_is_started_when_its_class_enters(site: Site) -> None:
    (found,), _ = run(site, "sglang_snapshot.py", "--requests", "40")
    assert (found["engines"], found["status"]) == (1, "warm None")
    assert 10 < found["in_flight_max"] <= 40, "the target is for the autoscaler, and a container takes its maximum"


def test_a_pool_for_each_model_and_device(site: Site) -> None:
    (small, large), _ = run(site, "embeddings_pool.py")
    for pool, model in ((small, "BAAI/bge-base-en-v1.5"), (large, "large")):
        assert pool["models"] == [model]
        assert (pool["answers"], pool["engines"], pool["in_flight_max"]) == (60, 1, 14)
    assert not set(small["devices"]) & set(large["devices"])


# ---------------------------------------------------------------- models


def test_weights_are_downloaded_once_for_each_model(site: Site) -> None:
    ((first, other, again),), said = run(site, "model_cache.py", "--prompt", "Moo")
    assert [found["downloaded"] for found in (first, other, again)] == [True, True, False]
    assert again["weights"] == "weights of stub/large"
    assert first["order"] == ["load", "warm_up"]
    assert "Moo" in first["answer"]
    assert len({found["container"] for found in (first, other, again)}) == 3
    assert "bye from stub/large" in said


def test_a_secret_that_lacks_a_key_is_named_before_anything_starts(site: Site) -> None:
    program = (site.directory / "model_cache.py").read_text()
    (site.directory / "lacking.py").write_text(program.replace('["HF_TOKEN"]', '["HF_TOKEN", "WANDB_KEY"]'))
    said = site.kedge("run", "lacking.py", code=1)
    assert "huggingface-secret" in said
    assert "WANDB_KEY" in said
    assert "Traceback" not in said


def test_clips_are_transcribed_in_batches_of_no_more_than_the_maximum(site: Site) -> None:
    (found,), _ = run(site, "batched_whisper.py", "--count", "200")
    assert max(found["batches"]) == 64
    assert found["containers"] <= 2
    assert found["single"] == ["ONE ALONE", 1]


def test_weights_of_an_image_and_of_a_volume_that_its_build_fills(site: Site) -> None:
    (found,), said = run(site, "download_model.py")
    assert found == {"in_image": "6.1", "in_volume": "/cache", "seen": "/cache", "token": False}
    assert "downloaded /cache/weights.bin" in site.kedge("image", "logs", _newest_image(site))
    assert "weights.bin" in site.kedge("volume", "ls", "build-cache")
    assert "building" in said
    again, said = run(site, "download_model.py")
    assert again == [found]
    assert "building" not in said


def _newest_image(site: Site) -> str:
    images = json.loads(site.kedge("image", "list", "--json"))
    return str(next(image["id"] for image in images if "run_function" in json.dumps(image)))


# ---------------------------------------------------------------- jobs


def test_jobs_are_submitted_and_asked_for_over_http(site: Site) -> None:
    url = site.url(site.kedge("deploy", "ocr_jobs.py"), "example-doc-ocr-jobs-wrapper")

    def submit(text: str) -> str:
        answer = httpx.post(f"{url}/submit", content=text.encode(), timeout=LONG)
        return str(answer.raise_for_status().json()["call_id"])

    calls = at_once(8, lambda number: submit(f"receipt {number}"))
    torn = submit("torn")
    assert httpx.get(f"{url}/result/{torn}", timeout=LONG).status_code == 202, "it is tried four times, a second each"

    def result(call: str) -> httpx.Response:
        assert eventually(lambda: httpx.get(f"{url}/result/{call}", timeout=LONG).status_code != 202)
        return httpx.get(f"{url}/result/{call}", timeout=LONG)

    assert [result(call).json() for call in calls] == [f"receipt {number} read with cowsay 6.1" for number in range(8)]
    assert (result(torn).status_code, result(torn).json()) == (422, "this receipt cannot be read")
    assert result("fc-0123456789abcdef").status_code == 404


def test_functions_share_a_queue_and_a_dict(site: Site) -> None:
    (found,), _ = run(site, "queue_crawler.py")
    assert found == {"/": 0, "/a": 1, "/b": 1, "/c": 1, "/a/1": 2, "/a/2": 2, "/c/1": 2}


def test_a_web_app_shows_what_a_cron_job_writes(site: Site) -> None:
    url = site.url(site.kedge("deploy", "cron_and_web.py"), "example-cron-and-web-web")

    def number() -> int:
        answer = httpx.get(url + "/", timeout=LONG)
        return int(answer.json()["number"]) if answer.status_code == 200 else 0

    first = 0

    def has_begun() -> bool:
        nonlocal first
        first = number()
        return first > 0

    assert eventually(has_begun)
    assert eventually(lambda: number() >= first + 2)
    site.kedge("app", "stop", "--yes", "example-cron-and-web")


# ---------------------------------------------------------------- images


def test_what_images_of_programs_are_made_of(site: Site) -> None:
    ((plain, rich),), _ = run(site, "image_chain.py")
    assert (plain["cowsay"], plain["greeting"], plain["tree"], plain["directory"]) == ("6.1", "moo", None, "/root")
    assert rich == {
        "python": "3.12",
        "cowsay": "6.0",
        "greeting": "MOO",
        "tree": "/usr/bin/tree",
        "directory": "/srv/app",
        "stamp": "built",
        "assets": ["settings.json"],
        "settings": {"greeting": "hello"},
        "shout": "DONE!",
        "packages": [True, True],
    }


def test_a_base_that_cannot_be_fetched_says_why(site: Site) -> None:
    program = (site.directory / "cuda_base.py").read_text()
    (site.directory / "far_base.py").write_text(program.replace("nvidia/cuda:", "registry.invalid/nvidia/cuda:"))
    said = site.kedge("run", "far_base.py", code=1)
    assert "step 1 of 3 failed (from_registry registry.invalid/nvidia/cuda:12.8.1" in said
    assert "The registry cannot be reached" in said or "`apt-get install podman`" in said
    assert "Traceback" not in said
