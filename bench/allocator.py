"""What glibc's settings are worth, to eager torch and to JPEG decoding in two threads: rate, page faults and memory.

    python bench/allocator.py [--seconds 4] [--rounds 3]

Each variant runs in processes of its own, in turn. Prints a table and one line of JSON.
"""

import argparse
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

sys.path.insert(0, str(Path(__file__).parents[1]))

VARIANTS: dict[
    str, dict[int, int]
] = {  # malloc.h: -1 trim threshold, -2 top pad, -3 mmap threshold, -4 mmap max, -8 arenas
    "glibc": {},
    "threshold": {-3: 32 << 20, -1: 1 << 30},
    "no mmap": {-4: 0, -1: 1 << 30},
    "no mmap, pad": {-4: 0, -1: 1 << 30, -2: 64 << 20},
    "no mmap, one arena": {-4: 0, -1: 1 << 30, -2: 64 << 20, -8: 1},
}


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=float, default=4.0)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--work", default="torch,decode")
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--child", default=None)
    given = options.parse_args()
    if given.child:
        print(json.dumps(measure(given.child, given.work, given.seconds, given.batch)))
        return
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(given.rounds):
        for work in given.work.split(","):
            for variant in VARIANTS:
                call = [sys.executable, __file__, "--child", variant, "--work", work, "--seconds", str(given.seconds)]
                told = subprocess.run([*call, "--batch", str(given.batch)], check=True, capture_output=True, text=True)
                found.setdefault(f"{work}: {variant}", []).append(json.loads(told.stdout.splitlines()[-1]))
    table = {
        case: {key: round(statistics.median(run[key] for run in runs), 1) for key in runs[0]}
        for case, runs in found.items()
    }
    for case, figures in table.items():
        print(f"{case:32s}", *(f"{key} {value:10.1f}" for key, value in figures.items()))
    print(json.dumps({"bench": "allocator", **table}))


def measure(variant: str, work: str, seconds: float, batch: int) -> dict[str, float]:
    """Two threads at once, each with a step of its own."""
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in VARIANTS[variant].items():
        assert mallopt(parameter, value) == 1, (parameter, value)
    make = {"torch": torch_step, "decode": decode_step}[work]
    steps = [make(batch) for _ in range(2)]
    for step in steps:
        step()
    counts, faults = [0, 0], resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    until = time.perf_counter() + seconds

    def loop(number: int) -> None:
        while time.perf_counter() < until:
            counts[number] += steps[number]()

    started = time.perf_counter()
    threads = [threading.Thread(target=loop, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate, used = sum(counts) / (time.perf_counter() - started), resource.getrusage(resource.RUSAGE_SELF)
    return {"per_s": rate, "faults": (used.ru_minflt - faults) / sum(counts), "peak_mb": used.ru_maxrss / 1024}


def torch_step(batch: int) -> Callable[[], int]:
    import timm
    import torch

    torch.set_num_threads(1)
    model = timm.create_model("coat_lite_mini", pretrained=False).eval()
    pictures = torch.randn(batch, 3, 224, 224)

    def step() -> int:
        with torch.inference_mode():
            model(pictures)
        return batch

    return step


def decode_step(batch: int) -> Callable[[], int]:
    import numpy as np

    from worker.opencv import cv2

    photo = cv2.imread(str(Path(__file__).parents[1] / "worker" / "assets" / "coffee.png"))
    data = np.asarray(cv2.imencode(".jpg", cv2.resize(photo, (1920, 1080)))[1])

    def step() -> int:
        for _ in range(batch):
            cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
        return batch

    return step


if __name__ == "__main__":
    main()
