"""Dockerfiles and their lines as steps of an image: what each instruction does to the root and to the settings."""

from __future__ import annotations

import contextlib
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kedge.images import commands, dockerlines, overlay
from kedge.images.chamber import Bound
from kedge.images.dockerlines import Instruction
from kedge.images.overlay import Place
from kedge.images.running import CommandFailed
from kedge.images.steps import Handler, Workspace
from kedge.images.store import Layer

_URL = re.compile(r"(https?://|git@|git://|ftp://)")
_ARCHIVE = re.compile(r"\.(tar|tar\.gz|tgz|tar\.bz2|tbz2?|tar\.xz|txz)$")


def dockerfile_commands(workspace: Workspace) -> Layer:
    return build(workspace, dockerlines.parse(workspace.texts("commands")))


def from_dockerfile(workspace: Workspace) -> Layer:
    from kedge.images import registry

    given = {str(name): str(value) for name, value in (workspace.argument("build_args") or {}).items()}
    tag, rest = dockerlines.base(dockerlines.parse(workspace.texts("commands")), given)
    parent = registry.base(workspace, tag, workspace.argument("add_python"))
    return build(workspace.upon(parent), rest) if rest else parent


def build(workspace: Workspace, instructions: Sequence[Instruction]) -> Layer:
    """The layer of some instructions upon the workspace's parent."""
    given = {str(name): str(value) for name, value in (workspace.argument("build_args") or {}).items()}
    state = _State(workspace, given)
    for instruction in instructions:
        if instruction.name == "FROM":
            raise instruction.refused("the image is there already; Image.from_dockerfile takes a whole Dockerfile")
        state.check(instruction)
    with contextlib.ExitStack() as stack:
        for instruction in instructions:
            state.take(instruction, stack)
    return state.layer()


class _State:
    """What later instructions see of earlier ones."""

    def __init__(self, workspace: Workspace, given: dict[str, str]) -> None:
        image = workspace.parent.image
        self.workspace = workspace
        self.env = dict(image.variables)
        self.arguments: dict[str, str] = {}
        self.directory = image.directory or "/root"
        self.entrypoint = image.entrypoint
        self.cmd = workspace.parent.cmd
        self.shell = workspace.parent.shell
        self._given = given
        self._place: Place | None = None
        self._changes: dict[str, object] = {}

    # ------------------------------------------------------------ before anything is done

    def check(self, instruction: Instruction) -> None:
        """Refuses what cannot be built, before the first command has run."""
        for option in instruction.options:
            name, _, value = option.partition("=")
            if name == "--from":
                raise instruction.refused(f"files of another image or stage ({value}) cannot be copied here")
            if (
                instruction.name == "RUN"
                and name == "--mount"
                and "type=cache" not in value
                and "type=tmpfs" not in value
            ):
                raise instruction.refused(
                    "only type=cache and type=tmpfs are known; use COPY for files, and secrets=[…] for secrets"
                )
            if instruction.name in ("COPY", "ADD") and name not in ("--chown", "--chmod", "--link"):
                raise instruction.refused(f"{name} is not known; known are --chown, --chmod and --link")
        if instruction.name == "ADD" and any(_URL.match(word) for word in _sources(instruction)[:-1]):
            raise instruction.refused("files of the network are fetched with RUN, such as RUN curl -fsSLO …")
        if instruction.name in ("COPY", "ADD") and len(_sources(instruction)) < 2:
            raise instruction.refused("it takes one source or more, and where they go")
        if instruction.name == "SHELL" and not instruction.exec_form:
            raise instruction.refused('it takes a list: SHELL ["/bin/bash", "-c"]')

    # ------------------------------------------------------------ doing it

    def take(self, instruction: Instruction, stack: contextlib.ExitStack) -> None:
        name = instruction.name
        if name in dockerlines.IGNORED:
            return
        if name in dockerlines.NOTED:
            self.workspace.say(f"{name} {instruction.text} is ignored: {dockerlines.NOTED[name]}")
        elif name == "ENV":
            self.env |= dockerlines.pairs(instruction, self._variables())
        elif name == "ARG":
            key, default = dockerlines.argument(instruction, self._variables())
            if key in self._given or default is not None:
                self.arguments[key] = self._given.get(key, default or "")
        elif name == "WORKDIR":
            path = " ".join(dockerlines.words(dockerlines.expand(instruction.text, self._variables())))
            self.directory = posixpath.normpath(posixpath.join(self.directory, path))
            self._run(stack, ["mkdir", "-p", self.directory], f"WORKDIR {self.directory}", "/")
        elif name == "SHELL":
            self.shell = instruction.exec_form or ()
        elif name in ("ENTRYPOINT", "CMD"):
            words = instruction.exec_form
            found = words if words is not None else (*(self.shell or commands.SHELL), instruction.text)
            if name == "CMD":
                self.cmd = found
            else:
                self.entrypoint, self.cmd = found, ()
        elif name == "RUN":
            self._command(instruction, stack)
        else:
            self._copy(instruction, stack)

    def _command(self, instruction: Instruction, stack: contextlib.ExitStack) -> None:
        words = instruction.exec_form
        text = instruction.text
        if words is None:
            shell = self.shell or commands.SHELL
            if instruction.heredocs and re.fullmatch(r"<<-?\S+", text.strip()):
                text = instruction.heredocs[0].text  # RUN <<EOF: the text is the script
                if text.startswith("#!"):
                    interpreter, _, script = text[2:].partition("\n")
                    shell, text = (*shlex.split(interpreter), "-c"), script
            else:
                for heredoc in instruction.heredocs:
                    text += f"\n{heredoc.text}{heredoc.name}"
            words = (*shell, text)
        commands.add_pip(self.workspace, self._entered(stack), text)
        self._run(stack, words, f"RUN {text}", self.directory, instruction)

    def _copy(self, instruction: Instruction, stack: contextlib.ExitStack) -> None:
        *sources, target = _sources(instruction, self._variables())
        is_directory = target.endswith("/") or target in (".", "..") or len(sources) > 1
        target = posixpath.normpath(posixpath.join(self.directory, target))
        options = dict(option.split("=", 1) for option in instruction.options if "=" in option)
        texts = {f"<<{heredoc.name}": heredoc for heredoc in instruction.heredocs}
        for source in sources:
            if heredoc := texts.get(re.sub(r"""['"-]""", "", source)):
                text = heredoc.text if heredoc.literal else dockerlines.expand(heredoc.text, self._variables())
                written = self.workspace.directory / "heredoc"
                written.mkdir(exist_ok=True)
                (written / heredoc.name).write_text(text)
                self._bring(written / heredoc.name, target, is_directory, options, instruction, stack)
                continue
            for path in self._matching(source, instruction):
                self._bring(path, target, is_directory, options, instruction, stack)

    def _matching(self, source: str, instruction: Instruction) -> Iterator[Path]:
        root = self.workspace.files
        pattern = posixpath.normpath(source.lstrip("/") or ".")
        found = [root] if pattern == "." else sorted(root.glob(pattern))
        if not found or pattern.startswith(".."):
            raise instruction.refused(f"the build context has no {source}")
        yield from found

    def _bring(
        self,
        source: Path,
        target: str,
        is_directory: bool,
        options: dict[str, str],
        instruction: Instruction,
        stack: contextlib.ExitStack,
    ) -> None:
        """One file or directory of the context: contents of a directory go into the target, a file to it or into it."""
        inside = f"{commands.COPIED}/{source.name}"
        unpack = instruction.name == "ADD" and _ARCHIVE.search(source.name) and source.is_file()
        script = ["set -e", f"d={shlex.quote(target)}"]
        if unpack:
            script += ['mkdir -p "$d"', f'tar --no-same-owner -xf {shlex.quote(inside)} -C "$d"']
        elif source.is_dir():
            script += [f'set -- {shlex.quote(inside)} "$d"', commands.COPY_CONTENTS]
        else:
            into = "true" if is_directory else '[ -d "$d" ]'
            script += [f'if {into}; then d="$d"/{shlex.quote(source.name)}; fi']
            script += [f'set -- {shlex.quote(inside)} "$d"', commands.COPY_FILE]
        owned = {"--chown": "chown -R", "--chmod": "chmod -R"}
        script += [f'{owned[key]} {shlex.quote(value)} "$d"' for key, value in options.items() if key in owned]
        bound = Bound(str(source), inside)
        shown = f"{instruction.name} {source.name} {target}"
        self._run(stack, ["/bin/sh", "-c", "\n".join(script)], shown, "/", instruction, [bound])

    def _run(
        self,
        stack: contextlib.ExitStack,
        words: Sequence[str],
        shown: str,
        directory: str,
        instruction: Instruction | None = None,
        binds: Sequence[Bound] = (),
    ) -> None:
        place = self._entered(stack)
        step = {**dict(self.workspace.argument("env") or {}), **self.workspace.secrets}
        variables = place.variables({**self.arguments, **self.env, **step})
        try:
            self.workspace.run(place.command(words, directory, binds), variables=variables, shown=shown)
        except CommandFailed as failure:
            if instruction is not None:
                failure.reason += f" (line {instruction.line} of the Dockerfile)"
            raise

    def _entered(self, stack: contextlib.ExitStack) -> Place:
        """The root, made when the first instruction needs it: settings alone take none."""
        if self._place is None:
            self._place, self._changes = stack.enter_context(commands.changed(self.workspace))
        return self._place

    def _variables(self) -> dict[str, str]:
        return {"PATH": overlay.SYSTEM_PATH, "HOME": "/root", **self.arguments, **self.env}

    def layer(self) -> Layer:
        return self.workspace.layer(
            variables=tuple(self.env.items()),
            directory=self.directory,
            entrypoint=self.entrypoint,
            cmd=self.cmd,
            shell=self.shell,
            **self._changes,
        )


def _sources(instruction: Instruction, variables: Mapping[str, str] | None = None) -> list[str]:
    """The words of COPY and ADD, the target last."""
    words = instruction.exec_form
    if words is not None:
        return [dockerlines.expand(word, variables) if variables is not None else word for word in words]
    return dockerlines.words(
        dockerlines.expand(instruction.text, variables) if variables is not None else instruction.text
    )


HANDLERS: dict[str, Handler] = {"dockerfile_commands": dockerfile_commands, "from_dockerfile": from_dockerfile}
