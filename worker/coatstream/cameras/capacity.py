"""How many cameras fit, and which are let in where not all do: arithmetic on measured rates and costs.

Nothing here acts: `coatstream.cameras.manager` refuses or warns, `coatstream.commands.bench.cameras` prints.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import floor
from typing import Final, Literal

from coatstream.cameras.address import Kind, parse
from coatstream.cameras.view import inputs_of
from coatstream.engine.protocol import Engine
from coatstream.pipeline.cost import ROUNDS, measure_costs
from coatstream.pipeline.fairness import water_fill
from coatstream.settings.model import CameraSettings

LOAD: Final = 0.7  # of a machine to plan with: the rest is for bursts, noisy nights and everything else
EVERY: Final = 25.0  # frames/s that a camera with fps 0 (every picture) is taken to ask for
KEY_INTERVAL: Final = 2.0  # seconds between two key frames, unless it is known
ADMIT: Final = 0.9  # of the measured rate that cameras may ask for: it was measured with nothing else to do


# ---- how many fit


@dataclass(frozen=True, slots=True)
class DecodeCost:
    """CPU seconds of reading one camera.

    picture    for each picture of the stream, all of them decoded
    keys_only  for each picture of the stream, only key frames decoded
    sampled    for each one that is taken: converted, prepared, measured
    """

    picture: float
    keys_only: float
    sampled: float


@dataclass(frozen=True, slots=True)
class Sampling:
    """What is taken of a stream: `taken` frames a second of `fps` pictures, each so many inputs of the model."""

    taken: float
    inputs: int = 1
    fps: float = EVERY
    keyframes_only: bool = False


@dataclass(frozen=True, slots=True)
class Fit:
    """How many cameras of one kind fit.

    limit    what one more of them would overload first
    cores    that reading one of them keeps busy
    """

    cameras: int
    limit: Literal["decode", "engine"]
    cores: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a machine can do.

    engine_rate   frames/s that the model classifies with nothing else to do
    cores         that this process may use
    shares_cores  whether the model runs on these cores, too
    """

    engine_rate: float
    cores: int
    shares_cores: bool

    def fit(self, cost: DecodeCost, sampling: Sampling, *, load: float = LOAD) -> Fit:
        """How many such cameras keep the machine busy for at most `load` of its time."""
        cores = cores_of(cost, sampling)
        decode, engine = cores / self.cores, sampling.taken * sampling.inputs / self.engine_rate
        share = decode + engine if self.shares_cores else max(decode, engine)
        return Fit(floor(load / share + 1e-9), "decode" if decode > engine else "engine", cores)


def cores_of(cost: DecodeCost, sampling: Sampling) -> float:
    """Cores that reading one camera keeps busy."""
    stream = cost.keys_only if sampling.keyframes_only else cost.picture
    return sampling.fps * stream + sampling.taken * cost.sampled


# ---- who is let in


def demand(camera: CameraSettings) -> float:
    """Inputs/s that a camera asks of the model; 0 for a file that waits for it. Raises ConfigError.

    A camera's own rate is unknown before it is read. A frame of a wide picture is two inputs (`cameras.view`).
    """
    kind = parse(camera).kind
    if kind in (Kind.FILE, Kind.FOLDER) if camera.realtime is None else not camera.realtime:
        return 0.0
    asked = camera.fps or EVERY
    return inputs_of(camera) * (min(asked, 1 / KEY_INTERVAL) if camera.keyframes_only else asked)


def admit(
    cameras: Iterable[CameraSettings], engine_rate: float, *, load: float = ADMIT
) -> tuple[list[CameraSettings], list[CameraSettings]]:
    """(accepted, refused): by priority, in their order where that is equal, while the model can do all they ask for.

    Where a camera is refused, all of a lower priority are. Both lists are in the order given.
    """
    given = list(cameras)
    left, barred = load * engine_rate, 0.0
    accepted: set[str] = set()
    for camera in sorted(given, key=lambda camera: -camera.priority):
        if camera.priority < barred:
            break
        if (asked := demand(camera)) <= left:
            left -= asked
            accepted.add(camera.name)
        else:
            barred = camera.priority
    return (
        [camera for camera in given if camera.name in accepted],
        [camera for camera in given if camera.name not in accepted],
    )


def served(cameras: Iterable[CameraSettings], engine_rate: float) -> dict[str, float]:
    """Share of its demand that each camera gets, 0..1, once the model cannot keep up.

    Cameras get frames by priority, whatever inputs a frame has.
    """
    demands = {camera.name: (demand(camera), inputs_of(camera) * camera.priority) for camera in cameras}
    shares = water_fill(demands, engine_rate)
    return {name: shares[name] / asked if asked else 1.0 for name, (asked, _) in demands.items()}


def overload_warning(cameras: Sequence[CameraSettings], engine_rate: float) -> str | None:
    """One line for the log where cameras ask for more than the model can do; None where they do not."""
    asked = sum(demand(camera) for camera in cameras)
    if asked <= engine_rate:
        return None
    shares = served(cameras, engine_rate)
    worst = min(shares, key=shares.__getitem__)
    return (
        f"the cameras ask for {asked:.4g} inputs/s and the model does about {engine_rate:.3g}: frames will be replaced "
        f"by newer ones, by priority, and {worst!r} gets {shares[worst]:.0%} of its own; lower their fps, take a "
        "smaller model, add a replica, or set fleet.overload: refuse"
    )


# ---- the engine's rate


def measure_rates(
    engine: Engine,
    sizes: Sequence[int],
    *,
    seconds: float = 0.8,
    most: float = 3.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, float]:
    """Frames/s by batch size, in about `seconds`; an engine that is slow may take `most`. See `measure_costs`."""
    enough = seconds / len(sizes) / ROUNDS
    return measure_costs(engine, sizes, budget=seconds, most=most, enough=enough, clock=clock).rates
