"""`kedge secret`: values go in, and never come out."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedge.cli import confirm
from kedge.model.spec import SecretRef
from tests.cli.live import Live

VALUE = "val-of-nobodys-business"


def values(live: Live, name: str, environment: str = "main") -> dict[str, str]:
    return live.shell.vault.values(SecretRef(name=name), environment)


def test_there_are_none(live: Live) -> None:
    assert live.run("secret", "list").stdout == (
        "There are no secrets in the environment 'main'. `kedge secret create NAME KEY=VALUE` makes one.\n"
    )


def test_a_secret_is_made_and_listed_without_its_values(live: Live) -> None:
    made = live.run("secret", "create", "openai", f"KEY={VALUE}", "ORG=us=east")
    assert made.stdout == "The secret openai has KEY, ORG.\n"
    assert '@app.function(secrets=[kedge.Secret.from_name("openai")])' in made.stderr
    assert values(live, "openai") == {"KEY": VALUE, "ORG": "us=east"}
    listed = live.run("secret", "list")
    assert listed.stdout.splitlines()[1].split()[:3] == ["openai", "KEY,", "ORG"]
    assert VALUE not in made.output + listed.output + str(live.json("secret", "list"))
    assert live.json("secret", "list", "-e", "staging") == []


def test_values_come_from_standard_input(live: Live) -> None:
    assert live.run("secret", "create", "one", "KEY=-", input=f"{VALUE}\n").exit_code == 0
    assert values(live, "one") == {"KEY": VALUE}
    assert live.run("secret", "create", "two", "A=-", "B=2", "C=-", input="first\nthird\n").exit_code == 0
    assert values(live, "two") == {"A": "first", "B": "2", "C": "third"}
    wrong = live.run("secret", "create", "three", "A=-", "B=-", input=f"{VALUE}\n")
    assert wrong.exit_code == 2
    assert "standard input has 1 lines, for 2 values (A, B)" in wrong.stderr
    assert VALUE not in wrong.output


def test_on_a_terminal_values_are_asked_for(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confirm, "at_a_terminal", lambda: True)
    made = live.run("secret", "create", "one", "KEY=-", input=f"{VALUE}\n")
    assert values(live, "one") == {"KEY": VALUE}
    assert "KEY:" in made.stderr
    assert VALUE not in made.output


def test_values_come_from_files(live: Live, tmp_path: Path) -> None:
    env, json = tmp_path / ".env", tmp_path / "values.json"
    env.write_text(f"KEY={VALUE}\nA=1\n")
    json.write_text('{"B": "2"}')
    words = ("--from-dotenv", str(env), "--from-json", str(json), "A=3")
    assert live.run("secret", "create", "files", *words).exit_code == 0
    assert values(live, "files") == {"KEY": VALUE, "A": "3", "B": "2"}
    assert live.run("secret", "create", "stdin", "--from-json", "-", input='{"C": "4"}').exit_code == 0
    assert values(live, "stdin") == {"C": "4"}


@pytest.mark.parametrize(
    ("words", "text", "code"),
    [
        (("a",), "a secret has variables: write KEY=VALUE, KEY=-, --from-dotenv or --from-json", 2),
        (("a", VALUE), "argument 1 after NAME is not KEY=VALUE (it is not shown: it may be a value)", 2),
        (("a", "--from-json", "BROKEN"), "BROKEN is no JSON (line 1)", 1),
        (("a", "--from-json", "LIST"), "LIST must hold an object of strings", 1),
        (("a", "--from-json", "nothing"), "nothing cannot be read: No such file", 1),
        (("a", "--from-dotenv", "nothing"), "--from-dotenv: there is no file nothing", 1),
        (("a b", "A=1"), "NAME may hold letters", 1),
        (("a", "A=-", "--from-json", "-"), "standard input is read by --from-json - already", 2),
    ],
)
def test_mistakes_do_not_echo_values(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], text: str, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "BROKEN").write_text(f'{{"A": "{VALUE}')
    (tmp_path / "LIST").write_text(f'["{VALUE}"]')
    result = live.run("secret", "create", *words, input='{"B": "1"}')
    assert (result.exit_code, text in result.stderr) == (code, True), result.output
    assert VALUE not in result.output
    assert live.json("secret", "list") == []


def test_one_that_is_there_is_replaced_by_force(live: Live) -> None:
    live.run("secret", "create", "a", "A=1")
    again = live.run("secret", "create", "a", "B=2")
    assert (again.exit_code, "there is a secret 'a' in the environment 'main' already; --force" in again.stderr) == (
        1,
        True,
    )
    assert live.run("secret", "create", "--force", "a", "B=2").exit_code == 0
    assert values(live, "a") == {"B": "2"}


def test_deleting(live: Live) -> None:
    live.run("secret", "create", "a", "A=1", "-e", "staging")
    assert live.run("secret", "delete", "-y", "a").stderr == (
        "Error: there is no secret 'a' in the environment 'main'. There are none\n"
    )
    assert live.run("secret", "delete", "-y", "aa", "-e", "staging").stderr == (
        "Error: there is no secret 'aa' in the environment 'staging'. Did you mean 'a'? There are a\n"
    )
    assert live.run("secret", "delete", "-y", "--allow-missing", "a").stdout == "There is no secret a.\n"
    assert "--yes (-y) says that you mean it" in live.run("secret", "delete", "a", "-e", "staging").stderr
    assert live.run("secret", "delete", "-y", "a", "-e", "staging").stdout == "a has been deleted.\n"
    assert live.json("secret", "list", "-e", "staging") == []
