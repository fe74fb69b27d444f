"""Ids of steps: what makes them differ, and what does not."""

from __future__ import annotations

from kedge.images.plan import plan, title_of
from kedge.model.spec import ImageSpec, LocalFiles
from tests.images.kit import recipe, step


def ids(spec: ImageSpec, platform: str = "linux-x86_64", salts: dict[str, str] | None = None) -> list[str]:
    return [
        planned.id for planned in plan(spec, platform, lambda natural, forced: (salts or {}).get(natural, "")).steps
    ]


def test_equal_recipes_have_equal_ids_and_share_what_they_begin_with() -> None:
    first = ids(recipe(step("debian_slim", python_version="3.12"), step("pip_install", packages=["a"])))
    again = ids(recipe(step("debian_slim", python_version="3.12"), step("pip_install", packages=["a"])))
    other = ids(recipe(step("debian_slim", python_version="3.12"), step("pip_install", packages=["b"])))
    assert first == again
    assert first[0] == other[0]
    assert first[1] != other[1]


def test_the_same_step_on_another_base_is_another_layer() -> None:
    on_11 = ids(recipe(step("debian_slim", python_version="3.11"), step("pip_install", packages=["a"])))
    on_12 = ids(recipe(step("debian_slim", python_version="3.12"), step("pip_install", packages=["a"])))
    assert not set(on_11) & set(on_12)


def test_the_platform_counts() -> None:
    spec = recipe(step("debian_slim"))
    assert ids(spec) != ids(spec, "linux-aarch64")


def test_the_contents_of_files_count_and_their_places_do_not() -> None:
    def of(digest: str, root: str, path: str) -> list[str]:
        return ids(recipe(step("pip_install_from_requirements", LocalFiles(digest, root), path=path)))

    assert of("d1", "/a", "/home/ann/requirements.txt") == of("d1", "/b", "/home/bob/requirements.txt")
    assert of("d1", "/a", "/home/ann/requirements.txt") != of("d2", "/a", "/home/ann/requirements.txt")


def test_a_wish_to_build_anew_and_secrets_are_no_part_of_an_id() -> None:
    plain = ids(recipe(step("pip_install", packages=["a"])))
    assert ids(recipe(step("pip_install", packages=["a"], force_build=True))) == plain
    assert ids(recipe(step("pip_install", packages=["a"], secrets=[{"id": "sc-1"}]))) == plain


def test_a_recipe_without_a_base_begins_with_debian() -> None:
    found = plan(recipe(step("pip_install", packages=["a"])), "p", lambda natural, forced: "")
    assert [(planned.step.kind, planned.position) for planned in found.steps] == [
        ("debian_slim", -1),
        ("pip_install", 0),
    ]


def test_what_is_added_when_containers_start_is_no_step() -> None:
    spec = recipe(step("debian_slim"), step("add_local_dir", remote_path="/a"), step("env", vars={"A": "1"}))
    assert [planned.step.kind for planned in plan(spec, "p", lambda natural, forced: "").steps] == [
        "debian_slim",
        "env",
    ]
    copied = recipe(step("debian_slim"), step("add_local_dir", remote_path="/a", copy=True))
    assert len(plan(copied, "p", lambda natural, forced: "").steps) == 2


def test_a_forced_step_gives_new_ids_to_itself_and_all_after_it() -> None:
    spec = recipe(
        step("debian_slim"), step("pip_install", packages=["a"], force_build=True), step("env", vars={"A": "1"})
    )
    before = ids(spec)
    forced = plan(spec, "linux-x86_64", lambda natural, forced: "salt" if forced else "")
    assert [planned.id == id for planned, id in zip(forced.steps, before, strict=True)] == [True, False, False]
    natural = forced.steps[1].natural
    later = recipe(step("debian_slim"), step("pip_install", packages=["a"]), step("env", vars={"A": "1"}))
    assert ids(later, salts={natural: "salt"}) == [planned.id for planned in forced.steps], "later builds find it"


def test_the_image_is_named_by_its_last_step() -> None:
    found = plan(recipe(step("debian_slim")), "p", lambda natural, forced: "")
    assert found.image == f"im-{found.steps[-1].id}"


def test_titles_are_short_and_show_no_values_of_variables() -> None:
    assert title_of(step("pip_install", packages=["numpy", "fastapi"])) == "pip_install numpy fastapi"
    assert title_of(step("env", vars={"TOKEN": "very secret"})) == "env TOKEN"
    long = title_of(step("pip_install", packages=["package-with-a-long-name"] * 9))
    assert len(long) == 60
    assert long.endswith("…")
