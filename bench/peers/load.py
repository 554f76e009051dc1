"""The load: the same two runs for whatever classifies. Closed (so many requests in flight) tells frames a second and
what a frame costs; open (evenly paced, whatever comes back when) tells how long a frame takes.

    python -m bench.peers.load '<options as JSON>'      -> one line of JSON

HTTP is asked by aiohttp, in the peers' environment; coatstream's queue by redis-py, in ours. Answers are checked
against the reference while the clock runs: a system that answers something else is not doing the same work.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.peers.meter import Meter

TOP = 5  # labels of an answer
PATIENCE = 120.0  # seconds for any one phase beyond its own

Answer = list[list[float]]  # [class index, probability], best first
Ask = Callable[[bytes], Awaitable[Answer]]


@dataclass
class Judge:
    """Compares answers with the reference's probabilities, picture by picture."""

    reference: list[list[float]]
    frames: int = 0
    same_first: int = 0
    shared: int = 0  # labels that are in both first fives
    worst: float = 0.0  # difference of a label's probability, in shares of the picture's largest

    def look(self, picture: int, answer: Answer) -> None:
        probabilities = self.reference[picture]
        best = sorted(range(len(probabilities)), key=probabilities.__getitem__, reverse=True)[:TOP]
        largest = probabilities[best[0]]
        self.frames += 1
        self.same_first += bool(answer) and int(answer[0][0]) == best[0]
        self.shared += len({int(index) for index, _ in answer} & set(best))
        off = max((abs(score - probabilities[int(index)]) for index, score in answer), default=largest)
        self.worst = max(self.worst, off / largest)

    def told(self) -> dict[str, float]:
        return {
            "first": self.same_first / self.frames,
            "five": self.shared / (TOP * self.frames),
            "worst": self.worst,
            "frames": self.frames,
        }


@dataclass
class Closed:
    """A closed loop's window: from an answer to an answer, so that batches that come back at once count fairly."""

    meters: dict[str, Meter]
    warm: float
    seconds: float
    frames: int = 0
    waits: list[float] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)
    over: bool = False
    elapsed: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)
    _due: float = field(default_factory=time.perf_counter)
    _began: float | None = None

    def answered(self, now: float, wait: float) -> None:
        if self._began is None:
            if now - self._due >= self.warm:
                self._look()
                self.cpu = {name: meter.cpu() for name, meter in self.meters.items()}
                self._began = time.perf_counter()
            return
        if self.over:
            return
        self.frames += 1
        self.waits.append(wait)
        if now - self._began >= self.seconds:
            self.over = True
            self.elapsed = now - self._began
            self.cpu = {name: meter.cpu() - self.cpu[name] for name, meter in self.meters.items()}
            self._look()

    def _look(self) -> None:
        for name, meter in self.meters.items():
            self.memory[name] = max(self.memory.get(name, 0.0), meter.memory())


@dataclass
class Requests:
    """What is sent, and what became of it."""

    ask: Ask
    pictures: list[bytes]
    judge: Judge
    _turn: "itertools.count[int]" = field(default_factory=itertools.count)

    async def one(self) -> float:
        """One frame; how long it took."""
        picture = next(self._turn) % len(self.pictures)
        asked = time.perf_counter()
        answer = await self.ask(self.pictures[picture])
        took = time.perf_counter() - asked
        self.judge.look(picture, answer)
        return took

    async def closed(self, window: Closed, clients: int) -> None:
        async def client() -> None:
            while not window.over:
                took = await self.one()
                window.answered(time.perf_counter(), took)

        await asyncio.wait_for(
            asyncio.gather(*(client() for _ in range(clients))), window.warm + window.seconds + PATIENCE
        )

    async def paced(self, rate: float, seconds: float) -> list[float]:
        """Milliseconds from when each frame was due, so that a late client hides nothing."""
        began = time.perf_counter() + 0.05

        async def frame(due: float) -> float:
            await self.one()
            return 1000 * (time.perf_counter() - due)

        frames = []
        for number in range(max(4, round(rate * seconds))):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            frames.append(asyncio.ensure_future(frame(due)))
        return list(await asyncio.wait_for(asyncio.gather(*frames), PATIENCE))


# ---- the two ways to ask


@asynccontextmanager
async def http(url: str, form: bool) -> AsyncIterator[Ask]:
    import aiohttp

    async def ask(picture: bytes) -> Answer:
        body: Any = picture
        if form:
            body = aiohttp.FormData()
            body.add_field("image", picture, filename="frame.jpg", content_type="image/jpeg")
        async with session.post(url, data=body) as reply:
            if reply.status != 200:
                raise ConnectionError(f"{url} answers {reply.status}: {(await reply.text())[:200]}")
            answer: Answer = json.loads(await reply.read())
            return answer

    limits = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=limits, timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        yield ask


@asynccontextmanager
async def queue(url: str, sources: int = 8) -> AsyncIterator[Ask]:
    """Frames into coatstream's stream; its labels as they arrive on a connection of their own."""
    from redis.asyncio import Redis

    waiting: dict[str, asyncio.Future[Answer]] = {}
    numbers = itertools.count()

    async def ask(picture: bytes) -> Answer:
        number = next(numbers)
        frame_id = str(number)
        waiting[frame_id] = asyncio.get_running_loop().create_future()
        await sender.xadd("frames", {"image": picture, "frame_id": frame_id, "source": f"door-{number % sources}"})
        return await waiting[frame_id]

    async def listen() -> None:
        newest: Any = await ear.xrevrange("labels", count=1)
        after: Any = newest[0][0] if newest else "0-0"
        while True:
            reply: Any = await ear.xread({"labels": after}, block=250)
            for after, fields in reply[0][1] if reply else ():  # noqa: B007  (it is read by the next call)
                if (answered := waiting.pop(fields[b"frame_id"].decode(), None)) and not answered.done():
                    said = json.loads(fields[b"json"]) if fields.get(b"json") else {}
                    answered.set_result([[each["index"], each["score"]] for each in said.get("labels", ())])

    async with Redis.from_url(url) as sender, Redis.from_url(url) as ear:
        listening = asyncio.ensure_future(listen())
        try:
            yield ask
        finally:
            listening.cancel()


# ---- the run


async def run(options: dict[str, Any]) -> dict[str, Any]:
    pictures = [path.read_bytes() for path in sorted(Path(options["pictures"]).glob("*.jpg"))]
    judge = Judge(json.loads(Path(options["reference"]).read_text()))
    meters = {name: Meter(*known) for name, known in options["meters"].items()}
    way = queue(options["url"]) if options["kind"] == "queue" else http(options["url"], options["kind"] == "form")
    async with way as ask:
        load = Requests(ask, pictures, judge)
        window = Closed(meters, warm=options["warm"], seconds=options["seconds"])
        await load.closed(window, options["clients"])
        rate = window.frames / window.elapsed
        paced = await load.paced(rate / 2, options["paced"]) if options["paced"] else []
    return result(window, paced, judge)


def result(window: Closed, paced: list[float], judge: Judge) -> dict[str, Any]:
    """What every system's measurement comes to."""
    return {
        "frames_per_s": window.frames / window.elapsed,
        "cpu": {name: seconds / window.frames for name, seconds in window.cpu.items()},
        "memory": window.memory,
        "busy_ms": 1000 * median(window.waits),
        "paced_ms": paced,
        "labels": judge.told(),
    }


if __name__ == "__main__":
    try:
        print(json.dumps(asyncio.run(run(json.loads(sys.argv[1])))))
    except (TimeoutError, OSError, json.JSONDecodeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
