"""docs/seeds.md: every program of the three documents is deployed, called, and does what its document says."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import kedge
from tests.docs.packages import with_torch
from tests.docs.site import LONG, Site, eventually, programs, site_in

BUILDING_S = 300
"""A minute on an idle machine, most of it to compile the modules of torch and transformers."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * BUILDING_S)]

DOCUMENT = Path(__file__).parents[2] / "docs" / "seeds.md"
PROGRAMS = programs(DOCUMENT)
GPUS = "T4=1,A10G=1,A100=2,H100=2"
AT_ONCE = re.compile(r"Once upon a time.* \((\d+) at once\)", re.DOTALL)
"""The prompt, what random weights make of it, and how many prompts were in the model."""


def test_the_programs_are_found() -> None:
    assert list(PROGRAMS) == ["reference.py", "guide.py", "burst.py", "article.py"]
    assert f'KEDGE_GPUS="{GPUS}"' in DOCUMENT.read_text()


def with_one_container(handle: kedge.Function) -> None:
    """A backlog that has one container only shows what that one takes."""
    handle.update_autoscaler(max_containers=1)


# ---------------------------------------------------------------- modal.concurrent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("site"), KEDGE_GPUS=GPUS) as site:
        yield site


@pytest.fixture(scope="module")
def reference(site: Site) -> None:
    site.deploy("reference.py", PROGRAMS["reference.py"])


@pytest.fixture(scope="module")
def guide(site: Site) -> None:
    site.deploy("guide.py", PROGRAMS["guide.py"])


def test_a_hundred_tasks_of_one_container(reference: None) -> None:
    f = kedge.Function.from_name("reference", "f")
    assert list(f.map(range(100))) == [(number, 100) for number in range(100)]


def test_a_class_bursts_from_its_target_to_its_maximum(reference: None) -> None:
    instance = kedge.Cls.from_name("reference", "C")()
    with_one_container(instance)
    assert list(instance.f.map(range(100))) == [(number, 100) for number in range(100)]


def test_a_hundred_threads_of_one_container(guide: None) -> None:
    for function in (
        kedge.Function.from_name("guide", "my_function"),
        kedge.Cls.from_name("guide", "MyCls")().my_method,
    ):
        assert list(function.map(["input"] * 100)) == [("INPUT", 100)] * 100


@pytest.mark.parametrize("name", ["sleep_sync", "sleep_async"])
def test_ten_run_at_once_and_an_eleventh_waits(guide: None, name: str) -> None:
    function = kedge.Function.from_name("guide", name)
    with_one_container(function)
    calls = [function.spawn() for _ in range(25)]
    seen = set()

    def over() -> bool:
        numbers = function.get_current_stats()
        seen.add((numbers.num_total_runners, numbers.num_running_inputs))
        return numbers.backlog + numbers.num_running_inputs == 0

    assert eventually(over)
    assert kedge.FunctionCall.gather(*calls) == [None] * 25
    assert max(seen) == (1, 10)


def test_every_line_is_found_by_its_input(site: Site, guide: None) -> None:
    function = kedge.Function.from_name("guide", "better_concurrent_logging")
    calls = [function.spawn(number) for number in range(10)]
    kedge.FunctionCall.gather(*calls)
    for number, call in list(enumerate(calls))[::3]:
        id = call.object_id.replace("fc-", "in-") + "-0"
        assert eventually(lambda id=id: id in site.kedge("logs", "--input", id, "guide"))
        (line,) = site.kedge("logs", "--input", id, "guide").splitlines()
        assert line.endswith(f"{id}: Starting work with {number}")


def test_a_burst_of_twenty_percent(site: Site) -> None:
    site.deploy("burst.py", PROGRAMS["burst.py"])
    function = kedge.Function.from_name("burst", "my_function")
    assert eventually(lambda: function.get_current_stats().num_total_runners == 1)
    assert list(function.map(["input"] * 120)) == [("INPUT", 120)] * 120


# ---------------------------------------------------------------- GPUs and limits


@pytest.fixture(scope="module")
def torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return with_torch(tmp_path_factory.mktemp("torch"), "torch", "transformers", "fastapi")


@pytest.fixture(scope="module")
def large_site(tmp_path_factory: pytest.TempPathFactory, images: Path, torch: dict[str, str]) -> Iterator[Site]:
    """A machine that is said to be as large as the article's, so that its functions run side by side."""
    directory = tmp_path_factory.mktemp("large")
    large = {"KEDGE_CPUS": "64", "KEDGE_MEMORY": str(512 * 1024)}
    with site_in(directory, images, KEDGE_GPUS=GPUS, **large, **torch) as site:
        (directory / "article.py").write_text(PROGRAMS["article.py"])
        site.kedge("image", "build", "article.py", seconds=BUILDING_S)
        yield site


@pytest.fixture(scope="module")
def article(large_site: Site) -> str:
    """What its deploy printed."""
    return large_site.deploy("article.py", PROGRAMS["article.py"])


APP = "gpu-inference-demo"


def generate(url: str, times: int) -> list[int]:
    """Sends so many prompts at once. How many the model worked on when each of them came in."""

    def ask(_: int) -> int:
        response = httpx.post(f"{url}/generate", json={"prompt": "Once upon a time"}, timeout=4 * LONG)
        assert response.status_code == 200, response.text
        found = AT_ONCE.fullmatch(response.json()["output"])
        assert found
        return int(found[1])

    with ThreadPoolExecutor(times) as threads:
        return list(threads.map(ask, range(times)))


def test_its_image_is_built_and_its_code_runs_in_it(large_site: Site, article: str) -> None:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    steps = [f"debian_slim {version}", "pip_install torch transformers fastapi"]
    (image,) = [image for image in json.loads(large_site.kedge("image", "list", "--json")) if image["steps"] == steps]
    assert image["used"]
    assert kedge.Function.from_name(APP, "run_inference").remote("Once upon a time").startswith("Once upon a time")


def test_everything_starts(article: str) -> None:
    assert f"{APP}, version 1" in article
    for name in ("inference_service", "LlmServer", "web", "infer-a100", "infer-h100", "BatchedLlmServer"):
        assert re.search(rf"\b{name} is up", article), article
    untried = re.findall(r"(\S+) could not be tried", article)
    assert len(untried) <= 1, "two functions want the only T4, everything else has room"


@pytest.mark.parametrize("name", ["inference_service", "web"])
def test_over_http(large_site: Site, article: str, name: str) -> None:
    url = large_site.url(article, f"{APP}-{name.replace('_', '-')}")
    assert generate(url, 1) == [1]
    assert httpx.post(f"{url}/generate", json={"text": ""}, timeout=LONG).status_code == 422
    assert httpx.get(f"{url}/generate", timeout=LONG).status_code == 405


def test_a_blocking_call_in_a_handler_is_named(large_site: Site, article: str) -> None:
    generate(large_site.url(article, f"{APP}-web"), 1)
    assert eventually(lambda: "remote.aio" in large_site.kedge("app", "logs", "--function", "web", APP))


@pytest.mark.parametrize(
    ("name", "devices"), [("infer-t4", {"0"}), ("infer-a100", {"2", "3"}), ("infer-h100", {"4", "5"})]
)
def test_the_three_variants_have_their_devices(article: str, name: str, devices: set[str]) -> None:
    answer = kedge.Function.from_name(APP, name).remote({"prompt": "x"})
    assert answer["prompt"] == "x"
    assert answer["devices"] in devices


def test_four_prompts_at_once_and_never_more(large_site: Site, article: str) -> None:
    server = kedge.Cls.from_name(APP, "LlmServer")()
    answers = server.generate.map(["Once upon a time"] * 40)
    seen = [int(AT_ONCE.fullmatch(answer)[1]) for answer in answers]  # type: ignore[index]
    assert max(seen) == 4
    over_http = generate(large_site.url(article, f"{APP}-web"), 8)
    assert max(over_http) <= 4


def test_sixteen_prompts_make_a_batch(article: str) -> None:
    server = kedge.Cls.from_name(APP, "BatchedLlmServer")()
    with_one_container(server)
    answers = list(server.generate.map([f"prompt {number}" for number in range(64)]))
    batches: dict[str, int] = {}
    for number, answer in enumerate(answers):
        found = re.fullmatch(rf"prompt {number}, and so on \(batch (\d+) of (\d+)\)", answer)
        assert found, answer
        assert batches.setdefault(found[1], int(found[2])) == int(found[2])
    assert max(batches.values()) == 16
    assert sum(batches.values()) == 64


def test_the_caps_are_declared(article: str) -> None:
    for name, limit in {"inference_service": 64, "infer-t4": 32, "infer-a100": 32, "infer-h100": 32}.items():
        function = kedge.Function.from_name(APP, name)
        function.hydrate()
        assert function.spec.concurrency_limit == limit


def test_sixty_four_requests_are_in_flight_and_the_others_wait(large_site: Site) -> None:
    """The program gets slots for more, so that only its cap can hold requests back, and a model that waits."""
    program, go = PROGRAMS["article.py"], kedge.Dict.from_name("go", create_if_missing=True)
    for text, other in {
        "@modal.asgi_app()\n": "@modal.concurrent(max_inputs=100)\n@modal.asgi_app()\n",
        "run_inference.remote(req.prompt)": "await run_inference.remote.aio(req.prompt)",
        "time.sleep(0.1)": "while not modal.Dict.from_name('go').contains('now'): time.sleep(0.01)",
    }.items():
        assert text in program
        program = program.replace(text, other)
    url = large_site.url(large_site.deploy("wide.py", program, "--name", "wide"), "wide-inference-service")
    go["now"] = True
    assert generate(url, 1) == [1], "everything is up before anything is counted"
    del go["now"]
    function = kedge.Function.from_name("wide", "inference_service")
    seen: list[tuple[int, int]] = []

    def the_cap_is_reached_and_the_others_wait() -> bool:
        now = function.get_current_stats()
        seen.append((now.num_running_inputs, now.backlog))
        return seen[-1] == (64, 16)

    with ThreadPoolExecutor(1) as thread:
        answers = thread.submit(generate, url, 80)
        try:
            assert eventually(the_cap_is_reached_and_the_others_wait, 3 * LONG), sorted(set(seen))
            assert max(seen)[0] == 64
        finally:
            go["now"] = True
        assert answers.result() == [1] * 80
    large_site.kedge("app", "stop", "--yes", "wide")


def test_a_small_machine_runs_it_too(tmp_path: Path, images: Path, torch: dict[str, str]) -> None:
    """Two cores or two hundred: one container that wants all of them does not stop the one that it waits for."""
    with site_in(tmp_path / "small", images, KEDGE_GPUS=GPUS, **torch) as site:
        deployed = site.deploy("small.py", PROGRAMS["article.py"], "--name", "small")
        for name in ("inference-service", "web", "inference-service"):
            assert generate(site.url(deployed, f"small-{name}"), 1) == [1]
