"""The loop that everybody writes first: decode, transform, classify, next. One process, no server, pictures in memory.

    python -m bench.peers.naive_loop '<options as JSON>'      -> one line of JSON

Its batches are filled from what is there; at half load that is whatever has become due meanwhile.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.peers.load import Closed, Judge, result
from bench.peers.meter import MARK, Meter
from bench.peers.naive_classifier import NaiveClassifier


def main(options: dict[str, Any]) -> dict[str, Any]:
    pictures = [path.read_bytes() for path in sorted(Path(options["pictures"]).glob("*.jpg"))]
    judge = Judge(json.loads(Path(options["reference"]).read_text()))
    classifier = NaiveClassifier(options["model"], options["weights"], options["threads"])

    def classify(numbers: list[int]) -> None:
        wanted = [number % len(pictures) for number in numbers]
        answers = classifier.classify([classifier.open(pictures[number]) for number in wanted])
        for number, answer in zip(wanted, answers, strict=True):
            judge.look(number, [list(pair) for pair in answer])

    classify([0])
    ready = time.time()
    window = Closed({"system": Meter(os.environ[MARK])}, warm=options["warm"], seconds=options["seconds"])
    frames, batch = 0, options["batch"]
    while not window.over:
        began = time.perf_counter()
        classify(list(range(frames, frames + batch)))
        frames += batch
        now = time.perf_counter()
        for _ in range(batch):
            window.answered(now, now - began)
    paced = _paced(classify, window.frames / window.elapsed / 2, options["paced"], batch) if options["paced"] else []
    return {"ready": ready, **result(window, paced, judge)}


def _paced(classify: Any, rate: float, seconds: float, batch: int) -> list[float]:
    """Milliseconds from when each frame was due."""
    began, frames, waits = time.perf_counter() + 0.05, max(4, round(rate * seconds)), list[float]()
    while len(waits) < frames:
        time.sleep(max(0.0, began + len(waits) / rate - time.perf_counter()))
        due = min(frames, int((time.perf_counter() - began) * rate) + 1)  # so many are there by now
        numbers = list(range(len(waits), max(len(waits) + 1, min(due, len(waits) + batch))))
        classify(numbers)
        now = time.perf_counter()
        waits += [1000 * (now - began - number / rate) for number in numbers]
    return waits


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
