"""`coatstream bench engine`: frames a second of the model alone, by engine, batch size and how it uses the cores.

Eager float32 is the base that the others are measured against: timm without changes and with the
system's own allocator settings, which a worker changes. Each engine runs in a process of its own. Beside them
the limit of the machine, as large matrix products reach it in float32 and in bfloat16, and the share of it which the
model's own floating-point operations make up. A survey runs every case; then the best of each engine meets the best of
the base in rounds of their own. Their results for real pictures are compared, too.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.synchronize import Event
from statistics import median
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coatstream.commands.bench.contender import Contender, Layout, Limits, Sample, gpu_words, limits
from coatstream.commands.bench.photos import photos
from coatstream.commands.bench.remote import RemoteObject, burner, remote
from coatstream.commands.bench.report import Figure, Report, Run, Value, figure, interleave, machine, ratio
from coatstream.engine.backends.pytorch import device_of
from coatstream.engine.cores import usable_cores
from coatstream.errors import ConfigError, EngineError
from coatstream.frames.frame import InputSpec, Pixels
from coatstream.frames.model import ModelInfo
from coatstream.frames.resizing import prepare
from coatstream.settings.model import ModelSettings, SettingsTree

SIZES: Final = (1, 2, 4, 8, 16, 32)
ENGINES: Final = ("fused", "openvino")  # beside eager; compile takes minutes and is measured where it is asked for
KNOWN: Final = ("eager", "fused", "compile", "openvino")
PRECISIONS: Final = ("fp32", "bf16", "fp16")
MOST_STREAMS: Final = 64  # as many as model.streams allows
CLIP_FPS: Final = 10.0  # frames of the clip that engines are compared on: 143
SURE: Final = 0.5  # probability above which the base's best class counts as sure
LOADING: Final = 900.0  # seconds: compiling takes minutes
SLICE: Final = 120.0  # seconds that one slice may take beyond its own


@dataclass(frozen=True, slots=True)
class Asked:
    """An engine in a precision, as `--engines` names it."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine}_{self.precision}"


@dataclass(slots=True, eq=False)
class Side:
    """One engine's process, and what is known of it."""

    asked: Asked
    remote: RemoteObject
    info: ModelInfo
    layouts: tuple[Layout, ...]
    differs: dict[str, Value] = field(default_factory=dict)  # from the base, on real pictures

    def __str__(self) -> str:
        return str(self.asked)


@dataclass(frozen=True, slots=True)
class Case:
    """One engine at one batch size and layout."""

    side: Side
    layout: Layout
    size: int

    @property
    def name(self) -> str:
        return f"{self.side}_{self.layout}_batch{self.size}"

    def sample(self, seconds: float) -> Sample:
        taken: Sample = self.side.remote.call("rate", self.layout, self.size, seconds, within=seconds + SLICE)
        return taken

    def rate(self, seconds: float) -> float:
        return self.sample(seconds).rate

    def words(self) -> dict[str, Value]:
        info, layout = self.side.info, self.layout
        return {
            "model": info.name,
            "weights": info.weights,
            "engine": info.engine,
            "precision": info.precision,
            "device": info.device,
            "streams": layout.streams,
            "threads": layout.threads,
            "batch": self.size,
        }


def run_bench_engine(
    settings: SettingsTree,
    *,
    seconds: float,
    engines: Sequence[str] = ENGINES,
    sizes: Sequence[int] = SIZES,
    busy: bool = False,
) -> int:
    """Frames a second of each engine at each batch size and layout. Raises ConfigError and EngineError.

    `busy`: the best of each also while another process takes one core, in pairs with a quiet slice.
    """
    wanted, sizes = parse(engines), tuple(sorted(set(sizes)))
    with ExitStack() as stack:
        bench = stack.enter_context(_bench(settings.model, wanted, sizes))
        bench.compare()
        cases, slow = bench.sorted_out(sizes, seconds)
        bench.report.note(f"about {2 * (len(cases) + len(bench.limit_names)) * seconds:.0f} s of measuring")
        rates = bench.survey(cases, seconds)
        for case, took in slow:
            why = f"a batch takes {took:.1f} s, longer than --seconds {seconds:g}"
            bench.report.add(case=case.name, left_out=why)
        burning = stack.enter_context(burner()) if busy else None
        bench.duel(cases, rates, seconds, burning)
    bench.report.show()
    return 0


def sizes_of(text: str) -> tuple[int, ...]:
    """Batch sizes of a list such as `1,4,8`. Raises ConfigError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 1 <= int(word) <= 1024 for word in words):
        raise ConfigError(f"--sizes {text!r} is no list of batch sizes such as 1,4,8")
    return tuple(map(int, words))


def parse(engines: Iterable[str]) -> tuple[Asked, ...]:
    """`fused` is fused in float32 and bfloat16, `fused:fp16` that alone; the base comes first, asked for or not.

    Raises ConfigError.
    """
    asked = [Asked("eager", "fp32")]
    for word in engines:
        engine, _, precision = word.partition(":")
        if engine not in KNOWN or precision not in ("", *PRECISIONS):
            raise ConfigError(
                f"--engines: {word!r} is none of {', '.join(KNOWN)}, with :fp32, :bf16 or :fp16 or without"
            )
        several = ("fp32",) if engine == "eager" else ("fp32", "bf16")
        asked += [Asked(engine, one) for one in ((precision,) if precision else several)]
    return tuple(dict.fromkeys(asked))


def layouts(cores: int, *, on_cpu: bool) -> tuple[Layout, ...]:
    """One batch on all cores, and a batch on each core; a GPU has one stream."""
    streams = min(cores, MOST_STREAMS)
    return (Layout(1, cores), Layout(streams, 1)) if on_cpu and cores > 1 else (Layout(1, 1),)


# ---- the engines' processes


@contextmanager
def _bench(model: ModelSettings, wanted: Sequence[Asked], sizes: tuple[int, ...]) -> Iterator["EngineBench"]:
    """All engines that can be had, loaded; a line for each that cannot. Raises EngineError where the base cannot."""
    if model.weights == "hub":  # speed does not depend on weights: no download
        model = model.model_copy(update={"weights": "random", "labels": None})
    report = Report("engine", machine(**gpu_words(str(device_of(model.device)))))
    sides: list[Side] = []
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        with report.track("loading", wanted) as tracked:
            for asked in tracked:
                try:
                    sides.append(_side(stack, model, asked, sizes, tuned=asked != wanted[0]))
                except EngineError as error:
                    if asked == wanted[0]:
                        raise
                    left_out[str(asked)] = str(error)
        for name, why in left_out.items():
            report.add(case=name, left_out=why)
        base = sides[0]
        gflop: float = base.remote.call("gflop", base.layouts[0], within=SLICE)
        yield EngineBench(report, sides, stack.enter_context(remote("limits", Limits, base.info.device)), gflop)


def _side(stack: ExitStack, model: ModelSettings, asked: Asked, sizes: tuple[int, ...], *, tuned: bool) -> Side:
    """Raises EngineError."""
    model = model.model_copy(update={"engine": asked.engine, "precision": asked.precision})
    process = stack.enter_context(remote(str(asked), partial(Contender, tuned=tuned), model, sizes))
    first = Layout(1, usable_cores())
    info: ModelInfo = process.call("load", first, within=LOADING)
    shapes = layouts(usable_cores(), on_cpu=info.device == "cpu")
    for layout in shapes:
        process.call("load", layout, within=LOADING)
    return Side(asked, process, info, shapes)


@dataclass(slots=True)
class EngineBench:
    """The report, the engines (the base first), the limits, and what one picture takes."""

    report: Report
    sides: list[Side]
    limits: RemoteObject
    gflop: float

    @property
    def base(self) -> Side:
        return self.sides[0]

    @property
    def limit_names(self) -> tuple[str, ...]:
        return limits(self.base.info.device)

    # ---- their results

    def compare(self) -> None:
        """Each engine's probabilities of real pictures with the base's."""
        spec: InputSpec = self.base.remote.call("spec", self.base.layouts[0], within=SLICE)
        shown = pictures(spec)
        reference = self.base.remote.call("probabilities", shown, within=LOADING)
        with self.report.track("comparing with the base on photos", self.sides[1:]) as tracked:
            for side in tracked:
                side.differs = differences(reference, side.remote.call("probabilities", shown, within=LOADING))

    # ---- how fast they are

    def sorted_out(self, sizes: Sequence[int], seconds: float) -> tuple[list[Case], list[tuple[Case, float]]]:
        """Run every size once to warm it; (what fits into the time, what is too slow with its seconds a batch)."""
        cases: list[Case] = []
        slow: list[tuple[Case, float]] = []
        ways = {f"{side}_{layout}": (side, layout) for side in self.sides for layout in side.layouts}
        with self.report.track("warming up", list(ways)) as tracked:
            for side, layout in map(ways.__getitem__, tracked):
                for case in (Case(side, layout, size) for size in sizes):
                    case.rate(0.0)
                    took = case.size * layout.streams / case.rate(0.0)
                    if took > seconds and case.size > sizes[0]:
                        slow.append((case, took))
                        break  # the next size takes longer
                    cases.append(case)
        # what is compared comes one after the other
        cases.sort(key=lambda case: (case.size, case.layout.streams, self.sides.index(case.side)))
        return cases, slow

    def survey(self, cases: Sequence[Case], seconds: float) -> dict[Case, list[float]]:
        """Frames a second of every case, a line for each."""
        runs: dict[str, Run] = {case.name: case.rate for case in cases}
        samples = interleave(runs | self._limit_runs(), seconds, track=partial(self.report.track, "every case"))
        for name in self.limit_names:
            self.report.add(case=name, gflops=figure(samples[name]))
        for case in cases:
            self.report.add(case=case.name, **case.words(), **self._speed(case, samples[case.name], samples))
        return {case: samples[case.name] for case in cases}

    def duel(
        self,
        cases: Sequence[Case],
        rates: dict[Case, list[float]],
        seconds: float,
        burning: Event | None,
    ) -> None:
        """The best of each engine against the best of the base, and both at the smallest batch; a line for each.

        `cases` begin with the smallest batch.
        """
        small = [case for case in cases if case.size == cases[0].size]
        on_one_stream = [case for case in cases if case.layout == self.base.layouts[0]]
        plain = _best(self.base, on_one_stream, rates)  # as a plain loop runs it
        best = {side: _best(side, cases, rates) for side in self.sides}
        smallest = {side: _best(side, small, rates) for side in self.sides}
        cores: dict[Side, list[float]] = {side: [] for side in self.sides}
        runs: dict[str, Run] = {case.name: case.rate for case in (plain, *smallest.values(), *best.values())}
        if burning is not None:
            runs |= {_busy(case): partial(_disturbed, case, burning, cores[side]) for side, case in best.items()}
        samples = interleave(runs | self._limit_runs(), seconds, track=partial(self.report.track, "the best of each"))
        for side, case in best.items():
            reached, at_smallest = samples[case.name], samples[smallest[side].name]
            values: dict[str, Value] = {
                "ratio": ratio(reached, samples[best[self.base].name]),
                "ratio_to_one_stream": ratio(reached, samples[plain.name]),
                f"batch{cases[0].size}_frames_per_s": figure(at_smallest),
                f"batch{cases[0].size}_ratio": ratio(at_smallest, samples[smallest[self.base].name]),
            }
            if burning is not None:
                values["busy_frames_per_s"] = figure(samples[_busy(case)])
                values["kept_when_busy"] = ratio(samples[_busy(case)], reached)
                values["busy_cores"] = figure(cores[side])
            speed = self._speed(case, reached, samples)
            self.report.add(case=f"best_{side}", **case.words(), **speed, **values, **side.differs)

    def _limit_runs(self) -> dict[str, Run]:
        return {name: partial(self._limit, name) for name in self.limit_names}

    def _limit(self, name: str, seconds: float) -> float:
        taken: Sample = self.limits.call("rate", name, seconds, within=seconds + SLICE)
        return taken.rate

    def _speed(self, case: Case, rates: list[float], samples: dict[str, list[float]]) -> dict[str, Value]:
        at_once = case.layout.streams * case.size
        in_fp32, in_bf16 = self.limit_names[:2], self.limit_names[2:]
        return {
            "frames_per_s": figure(rates),
            "ms_per_batch": figure([1000 * at_once / rate for rate in rates]),
            "gflop_per_frame": self.gflop,
            "share_of_limit": self._share(rates, _better(samples, in_fp32)),
            "share_of_bf16_limit": self._share(rates, _better(samples, in_bf16)) if in_bf16 else None,
        }

    def _share(self, rates: list[float], best: list[float]) -> Figure | None:
        """None where no operations could be counted."""
        return ratio([self.gflop * rate for rate in rates], best) if self.gflop else None


def _better(samples: dict[str, list[float]], names: Sequence[str]) -> list[float]:
    """Of two limits the higher one, round by round."""
    return [max(pair) for pair in zip(*(samples[name] for name in names), strict=True)]


def _best(side: Side, cases: Iterable[Case], rates: dict[Case, list[float]]) -> Case:
    return max((case for case in cases if case.side is side), key=lambda case: median(rates[case]))


def _busy(case: Case) -> str:
    return f"{case.name} busy"


def _disturbed(case: Case, burning: Event, cores: list[float], seconds: float) -> float:
    """While another process takes a core; `cores` hears how many were left to the engine."""
    burning.set()
    try:
        taken = case.sample(seconds)
    finally:
        burning.clear()
    cores.append(taken.cores)
    return taken.rate


# ---- their results for real pictures


def pictures(spec: InputSpec) -> Pixels:
    """uint8 [n, height, width, 3] RGB at the model's size: the package's photos, and frames of its clip."""
    return np.stack([prepare(picture, spec) for picture in photos(clip_fps=CLIP_FPS)])


def differences(reference: NDArray[np.float32], others: NDArray[np.float32]) -> dict[str, Value]:
    """float32 [n, classes] of both. How far apart they are, and how often they name the same class.

    top1_agreement       over all pictures
    top1_agreement_sure  over those of which the reference is sure; None where it is sure of none
    """
    same = reference.argmax(axis=1) == others.argmax(axis=1)
    sure = reference.max(axis=1) > SURE
    return {
        "max_probability_difference": float(np.abs(reference - others).max()),
        "pictures": len(reference),
        "top1_agreement": float(same.mean()),
        "sure": int(sure.sum()),
        "top1_agreement_sure": float(same[sure].mean()) if sure.any() else None,
    }
