"""Reading Dockerfiles: lines become instructions with their line numbers. Pure.

Understood are continuation lines, comments, the `escape` directive, heredocs, the exec form (JSON lists), options such
as `--chown=…`, and variables with their defaults. What would need another builder (several stages, ONBUILD, files of
other images) is refused with the line that asks for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from kedge.exception import InvalidError

_NAMES = (
    "FROM RUN CMD LABEL MAINTAINER EXPOSE ENV ADD COPY ENTRYPOINT VOLUME USER WORKDIR ARG STOPSIGNAL HEALTHCHECK SHELL"
)
KNOWN = tuple(_NAMES.split())
IGNORED = frozenset(("LABEL", "MAINTAINER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"))
"""They say something to other tools, and change nothing of what containers find."""
NOTED = {
    "USER": "commands and containers run as the user of the server",
    "VOLUME": "name a Volume at the function instead: @app.function(volumes={…})",
}
"""They are ignored, and it is said what holds instead."""
_WITH_OPTIONS = frozenset(("RUN", "COPY", "ADD", "FROM", "HEALTHCHECK"))
_WITH_HEREDOCS = frozenset(("RUN", "COPY", "ADD"))
_DIRECTIVE = re.compile(r"#\s*([a-z]+)\s*=\s*(\S+)\s*$", re.IGNORECASE)
_HEREDOC = re.compile(r"""(?<![<\w])(\d*)<<(-?)(['"]?)([A-Za-z_][\w.]*)\3(?=\s|$)""")
_VARIABLE = re.compile(r"\{([A-Za-z_]\w*)(?:(:?[-+])([^}]*))?\}|([A-Za-z_]\w*)")


class Heredoc(Struct, frozen=True):
    name: str
    text: str
    literal: bool = False
    """Its delimiter was quoted: nothing in it is expanded."""


class Instruction(Struct, frozen=True, kw_only=True):
    line: int
    """Counted from 1."""
    name: str
    """In capitals."""
    text: str
    """All after the name and its options, in one line."""
    options: tuple[str, ...] = ()
    heredocs: tuple[Heredoc, ...] = ()

    @property
    def exec_form(self) -> tuple[str, ...] | None:
        """The words of `["a", "b"]`; None for any other form."""
        if not self.text.startswith("["):
            return None
        try:
            words = json.loads(self.text)
        except ValueError:
            return None
        return tuple(words) if isinstance(words, list) and all(isinstance(word, str) for word in words) else None

    def refused(self, why: str) -> InvalidError:
        return InvalidError(f"line {self.line} of the Dockerfile: {self.name} {self.text[:80]}: {why}")


def parse(lines: Sequence[str]) -> list[Instruction]:
    """All instructions, in their order. InvalidError names the line of what is not one."""
    escape = _escape(lines)
    found: list[Instruction] = []
    number = 0
    while number < len(lines):
        first, line = number + 1, lines[number]
        number += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        command = ""
        while True:
            if not line.lstrip().startswith("#") and line.strip():
                stripped = line.rstrip()
                if not stripped.endswith(escape):
                    command += line
                    break
                command += stripped[:-1]
            elif not command:
                break
            if number >= len(lines):
                break
            line = lines[number]
            number += 1
        instruction = _instruction(command.strip(), first)
        if instruction.name in _WITH_HEREDOCS and instruction.exec_form is None:
            heredocs, number = _heredocs(instruction, lines, number)
            instruction = replace(instruction, heredocs=heredocs)
        found.append(instruction)
    return found


def _escape(lines: Sequence[str]) -> str:
    """Directives stand above everything else."""
    for line in lines:
        match = _DIRECTIVE.match(line.strip())
        if match is None:
            break
        if match[1].lower() == "escape" and match[2] in ("\\", "`"):
            return match[2]
    return "\\"


def _instruction(command: str, line: int) -> Instruction:
    name, _, rest = command.partition(" ") if " " in command else command.partition("\t")
    if "\t" in name:
        name, _, more = name.partition("\t")
        rest = f"{more} {rest}"
    upper = name.upper()
    if upper == "ONBUILD":
        raise InvalidError(
            f"line {line} of the Dockerfile: ONBUILD is for images that others build on; write what it says"
        )
    if upper not in KNOWN:
        raise InvalidError(
            f"line {line} of the Dockerfile: {name!r} is no instruction; known are {', '.join(KNOWN)}. A command of "
            "the shell is written as RUN …"
        )
    options: list[str] = []
    rest = rest.strip()
    while upper in _WITH_OPTIONS and rest.startswith("--"):
        option, _, rest = rest.partition(" ")
        options.append(option)
        rest = rest.lstrip()
    if not rest and upper not in IGNORED:
        raise InvalidError(f"line {line} of the Dockerfile: {upper} says nothing")
    return Instruction(line=line, name=upper, text=rest, options=tuple(options))


def _heredocs(instruction: Instruction, lines: Sequence[str], number: int) -> tuple[tuple[Heredoc, ...], int]:
    found: list[Heredoc] = []
    for match in _HEREDOC.finditer(instruction.text):
        if match[1]:
            continue
        body: list[str] = []
        while True:
            if number >= len(lines):
                raise instruction.refused(f"the text after <<{match[4]} has no end; a line {match[4]} ends it")
            line = lines[number].lstrip("\t") if match[2] else lines[number]
            number += 1
            if line.rstrip("\r\n") == match[4]:
                break
            body.append(line.rstrip("\r\n"))
        found.append(Heredoc(match[4], "".join(f"{line}\n" for line in body), bool(match[3])))
    return tuple(found), number


# ---------------------------------------------------------------- words and variables


def expand(text: str, variables: Mapping[str, str]) -> str:
    r"""Variables replaced as Dockerfiles have it; nothing in single quotes, nor after a backslash.

    >>> expand("$A/${B:-b} ${A:+set} \\$A '$A'", {"A": "1"})
    "1/b set $A '$A'"
    """
    found: list[str] = []
    position, quoted = 0, ""
    while position < len(text):
        character = text[position]
        if character in "'\"" and quoted in ("", character):
            quoted = "" if quoted else character
        elif character == "\\" and quoted != "'" and text[position + 1 : position + 2] == "$":
            found.append("$")
            position += 2
            continue
        elif character == "$" and quoted != "'" and (match := _VARIABLE.match(text, position + 1)):
            found.append(_value(match, variables))
            position = match.end()
            continue
        found.append(character)
        position += 1
    return "".join(found)


def _value(match: re.Match[str], variables: Mapping[str, str]) -> str:
    name, sign, word = match[1] or match[4], match[2] or "", match[3] or ""
    value = variables.get(name)
    is_set = value is not None and (value != "" or not sign.startswith(":"))
    if sign.endswith("-"):
        return value or "" if is_set else expand(word, variables)
    if sign.endswith("+"):
        return expand(word, variables) if is_set else ""
    return value or ""


def words(text: str) -> list[str]:
    """Words as a shell splits them, where quotes and backslashes may be anywhere; a quote without an end is text.

    >>> words('a="b c" d\\\\ e')
    ['a=b c', 'd e']
    """
    found: list[str] = []
    part: list[str] | None = None
    quoted = ""
    position = 0
    while position < len(text):
        character = text[position]
        position += 1
        if quoted:
            if character == quoted:
                quoted = ""
            elif character == "\\" and quoted == '"' and text[position : position + 1] in ('"', "\\", "$"):
                part = [*(part or []), text[position]]
                position += 1
            else:
                part = [*(part or []), character]
        elif character in "'\"":
            quoted, part = character, part or []
        elif character == "\\" and position < len(text):
            part = [*(part or []), text[position]]
            position += 1
        elif character.isspace():
            if part is not None:
                found.append("".join(part))
            part = None
        else:
            part = [*(part or []), character]
    if part is not None:
        found.append("".join(part))
    return found


def pairs(instruction: Instruction, variables: Mapping[str, str]) -> dict[str, str]:
    """What ENV sets: `ENV a=1 b="2 3"`, or `ENV a the rest`. All values see the variables as they were before."""
    first = re.match(r"[^\s=]+", instruction.text)
    if first is None:
        raise instruction.refused("a variable has a name: ENV NAME=value")
    if instruction.text[first.end() : first.end() + 1] != "=":
        name, _, value = instruction.text.partition(" ")
        if not value:
            raise instruction.refused("a variable has a value: ENV NAME=value")
        return {name: expand(value.strip(), variables)}
    found: dict[str, str] = {}
    for word in words(expand(instruction.text, variables)):
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise instruction.refused(f"{word!r} is not NAME=value; a value with spaces needs quotes")
        found[name] = value
    return found


def argument(instruction: Instruction, variables: Mapping[str, str]) -> tuple[str, str | None]:
    """Name and default of an ARG."""
    name, equals, value = instruction.text.partition("=")
    given = words(expand(value, variables))
    return name.strip(), (given[0] if given else "") if equals else None


def base(instructions: Sequence[Instruction], given: Mapping[str, str]) -> tuple[str, list[Instruction]]:
    """The image after FROM, and all that comes behind it. Several stages are refused.

    Args:
        given: Values for ARG.
    """
    variables: dict[str, str] = {}
    for index, instruction in enumerate(instructions):
        if instruction.name == "ARG":
            name, default = argument(instruction, variables)
            variables[name] = given.get(name, default or "")
            continue
        if instruction.name != "FROM":
            raise instruction.refused(
                "a Dockerfile begins with FROM; lines without it go into Image.dockerfile_commands"
            )
        rest = list(instructions[index + 1 :])
        for other in rest:
            if other.name == "FROM":
                raise other.refused(
                    f"the Dockerfile has several stages (the first begins in line {instruction.line}), and kedge "
                    "builds one; build the others elsewhere, or put their commands into one stage"
                )
        return expand(words(instruction.text)[0], variables), rest
    raise InvalidError("the Dockerfile has no FROM; lines without it go into Image.dockerfile_commands")
