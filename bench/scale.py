"""Does a frame cost more when a million of them wait, and do four workers do four times the work of one?

    python -m bench scale depth [--few 1000] [--many 1000000] [--frames 4000] [--rounds 5]
    python -m bench scale replicas [--workers 4] [--seconds 4] [--rounds 3]

depth     one worker settles so many small raw frames (8 x 8) with few and with many behind them, in turn; prints
          processor time per frame of worker and server, and exits 1 where many cost over 5 % more than few
replicas  one and four workers with a noop engine of 20 ms a batch, in turn; exits 1 below 3.8 times
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final, Literal

import typer
from coatstream.broker.embedded import embedded_server
from redis import Redis

PICTURE: Final = bytes(8 * 8 * 3)
AT_ONCE: Final = 10_000  # frames added by one call: the server serves nobody else meanwhile
FILL: Final = """
for i = 1, tonumber(ARGV[1]) do
  redis.call('XADD', KEYS[1], '*', 'pixels', ARGV[2], 'width', 8, 'height', 8, 'source', 'door-' .. i % 8)
end
"""


@contextmanager
def worker(url: str, *sets: str) -> Iterator[int]:
    """A process of `coatstream run` with the noop engine; its id. Stopped on leaving."""
    command = [sys.executable, "-m", "coatstream", "run", "--set", "model.engine=noop", "--set", "log.level=error"]
    for setting in ("http.port=0", f"redis.url={url}", *sets):
        command += ["--set", setting]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def fill(client: Any, frames: int) -> None:
    """Frames to the end of the stream."""
    script = client.register_script(FILL)
    for first in range(0, frames, AT_ONCE):
        script(keys=["frames"], args=[min(AT_ONCE, frames - first), PICTURE])


def wait_until(true: Callable[[], bool], what: str, *, within: float = 120.0) -> None:
    """Look every few milliseconds. Raises SystemExit when it takes too long."""
    deadline = time.monotonic() + within
    while not true():
        if time.monotonic() > deadline:
            sys.exit(f"{what} took longer than {within:.0f} s")
        time.sleep(0.005)


# ---- a deep queue


def depth(few: int, many: int, frames: int, rounds: int) -> bool:
    """Each depth has its own server and worker; they take turns, so that a busy neighbour disturbs both alike."""
    with ExitStack() as stack:
        sides = {count: stack.enter_context(side(count)) for count in (few, many)}
        costs: dict[int, list[float]] = {count: [] for count in sides}
        for _ in range(rounds):
            for count, settle in sides.items():
                costs[count].append(settle(frames))
    ratio = median(many_us / few_us for few_us, many_us in zip(costs[few], costs[many], strict=True))
    us = {count: round(median(samples), 1) for count, samples in costs.items()}
    print(json.dumps({"bench": "scale", "case": "depth", "cpu_us_per_frame": us, "ratio": round(ratio, 4)}), flush=True)
    return ratio <= 1.05


@contextmanager
def side(waiting: int) -> Iterator[Callable[[int], float]]:
    """A worker that sees about so many frames; the call has it settle some and says what each cost, in microseconds."""
    with embedded_server() as server, Redis.from_url(server.url) as client:
        fill(client, waiting)
        own = int(client.info("server")["process_id"])
        with worker(server.url) as pid:
            wait_until(lambda: client.exists("labels") > 0, "the first label")

            def settle(frames: int) -> float:
                left = client.xlen("frames")
                fill(client, max(0, waiting - left) + frames)  # as deep as it was
                goal = client.xlen("frames") - frames
                before = processor_us(pid) + processor_us(own)
                start = client.xlen("frames")
                wait_until(lambda: client.xlen("frames") <= goal, f"{frames} frames")
                done = start - client.xlen("frames")
                return float(processor_us(pid) + processor_us(own) - before) / int(done)

            yield settle


def processor_us(pid: int) -> float:
    """Processor time of a process and all below it, by the kernel's own clock (Linux)."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    below = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    own = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1000
    return own + sum(processor_us(child) for child in below)


# ---- replicas


def replicas(workers: int, seconds: float, rounds: int) -> bool:
    """Labels a second of one and of some workers on one queue that never runs empty."""
    with embedded_server() as server, Redis.from_url(server.url) as client:
        ratios, rates = [], []
        for _ in range(rounds):
            one, all_of_them = (rate(client, server.url, count, seconds) for count in (1, workers))
            ratios.append(all_of_them / one)
            rates.append((round(one), round(all_of_them)))
    ratio = median(ratios)
    row = {"bench": "scale", "case": "replicas", "workers": workers, "frames_per_s": rates, "ratio": round(ratio, 3)}
    print(json.dumps(row), flush=True)
    return ratio >= 0.95 * workers


def rate(client: Any, url: str, workers: int, seconds: float) -> float:
    """Labels a second, once all workers are at work."""
    client.flushall()
    fill(client, int(workers * 500 * (seconds + 10)))
    with ExitStack() as stack:
        for _ in range(workers):
            stack.enter_context(worker(url, "model.noop_delay=0.02"))
        wait_until(lambda: at_work(client) == workers, "starting the workers", within=60.0)
        started, before = time.perf_counter(), labels(client)
        time.sleep(seconds)
        done, lasted = labels(client) - before, time.perf_counter() - started
        client.delete("frames")  # what is left need not be labelled
    return done / lasted


def at_work(client: Any) -> int:
    """Workers that have read something."""
    groups = client.xinfo_groups("frames") if client.exists("frames") else []
    return sum(group["consumers"] for group in groups)


def labels(client: Any) -> int:
    """Labels that were ever published."""
    return int(client.xinfo_stream("labels")["entries-added"]) if client.exists("labels") else 0


def main(
    case: Annotated[Literal["depth", "replicas"], typer.Argument(help="Which question.")],
    few: Annotated[int, typer.Option(help="Frames that wait (depth).")] = 1000,
    many: Annotated[int, typer.Option(help="Frames that wait (depth).")] = 1_000_000,
    frames: Annotated[int, typer.Option(help="Frames of a round (depth).")] = 4000,
    workers: Annotated[int, typer.Option(help="Workers at once (replicas).")] = 4,
    seconds: Annotated[float, typer.Option(help="Of a round (replicas).")] = 4.0,
    rounds: Annotated[int | None, typer.Option(help="Default: 5 (depth), 3 (replicas).")] = None,
) -> int:
    if case == "depth":
        return int(not depth(few, many, frames, rounds or 5))
    return int(not replicas(workers, seconds, rounds or 3))
