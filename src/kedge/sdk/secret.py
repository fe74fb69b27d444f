"""`Secret`: environment variables that are kept apart from code, images and specs.

A declared function holds references only. Values of this process (`from_dict`, `from_dotenv`, `from_local_environ`) go
to the server when an app starts (`bind`), which keeps them encrypted and gives an id; a container never reads them from
anywhere but its environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, ClassVar

import msgspec
from msgspec import Struct, structs

from kedge.exception import ExecutionError, InvalidError, NoEffectWarning
from kedge.model.protocol import SecretsChanged
from kedge.model.spec import FunctionSpec, ImageSpec, SecretRef
from kedge.sdk import config, context, validation
from kedge.sdk.dual import Dual
from kedge.sdk.named import Names, ask, ask_async
from kedge.sdk.usage import warn

Values = dict[str, str]
Keep = Callable[[Values], str]
"""Gives values to the server; the answer is their id there."""

DECLARED = "declared-"
"""How ids begin that mean something in this process only."""
_PROCESS = os.urandom(6).hex()
_numbers = count(1)
_of_this_process: dict[str, Secret] = {}
"""Declared secrets whose values the server has not got yet, by the id in their reference. Specs refer to them by it."""


class SecretInfo(Struct, frozen=True):
    name: str
    created_at: float
    """Seconds since the epoch."""
    updated_at: float
    keys: tuple[str, ...]
    """The names of its variables. Nobody is told the values."""


class SecretObjects(Names["Secret"]):
    """`kedge.Secret.objects`: the secrets that the server keeps by name."""

    def _request(self, number: int, action: str, name: str, environment: str) -> SecretsChanged:
        return SecretsChanged(number, action, name, environment)

    def _create(
        self,
        name: str,
        env_dict: Mapping[str, str | None],
        *,
        allow_existing: bool = False,
        environment_name: str | None = None,
    ) -> None:
        """Makes one. AlreadyExistsError where the name is taken, unless `allow_existing`: then that one stays."""
        ask(_creating(name, env_dict, allow_existing, environment_name))

    async def _create_async(
        self,
        name: str,
        env_dict: Mapping[str, str | None],
        *,
        allow_existing: bool = False,
        environment_name: str | None = None,
    ) -> None:
        await ask_async(_creating(name, env_dict, allow_existing, environment_name))

    create = Dual(_create, _create_async)


class Secret:
    """Environment variables for containers, whose values stay out of code and logs.

    Made by `from_name`, `from_dict`, `from_dotenv` or `from_local_environ`, and given to an app, a function, a class or
    a step of an image as `secrets=[…]`.

    Example:
        # kedge secret create openai OPENAI_API_KEY=-

        @app.function(secrets=[kedge.Secret.from_name("openai", required_keys=["OPENAI_API_KEY"])])
        def ask(question: str) -> str:
            key = os.environ["OPENAI_API_KEY"]
    """

    objects: ClassVar[SecretObjects]
    """Makes, lists and deletes those that have a name."""

    def __init__(self, description: str, reference: SecretRef, read: Callable[[], Values] | None = None) -> None:
        self.description = description
        self.reference = reference
        """What specs hold of it."""
        self._read = read
        """Where its values are read, in the process that declared it."""

    @classmethod
    def from_name(
        cls,
        name: str,
        *,
        environment_name: str | None = None,
        required_keys: Sequence[str] = (),
        client: Any = None,
    ) -> Secret:
        """A secret that the server keeps under a name (`kedge secret create NAME KEY=VALUE`). Nothing is asked here.

        Args:
            environment_name: Default: that of the app.
            required_keys: Variables that it must have: an app that uses it does not start without them.
        """
        validation.name("Secret.from_name: name", name)
        keys = validation.texts("Secret.from_name: required_keys", required_keys) if required_keys else ()
        environment = "" if environment_name is None else config.environment(environment_name)
        return cls(repr(name), SecretRef(name=name, environment=environment, required_keys=keys))

    @classmethod
    def from_dict(cls, env_dict: Mapping[str, str | None] | None = None) -> Secret:
        """Variables and their values. None as a value leaves the variable out.

        The values go to the server when an app starts that uses it, and are forgotten with the app.
        """
        values = _checked("Secret.from_dict", env_dict or {})
        return cls._local(f"of a dict with {', '.join(values) or 'nothing'}", lambda: values)

    @classmethod
    def from_dotenv(cls, path: Any = None, *, filename: str = ".env", client: Any = None) -> Secret:
        """The variables of a `.env` file, read when an app starts that uses them.

        Args:
            path: Where the search begins that goes up through the directories, such as `__file__`. Default: the
                working directory.
            filename: What the file is called.
        """
        start = os.getcwd() if path is None else os.path.abspath(os.fspath(path))
        validation.text("Secret.from_dotenv: filename", filename)
        if context.container() is not None:
            return cls._local(f"of {filename}", dict)
        return cls._local(f"of {filename}", lambda: _dotenv(start, filename))

    @classmethod
    def from_local_environ(cls, env_keys: Sequence[str]) -> Secret:
        """Variables of this process, read now. InvalidError names one that is not set."""
        keys = validation.texts("Secret.from_local_environ: env_keys", env_keys)
        if context.container() is not None:  # its environment is not the caller's
            return cls._local(f"of the variables {', '.join(keys)}", dict)
        missing = [key for key in keys if key not in os.environ]
        if missing:
            raise InvalidError(
                f"Secret.from_local_environ: {', '.join(missing)} is not set in this process; set it before the "
                "program starts, or keep it at the server (`kedge secret create`) and write Secret.from_name"
            )
        values = {key: os.environ[key] for key in keys}
        return cls._local(f"of the variables {', '.join(keys)}", lambda: values)

    @classmethod
    def _local(cls, description: str, read: Callable[[], Values]) -> Secret:
        made = cls(description, SecretRef(id=f"{DECLARED}{_PROCESS}-{next(_numbers)}"), read)
        _of_this_process[made.reference.id] = made
        return made

    # ------------------------------------------------------------ what it is

    @property
    def name(self) -> str | None:
        """Its name at the server; None where it has none."""
        return self.reference.name or None

    def __repr__(self) -> str:
        return f"Secret {self.description}"

    def __reduce__(self) -> Any:
        return Secret, (self.description, self.reference)  # whatever a pickle ends up in, values do not

    def _address(self, what: str) -> tuple[str, str]:
        if not self.reference.name:
            raise InvalidError(f"{what} is for secrets that have a name; this one is {self!r}")
        return self.reference.name, self.reference.environment or config.environment()

    def _update(self, env_dict: Mapping[str, str | None]) -> None:
        """Sets variables; the others stay. Containers that start from then on have them."""
        ask(self._updating(env_dict))

    async def _update_async(self, env_dict: Mapping[str, str | None]) -> None:
        await ask_async(self._updating(env_dict))

    def _updating(self, env_dict: Mapping[str, str | None]) -> Callable[[int], SecretsChanged]:
        name, environment = self._address("Secret.update")
        values = _checked("Secret.update", env_dict)
        return lambda request: SecretsChanged(request, "update", name, environment, values)

    def _info(self) -> SecretInfo:
        """Its name, when it was made and changed, and the names of its variables."""
        return _info_of(ask(self._asking()))

    async def _info_async(self) -> SecretInfo:
        return _info_of(await ask_async(self._asking()))

    def _asking(self) -> Callable[[int], SecretsChanged]:
        name, environment = self._address("Secret.info")
        return lambda request: SecretsChanged(request, "info", name, environment)

    update = Dual(_update, _update_async)
    info = Dual(_info, _info_async)


Secret.objects = SecretObjects(Secret)


# ---------------------------------------------------------------- in specs


def references(what: str, value: Any) -> tuple[SecretRef, ...]:
    """The references of `secrets=[…]`. InvalidError names what is no secret."""
    if isinstance(value, Secret) or not isinstance(value, Iterable) or isinstance(value, str | Mapping):
        raise InvalidError(f"{what} is a list, such as [kedge.Secret.from_name('NAME')], not {_type_of(value)}")
    found = list(value)
    for one in found:
        if not isinstance(one, Secret):
            raise InvalidError(
                f"{what} holds {_type_of(one)}; write kedge.Secret.from_name('NAME') for what the server keeps, or "
                "kedge.Secret.from_dict({…})"
            )
    return tuple(one.reference for one in found)


def is_declared(reference: SecretRef) -> bool:
    """Whether the server does not know its id yet."""
    return reference.id.startswith(DECLARED)


def bind(reference: SecretRef, keep: Keep) -> SecretRef:
    """The reference under which the server knows it. Values are read and given to `keep` here."""
    if not is_declared(reference):
        return reference
    return structs.replace(reference, id=keep(_read_of(reference)()))


def bind_specs(specs: tuple[FunctionSpec, ...], keep: Keep) -> tuple[FunctionSpec, ...]:
    """Specs for a server that has the values; each secret is read once."""
    known: dict[str, SecretRef] = {}

    def bound(reference: SecretRef) -> SecretRef:
        if not is_declared(reference):
            return reference
        if reference.id not in known:
            known[reference.id] = bind(reference, keep)
        return known[reference.id]

    return tuple(
        structs.replace(spec, secrets=tuple(bound(one) for one in spec.secrets))
        if any(is_declared(one) for one in spec.secrets)
        else spec
        for spec in specs
    )


def values_in(specs: tuple[FunctionSpec, ...]) -> dict[str, Values]:
    """The values behind specs that another process of this program will bind, by the ids in them."""
    found = [one for spec in specs for one in (*spec.secrets, *_of_image(spec.image)) if is_declared(one)]
    return {one.id: _read_of(one)() for one in found}


def _of_image(image: ImageSpec) -> Iterator[SecretRef]:
    """The secrets of its steps, as they are referred to once it has its files."""
    for step in image.steps:
        for key, value in step.arguments:
            if key in ("secret", "secrets"):
                given = msgspec.json.decode(value)
                for one in given if isinstance(given, list) else [given]:
                    if isinstance(one, dict):
                        yield msgspec.convert(one, SecretRef)


def without(variables: tuple[tuple[str, str], ...], specs: tuple[FunctionSpec, ...]) -> tuple[tuple[str, str], ...]:
    """Variables of this process without those that are secrets of the app, which containers get as such."""
    hidden = {pair for values in values_in(specs).values() for pair in values.items()}
    return tuple(pair for pair in variables if pair not in hidden) if hidden else variables


def adopt(values: Mapping[str, Values]) -> None:
    """Takes over what `values_in` gave in another process."""
    for id, found in values.items():
        _of_this_process[id] = Secret("of another process", SecretRef(id=id), lambda found=found: found)  # type: ignore[misc]


def _read_of(reference: SecretRef) -> Callable[[], Values]:
    secret = _of_this_process.get(reference.id)
    if secret is None or secret._read is None:
        raise ExecutionError(
            "a secret of another process was passed on before its values were at a server; make it where it is used, "
            "or keep it by name (`kedge secret create`) and write kedge.Secret.from_name"
        )
    return secret._read


def keeper(client: Any) -> Keep:
    """Gives values to the server of a client."""

    def keep(values: Values) -> str:
        answer: dict[str, str] = client.request(lambda request: SecretsChanged(request, "keep", values=values))
        return answer["id"]

    return keep


def look_up(client: Any, specs: tuple[FunctionSpec, ...], environment: str) -> None:
    """Raises what is wrong with the named secrets of the specs, which the server says anyway once the app starts."""
    named = {one: None for spec in specs for one in spec.secrets if one.name}
    for one in named:
        where = one.environment or environment
        client.request(
            lambda request, one=one, where=where: SecretsChanged(
                request, "info", one.name, where, required_keys=one.required_keys
            )
        )


# ---------------------------------------------------------------- reading


def _dotenv(start: str, filename: str) -> Values:
    from dotenv import dotenv_values

    directory = start if os.path.isdir(start) else os.path.dirname(start)
    while True:
        file = os.path.join(directory, filename)
        if os.path.isfile(file):
            return {key: value for key, value in dotenv_values(file).items() if value is not None}
        if os.path.dirname(directory) == directory:
            break
        directory = os.path.dirname(directory)
    warn(
        f"Secret.from_dotenv: there is no {filename} at {start} or above, so this secret has no variables",
        NoEffectWarning,
    )
    return {}


def _checked(what: str, given: Any) -> Values:
    """The variables of a dict. No error shows a value."""
    if not isinstance(given, Mapping):
        raise InvalidError(f"{what} takes a dict of strings, such as {{'API_KEY': '…'}}, not {_type_of(given)}")
    for key, value in given.items():
        if value is not None and not isinstance(value, str):
            raise InvalidError(f"{what}: the value of {key!r} is {_type_of(value)}; environment variables are strings")
        if value is not None and "\0" in value:
            raise InvalidError(f"{what}: the value of {key!r} holds a null character, which no variable can")
    return dict(validation.environment(what, given))


def _type_of(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


# ---------------------------------------------------------------- asking


def _creating(
    name: str, env_dict: Mapping[str, str | None], allow_existing: bool, environment_name: str | None
) -> Callable[[int], SecretsChanged]:
    validation.name("Secret.objects.create: name", name)
    values = _checked("Secret.objects.create", env_dict)
    environment = config.environment(environment_name)
    action = "create_missing" if allow_existing else "create"
    return lambda request: SecretsChanged(request, action, name, environment, values)


def _info_of(facts: Any) -> SecretInfo:
    return SecretInfo(facts["name"], facts["created_at"], facts["updated_at"], tuple(facts["keys"]))
