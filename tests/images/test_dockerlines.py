"""Reading Dockerfiles."""

import pytest

from kedge.exception import InvalidError
from kedge.images.dockerlines import Instruction, argument, base, expand, pairs, parse, words


def read(text: str) -> list[Instruction]:
    return parse(text.splitlines())


def names(text: str) -> list[tuple[int, str, str]]:
    return [(found.line, found.name, found.text) for found in read(text)]


def test_instructions_have_their_line_and_their_text():
    assert names("FROM debian\n\nrun echo hi\n  ENV A=1") == [
        (1, "FROM", "debian"),
        (3, "RUN", "echo hi"),
        (4, "ENV", "A=1"),
    ]


def test_a_command_goes_on_after_a_backslash_over_comments_and_empty_lines():
    text = "RUN apt-get update && \\\n    # why\n\n    apt-get install x \\\n  && true\nRUN next"
    [first, second] = read(text)
    assert first.text.split() == ["apt-get", "update", "&&", "apt-get", "install", "x", "&&", "true"]
    assert (second.line, second.text) == (6, "next")


def test_a_backslash_at_the_end_of_the_file_ends_the_command():
    assert names("RUN a \\") == [(1, "RUN", "a")]


def test_the_escape_directive_changes_what_continues_a_line():
    assert names("# escape=`\nRUN dir `\n  c:\\")[0][2].split() == ["dir", "c:\\"]


def test_a_comment_within_a_command_is_part_of_it():
    assert names("RUN echo '#1' # not a comment of ours") == [(1, "RUN", "echo '#1' # not a comment of ours")]


def test_options_stand_before_the_text():
    [copy] = read("COPY --chown=1:2 --chmod=755 a b /c/")
    assert copy.options == ("--chown=1:2", "--chmod=755")
    assert copy.text == "a b /c/"


def test_the_exec_form_is_a_json_list():
    [run, shell, broken] = read('RUN ["a", "b c"]\nRUN echo ["a"]\nRUN [ -f x ] && true')
    assert run.exec_form == ("a", "b c")
    assert shell.exec_form is None
    assert broken.exec_form is None


def test_heredocs_take_the_lines_up_to_their_end():
    [run, after] = read("RUN <<EOF\nset -e\necho $A\nEOF\nRUN after")
    assert [(doc.name, doc.text, doc.literal) for doc in run.heredocs] == [("EOF", "set -e\necho $A\n", False)]
    assert (after.line, after.text) == (5, "after")


def test_a_quoted_heredoc_is_literal_and_a_dash_drops_tabs():
    [copy] = read("COPY <<-'ONE' <<TWO /x/\n\t\ta\n\tONE\nb\nTWO")
    assert [(doc.name, doc.text, doc.literal) for doc in copy.heredocs] == [("ONE", "a\n", True), ("TWO", "b\n", False)]


def test_a_here_string_of_the_shell_is_no_heredoc():
    [run] = read("RUN cat <<<EOF && cat <<< word")
    assert run.heredocs == ()


def test_a_heredoc_without_an_end_is_refused_with_its_line():
    with pytest.raises(InvalidError, match=r"line 2 of the Dockerfile: RUN <<EOF: the text after <<EOF has no end"):
        read("FROM x\nRUN <<EOF\nset -e")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM x\nINSTALL jq", r"line 2 of the Dockerfile: 'INSTALL' is no instruction; known are FROM, RUN"),
        ("ONBUILD RUN x", r"line 1 of the Dockerfile: ONBUILD is for images that others build on"),
        ("RUN", r"line 1 of the Dockerfile: RUN says nothing"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(text, message):
    with pytest.raises(InvalidError, match=message):
        read(text)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$A-${A}-${NONE}", "1-1-"),
        ("${NONE:-d} ${EMPTY:-d} ${EMPTY-d} ${A:-d}", "d d  1"),
        ("${A:+s} ${NONE:+s} ${EMPTY:+s} ${EMPTY+s}", "s   s"),
        ("'$A' \"$A\" \\$A", "'$A' \"1\" $A"),
        ("${NONE:-$A}", "1"),
        ("100$ $", "100$ $"),
    ],
)
def test_variables_are_expanded(text, expanded):
    assert expand(text, {"A": "1", "EMPTY": ""}) == expanded


def test_words_keep_what_is_quoted_together():
    assert words("a \"b c\" 'd e' f\\ g 'it") == ["a", "b c", "d e", "f g", "it"]


def test_env_takes_pairs_or_one_name_and_the_rest():
    variables = {"HOME": "/root"}
    [several, one] = read('ENV A=1 B="2 3" C=$HOME/x D=a\\ b\nENV NAME  some words = $HOME')
    assert pairs(several, variables) == {"A": "1", "B": "2 3", "C": "/root/x", "D": "a b"}
    assert pairs(one, variables) == {"NAME": "some words = /root"}


def test_all_pairs_of_one_env_see_the_variables_as_they_were_before():
    [env] = read("ENV A=new B=$A")
    assert pairs(env, {"A": "old"}) == {"A": "new", "B": "old"}


def test_an_env_without_a_value_is_refused():
    [lonely, mixed] = read("ENV NAME\nENV A=1 lonely")
    with pytest.raises(
        InvalidError, match="line 1 of the Dockerfile: ENV NAME: a variable has a value: ENV NAME=value"
    ):
        pairs(lonely, {})
    with pytest.raises(InvalidError, match="'lonely' is not NAME=value; a value with spaces needs quotes"):
        pairs(mixed, {})


def test_arg_has_a_name_and_perhaps_a_default():
    [plain, default, empty] = read('ARG A\nARG B="x y"\nARG C=')
    assert [argument(found, {}) for found in (plain, default, empty)] == [("A", None), ("B", "x y"), ("C", "")]


def test_the_base_may_use_arguments_that_stand_before_it():
    text = "ARG VERSION=3.11\nFROM --platform=linux/amd64 python:${VERSION}-slim AS main\nRUN x"
    tag, rest = base(read(text), {"VERSION": "3.12"})
    assert tag == "python:3.12-slim"
    assert [found.name for found in rest] == ["RUN"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "FROM a\nRUN x\nFROM b",
            r"line 3 of the Dockerfile: FROM b: the Dockerfile has several stages \(the first begins in line 1",
        ),
        ("RUN x", r"line 1 of the Dockerfile: RUN x: a Dockerfile begins with FROM"),
        ("# nothing", "the Dockerfile has no FROM; lines without it go into Image.dockerfile_commands"),
    ],
)
def test_other_than_one_stage_is_refused(text, message):
    with pytest.raises(InvalidError, match=message):
        base(read(text), {})
