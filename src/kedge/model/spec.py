"""What users declared, as frozen values: one field per keyword of `@app.function`, defaults as documented there.

Values arrive here already validated (`sdk.validation`); nothing below checks or computes. Times are seconds, memory is
MiB, cpu is cores. Fields are only ever added, with defaults, so that an old reader ignores a new field.
"""

from __future__ import annotations

from msgspec import Struct

from kedge.model.payload import Payload

DEFAULT_TIMEOUT = 300.0
DEFAULT_SCALEDOWN_WINDOW = 60.0
DEFAULT_CANCELLATION_GRACE = 10.0
DEFAULT_CPU = 0.125
DEFAULT_MEMORY = 128


class Concurrency(Struct, frozen=True, forbid_unknown_fields=False):
    """Slots of one container: routing and scaling aim at `target_inputs`, `max_inputs` is never exceeded."""

    max_inputs: int = 1
    target_inputs: int = 1
    declared: bool = False
    """Whether `@concurrent` (or with_concurrency) was used. False and max_inputs=1 are the same thing."""


class Batching(Struct, frozen=True):
    max_batch_size: int
    wait_ms: int


class AutoscalerSettings(Struct, frozen=True):
    min_containers: int = 0
    max_containers: int | None = None
    buffer_containers: int = 0
    scaledown_window: float = DEFAULT_SCALEDOWN_WINDOW


class GpuRequest(Struct, frozen=True):
    """One acceptable kind of device: `name` upper-case as declared (`H100`, `A100-80GB`, `ANY`), `count` devices."""

    name: str
    count: int = 1
    fraction: float = 0.0
    """The part of one device's memory that it needs (`gpu="H100:0.5"`); 0: whole devices."""


class Resources(Struct, frozen=True):
    """What one container asks for. Requests bound placement, limits bound use; `gpus` in order of preference."""

    cpu: float = DEFAULT_CPU
    cpu_limit: float | None = None
    memory: int = DEFAULT_MEMORY
    memory_limit: int | None = None
    gpus: tuple[GpuRequest, ...] = ()
    ephemeral_disk: int | None = None
    ports: tuple[int, ...] = ()
    """TCP ports of the machine that its code listens on (`web_server(port)`): one container at a time has each."""
    vram: int | None = None
    """MiB of device memory (`vram="20Gi"`): the device is shared with others that fit beside it."""


class RetryPolicy(Struct, frozen=True):
    """How often and how soon an input that failed by its own code is tried again."""

    max_retries: int = 0
    backoff_coefficient: float = 1.0
    initial_delay: float = 1.0
    max_delay: float = 60.0


class ParameterSpec(Struct, frozen=True):
    """One `parameter()` of a class: `type` is str, int, bool or bytes by name."""

    name: str
    type: str
    default: Payload | None = None
    """The pickled default; None where the parameter must be given."""


class WebSpec(Struct, frozen=True):
    """How a function or method answers HTTP."""

    kind: str
    """fastapi_endpoint, asgi_app, wsgi_app or web_server."""
    label: str | None = None
    """Its name in the address, as declared; None: made from the names of app and function."""
    method: str = "GET"
    """Of a fastapi_endpoint."""
    docs: bool = False
    requires_proxy_auth: bool = False
    custom_domains: tuple[str, ...] = ()
    port: int | None = None
    """Where the user's own server listens (web_server)."""
    startup_timeout: float = 5.0
    """Seconds until it must listen."""


class ScheduleSpec(Struct, frozen=True):
    """When a function runs by itself: by the clock (`cron`, five fields, in `timezone`), or every `period`."""

    cron: str = ""
    timezone: str = "UTC"
    period: tuple[tuple[str, float], ...] = ()
    """(unit, amount) with the units of `Period`: years, months, weeks, days, hours, minutes, seconds."""


class MethodSpec(Struct, frozen=True):
    """One callable of a function or class. A plain function has exactly one, with an empty name."""

    name: str = ""
    is_async: bool = False
    is_generator: bool = False
    concurrency_limit: int | None = None
    timeout: float | None = None
    batching: Batching | None = None
    web: WebSpec | None = None
    """None for what is called by `.remote`."""


class LocalFiles(Struct, frozen=True):
    """Files of the caller's machine, as they were when its program started. `root` is a directory that holds them at
    the server, addressed by `digest`; under `target` containers find them."""

    digest: str
    root: str = ""
    target: str = ""
    is_file: bool = False
    """`root` holds one file, and `target` is its path."""


class ImageStep(Struct, frozen=True):
    """One step of an image recipe: its kind and its arguments (JSON texts), in an order that never changes."""

    kind: str
    arguments: tuple[tuple[str, str], ...] = ()
    files: LocalFiles | None = None
    """What the step reads of the caller's files; bound when the app starts, never at declaration."""


class ImageSpec(Struct, frozen=True):
    """A recipe. Declared, it has steps and a digest. Bound, its steps have their files, and `mounts` holds what is
    added when a container starts. Built, it has an `id`."""

    steps: tuple[ImageStep, ...] = ()
    digest: str = ""
    """Of the steps as they were declared: equal in the caller and in containers."""
    id: str = ""
    """Names what was built (`im-…`): equal steps with equal files have equal ids on one server."""
    mounts: tuple[LocalFiles, ...] = ()
    python_path: tuple[str, ...] = ()
    """Directories that go in front of `sys.path` (add_local_python_source)."""


class BuiltImage(Struct, frozen=True, kw_only=True):
    """What containers of an image are made of. All paths are the server's machine's, and the same inside."""

    id: str
    python: str
    """The interpreter of its environment."""
    python_version: str
    """`3.12`."""
    packages: str
    """Directory of its Python environment (a venv): read-only, hard-linked, shared."""
    package_layers: tuple[str, ...] = ()
    """What later commands have changed in there, as overlay directories, the uppermost first."""
    layers: tuple[str, ...] = ()
    """Its root file system as overlay directories, the uppermost first. Empty: it has only Python packages, and lies
    over the files of the machine."""
    visible: tuple[str, ...] = ()
    """Further directories that it needs: the interpreter's own installation."""
    runtime: tuple[str, ...] = ()
    """Directories with the container side of kedge for this Python; they come last on `sys.path`."""
    variables: tuple[tuple[str, str], ...] = ()
    directory: str = "/root"
    entrypoint: tuple[str, ...] = ()


class SecretRef(Struct, frozen=True, kw_only=True):
    """Variables that the server keeps: containers get them, specs never hold them."""

    id: str = ""
    """Of one without a name."""
    name: str = ""
    environment: str = ""
    required_keys: tuple[str, ...] = ()


class VolumeRef(Struct, frozen=True, kw_only=True):
    """A volume, and where containers see it."""

    target: str
    id: str = ""
    """Of one without a name."""
    name: str = ""
    environment: str = ""
    read_only: bool = False
    sub_path: str = ""
    create: bool = False
    """It is made where there is none of this name."""


class FunctionSpec(Struct, frozen=True, kw_only=True):
    """All that was declared about a function or class. `name` finds it; `qualname` may be shared by variants."""

    name: str
    module: str
    qualname: str
    is_class: bool = False
    methods: tuple[MethodSpec, ...] = (MethodSpec(),)
    parameters: tuple[ParameterSpec, ...] = ()
    serialized: Payload | None = None
    """The function or class by value, for `serialized=True` and for what no container could import."""

    image: ImageSpec = ImageSpec()
    env: tuple[tuple[str, str], ...] = ()
    secrets: tuple[SecretRef, ...] = ()
    """Later ones win, and `env` wins over all."""
    volumes: tuple[VolumeRef, ...] = ()
    concurrency: Concurrency = Concurrency()
    concurrency_limit: int | None = None
    autoscaler: AutoscalerSettings = AutoscalerSettings()
    resources: Resources = Resources()
    retries: RetryPolicy = RetryPolicy()
    timeout: float = DEFAULT_TIMEOUT
    startup_timeout: float | None = None
    """None means: as long as `timeout`."""
    queue_timeout: float | None = None
    """Seconds that an input may wait for its first slot; None: for ever."""
    max_queued_inputs: int | None = None
    """Inputs that may wait; more are refused. None: as many as the server bears."""
    cancellation_grace: float = DEFAULT_CANCELLATION_GRACE
    """Seconds that code may go on after it was cancelled or timed out, until its container is replaced."""
    interrupt_sockets: bool = False
    """Whether a cancellation also ends waits for sockets, by shutting them down."""
    single_use_containers: bool = False
    include_source: bool = True
    enable_memory_snapshot: bool = False
    block_network: bool = False
    restrict_modal_access: bool = False
    nonpreemptible: bool = False
    i6pn: bool = False
    cloud: str | None = None
    region: tuple[str, ...] = ()
    routing_region: str | None = None
    proxy: str | None = None
    preload: tuple[str, ...] = ()
    """Modules of site-packages that a fork server should hold (experimental_options={"preload": [...]})."""
    schedule: ScheduleSpec | None = None


class CodeSpec(Struct, frozen=True, kw_only=True):
    """A snapshot of the user's entry module or its top-level package, addressed by digest."""

    digest: str = ""
    root: str = ""
    """Directory that holds the snapshot; empty where everything is sent by value."""
    origin: str = ""
    """Where the files came from: shown in tracebacks, and the value of `__file__`."""
    module: str = ""
    """Name of the snapshot's module or package (`script`, `pkg`). The entry may be a submodule of it."""
    is_package: bool = False
    main: bool = False
    """The caller runs the module as `__main__`; containers load it as `__kedge_main__` and alias `__main__`."""


class EnvironmentSpec(Struct, frozen=True, kw_only=True):
    """What code finds around it: without an image the caller's own interpreter, path, variables and directory, else
    the image's."""

    python: str
    python_version: str
    sys_path: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    directory: str = "/"
    alias_modal: bool = False
    runtime: tuple[str, ...] = ()
    """Directories that hold kedge's container side for this interpreter; empty: those of the server."""
    python_path: tuple[str, ...] = ()
    """Directories that come before everything else on `sys.path`."""
    image: str = ""
    """Id of the image that this is made of."""


class AppSpec(Struct, frozen=True, kw_only=True):
    app: str
    name: str
    functions: tuple[FunctionSpec, ...]
    code: CodeSpec
    environment: EnvironmentSpec
    ephemeral: bool = True
    """An ephemeral app ends with the session that created it; a detached one does not."""
    environment_name: str = "main"
    """Apps, labels and everything else that has a name are apart between environments."""
    deployment: str = ""
    """Of a version of a deployed or served app: the id that stands for whichever version is current
    (`ids.deployment_id`). Empty for an app that is not deployed."""
    version: int = 0
    """1, 2, … within the deployment; given by the server."""
    tag: str = ""
    created_at: float = 0.0
    """Seconds since the epoch; stamped by the server."""
    origin_version: int = 0
    """The version that a rollback brought back; 0 for a deploy."""
    isolation: str = ""
    """The rung that its containers run on; empty: as the server decides."""


MAIN_ENVIRONMENT = "main"


class Variant(Struct, frozen=True, kw_only=True):
    """A pool of its own beside a function's first: other parameters, other options, or both."""

    function: str
    variant: str
    """Digest of what follows, made by the client; equal values meet in one pool from any process."""
    parameters: Payload | None = None
    spec: FunctionSpec
    """The function's spec with the options replaced."""


HOME = "/root"
"""Where a container with files of its own has what is added to its image, and what it imports from."""

PROCESS = "process"
NAMESPACE = "namespace"
BUBBLEWRAP = "bubblewrap"
OCI = "oci"
GVISOR = "gvisor"
RUNGS = (PROCESS, NAMESPACE, BUBBLEWRAP, OCI, GVISOR)
"""The isolation ladder, weakest first."""


class Bind(Struct, frozen=True):
    """A directory or file of the machine that a container sees at `target`."""

    source: str
    target: str
    read_only: bool = True


class VolumeMount(Struct, frozen=True, kw_only=True):
    """A volume in one container: the tree of one version below (`lower`, never written to), and its own changes on top.
    `upper` and `work` are empty directories on the machine's disk; both empty: read-only."""

    target: str
    volume: str
    lower: str
    upper: str = ""
    work: str = ""


class Limits(Struct, frozen=True, kw_only=True):
    """What a container cannot go beyond. None: no bound of its own."""

    cpu: float | None = None
    """Cores."""
    memory: int | None = None
    """MiB of its whole process tree."""
    pids: int | None = None
    disk: int | None = None
    """MiB that it may write to its own files."""


class Isolation(Struct, frozen=True, kw_only=True):
    """How a container is kept apart, and what it sees. The engine builds exactly this, and decides nothing."""

    rung: str = PROCESS
    shares_files: bool = True
    """It sees the machine's files as they are (apps without an image); `layers` to `hidden` then mean nothing."""
    layers: tuple[str, ...] = ()
    """Its root as overlay directories, the uppermost first, under a writable layer of its own. Empty: over the
    machine's own root."""
    packages: str = ""
    """A directory that is shown read-only at its own path, under `package_layers` (overlay, uppermost first)."""
    package_layers: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    """Directories of the machine that it finds empty, and may write to."""
    binds: tuple[Bind, ...] = ()
    """Made in this order, after the above; their targets are created."""
    own: tuple[Bind, ...] = ()
    """Like `binds`, of what no other container may see: its fork server does not, either."""
    volumes: tuple[VolumeMount, ...] = ()
    scratch: str = ""
    """A directory on disk for what it writes. The engine creates it, and removes it after its end."""
    network: bool = True
    devices: tuple[str, ...] = ()
    """Device nodes beyond the harmless ones, such as /dev/nvidia0."""
    limits: Limits = Limits()
    entrypoint: tuple[str, ...] = ()
    """A command that starts its interpreter; such a container is never forked."""


class Launch(Struct, frozen=True, kw_only=True):
    """All that a container needs to come up: the engine passes it on without looking inside."""

    container: str
    token: str
    """Proves to the plane that the connection is this container's."""
    address: str
    """Path of the plane's Unix socket."""
    pool: str
    app: str
    app_name: str
    environment_name: str = MAIN_ENVIRONMENT
    """Where names are looked up that its code gives without an environment."""
    function: FunctionSpec
    parameters: Payload | None = None
    code: CodeSpec
    environment: EnvironmentSpec
    preload: tuple[str, ...] = ()
    """Modules that the fork server of this app and environment should have loaded."""
    devices: tuple[int, ...] = ()
    """Indices of the GPUs that belong to this container."""
    device_variables: tuple[tuple[str, str], ...] = ()
    """What tells its code which they are. Beside the environment, which fork servers are made for: one serves
    containers of all devices."""
    home: str = ""
    """KEDGE_HOME of the server, where payload files live."""
    isolation: Isolation = Isolation()
