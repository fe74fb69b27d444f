"""Every message of the system: frozen, tagged, imported from here.

The message that crosses a socket is the event the core handles; the receiver adds only the sender (from the
connection). A command of the core is an addressed message: `(recipient, message)`. Messages carry lists, because
frames, events, commands and deliveries all travel in batches. Fields are only ever added, with defaults.

Who talks:

* a **client** is an SDK process, or code in a container that calls others; its connection is a **session**;
* a **container** connects by itself and proves its id with the token of its `Launch`;
* the **engine** makes containers exist, by its **supervisor**, and reports facts about them;
* the **shell** of the plane feeds in what happens around it, and the **store** keeps what must survive.

A connection begins with `Hello`, answered by `Welcome` or `Refused`. A message with a `request` is answered by the
`Reply` of the same number, or as its docstring says. What each side may say to the other is a union below; whatever is
in none of them never crosses a socket.

One file per conversation; read `base` first, then `calls` and `containers`, which are the road of one input:

* `base`: the greeting, and what all share;
* `apps`: apps, deployments, functions and their settings;
* `calls`: inputs and results of clients, streams, and what of them is stored;
* `containers`: inputs and results of containers, and what passes between the ingress and web code;
* `engine`: containers begin and end, nodes join and leave, time passes; the supervisor;
* `images`: code and files that clients send, images and their builds;
* `named`: secrets, dicts, queues, volumes;
* `office`: lists, statistics, tokens, output.
"""

from __future__ import annotations

from kedge.model.protocol.apps import (
    RECREATE,
    ROLLING,
    STRATEGIES,
    AppCreated,
    AppDeployed,
    AppOver,
    AppRolledBack,
    AppStopped,
    AutoscalerUpdated,
    ConcurrencyUpdated,
    DeploymentChanged,
    FunctionRequested,
    VariantBound,
)
from kedge.model.protocol.base import (
    CLIENT,
    CONTAINER,
    PROTOCOL_VERSION,
    Hello,
    Message,
    Notice,
    Refused,
    Reply,
    SessionClosed,
    Welcome,
)
from kedge.model.protocol.calls import (
    STREAM_WINDOW,
    CallCancelled,
    CallClosed,
    CallRefused,
    CallRequested,
    CallRestored,
    CallWanted,
    InputsAccepted,
    InputsSubmitted,
    Output,
    OutputsDelivered,
    OutputsForgotten,
    OutputsRecorded,
    OutputsRequested,
    OutputsWanted,
    PayloadReleased,
    StreamCredited,
    StreamValues,
)
from kedge.model.protocol.containers import (
    ConcurrencyChanged,
    ContainerDrained,
    ContainerFailed,
    ContainerLeaving,
    ContainerReady,
    Dispatch,
    Finished,
    Heartbeat,
    InputsCancelled,
    InputsDispatched,
    InputsFinished,
    InputsOverran,
    InputsRecalled,
    InputsReturned,
    InputsStarted,
    SlotsChanged,
    WebCredited,
    WebReceived,
    WebSent,
)
from kedge.model.protocol.engine import (
    ContainerDisconnected,
    ContainerLaunched,
    ContainerLost,
    ContainerStarted,
    ForkServerReported,
    ForkServerWarmed,
    KillContainer,
    NodeJoined,
    NodeLost,
    StartContainer,
    SupervisorStopped,
    TimePassed,
    VolumeAnswered,
    VolumeRemounted,
    VramMeasured,
)
from kedge.model.protocol.images import CodeUploaded, FilesOffered, FilesSent, ImageProgressed, ImageRequested
from kedge.model.protocol.named import (
    EntriesChanged,
    EntriesRequested,
    ItemsPut,
    ItemsRequested,
    ItemsSettled,
    ItemsWanted,
    ObjectsRequested,
    SecretsChanged,
    UploadPart,
    VolumeChanged,
    VolumeCommitted,
    VolumeEdited,
    VolumeListed,
    VolumeRead,
    VolumeReloaded,
    VolumeRequested,
    VolumesRequested,
    VolumeUploaded,
)
from kedge.model.protocol.office import (
    RECORDS,
    AppsRequested,
    CallsRequested,
    ContainersRequested,
    ContainerStopRequested,
    FunctionsRequested,
    OutputCaptured,
    OutputSubscribed,
    Remarked,
    ServerRequested,
    StatisticsRequested,
    TokensChanged,
)

FromClient = (
    Hello
    | SessionClosed
    | AppCreated
    | AppStopped
    | AppDeployed
    | AppRolledBack
    | FunctionRequested
    | VariantBound
    | AutoscalerUpdated
    | ConcurrencyUpdated
    | InputsSubmitted
    | CallClosed
    | CallCancelled
    | CallRequested
    | OutputsRequested
    | OutputsForgotten
    | StreamCredited
    | CodeUploaded
    | FilesOffered
    | FilesSent
    | ImageRequested
    | SecretsChanged
    | ObjectsRequested
    | EntriesRequested
    | EntriesChanged
    | ItemsPut
    | ItemsWanted
    | ItemsSettled
    | ItemsRequested
    | VolumeRequested
    | VolumesRequested
    | VolumeChanged
    | VolumeListed
    | VolumeRead
    | VolumeEdited
    | VolumeUploaded
    | VolumeCommitted
    | VolumeReloaded
    | AppsRequested
    | ContainersRequested
    | FunctionsRequested
    | CallsRequested
    | StatisticsRequested
    | ServerRequested
    | TokensChanged
    | ContainerStopRequested
    | OutputSubscribed
)
ToClient = (
    Welcome
    | Refused
    | Reply
    | Notice
    | InputsAccepted
    | CallRefused
    | OutputsDelivered
    | StreamValues
    | ImageProgressed
    | OutputCaptured
)
FromContainer = (
    Hello
    | StreamValues
    | ContainerReady
    | ContainerFailed
    | ContainerLeaving
    | Heartbeat
    | InputsStarted
    | InputsFinished
    | InputsReturned
    | InputsOverran
    | SlotsChanged
    | WebSent
    | WebCredited
)
ToContainer = (
    Welcome
    | Refused
    | StreamCredited
    | InputsDispatched
    | InputsCancelled
    | InputsRecalled
    | ConcurrencyChanged
    | ContainerDrained
    | WebReceived
    | WebCredited
)
FromSupervisor = ContainerStarted | ContainerLost | ForkServerReported | VolumeAnswered | OutputCaptured
ToSupervisor = KillContainer | ContainerLaunched | ForkServerWarmed | VolumeRemounted | SupervisorStopped

__all__ = [
    "CLIENT", "CONTAINER", "PROTOCOL_VERSION", "RECORDS", "RECREATE", "ROLLING", "STRATEGIES", "STREAM_WINDOW",
    "AppCreated", "AppDeployed", "AppOver", "AppRolledBack", "AppStopped", "AppsRequested", "AutoscalerUpdated",
    "CallCancelled", "CallClosed", "CallRefused", "CallRequested", "CallRestored", "CallWanted", "CallsRequested",
    "CodeUploaded", "ConcurrencyChanged", "ConcurrencyUpdated", "ContainerDisconnected", "ContainerDrained",
    "ContainerFailed", "ContainerLaunched", "ContainerLeaving", "ContainerLost", "ContainerReady", "ContainerStarted",
    "ContainerStopRequested", "ContainersRequested", "DeploymentChanged", "Dispatch", "EntriesChanged",
    "EntriesRequested", "FilesOffered", "FilesSent", "Finished", "ForkServerReported", "ForkServerWarmed", "FromClient",
    "FromContainer", "FromSupervisor", "FunctionRequested", "FunctionsRequested", "Heartbeat", "Hello",
    "ImageProgressed", "ImageRequested", "InputsAccepted", "InputsCancelled", "InputsDispatched", "InputsFinished",
    "InputsOverran", "InputsRecalled", "InputsReturned", "InputsStarted", "InputsSubmitted", "ItemsPut",
    "ItemsRequested", "ItemsSettled", "ItemsWanted", "KillContainer", "Message", "NodeJoined", "NodeLost", "Notice",
    "ObjectsRequested", "Output", "OutputCaptured", "OutputSubscribed", "OutputsDelivered", "OutputsForgotten",
    "OutputsRecorded", "OutputsRequested", "OutputsWanted", "PayloadReleased", "Refused", "Remarked", "Reply",
    "SecretsChanged", "ServerRequested", "SessionClosed", "SlotsChanged", "StartContainer", "StatisticsRequested",
    "StreamCredited", "StreamValues", "SupervisorStopped", "TimePassed", "ToClient", "ToContainer", "ToSupervisor",
    "TokensChanged", "UploadPart", "VariantBound", "VolumeAnswered", "VolumeChanged", "VolumeCommitted", "VolumeEdited",
    "VolumeListed", "VolumeRead", "VolumeReloaded", "VolumeRemounted", "VolumeRequested", "VolumeUploaded",
    "VolumesRequested", "VramMeasured", "WebCredited", "WebReceived", "WebSent", "Welcome",
]  # fmt: skip
