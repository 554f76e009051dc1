"""What glibc's settings are worth, to the model and to JPEG decoding in two threads: time, page faults and memory.

    python -m bench allocator [--seconds 4] [--rounds 3] [--work eager,fused,bf16,decode]

Each variant runs in processes of its own, forwards and backwards in turn. Prints a table and one line of JSON.
"""

import ctypes
import json
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from coatstream.engine.cores import single_threaded
from coatstream.settings.model import ModelSettings

# malloc.h: -1 trim threshold, -2 top pad, -3 mmap threshold, -4 mmap max, -8 arenas
VARIANTS: dict[str, dict[int, int]] = {
    "glibc": {},
    "threshold": {-3: 32 << 20, -1: 1 << 30},
    "no mmap": {-4: 0, -1: 1 << 30},
    "no mmap, one arena": {-4: 0, -1: 1 << 30, -8: 1},  # worker/coatstream/engine/memory.py
    "the same and a pad": {-4: 0, -1: 1 << 30, -8: 1, -2: 64 << 20},
}


def main(
    seconds: float = 4.0,
    rounds: int = 3,
    work: str = "eager,fused,bf16,decode",
    batch: int = 8,
    child: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    if child:
        print(json.dumps(measure(child, work, seconds, batch)))
        return
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds):
        for one in work.split(","):
            for variant in VARIANTS if number % 2 == 0 else reversed(VARIANTS):
                call = [sys.executable, "-m", "bench", "allocator", f"--child={variant}", f"--work={one}"]
                call += [f"--seconds={seconds}", f"--batch={batch}"]
                told = subprocess.run(call, check=True, capture_output=True, text=True)
                found.setdefault(f"{one}: {variant}", []).append(json.loads(told.stdout.splitlines()[-1]))
    table = {
        case: {key: round(statistics.median(run[key] for run in runs), 1) for key in runs[0]}
        for case, runs in found.items()
    }
    for case, stats in table.items():
        print(f"{case:32s}", *(f"{key} {value:10.1f}" for key, value in stats.items()))
    print(json.dumps({"bench": "allocator", **table}))


def measure(variant: str, work: str, seconds: float, batch: int) -> dict[str, float]:
    """Two threads at once, each with a step of its own."""
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in VARIANTS[variant].items():
        assert mallopt(parameter, value) == 1, (parameter, value)
    step = decode_step(batch) if work == "decode" else model_step(work, batch)
    warm, counts = threading.Barrier(3), [0, 0]

    def loop(number: int) -> None:
        single_threaded()
        step()
        step()
        warm.wait()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            counts[number] += step()

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    warm.wait()
    before, started, spent = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), time.process_time()
    for thread in threads:
        thread.join()
    done, used = sum(counts), resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_ms": 1000 * (time.process_time() - spent) / done,
        "per_s": done / (time.perf_counter() - started),
        "faults": (used.ru_minflt - before.ru_minflt) / done,
        "peak_mb": used.ru_maxrss / 1024,
    }


def model_step(work: str, batch: int) -> Callable[[], int]:
    """coat_lite_mini: `eager` or fused, `fused` in float32 and `bf16`."""
    import torch
    from coatstream.engine.model.classifier import load_classifier
    from coatstream.engine.model.coat import fused_network
    from coatstream.engine.model.network import EagerNetwork

    torch.set_num_threads(1)
    classifier = load_classifier(ModelSettings(weights="random"))
    if work == "eager":
        network: torch.nn.Module = EagerNetwork(classifier)
    else:
        dtype = torch.bfloat16 if work == "bf16" else torch.float32
        network = fused_network(classifier, dtype=dtype, packed=True)
    pictures = torch.zeros(batch, classifier.spec.height, classifier.spec.width, 3, dtype=torch.uint8)

    def step() -> int:
        with torch.inference_mode():
            network(pictures)
        return batch

    return step


def decode_step(batch: int) -> Callable[[], int]:
    import numpy as np
    from coatstream.frames.opencv import cv2

    photo = cv2.imread(str(Path(__file__).parents[1] / "worker" / "coatstream" / "assets" / "coffee.png"))
    assert photo is not None
    data = np.asarray(cv2.imencode(".jpg", cv2.resize(photo, (1920, 1080)))[1])

    def step() -> int:
        for _ in range(batch):
            cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
        return batch

    return step
