"""Every option of coatstream: frozen sections, defaults, units, cross-checks. Unknown keys are refused.

Durations are seconds, sizes are counts unless a name says otherwise. How settings are found and how a wrong one is
reported is `coatstream.settings.loading`'s business.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Name = Annotated[str, Field(min_length=1, max_length=128)]
Key = Annotated[str, Field(min_length=1, max_length=256)]
Prefix = Annotated[
    str,
    Field(
        max_length=64,
        pattern=r"^[A-Za-z0-9_.:/-]*(\{[A-Za-z0-9_.:/-]+\}[A-Za-z0-9_.:/-]*)?$",
        description="up to 64 letters, digits or any of _ . : / -, such as site1: (and at most one {hash tag})",
    ),
]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Patience = Annotated[float, Field(ge=0, le=86_400)]
Probability = Annotated[float, Field(gt=0, le=1)]
ClassName = Annotated[str, Field(min_length=1, max_length=128)]  # a label, a wnid, an index, or a range such as 151-268

_REDIS_SCHEMES = (
    *("redis://", "rediss://", "unix://"),
    *("redis+sentinel://", "rediss+sentinel://", "redis+cluster://", "rediss+cluster://"),
)


class Section(BaseModel):
    """One block of the settings tree."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)


def _not_above(lower: float, info: ValidationInfo, other: str) -> float:
    upper = info.data.get(other)  # absent when it is wrong itself
    if upper is not None and lower > upper:
        raise ValueError(f"must not be above {other} ({upper:g})")
    return lower


class RedisSettings(Section):
    """Where labels go, and where queue frames come from."""

    url: SecretStr | None = None  # redis://, rediss://, unix://, ...+sentinel:// or ...+cluster://; may hold a password
    prefix: Prefix = ""  # what all keys and channels of this installation begin with
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = (
        None  # read anew for each connection; `coatstream.settings.loading` sets it for a mounted secret
    )
    tls_ca: Path | None = None  # PEM; None: the system's authorities
    tls_cert: Path | None = None  # of this client, PEM
    tls_key: Path | None = None
    sentinel_username: str | None = None
    sentinel_password: SecretStr | None = None
    connect_timeout: Seconds = 5.0
    socket_timeout: Seconds = 5.0  # for one reply; a blocking read waits for at most a fifth of it

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(_REDIS_SCHEMES):
            raise ValueError(
                "must start with redis://, rediss:// or unix://, or with redis+sentinel://, rediss+sentinel://, "
                "redis+cluster:// or rediss+cluster://"
            )
        return url


class QueueSettings(Section):
    """Frames from a Redis stream with a consumer group."""

    enabled: bool = True
    stream: Key = "frames"
    group: Key = "coatstream"
    dead_stream: Key = "frames:dead"
    dead_max_length: Count = 10_000  # entries kept for inspection; the oldest go first
    dead_max_bytes: Annotated[int, Field(ge=1, le=2**50)] = 1024**3  # of all dead letters; the oldest go first
    max_length: Count = 10_000  # unfinished entries at which our producers wait; a plain XADD knows no bound
    max_total_bytes: Annotated[int, Field(ge=1, le=2**50)] = 1024**3  # of their fields, likewise
    partitions: Annotated[int, Field(ge=1, le=1024)] = (
        1  # streams that one name stands for, to spread it over a cluster
    )
    prefetch: Annotated[int, Field(ge=0, le=4096)] = 0  # frames read ahead of the model; 0 = two batches
    decode_threads: Annotated[int, Field(ge=0, le=256)] = 0  # 0 = one per core that this process may use
    max_bytes: Annotated[int, Field(ge=1, le=512 * 1024**2)] = 16 * 1024**2  # of one encoded or raw picture
    max_pixels: Count = 50_000_000  # of one decoded picture: 150 MB
    decoding: Literal["auto", "full"] = "auto"  # auto: a JPEG at half its size where twice the model's is left
    min_idle: Seconds = 15.0  # how long an entry may lie with a silent worker before another takes it
    max_deliveries: Annotated[int, Field(ge=1, le=1000)] = 5  # tries before a frame becomes a dead letter


class QueueEntry(Section):
    """One of several queues. What is not said here is as in `queue`."""

    stream: Key
    dead_stream: Key | None = None  # None: <stream>:dead
    priority: Annotated[int, Field(ge=0, le=1000)] = 0  # lower ones first, strictly
    weight: Annotated[int, Field(ge=1, le=1000)] = 1  # share among queues of the same priority


class ResultsSettings(Section):
    """Labels out. The channel of a source is `<stream>:<source>`, the hash of newest labels `<stream>:latest`."""

    stream: Key = "labels"
    max_length: Count = 100_000  # entries kept, approximately; about 1 kB each
    latest_max_sources: Count = 10_000


class ModelSettings(Section):
    """What classifies."""

    name: Name = "coat_lite_mini.in1k"  # any timm classifier
    weights: Annotated[str, Field(min_length=1)] = "hub"  # hub, random, package:<name>, or a .safetensors or .pth file
    labels: Path | None = None  # one class name a line, or a JSON list; None: ImageNet's where the head is ImageNet's
    engine: Literal["auto", "eager", "fused", "compile", "openvino", "noop"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: the fastest that passes the self-check
    tolerance: Annotated[float, Field(gt=0, le=1)] = 0.02  # of the largest probability; fp32: 0.001 at most
    cache: Path | None = Path("~/.cache/coatstream")  # converted models, measured choices; null: nothing is kept
    device: Annotated[
        str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto, cpu, cuda, cuda:<number> or mps")
    ] = "auto"
    threads: Annotated[int, Field(ge=0, le=1024)] = 0  # of one stream on a CPU; 0 = share the cores out
    streams: Annotated[int, Field(ge=0, le=64)] = 0  # batches at once; 0 = the engine's choice
    top_k: Annotated[int, Field(ge=1, le=100)] = 5
    embeddings: bool = False
    noop_delay: Annotated[float, Field(ge=0, le=3600)] = 0.0  # the noop engine's time for a batch

    @field_validator("cache", mode="before")
    @classmethod
    def _cache_is_named(cls, cache: object) -> object:
        if cache == "":
            raise ValueError("must name a folder; null keeps nothing")
        return cache


class BatchSettings(Section):
    """When a batch leaves."""

    max_size: Annotated[int, Field(ge=1, le=1024)] = 8
    max_wait: Annotated[float, Field(ge=0, le=60)] = 0.0  # after the batch's first frame; 0 = take what is there
    timeout: Seconds = 60.0  # in the engine; then /healthz says no, and its entries are left to other workers
    target_latency: Seconds | None = None  # from arrival to label, seconds: waiting and batch sizes keep to it
    prepared: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = ()  # sizes to pad to; () = the engine's choice

    @field_validator("prepared")
    @classmethod
    def _sizes_fit(cls, prepared: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        max_size = info.data.get("max_size")  # absent when it is wrong itself
        if prepared and max_size is not None and (prepared[-1] != max_size or list(prepared) != sorted(set(prepared))):
            raise ValueError(f"must ascend and end with batch.max_size ({max_size}), or be empty")
        return prepared


class HealthSettings(Section):
    """When a camera's picture counts as sick. Each fault must last so long before it is said; 0 = never look for it."""

    frozen_after: Patience = 15.0  # seconds without any change
    black_after: Patience = 5.0
    covered_after: Patience = 5.0  # nothing but one plain surface: a hand, a cloth, paint
    blurred_after: Patience = 15.0
    corrupt_after: Patience = 2.0  # seconds with damaged pictures, as the decoder reports them
    well_after: Patience = 2.0  # seconds without a fault until the picture counts as well again


class ReuseSettings(Section):
    """The change gate: a frame like the last classified one reuses its labels, and is not classified."""

    enabled: bool = False
    difference: Annotated[float, Field(gt=0, le=255)] = 4.0  # grey levels that any part of the picture may differ by
    heartbeat: Seconds = 10.0  # classified at least so often
    check: Annotated[float, Field(ge=0, le=1)] = 0.02  # share of like frames that are classified all the same
    budget: Annotated[float, Field(gt=0, le=1)] = 0.01  # share of those checks that may disagree; above, it tightens


class Thresholds(Section):
    """Own thresholds of one tag."""

    start_at: Probability  # not `on` and `off`, which YAML takes for true and false
    end_below: Probability

    @field_validator("end_below")
    @classmethod
    def _below_start(cls, end_below: float, info: ValidationInfo) -> float:
        return _not_above(end_below, info, "start_at")


class TagSettings(Section):
    """From labels that flicker to tags that start and end."""

    enabled: bool = True
    smoothing: Literal["mean", "votes"] = "mean"
    memory: Seconds = 1.0  # mean: the time constant of the moving average of scores
    votes: Annotated[int, Field(ge=1, le=100)] = (
        3  # votes: a tag is seen when so many of the last `window` frames say so
    )
    window: Annotated[int, Field(ge=1, le=100)] = 5
    start_at: Probability = 0.4  # a tag starts at this score
    end_below: Probability = 0.2  # and ends below this one
    min_duration: Annotated[float, Field(ge=0, le=3600)] = 1.0  # seconds for which a tag must hold before it is said
    min_gap: Annotated[float, Field(ge=0, le=3600)] = 1.0  # seconds for which it must be gone before it ends
    lost_after: Seconds = 30.0  # seconds without a frame after which the camera's tags end
    include: tuple[Name, ...] = ()  # only these tags; () = all
    exclude: tuple[Name, ...] = ()
    groups: dict[Name, tuple[ClassName, ...]] = Field(default_factory=dict)  # one tag for many classes
    thresholds: dict[Name, Thresholds] = Field(default_factory=dict)  # a tag's own, else the two above

    @field_validator("end_below")
    @classmethod
    def _below_start(cls, end_below: float, info: ValidationInfo) -> float:
        return _not_above(end_below, info, "start_at")

    @field_validator("window")
    @classmethod
    def _holds_votes(cls, window: int, info: ValidationInfo) -> int:
        votes = info.data.get("votes")
        if votes is not None and window < votes:
            raise ValueError(f"must not be below votes ({votes})")
        return window


class CameraSettings(Section):
    """One camera, or a file or folder that is read like one."""

    name: Name
    url: SecretStr  # rtsp(s)://, http(s)://, udp://, tcp://, a path, or a device index; may hold a user and password
    username: str | None = None  # apart from the URL, percent-encoded for you
    password: SecretStr | None = None
    password_file: Path | None = None  # read at each opening, so that a password can be changed without a restart
    fps: Annotated[float, Field(ge=0, le=1000)] = 5.0  # frames sampled a second, fractions allowed; 0 = every one
    priority: Annotated[float, Field(ge=0.001, le=1000)] = 1.0  # its share of the engine when not all frames can be had
    realtime: bool | None = None  # None: live sources yes, files no (lossless, as fast as the model takes them)
    loop: bool = False  # files only: begin again at the end
    backlog: bool = False  # folders only: also the pictures that are there already
    shared: bool = True  # among all workers on this Redis, one reads it; False: each that has it in its settings
    max_age: Seconds | None = None  # a frame older than this when its batch leaves is dropped as stale
    open_timeout: Seconds = 10.0  # until the first picture, name resolution included
    read_timeout: Seconds = 5.0
    transport: Literal["tcp", "udp"] = "tcp"  # of RTSP
    keyframes_only: bool = False
    acceleration: Literal["none", "any", "vaapi", "d3d11", "mfx"] = "none"  # hardware decoding, where OpenCV has it
    tls_verify: bool = True  # of rtsps:// and https://
    tls_ca: Path | None = None  # PEM; None: the system's authorities
    health: HealthSettings | None = None  # None: as the section `health` says; likewise the next two
    reuse: ReuseSettings | None = None
    tags: TagSettings | None = None

    @field_validator("url", mode="before")
    @classmethod
    def _device_index_is_text(cls, url: object) -> object:
        return str(url) if isinstance(url, int) and not isinstance(url, bool) else url


class FleetSettings(Section):
    """How all workers on one Redis share all cameras, those from Redis included."""

    key: Key = "cameras"  # prefix of the keys; the cameras that were added at run time are in the hash of this name
    lease: Annotated[float, Field(ge=1, le=600)] = 10.0  # seconds after which others take a silent worker's cameras
    local: bool = False  # whether a camera from Redis may be a file, folder or device of this machine
    max_cameras: Count = 1000
    overload: Literal["degrade", "refuse"] = "degrade"  # what to do when cameras ask for more than the engine can do


class EventsSettings(Section):
    """Tags, states of cameras and sick pictures, as they begin and end."""

    stream: Key = "events"  # the channel of a camera is `<stream>:<camera>`
    max_length: Count = 100_000
    tags: Key = "tags"  # the present tags of a camera are in the hash `<tags>:<camera>`


class HttpSettings(Section):
    """/metrics, /healthz and /readyz."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080  # 0 = any free one, said in the log


class LogSettings(Section):
    """Logs go to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"  # auto: console on a terminal, else JSON


class DrainSettings(Section):
    """What happens between the first signal and the end."""

    timeout: Seconds = 20.0  # for publishing what has been read; the rest stays in the queue


class ProcessSettings(Section):
    """The parent that starts the worker again when a frame has killed it. On Linux; elsewhere there is none."""

    restarts_per_minute: Annotated[int, Field(ge=0, le=600)] = 60  # 0 = no parent


class SettingsTree(Section):
    """The whole tree. `settings.loading.load` fills it from the command line, the environment, secrets and a file."""

    redis: RedisSettings = RedisSettings()
    queue: QueueSettings = QueueSettings()
    queues: tuple[QueueEntry, ...] = ()
    results: ResultsSettings = ResultsSettings()
    model: ModelSettings = ModelSettings()
    batch: BatchSettings = BatchSettings()
    cameras: tuple[CameraSettings, ...] = ()
    health: HealthSettings = HealthSettings()
    reuse: ReuseSettings = ReuseSettings()
    tags: TagSettings = TagSettings()
    fleet: FleetSettings = FleetSettings()
    events: EventsSettings = EventsSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    drain: DrainSettings = DrainSettings()
    process: ProcessSettings = ProcessSettings()

    @field_validator("events")
    @classmethod
    def _keys_are_their_own(cls, events: EventsSettings, info: ValidationInfo) -> EventsSettings:
        """Events among labels, or a camera's tags in the hash of the newest labels, nobody could take apart again."""
        fleet, queue, results = (info.data.get(section) for section in ("fleet", "queue", "results"))
        if fleet is None or queue is None or results is None:  # one of them is wrong itself
            return events
        if not info.data.get("cameras") and (events, fleet) == (EventsSettings(), FleetSettings()):
            return events  # nobody has asked for cameras
        others = [queue.stream, queue.dead_stream, results.stream, *(one.stream for one in info.data.get("queues", ()))]
        names = [*others, fleet.key, events.stream, events.tags]
        for name in (fleet.key, events.stream, events.tags):
            if names.count(name) > 1:
                raise ValueError(
                    f"{name} is the name of two things: fleet.key, events.stream, events.tags and the streams of queue "
                    "and results must all differ"
                )
        return events

    @field_validator("cameras")
    @classmethod
    def _names_are_unique(cls, cameras: tuple[CameraSettings, ...]) -> tuple[CameraSettings, ...]:
        names = [camera.name for camera in cameras]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"camera names must be unique, and {', '.join(twice)} is there twice")
        if taken := sorted(name for name in names if name == "other" or name.partition("/")[0] == "queue"):
            raise ValueError(
                f"the name {taken[0]} is taken: queue is the queue's own, other stands for many in metrics"
            )
        return cameras
