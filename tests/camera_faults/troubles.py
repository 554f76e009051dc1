"""What can befall a camera, and what came of it. Brings it about through the lab; judges nothing."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from time import time
from typing import Any, Final

from tests.camera_faults.lab import PASSWORD, LabCamera

OTHER_PASSWORD: Final = "changed-one"
OTHER_SIZE: Final = {"cam320": "cam160", "cam160": "cam320"}
DAMAGED: Final = 0.3  # share of packets


class Kind(StrEnum):
    """In the order in which a run begins with them: a wrong password takes longest to come back from."""

    PASSWORD = "wrong password"
    FREEZE = "freeze"
    KILL = "kill"
    SILENCE = "silence"
    SIZE = "other size"
    CORRUPT = "corrupt packets"
    DROP = "lost packets"
    RESTART = "restart"


DEAD: Final = frozenset({Kind.PASSWORD, Kind.FREEZE, Kind.KILL, Kind.SILENCE})  # no picture leaves the camera
INSTANT: Final = frozenset({Kind.SIZE, Kind.RESTART})  # over as soon as they have begun


@dataclass(slots=True)
class Trouble:
    """One fault of one camera, Unix seconds. `ending`: when the camera was told that it is over, `ended`: when it had
    said so. `back`: capture of its first good label after the end.
    """

    kind: Kind
    camera: str
    began: float
    size: tuple[int, int] | None = None  # of a good label; None: any
    ended: float | None = None
    ending: float | None = None
    back: float | None = None

    def allowed(self, log: list[tuple[float, dict[str, Any]]]) -> float:
        """The wait that the worker logged last for this camera before it was back: its backoff; 0: it was not lost."""
        until = self.back or time()
        waits = [
            float(entry["reopen_in"])
            for at, entry in log
            if entry.get("source") == self.camera and self.began <= at <= until and "reopen_in" in entry
        ]
        return waits[-1] if waits else 0.0

    @property
    def took(self) -> float | None:
        """Seconds from the end of the fault to the camera's first good label."""
        return None if self.back is None or self.ended is None else self.back - self.ended


class Troublemaker:
    """Brings faults to cameras and takes them away again. `sizes`: the size of each clip's pictures."""

    def __init__(self, cameras: Mapping[str, LabCamera], sizes: Mapping[str, tuple[int, int]]) -> None:
        self.cameras = cameras
        self._sizes = sizes
        self._clips = dict.fromkeys(cameras, "cam320")

    def begin(self, kind: Kind, name: str) -> Trouble:
        camera = self.cameras[name]
        trouble = Trouble(kind, name, time())
        match kind:
            case Kind.PASSWORD:
                camera.tell("password", password=OTHER_PASSWORD)
            case Kind.FREEZE:
                camera.process.freeze()
            case Kind.KILL:
                camera.tell("kill")
            case Kind.SILENCE:
                camera.tell("silence")
            case Kind.SIZE:
                self._clips[name] = OTHER_SIZE[self._clips[name]]
                trouble.size = self._sizes[self._clips[name]]
                camera.tell("show", clip=self._clips[name])
            case Kind.CORRUPT:
                camera.tell("spoil", corrupt=DAMAGED, drop=0.0)
            case Kind.DROP:
                camera.tell("spoil", corrupt=0.0, drop=DAMAGED)
            case Kind.RESTART:
                camera.tell("kill")
                camera.tell("start")
        if kind in INSTANT:
            trouble.ended = time()
        return trouble

    def end(self, trouble: Trouble) -> None:
        camera = self.cameras[trouble.camera]
        ends: dict[Kind, Callable[[], object]] = {
            Kind.PASSWORD: lambda: camera.tell("password", password=PASSWORD),
            Kind.FREEZE: camera.process.thaw,
            Kind.KILL: lambda: camera.tell("start"),
            Kind.SILENCE: lambda: camera.tell("speak"),
            Kind.CORRUPT: lambda: camera.tell("spoil", corrupt=0.0, drop=0.0),
            Kind.DROP: lambda: camera.tell("spoil", corrupt=0.0, drop=0.0),
        }
        trouble.ending = time()
        ends[trouble.kind]()
        trouble.ended = time()


def deck(rng: random.Random) -> Iterator[Kind]:
    """Every kind once, then every kind once again in another order, and so on."""
    kinds = list(Kind)
    while True:
        yield from kinds
        rng.shuffle(kinds)
