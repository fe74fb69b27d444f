"""`Secret` before an app starts, and what becomes of it then: references in specs, values at the server."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from msgspec import structs

import kedge
from kedge.exception import AlreadyExistsError, ExecutionError, InvalidError, NoEffectWarning, NotFoundError
from kedge.model.spec import FunctionSpec, ImageSpec, ImageStep, SecretRef
from kedge.sdk import client as client_module
from kedge.sdk import context, secret
from kedge.sdk.client import Client
from tests.cli.live import Live

VALUE = "val-of-nobodys-business"
from_dict: Any = kedge.Secret.from_dict
app: Any = kedge.App


@pytest.fixture
def in_container() -> Iterator[None]:
    context.set_container(app_id="ap-1", app_name="demo")
    yield
    context.clear_container()


class Keeper:
    """A server that only remembers."""

    def __init__(self) -> None:
        self.kept: list[dict[str, str]] = []

    def __call__(self, values: dict[str, str]) -> str:
        self.kept.append(values)
        return f"sc-{len(self.kept)}"


def bound(made: kedge.Secret) -> dict[str, str]:
    """The values that a server would get."""
    keeper = Keeper()
    secret.bind(made.reference, keeper)
    return keeper.kept[0]


def spec_of(**settings: Any) -> FunctionSpec:
    @kedge.App("demo", secrets=settings.pop("of_app", ())).function(serialized=True, **settings)
    def plain() -> None: ...

    return plain.spec


def test_a_named_secret_is_only_a_name() -> None:
    made = kedge.Secret.from_name("openai", required_keys=["KEY"], environment_name="staging")
    assert made.reference == SecretRef(name="openai", environment="staging", required_keys=("KEY",))
    assert (made.name, repr(made)) == ("openai", "Secret 'openai'")
    keeper = Keeper()
    assert secret.bind(made.reference, keeper) is made.reference
    assert keeper.kept == []


def test_values_of_a_dict_go_to_the_server_and_nowhere_else() -> None:
    made = kedge.Secret.from_dict({"KEY": VALUE, "LEFT_OUT": None})
    assert repr(made) == "Secret of a dict with KEY"
    assert VALUE not in repr(made) + str(made) + repr(made.reference) + str(vars(made))
    assert VALUE.encode() not in pickle.dumps(made) + cloudpickle.dumps(made)
    assert bound(made) == {"KEY": VALUE}


def test_specs_hold_references_and_each_secret_is_read_once() -> None:
    of_app, own = kedge.Secret.from_dict({"A": VALUE}), kedge.Secret.from_dict({"B": VALUE})
    named = kedge.Secret.from_name("c")
    first, second = spec_of(of_app=[of_app], secrets=[own, named]), spec_of(of_app=[of_app])
    assert VALUE not in repr((first, second))
    keeper = Keeper()
    one, two = secret.bind_specs((first, second), keeper)
    assert one.secrets == (SecretRef(id="sc-1"), SecretRef(id="sc-2"), SecretRef(name="c"))
    assert two.secrets == (SecretRef(id="sc-1"),)
    assert keeper.kept == [{"A": VALUE}, {"B": VALUE}]
    plain = spec_of()
    assert secret.bind_specs((plain,), keeper)[0] is plain


def test_values_of_this_process_can_be_handed_to_the_one_that_deploys() -> None:
    spec = spec_of(secrets=[kedge.Secret.from_dict({"A": VALUE})])
    values = secret.values_in((spec,))
    (id,) = values
    del secret._of_this_process[id]
    with pytest.raises(ExecutionError, match="a secret of another process was passed on before its values were at a"):
        secret.bind_specs((spec,), Keeper())
    secret.adopt(values)
    keeper = Keeper()
    secret.bind_specs((spec,), keeper)
    assert keeper.kept == [{"A": VALUE}]


def test_a_secret_is_no_ordinary_variable_as_well() -> None:
    spec = spec_of(secrets=[kedge.Secret.from_dict({"A": VALUE, "B": "1"})])
    step = ImageStep("pip_install", (("secrets", '[{"id":"' + spec.secrets[0].id + '"}]'),))
    of_image = structs.replace(spec_of(), image=ImageSpec(steps=(step,)))
    variables = (("A", VALUE), ("B", "2"), ("C", "3"))
    for specs in ((spec,), (of_image,)):
        assert secret.without(variables, specs) == (("B", "2"), ("C", "3"))
    assert secret.without(variables, (spec_of(),)) is variables


def test_a_dotenv_file_is_found_upwards_and_read_when_the_app_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    made = kedge.Secret.from_dotenv()
    (tmp_path / ".env").write_text(f'KEY={VALUE}\nexport OTHER="two words" # why\n')
    assert bound(made) == {"KEY": VALUE, "OTHER": "two words"}
    (tmp_path / "a" / "test.env").write_text("KEY=test\n")
    monkeypatch.chdir("/")
    assert bound(kedge.Secret.from_dotenv(str(below / "app.py"), filename="test.env")) == {"KEY": "test"}
    with pytest.warns(
        NoEffectWarning, match=r"there is no nothing.env at .* or above, so this secret has no variables"
    ):
        assert bound(kedge.Secret.from_dotenv(below, filename="nothing.env")) == {}


def test_variables_of_this_process_are_read_where_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", VALUE)
    made = kedge.Secret.from_local_environ(["A_KEY"])
    monkeypatch.delenv("A_KEY")
    assert bound(made) == {"A_KEY": VALUE}
    with pytest.raises(InvalidError, match="A_KEY is not set in this process; set it before the program starts"):
        kedge.Secret.from_local_environ(["A_KEY"])


@pytest.mark.usefixtures("in_container")
def test_a_container_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    kedge.Secret.from_name("openai", required_keys=["KEY"])
    assert bound(kedge.Secret.from_local_environ(["A_KEY"])) == {}
    (tmp_path / ".env").write_text("KEY=1\n")
    assert bound(kedge.Secret.from_dotenv()) == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kedge.Secret.from_name("a b"), "Secret.from_name: name may hold letters"),
        (
            lambda: from_dict({"A": 1}),
            "the value of 'A' is a value of type int; environment variables are",
        ),
        (lambda: kedge.Secret.from_dict({"A=B": VALUE}), "'A=B' cannot be the name of an environment variable"),
        (lambda: kedge.Secret.from_dict({"A": VALUE + "\0"}), "the value of 'A' holds a null character"),
        (
            lambda: from_dict([VALUE]),
            "Secret.from_dict takes a dict of strings, .* not a value of type list",
        ),
        (lambda: spec_of(secrets=kedge.Secret.from_name("a")), r"secrets is a list, such as \[kedge.Secret.from_name"),
        (
            lambda: spec_of(secrets=[VALUE]),
            r"secrets holds a value of type str; write kedge.Secret.from_name\('NAME'\)",
        ),
        (lambda: app("x", secrets={"A": VALUE}), "App: secrets is a list, .* not a value of type dict"),
        (
            lambda: kedge.Secret.from_dict({}).info(),
            "Secret.info is for secrets that have a name; this one is Secret of a",
        ),
    ],
)
def test_misuse_is_refused_without_showing_values(make: Any, message: str) -> None:
    with pytest.raises(InvalidError, match=message) as caught:
        make()
    assert VALUE not in str(caught.value)


def test_named_ones_are_made_listed_changed_and_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEDGE_ENVIRONMENT", raising=False)
    monkeypatch.setenv("KEDGE_CONFIG", str(tmp_path / "none.toml"))
    with Live(tmp_path / "home") as live:
        client = Client.connect(live.shell.path)
        client_module.use(client)
        objects = kedge.Secret.objects
        objects.create("openai", {"KEY": VALUE})
        with pytest.raises(AlreadyExistsError):
            objects.create("openai", {"KEY": "other"})
        objects.create("openai", {"KEY": "other"}, allow_existing=True)
        made = kedge.Secret.from_name("openai")
        made.update({"ORG": "us"})
        info = made.info()
        assert (info.name, info.keys, info.updated_at >= info.created_at) == ("openai", ("KEY", "ORG"), True)
        assert live.shell.vault.values(made.reference, "main") == {"KEY": VALUE, "ORG": "us"}
        assert [one.name for one in objects.list()] == ["openai"]
        objects.delete("openai")
        objects.delete("openai", allow_missing=True)
        with pytest.raises(NotFoundError, match="there is no secret 'openai'"):
            objects.delete("openai")
        client.close()


def test_the_old_module_path_still_has_it() -> None:
    from kedge.sdk import alias

    alias.install()
    try:
        import modal.secret  # type: ignore[import-not-found]

        assert modal.secret.Secret is kedge.Secret
    finally:
        alias.uninstall()
