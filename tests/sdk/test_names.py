"""The names of the package: what is there, what comes later, what is spelled the old way, and `import modal`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import kedge
from kedge import exception, gpu
from kedge.exception import DeprecationError, InvalidError, UnavailableError
from kedge.sdk import alias

module: Any = kedge


def test_every_public_name_exists() -> None:
    for name in kedge.__all__:
        assert getattr(kedge, name) is not None
    assert sorted(kedge.__all__) == sorted(set(kedge.__all__))
    assert set(dir(kedge)) >= set(kedge.__all__)


def test_what_comes_later_imports_and_says_so_when_used() -> None:
    from kedge import NetworkFileSystem, Sandbox

    with pytest.raises(UnavailableError, match=r"kedge.Sandbox.create does not exist in this version of kedge yet"):
        Sandbox.create("ls")
    with pytest.raises(UnavailableError, match=r"kedge.SandboxSnapshot does not exist"):
        module.SandboxSnapshot()
    with pytest.raises(UnavailableError, match=r"kedge.NetworkFileSystem.listdir .* Use kedge.Volume.from_name"):
        NetworkFileSystem.from_name("shared").listdir("/")
    assert not isinstance(3, Sandbox)
    assert module.Sandbox is Sandbox
    with pytest.raises(UnavailableError, match=r"kedge.forward .* its ports can be reached directly"):
        module.forward(8000)


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(
        AttributeError, match=r"module 'kedge' has no attribute 'concurent'. Did you mean 'concurrent'\?"
    ):
        _ = module.concurent


def test_stub_is_an_app() -> None:
    with pytest.warns(DeprecationError, match=r"kedge.Stub is an old spelling; write kedge.App") as caught:
        assert module.Stub is kedge.App
    assert caught[0].filename == __file__


def test_gpu_objects_are_strings() -> None:
    old: Any = gpu
    with pytest.warns(DeprecationError, match='write gpu="A10G:2"'):
        assert old.A10G(count=2) == "A10G:2"
    with pytest.warns(DeprecationError):
        assert (old.H100(), old.Any(), old.A100(size="80GB", count=2)) == ("H100", "ANY", "A100-80GB:2")
    with pytest.raises(InvalidError, match="size is '40GB' or '80GB', not '60GB'; write gpu='A100-80GB'"):
        gpu.A100(size="60GB")
    with pytest.raises(AttributeError, match=r"kedge.gpu has no 'H1000'. Did you mean 'H100'\?"):
        _ = old.H1000


def test_exceptions_have_the_relations_that_programs_rely_on() -> None:
    assert issubclass(exception.FunctionTimeoutError, exception.TimeoutError)
    assert not issubclass(exception.FunctionTimeoutError, TimeoutError)
    assert not issubclass(exception.InputCancellation, Exception)
    assert issubclass(exception.InputTimeout, exception.InputCancellation)
    assert issubclass(exception.DeprecationError, UserWarning)
    assert issubclass(exception.ImageBuildError, exception.RemoteError)
    for value in vars(exception).values():
        if isinstance(value, type) and issubclass(value, BaseException):
            assert value.__doc__, f"{value.__name__} says nothing about what it means"


@pytest.fixture
def _alias() -> Iterator[None]:
    alias.install()
    yield
    alias.uninstall()


@pytest.mark.usefixtures("_alias")
def test_import_modal_means_kedge_and_makes_no_second_copy() -> None:
    import modal  # type: ignore[import-not-found]
    import modal.exception  # type: ignore[import-not-found]
    import modal.experimental  # type: ignore[import-not-found]
    from modal import App, gpu  # noqa: F401
    from modal.exception import InvalidError as Aliased

    assert modal is kedge
    assert App is kedge.App
    assert Aliased is InvalidError
    assert modal.exception is exception
    assert exception.__name__ == "kedge.exception"
    assert exception.__spec__.name == "kedge.exception"
    assert sys.modules["modal.experimental"] is sys.modules["kedge.experimental"]
    for name in alias.SUBMODULES:
        __import__(f"modal.{name}")
        assert sys.modules[f"modal.{name}"] is sys.modules[alias.SUBMODULES[name]]
    for name in ("App", "Cls", "Dict", "Image", "Queue", "Secret", "Volume"):
        assert getattr(sys.modules[f"modal.{name.lower()}"], name) is getattr(kedge, name)
    with pytest.raises(ModuleNotFoundError, match=r"modal.nothing has no counterpart in kedge"):
        import modal.nothing  # type: ignore[import-not-found]


def test_the_alias_wins_over_an_installed_package(tmp_path: Any) -> None:
    package = tmp_path / "modal"
    package.mkdir()
    (package / "__init__.py").write_text("App = 'real'\n")
    (package / "exception.py").write_text("InvalidError = 'real'\n")
    program = (
        "import modal, modal.exception; assert modal.App == 'real'\n"
        "from kedge.sdk import alias; alias.install(); alias.install()\n"
        "import modal, modal.exception, kedge, sys\n"
        "assert modal is kedge and modal.exception.InvalidError is kedge.exception.InvalidError\n"
        "assert sum(type(f).__name__ == 'AliasFinder' for f in sys.meta_path) == 1\n"
        "alias.uninstall(); import modal; assert modal.App == 'real'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, timeout=60)


def test_import_kedge_loads_nothing_that_only_calls_need() -> None:
    heavy = "asyncio socket logging sqlite3 cloudpickle kedge.sdk.invocation kedge.sdk.serializer kedge.wire.transport"
    program = f"import sys, kedge; print(*[name for name in {heavy.split()!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == []
