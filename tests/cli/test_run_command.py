"""`kedge run`: what it finds in a file, what it calls with what, and what it says where that does not work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from kedge.sdk.app_run import AppRun
from tests.cli.conftest import Calls

Run = Callable[..., Result]

APP = """
import kedge
app = kedge.App("demo")
"""
SQUARE = (
    APP
    + """
@app.function()
def square(x: int, *, exact: bool = True) -> int:
    "Squares a number."
"""
)
TWO = (
    SQUARE
    + """
@app.function()
def cube(x: int) -> int: ...
"""
)
MAIN = (
    TWO
    + """
@app.local_entrypoint()
def main(count: int = 2, name: str = "x"):
    "Does it all."
    print("main", count, name)
    return f"result {count}"
"""
)
MODEL = (
    APP
    + """
@app.cls()
class Model:
    size: str = kedge.parameter()
    fast: bool = kedge.parameter(default=False)

    @kedge.method()
    def generate(self, prompt: str, length: int = 10) -> str: ...

    @kedge.method()
    def clash(self, size: str) -> str: ...
"""
)


def test_the_only_function_is_run_with_its_options(kedge_run: Run, remote_calls: Calls) -> None:
    result = kedge_run(SQUARE, "script.py", "--x", "3", "--no-exact")
    assert result.exit_code == 0, result.output
    assert remote_calls == [("square", (), {"x": 3, "exact": False})]
    assert "{'answer': 42}" in result.stdout


def test_a_local_entrypoint_comes_before_functions(kedge_run: Run, remote_calls: Calls) -> None:
    result = kedge_run(MAIN, "script.py", "--count", "5")
    assert result.exit_code == 0, result.output
    assert result.stdout == "main 5 x\n"
    assert remote_calls == []


def test_a_function_can_be_named_beside_an_entrypoint(kedge_run: Run, remote_calls: Calls) -> None:
    for reference in ("script.py::cube", "script.py::app.cube"):
        assert kedge_run(MAIN, reference, "--x", "2").exit_code == 0
    assert remote_calls == [("cube", (), {"x": 2})] * 2


def test_an_async_entrypoint_is_run_to_its_end(kedge_run: Run) -> None:
    source = APP + (
        "import asyncio\n@app.local_entrypoint()\nasync def main():\n    await asyncio.sleep(0)\n    print('ran')\n"
    )
    assert kedge_run(source, "script.py").stdout == "ran\n"


def test_a_method_takes_the_parameters_of_its_class_as_options(kedge_run: Run, remote_calls: Calls) -> None:
    result = kedge_run(MODEL, "script.py::Model.generate", "--size", "large", "--fast", "--prompt", "Hi")
    assert result.exit_code == 0, result.output
    ((name, args, kwargs),) = remote_calls
    assert name.startswith("Model@")
    assert name.endswith(".generate")
    assert (args, kwargs) == ((), {"prompt": "Hi", "length": 10})


def test_help_shows_the_options_and_the_docstring(kedge_run: Run, remote_calls: Calls) -> None:
    result = kedge_run(SQUARE, "script.py", "--help")
    assert result.exit_code == 0
    for text in ("kedge run script.py", "Squares a number.", "--x INTEGER", "--exact / --no-exact"):
        assert text in result.output
    assert remote_calls == []


def test_star_args_gets_the_words_as_they_are(kedge_run: Run) -> None:
    source = APP + "@app.local_entrypoint()\ndef main(*words):\n    print(words)\n"
    result = kedge_run(source, "script.py", "--anything", "-x", "7", "--help")
    assert result.stdout == "('--anything', '-x', '7', '--help')\n"


def test_the_module_is_the_one_in_sys_modules(kedge_run: Run) -> None:
    source = APP + (
        "import sys, helper\n@app.local_entrypoint()\ndef main():\n"
        "    print(__name__, sys.modules['script'].app is app, sys.path[0] == helper.HERE)\n"
    )
    Path("helper.py").write_text("import os\nHERE = os.path.dirname(os.path.abspath(__file__))\n")
    assert kedge_run(source, "script.py").stdout == "script True True\n"


def test_a_module_is_run_by_its_name(kedge_run: Run) -> None:
    Path("package").mkdir()
    Path("package/__init__.py").touch()
    Path("package/tool.py").write_text(MAIN)
    assert kedge_run(None, "-m", "package.tool::main").stdout == "main 2 x\n"


def test_import_modal_means_kedge_unless_told_otherwise(kedge_run: Run) -> None:
    source = "import modal, kedge\napp = modal.App()\n@app.local_entrypoint()\ndef main():\n    print(modal is kedge)\n"
    assert kedge_run(source, "script.py").stdout == "True\n"


def test_without_the_alias_modal_is_whatever_is_installed(kedge_run: Run) -> None:
    result = kedge_run("import modal\n", "--no-alias", "script.py")
    assert result.exit_code == 2
    assert "No module named 'modal'" in result.stderr


# ---------------------------------------------------------------- results


def test_results_can_be_written_to_a_file(kedge_run: Run) -> None:
    result = kedge_run(MAIN, "-w", "out.txt", "script.py::main")
    assert result.exit_code == 0
    assert Path("out.txt").read_text() == "result 2"


def test_a_result_that_is_no_text_is_not_written(kedge_run: Run) -> None:
    result = kedge_run(SQUARE, "-w", "out.txt", "script.py", "--x", "1")
    assert result.exit_code == 1
    assert "--write-result writes str or bytes, and square gave dict" in result.stderr
    assert not Path("out.txt").exists()


def test_quiet_leaves_only_what_the_program_prints_itself(kedge_run: Run) -> None:
    result = kedge_run(MAIN, "-q", "script.py")
    assert (result.stdout, result.stderr) == ("main 2 x\n", "")
    assert kedge_run(MAIN, "script.py").stderr.startswith("kedge: Done after ")


# ---------------------------------------------------------------- what cannot be run


def refused(result: Result, *texts: str) -> None:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    for text in texts:
        assert text in result.stderr


def test_several_candidates_are_listed(kedge_run: Run) -> None:
    refused(
        kedge_run(TWO, "script.py", "--x", "1"),
        "script.py has several things to run; choose one:",
        "    kedge run script.py::square\n    kedge run script.py::cube\n",
    )


def test_an_unknown_name_gets_the_nearest(kedge_run: Run) -> None:
    refused(
        kedge_run(TWO, "script.py::sqare"),
        "script.py has no 'sqare' to run. Did you mean 'square'?",
        "    kedge run script.py::cube\n",
    )


def test_a_class_without_a_method_lists_its_methods(kedge_run: Run) -> None:
    refused(kedge_run(MODEL, "script.py::Model"), "Model is a class; choose a method:", "script.py::Model.generate\n")


def test_a_file_without_an_app_shows_one_that_has(kedge_run: Run) -> None:
    refused(kedge_run("print('hello')\n", "script.py"), "script.py has no kedge.App.", "    @app.function()\n")


def test_an_app_without_functions_says_what_is_missing(kedge_run: Run) -> None:
    refused(kedge_run(APP, "script.py"), "has nothing to run; add @app.function() or @app.local_entrypoint().")


def test_a_missing_file_gets_the_nearest(kedge_run: Run) -> None:
    refused(kedge_run(SQUARE, "scrip.py"), "there is no file 'scrip.py'. Did you mean 'script.py'?")
    refused(kedge_run(None, "script"), "there is no file 'script'. Did you mean 'script.py'?")
    refused(
        kedge_run(None, "package.tool::main"), "there is no file 'package.tool'.", "kedge run -m package.tool::main"
    )


def test_a_missing_module_is_said_so(kedge_run: Run) -> None:
    refused(kedge_run(None, "-m", "no_such.module"), "there is no module 'no_such.module'")
    refused(kedge_run(SQUARE, "-m", "script.py"), "-m takes the name of a module", "'script.py' is a file")


def test_a_file_that_hides_a_module_is_refused(kedge_run: Run) -> None:
    Path("queue.py").write_text(SQUARE)
    refused(kedge_run(None, "queue.py"), "queue.py has the name of the module 'queue'", "rename the file")
    assert sys.modules["queue"].__file__ != str(Path("queue.py").resolve())


def test_references_that_end_nowhere(kedge_run: Run) -> None:
    refused(
        kedge_run(SQUARE, "script.py::"), "'script.py::' ends with '::'; write script.py::NAME, or script.py alone."
    )
    refused(kedge_run(None, "::main"), "'::main' names no file; write file.py::main.")


def test_a_generator_is_refused_with_the_entrypoint_to_write(kedge_run: Run) -> None:
    source = APP + "@app.function()\ndef count(n: int):\n    yield n\n"
    refused(
        kedge_run(source, "script.py", "--n", "1"),
        "count is a generator, and kedge run prints one result.",
        "for value in count.remote_gen():",
    )


PAGE = """
@app.function()
@kedge.asgi_app()
def page(): ...
"""


def test_a_web_function_alone_is_shown_how_to_be_served(kedge_run: Run) -> None:
    result = kedge_run(APP + PAGE, "script.py")
    assert result.exit_code == 2
    assert "page answers HTTP requests (@kedge.asgi_app), so there is no call of it to run." in result.stderr
    assert "`kedge serve script.py`; to let it live on: `kedge deploy script.py`." in result.stderr
    assert "`kedge deploy -m script`" in kedge_run(None, "-m", "script::page").stderr


def test_beside_a_web_function_the_other_one_is_run(kedge_run: Run, remote_calls: Calls) -> None:
    assert kedge_run(SQUARE + PAGE, "script.py", "--x", "3").exit_code == 0
    assert remote_calls == [("square", (), {"x": 3, "exact": True})]


def test_a_scheduled_function_runs_once(kedge_run: Run, remote_calls: Calls) -> None:
    source = APP + "@app.function(schedule=kedge.Period(days=1))\ndef tick(): ...\n"
    result = kedge_run(source, "script.py")
    assert remote_calls == [("tick", (), {})]
    assert "tick runs once now; its schedule counts when the app is deployed" in result.stderr


def test_the_environment_reaches_the_run(kedge_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str | None] = []
    enter = AppRun.__enter__

    def entered(run: AppRun) -> object:
        found.append(run._environment)
        return enter(run)

    monkeypatch.setattr(AppRun, "__enter__", entered)
    assert kedge_run(MAIN, "--env", "staging", "script.py").exit_code == 0
    assert found == ["staging"]


def test_a_parameter_of_class_and_method_alike_is_refused(kedge_run: Run) -> None:
    refused(kedge_run(MODEL, "script.py::Model.clash"), "Model.clash and its class both have a parameter 'size'")


def test_positional_arguments_are_shown_how_to_be_named(kedge_run: Run) -> None:
    refused(kedge_run(SQUARE, "script.py", "3"), "'3' stands alone; arguments are given by name: --x 3")


def test_own_options_after_the_file_are_shown_their_place(kedge_run: Run) -> None:
    refused(
        kedge_run(SQUARE, "script.py", "-q"),
        "square has no option -q. Options of kedge run itself stand before the file: kedge run -q script.py",
    )


# ---------------------------------------------------------------- code of the user that fails


def test_an_import_that_fails_shows_the_users_frames_only(kedge_run: Run) -> None:
    Path("helper.py").write_text("import json\njson.loads('{')\n")
    result = kedge_run("import helper\n", "script.py")
    assert result.exit_code == 2
    assert result.stderr.startswith('Traceback (most recent call last):\n  File "')
    assert 'script.py", line 1, in <module>\n    import helper\n' in result.stderr
    assert "json.decoder.JSONDecodeError" in result.stderr
    assert result.stderr.endswith("Error: importing script.py failed, so nothing was run.\n")
    for hidden in ("importlib", "kedge/cli", "click"):
        assert hidden not in result.stderr


def test_a_syntax_error_points_at_it(kedge_run: Run) -> None:
    result = kedge_run("def broken(:\n", "script.py")
    assert result.exit_code == 2
    assert "    def broken(:\n" in result.stderr
    assert "SyntaxError" in result.stderr


def test_a_file_that_exits_while_it_is_imported(kedge_run: Run) -> None:
    result = kedge_run("import sys\nsys.exit(3)\n", "script.py")
    assert result.exit_code == 2
    assert "Error: importing script.py called sys.exit(), so nothing was run.\n" in result.stderr


def test_misuse_is_shown_at_its_own_line(kedge_run: Run) -> None:
    result = kedge_run(APP + "@app.function\ndef f(): ...\n", "script.py")
    assert result.exit_code == 2
    assert "@app.function\n" in result.stderr
    assert "InvalidError: @app.function was used without parentheses; write @app.function()" in result.stderr


def test_an_entrypoint_that_fails(kedge_run: Run) -> None:
    source = APP + "@app.local_entrypoint()\ndef main():\n    raise ValueError('broken')\n"
    result = kedge_run(source, "script.py")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].endswith('script.py", line 6, in main')
    assert lines[2:4] == ["    raise ValueError('broken')", "ValueError: broken"]
    assert lines[-1].startswith("kedge: Failed after ")


def test_all_frames_are_shown_on_request(kedge_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_TRACEBACK", "1")
    source = APP + "@app.local_entrypoint()\ndef main():\n    raise ValueError('broken')\n"
    assert "kedge/cli/run.py" in kedge_run(source, "script.py").stderr


def test_sys_exit_gives_the_exit_code(kedge_run: Run) -> None:
    source = APP + "import sys\n@app.local_entrypoint()\ndef main(code: str):\n    sys.exit({})\n"
    assert kedge_run(source.format("int(code)"), "script.py", "--code", "7").exit_code == 7
    sys.modules.pop("script")
    result = kedge_run(source.format("code"), "script.py", "--code", "no luck")
    assert result.exit_code == 1
    assert "no luck\n" in result.stderr


def test_json_output_can_be_piped(kedge_run: Run) -> None:
    source = APP + "import json\n@app.local_entrypoint()\ndef main():\n    print(json.dumps({'n': 1}))\n"
    assert json.loads(kedge_run(source, "script.py").stdout) == {"n": 1}
