"""Every setting of coatstream: frozen sections with defaults, bounds and cross-checks. Unknown keys are errors.

Durations are seconds. What each key means stands once, in the comments of config/coatstream.yaml, from which the
documents and the JSON Schema for editors are made. `coatstream.settings.loading` finds and merges the values.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, ValidationInfo, field_validator

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
    """One section of the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)


def _not_above(lower: float, info: ValidationInfo, other: str) -> float:
    upper = info.data.get(other)  # absent if it is wrong and reported already
    if upper is not None and lower > upper:
        raise ValueError(f"must not be above {other} ({upper:g})")
    return lower


class RedisSettings(Section):
    """The server."""

    url: SecretStr | None = None
    prefix: Prefix = ""
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    sentinel_username: str | None = None
    sentinel_password: SecretStr | None = None
    connect_timeout: Seconds = 5.0
    socket_timeout: Seconds = 5.0
    start_timeout: Annotated[float, Field(ge=0, le=86_400)] = 5.0

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
    """Frames from a Redis stream."""

    enabled: bool = True
    stream: Key = "frames"
    group: Key = "coatstream"
    dead_stream: Key = "frames:dead"
    dead_max_length: Count = 10_000
    dead_max_bytes: Annotated[int, Field(ge=1, le=2**50)] = 1024**3
    max_length: Count = 10_000
    max_total_bytes: Annotated[int, Field(ge=1, le=2**50)] = 1024**3
    partitions: Annotated[int, Field(ge=1, le=1024)] = 1
    prefetch: Annotated[int, Field(ge=0, le=4096)] = 0
    decode_threads: Annotated[int, Field(ge=0, le=256)] = 0
    max_bytes: Annotated[int, Field(ge=1, le=512 * 1024**2)] = 16 * 1024**2
    max_pixels: Count = 50_000_000
    decoding: Literal["auto", "full"] = "auto"
    min_idle: Seconds = 15.0
    max_skew: Seconds = 3600.0
    max_deliveries: Annotated[int, Field(ge=1, le=1000)] = 5


class QueueEntry(Section):
    """One of several queues. All other settings are those of `queue`."""

    stream: Key
    dead_stream: Key | None = None
    priority: Annotated[int, Field(ge=0, le=1000)] = 0
    weight: Annotated[int, Field(ge=1, le=1000)] = 1


class ResultsSettings(Section):
    """Where labels go."""

    stream: Key = "labels"
    max_length: Count = 100_000
    latest_max_sources: Count = 10_000


class ModelSettings(Section):
    """The classifier and its engine."""

    name: Name = "coat_lite_mini.in1k"
    weights: Annotated[str, Field(min_length=1)] = "hub"
    labels: Path | None = None
    engine: Literal["auto", "eager", "fused", "compile", "openvino", "noop"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    tolerance: Annotated[float, Field(gt=0, le=1)] = 0.02
    cache: Path | None = Path("~/.cache/coatstream")
    baked_cache: Path | None = None
    device: Annotated[
        str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto, cpu, cuda, cuda:<number> or mps")
    ] = "auto"
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    streams: Annotated[int, Field(ge=0, le=64)] = 0
    top_k: Annotated[int, Field(ge=1, le=100)] = 5
    embeddings: bool = False
    noop_delay: Annotated[float, Field(ge=0, le=3600)] = 0.0

    @field_validator("cache", mode="before")
    @classmethod
    def _cache_is_named(cls, cache: object) -> object:
        if cache == "":
            raise ValueError("must name a folder; null keeps nothing")
        return cache


class BatchSettings(Section):
    """How frames are gathered into batches."""

    max_size: Annotated[int, Field(ge=1, le=1024)] = 8
    max_wait: Annotated[float, Field(ge=0, le=60)] = 0.0
    timeout: Seconds = 60.0
    target_latency: Seconds | None = None
    prepared: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = ()

    @field_validator("prepared")
    @classmethod
    def _sizes_fit(cls, prepared: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        max_size = info.data.get("max_size")  # absent if it is wrong and reported already
        if prepared and max_size is not None and (prepared[-1] != max_size or list(prepared) != sorted(set(prepared))):
            raise ValueError(f"must ascend and end with batch.max_size ({max_size}), or be empty")
        return prepared


class HealthSettings(Section):
    """When a camera's picture counts as faulty."""

    frozen_after: Patience = 15.0
    black_after: Patience = 5.0
    covered_after: Patience = 5.0
    blurred_after: Patience = 15.0
    corrupt_after: Patience = 2.0
    well_after: Patience = 2.0


class ReuseSettings(Section):
    """When a frame takes over the labels of a similar one instead of being classified."""

    enabled: bool = False
    difference: Annotated[float, Field(gt=0, le=255)] = 4.0
    heartbeat: Seconds = 10.0
    check: Annotated[float, Field(ge=0, le=1)] = 0.02
    budget: Annotated[float, Field(gt=0, le=1)] = 0.01
    tolerance: Annotated[float, Field(gt=0, le=1)] = 0.15


class Thresholds(Section):
    """The thresholds of one tag."""

    start_at: Probability  # not `on` and `off`, which YAML takes for true and false
    end_below: Probability

    @field_validator("end_below")
    @classmethod
    def _below_start(cls, end_below: float, info: ValidationInfo) -> float:
        return _not_above(end_below, info, "start_at")


class TagSettings(Section):
    """How labels become tags that start and end."""

    enabled: bool = True
    smoothing: Literal["mean", "votes"] = "mean"
    memory: Seconds = 0.5
    votes: Annotated[int, Field(ge=1, le=100)] = 3
    window: Annotated[int, Field(ge=1, le=100)] = 5
    start_at: Probability = 0.4
    end_below: Probability = 0.2
    min_duration: Annotated[float, Field(ge=0, le=3600)] = 1.0
    min_gap: Annotated[float, Field(ge=0, le=3600)] = 1.0
    lost_after: Seconds = 30.0
    sick: Literal["hold", "end"] = "hold"
    sick_at_most: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    include: tuple[Name, ...] = ()
    exclude: tuple[Name, ...] = ()
    groups: dict[Name, tuple[ClassName, ...]] = Field(default_factory=dict)
    thresholds: dict[Name, Thresholds] = Field(default_factory=dict)

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


Point = tuple[Annotated[float, Field(ge=0, le=65_535)], Annotated[float, Field(ge=0, le=65_535)]]


class RegionSettings(Section):
    """A part of a camera's picture."""

    name: Annotated[
        str, Field(min_length=1, max_length=64, pattern=r"^[^/]+$", description="up to 64 characters, no /")
    ]
    at: Annotated[tuple[Point, ...], Field(min_length=2, max_length=32)]
    tags: TagSettings | None = None
    reuse: ReuseSettings | None = None


class CameraSettings(Section):
    """One camera, or a file or folder that is read like one."""

    name: Name
    url: SecretStr
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    fps: Annotated[float, Field(ge=0, le=1000)] = 5.0
    priority: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    realtime: bool | None = None
    loop: bool = False
    backlog: bool = False
    shared: bool = True
    view: (
        Literal["auto", "centre", "whole"] | Annotated[tuple[RegionSettings, ...], Field(min_length=1, max_length=16)]
    ) = "auto"
    max_age: Seconds | None = None
    open_timeout: Seconds = 10.0
    read_timeout: Seconds = 5.0
    transport: Literal["tcp", "udp"] = "tcp"
    keyframes_only: bool = False
    acceleration: Literal["auto", "none", "cuda", "vaapi", "qsv"] = "none"
    tls_verify: bool = True
    tls_ca: Path | None = None
    health: HealthSettings | None = None
    reuse: ReuseSettings | None = None
    tags: TagSettings | None = None

    @field_validator("view")
    @classmethod
    def _regions_have_names(cls, view: str | tuple[RegionSettings, ...]) -> str | tuple[RegionSettings, ...]:
        names = [] if isinstance(view, str) else [region.name for region in view]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"names of regions must be unique, and {', '.join(twice)} is there twice")
        return view

    @field_validator("acceleration", mode="before")
    @classmethod
    def _earlier_names(cls, name: object) -> object:
        """Those of the releases that decoded with OpenCV."""
        return {"any": "auto", "d3d11": "auto", "mfx": "qsv"}.get(str(name), name)

    @field_validator("url", mode="before")
    @classmethod
    def _device_index_is_text(cls, url: object) -> object:
        return str(url) if isinstance(url, int) and not isinstance(url, bool) else url


class FleetSettings(Section):
    """How workers share cameras."""

    key: Key = "cameras"
    lease: Annotated[float, Field(ge=1, le=600)] = 10.0
    local: bool = False
    max_cameras: Count = 1000
    overload: Literal["degrade", "refuse"] = "degrade"


class EventsSettings(Section):
    """Where events of cameras go."""

    stream: Key = "events"
    max_length: Count = 100_000
    tags: Key = "tags"


class PictureSettings(Section):
    """Pictures of events."""

    enabled: bool = True
    store: Annotated[str, Field(min_length=1, max_length=1024)] = "redis"
    max_bytes: Annotated[int, Field(ge=1, le=2**50)] = 64 * 1024**2
    max_age: Annotated[float, Field(gt=0, le=10 * 366 * 86_400)] = 7 * 86_400.0
    max_side: Annotated[int, Field(ge=64, le=640)] = 640
    quality: Annotated[int, Field(ge=1, le=100)] = 80


class TrainingSettings(Section):
    """Frames that are kept for a person to label."""

    folder: Path | None = None
    max_bytes: Annotated[int, Field(ge=1, le=2**50)] = 1024**3
    max_score: Annotated[float, Field(ge=0, le=1)] = 0.4
    max_lead: Annotated[float, Field(ge=0, le=1)] = 0.1
    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    difference: Annotated[float, Field(ge=0, le=255)] = 6.0
    quality: Annotated[int, Field(ge=1, le=100)] = 92


class HttpSettings(Section):
    """Where metrics, probes, the page and its API are served, and who may use the last two."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    probes_port: Annotated[int, Field(ge=0, le=65_535)] | None = None
    token: SecretStr | None = None
    token_file: Path | None = None
    look_token: SecretStr | None = None
    look_token_file: Path | None = None
    trusted_proxies: tuple[Name, ...] = ()
    proxy_header: Annotated[str, Field(max_length=64)] = ""
    proxy_role: Literal["look", "change"] = "look"
    access: Literal["token", "open to anyone"] = "token"


class LogSettings(Section):
    """Logs on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class DrainSettings(Section):
    """How the worker stops."""

    timeout: Seconds = 20.0


class ProcessSettings(Section):
    """The parent that starts the worker again after a frame has killed it (Linux only)."""

    restarts_per_minute: Annotated[int, Field(ge=0, le=600)] = 60


class SettingsTree(Section):
    """All settings. `settings.loading.load` fills it from the command line, the environment, secrets and a file."""

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
    pictures: PictureSettings = PictureSettings()
    training: TrainingSettings = TrainingSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    drain: DrainSettings = DrainSettings()
    process: ProcessSettings = ProcessSettings()

    _overridden: tuple[str, ...] = PrivateAttr(())

    def model_post_init(self, context: Any, /) -> None:
        self._overridden = (context or {}).get("overridden", ())

    @property
    def overridden(self) -> tuple[str, ...]:
        """Lines for the log: which keys of the settings file have another value in the environment or a secret."""
        return self._overridden

    @field_validator("events")
    @classmethod
    def _keys_are_their_own(cls, events: EventsSettings, info: ValidationInfo) -> EventsSettings:
        """Refuse one name for two things: events among labels, say, could not be told apart again."""
        fleet, queue, results = (info.data.get(section) for section in ("fleet", "queue", "results"))
        if fleet is None or queue is None or results is None:  # one of them is wrong and reported already
            return events
        if not info.data.get("cameras") and (events, fleet) == (EventsSettings(), FleetSettings()):
            return events  # this installation has no cameras
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
                f"the name {taken[0]} is taken: queue is the queue's own source, other stands for many in metrics"
            )
        return cameras
