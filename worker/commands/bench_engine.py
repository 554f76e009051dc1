"""`coatstream bench engine`: frames a second of the model alone, by batch size and by how it uses the cores.

With random weights: speed does not depend on them. Beside it the limit of the machine, as two large matrix products
reach it, and the share of that limit which the model's own floating-point operations make up.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from config.settings import BatchSettings, ModelSettings, SettingsTree
from worker.commands.measuring import Figure, Report, Run, figure, interleave, machine, ratio
from worker.cores import usable_cores, use_cores
from worker.engine import Engine, load_engine
from worker.frames import Pixels

SIZES: Final = (1, 2, 4, 8, 16, 32)
SIDE: Final = 2048  # of the matrices: 17.2 GFLOP a product
MOST_STREAMS: Final = 64  # as many as model.streams allows
LIMITS: Final = ("limit_mm_2048", "limit_conv1x1_2048")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model uses the cores: `streams` batches at once, each on `threads` cores."""

    streams: int
    threads: int


@dataclass(frozen=True, slots=True)
class Case:
    """One engine at one batch size."""

    engine: Engine
    layout: Layout
    size: int
    pool: ThreadPoolExecutor  # with a thread per stream

    @property
    def name(self) -> str:
        return f"{self.layout.streams}x{self.layout.threads}_batch{self.size}"


def run_bench_engine(settings: SettingsTree, *, seconds: float) -> int:
    """Frames a second at each batch size and layout, all of them interleaved with the limit. Raises EngineError."""
    with _engines(settings.model) as engines:
        first, _, _ = engines[0]
        report = Report("engine", machine(**_device(first.info.device)))
        gflop = gflop_per_frame(first)
        cases, slow = _sorted_out(engines, seconds)
        report.say(f"about {(len(cases) + len(LIMITS)) * seconds:.0f} s of measuring {first.info.name}")
        runs: dict[str, Run] = {case.name: _runner(case) for case in cases} | limits(first.info.device)
        samples = interleave(runs, seconds)
    _report(report, samples, cases, gflop)
    for case, took in slow:
        report.add(case=case.name, left_out=f"a batch takes {took:.1f} s, longer than --seconds {seconds:g}")
    report.show()
    return 0


def _report(report: Report, samples: dict[str, list[float]], cases: list[Case], gflop: float) -> None:
    for name in LIMITS:
        report.add(case=name, gflops=figure(samples[name]))
    best = [max(pair) for pair in zip(*(samples[name] for name in LIMITS), strict=True)]
    for case in cases:
        rates = samples[case.name]
        at_once = case.layout.streams * case.size
        report.add(
            case=case.name,
            model=case.engine.info.name,
            weights=case.engine.info.weights,
            engine=case.engine.info.engine,
            device=case.engine.info.device,
            frames_per_s=figure(rates),
            ms_per_batch=figure([1000 * at_once / rate for rate in rates]),
            gflop_per_frame=gflop,
            share_of_limit=_share(rates, best, gflop),
        )


def _share(rates: list[float], best: list[float], gflop: float) -> Figure | None:
    """None where no operations could be counted."""
    return ratio([gflop * rate for rate in rates], best) if gflop else None


# ---- what is measured


def layouts(cores: int, *, on_cpu: bool) -> tuple[Layout, ...]:
    """One batch on all cores, and a batch on each core; a GPU has one stream."""
    streams = min(cores, MOST_STREAMS)
    return (Layout(1, cores), Layout(streams, 1)) if on_cpu and cores > 1 else (Layout(1, 1),)


@contextmanager
def _engines(model: ModelSettings) -> Iterator[list[tuple[Engine, Layout, ThreadPoolExecutor]]]:
    """The model once per layout, with the threads that its streams run on."""
    probe = _load(model, Layout(1, 1))
    on_cpu = probe.info.device == "cpu"
    engines = [(_load(model, layout), layout) for layout in layouts(usable_cores(), on_cpu=on_cpu)]
    del probe
    pools = [ThreadPoolExecutor(layout.streams, "bench") for _, layout in engines]
    try:
        yield [(engine, layout, pool) for (engine, layout), pool in zip(engines, pools, strict=True)]
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def _load(model: ModelSettings, layout: Layout) -> Engine:
    eager = {
        "weights": "random",
        "engine": "eager",
        "labels": None,
        "streams": layout.streams,
        "threads": layout.threads,
    }
    return load_engine(model.model_copy(update=eager), BatchSettings(max_size=SIZES[-1], prepared=SIZES))


def _sorted_out(
    engines: list[tuple[Engine, Layout, ThreadPoolExecutor]], seconds: float
) -> tuple[list[Case], list[tuple[Case, float]]]:
    """Run every size once to warm it; (what fits into the time, what is too slow with its seconds a batch)."""
    cases: list[Case] = []
    slow: list[tuple[Case, float]] = []
    for engine, layout, pool in engines:
        for size in SIZES:
            case = Case(engine, layout, size, pool)
            rate(case, 0.0)
            took = size * layout.streams / rate(case, 0.0)
            if took > seconds and size > 1:
                slow.append((case, took))
                break  # the next size takes longer
            cases.append(case)
    return cases, slow


def _runner(case: Case) -> Run:
    return lambda seconds: rate(case, seconds)


def rate(case: Case, seconds: float) -> float:
    """Frames a second of all streams together over `seconds`, and at least one batch each.

    `classify` gives its scores as arrays on the host, so that a GPU has finished when it returns.
    """
    pixels = _noise(case)

    def stream(_: int) -> float:
        started = time.perf_counter()
        batches, elapsed = 0, 0.0
        while not batches or elapsed < seconds:
            case.engine.classify(pixels)
            batches += 1
            elapsed = time.perf_counter() - started
        return batches * case.size / elapsed

    return sum(case.pool.map(stream, range(case.layout.streams)))


def _noise(case: Case) -> Pixels:
    spec = case.engine.spec
    return np.random.default_rng(0).integers(0, 256, (case.size, spec.height, spec.width, 3), np.uint8)


# ---- limits


def gflop_per_frame(engine: Engine) -> float:
    """Floating-point operations of one picture, in 1e9, as torch counts them: products of matrices, convolutions and
    attention; a multiplication with its addition is two.
    """
    spec = engine.spec
    with FlopCounterMode(display=False) as counter:
        engine.classify(np.zeros((1, spec.height, spec.width, 3), np.uint8))
    return float(counter.get_total_flops()) / 1e9  # its sum has no type


def limits(device: str) -> dict[str, Run]:
    """GFLOP/s of two ways to the same product of float32 matrices, on all cores.

    Two, because on a CPU they go to two libraries (MKL and oneDNN), of which now one, now the other is far ahead.
    """
    left, right = torch.rand(SIDE, SIDE, device=device), torch.rand(SIDE, SIDE, device=device)
    picture, kernel = left.view(1, SIDE, SIDE // 32, 32), right.view(SIDE, SIDE, 1, 1)
    picture = picture.contiguous(memory_format=torch.channels_last)  # else oneDNN reorders it each time
    products: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: torch.mm(left, right),
        lambda: torch.nn.functional.conv2d(picture, kernel),
    )
    return {name: _product(product, device) for name, product in zip(LIMITS, products, strict=True)}


def _product(product: Callable[[], torch.Tensor], device: str) -> Run:
    @torch.inference_mode()
    def run(seconds: float) -> float:
        use_cores(usable_cores())
        product()  # not timed: the first one chooses its kernel
        _synchronise(device)
        started, done = time.perf_counter(), 0
        while not done or time.perf_counter() - started < seconds:
            product()
            _synchronise(device)
            done += 1
        return done * 2 * SIDE**3 / 1e9 / (time.perf_counter() - started)

    return run


def _synchronise(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize(device)


def _device(device: str) -> dict[str, object]:
    return {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda} if device.startswith("cuda") else {}
