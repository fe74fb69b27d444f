"""Secrets with real containers: code finds them, and nothing that is kept or shown does."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.commands import Place, eventually, place

pytestmark = pytest.mark.slow

DICT, NAMED, DOTENV = "val-dict-7f3a", "val-named-7f3a", "val-dotenv-7f3a"
LOCAL, LATER = "val-local-7f3a", "val-later-7f3a"
VALUES = (DICT, NAMED, DOTENV, LOCAL, LATER)

APP = """
import hashlib, os
import kedge

SEED = "not here"
if kedge.is_local():
    with open("seed") as file:
        SEED = file.read()

app = kedge.App("bank", secrets=[kedge.Secret.from_name("vault", required_keys=["NAMED"])])

def digests() -> dict[str, str]:
    return {
        name: hashlib.sha256(os.environ[name].encode()).hexdigest()
        for name in ("DICT", "NAMED", "DOTENV", "LOCAL", "LATER", "OWN") if name in os.environ
    }

@app.function(
    secrets=[
        kedge.Secret.from_dict({"DICT": SEED, "OWN": "secret"}),
        kedge.Secret.from_dotenv(),
        kedge.Secret.from_local_environ(["LOCAL"]),
    ],
    env={"OWN": "env"},
)
def look() -> dict[str, str]:
    return digests()

@app.function(secrets=[kedge.Secret.from_dict({"DICT": SEED})])
def fail() -> None:
    raise RuntimeError("it went wrong")

@app.cls()
class Teller:
    number: int = kedge.parameter()

    @kedge.method()
    def look(self) -> dict[str, str]:
        return Teller(number=2).look.remote() if self.number == 1 else digests()

@app.function()
def with_more() -> dict[str, str]:
    return look.with_options(secrets=[kedge.Secret.from_dict({"LATER": "-".join(["val", "later", "7f3a"])})]).remote()
"""

CALL = """
import json, sys, kedge
print(json.dumps([
    kedge.Function.from_name("bank", "look").remote(),
    kedge.Cls.from_name("bank", "Teller")(number=1).look.remote(),
    kedge.Function.from_name("bank", "with_more").remote(),
]))
"""


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path, LOCAL=LOCAL) as made:
        made.write("app.py", APP)
        made.write("seed", DICT)
        made.write(".env", f"DOTENV={DOTENV}\n")
        yield made


def sha(value: str) -> str:
    import hashlib

    return hashlib.sha256(value.encode()).hexdigest()


def everything_kept(home: Path) -> bytes:
    """All files of a state directory, its logs among them; rotated and write-ahead ones too."""
    return b"\n".join(path.read_bytes() for path in home.rglob("*") if path.is_file())


def check(bank: Place) -> None:
    look, teller, with_more = json.loads(bank.program(CALL))
    own = {"DICT": sha(DICT), "DOTENV": sha(DOTENV), "LOCAL": sha(LOCAL)}
    assert look == {**own, "NAMED": sha(NAMED), "OWN": sha("env")}
    assert teller == {"NAMED": sha(NAMED)}
    assert with_more == {"LATER": sha(LATER), "OWN": sha("env")}


def test_containers_have_them_and_nothing_else_has_them_also_after_the_server_was_killed(bank: Place) -> None:
    home = Path(bank.variables["KEDGE_HOME"])
    shown = bank.kedge("deploy", "app.py", code=1)
    assert "there is no secret 'vault' in the environment 'main'" in shown.stderr
    bank.kedge("secret", "create", "vault", "OTHER=1")
    shown = bank.kedge("deploy", "app.py", code=1)
    assert "has no NAMED, which required_keys asks for; it has OTHER" in shown.stderr
    bank.kedge("secret", "create", "--force", "vault", f"NAMED={NAMED}")
    bank.kedge("deploy", "app.py")
    check(bank)
    failed = bank.python("-c", "import kedge; kedge.Function.from_name('bank', 'fail').remote()", code=1)
    container = json.loads(bank.kedge("container", "list", "--json").stdout)[0]["container"]
    inside = bank.kedge("container", "exec", container, "--", "env")
    assert f"NAMED={NAMED}" in inside.stdout
    views = (
        ("app", "list", "--json"),
        ("app", "info", "bank", "--json"),
        ("function", "list", "--json"),
        ("function", "info", "bank/look", "--json"),
        ("container", "list", "--json"),
        ("secret", "list", "--json"),
        ("logs", "bank"),
        ("server", "status"),
        ("server", "logs"),
    )
    texts = [failed.stdout, failed.stderr]
    for words in views:
        done = bank.kedge(*words, code=None)
        texts += [done.stdout, done.stderr]
    assert not [value for value in VALUES if value in "\n".join(texts)]
    assert not [value for value in VALUES if value.encode() in everything_kept(home)]

    process = json.loads((home / "server" / "server.json").read_text())["process"]
    os.kill(process, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(process))
    assert not [value for value in VALUES if value.encode() in everything_kept(home)]
    bank.kedge("server", "start")
    check(bank)
    assert not [value for value in VALUES if value.encode() in everything_kept(home)]


def test_a_run_brings_its_own(bank: Place) -> None:
    bank.kedge("server", "start")
    bank.kedge("secret", "create", "vault", "NAMED=-", code=2)  # nothing came in
    bank.kedge("secret", "create", "vault", f"NAMED={NAMED}")
    shown = bank.kedge("run", "app.py::look")
    assert sha(DICT) in shown.stdout
    kept = everything_kept(Path(bank.variables["KEDGE_HOME"]))
    assert not [value for value in VALUES if value.encode() in kept]


def test_what_is_served_has_them(bank: Place) -> None:
    bank.kedge("server", "start")
    bank.kedge("secret", "create", "vault", f"NAMED={NAMED}")
    with bank.running("serve", "app.py") as serving:
        serving.says("is served after")
        found = bank.kedge("run", "app.py::look")
        assert sha(DICT) in found.stdout
        assert DICT not in serving.output
