"""C1: many cameras in one worker, a fault every few seconds."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import httpx

from tests.camera_faults import judge
from tests.camera_faults.judge import Window
from tests.camera_faults.lab import Lab
from tests.camera_faults.replicas import Replica
from tests.camera_faults.stage import Stage, cameras_of
from tests.camera_faults.streams import Label, Tail, poll
from tests.camera_faults.troubles import DEAD, Trouble, Troublemaker, deck
from tests.support.processes import Usage, usage

FPS: Final = 5.0
SIZES: Final = {"cam320": (320, 240), "cam160": (160, 128)}
BACK: Final = 2.0  # seconds beyond the backoff
ON_ITS_WAY: Final = 0.5  # seconds in which a picture of a camera that has just died may still be captured
CALM: Final = 2.0  # seconds that a camera must have been well before its next fault
GROWTH: Final = 10.0  # MB, of the whole tree; a page here and there is no leak


@dataclass(slots=True)
class Rough:
    """The play: who is broken now, what has been, and when each camera was well."""

    stage: Stage
    tail: Tail
    maker: Troublemaker
    well_since: dict[str, float]
    broken: dict[str, tuple[Trouble, float]] = field(default_factory=dict)  # camera -> trouble, monotonic end
    history: list[Trouble] = field(default_factory=list)
    windows: dict[str, list[Window]] = field(default_factory=dict)
    seen: int = 0  # labels looked at

    def play(self, seconds: float, every: float, lengths: tuple[float, float]) -> None:
        """Bring faults for `seconds`, then wait until every camera is back."""
        kinds, ends, due = deck(self.stage.rng), time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < ends:
            self.tick()
            victims = [name for name, since in self.well_since.items() if time.time() - since > CALM]
            if time.monotonic() >= due and victims:
                due += every
                self._strike(self.maker.begin(next(kinds), self.stage.rng.choice(sorted(victims))), lengths)
            self.stage.pass_by(0.03)

    def come_back(self, within: float) -> None:
        """End all faults and wait for the cameras that are still away."""
        poll(self._all_back, until=time.monotonic() + within, every=0.03)
        now = time.time()
        for name, since in self.well_since.items():
            self.windows.setdefault(name, []).append(Window(since, now))

    def _all_back(self) -> bool:
        self.tick()
        return not self.broken

    def _strike(self, trouble: Trouble, lengths: tuple[float, float]) -> None:
        begin = self.well_since.pop(trouble.camera)
        self.windows.setdefault(trouble.camera, []).append(Window(begin, trouble.began))
        self.broken[trouble.camera] = (trouble, time.monotonic() + self.stage.rng.uniform(*lengths))
        self.history.append(trouble)

    def tick(self) -> None:
        """End the faults whose time is over, and note which cameras are back."""
        for trouble, ends in self.broken.values():
            if trouble.ended is None and time.monotonic() >= ends:
                self.maker.end(trouble)
        while self.seen < len(self.tail.labels):
            self._look(self.tail.labels[self.seen])
            self.seen += 1

    def _look(self, label: Label) -> None:
        trouble, _ = self.broken.get(label.camera, (None, 0.0))
        if trouble is None or trouble.ended is None or label.captured_at < trouble.ended:
            return
        if trouble.size in (None, label.size):
            trouble.back = self.well_since[label.camera] = label.captured_at
            del self.broken[label.camera]


def rough(
    stage: Stage,
    *,
    cameras: int,
    seconds: float,
    every: float,
    lengths: tuple[float, float],
    warm_up: float,
    patience: float,
) -> None:
    """C1, whole."""
    server = stage.server()
    lab = stage.lab(cameras, each_alone=True)
    tail = stage.tail(server)
    worker = stage.replica(server.url, cameras=cameras_of(lab, FPS), process__restarts_per_minute=60)
    stage.until_ready()
    stage.bars.note("all labelled after", stage.until_labelled(tail, lab), " s")
    stage.pass_by(warm_up)
    before = usage(worker.pid)
    play = Rough(stage, tail, Troublemaker(lab.cameras, SIZES), dict.fromkeys(lab.cameras, time.time()))
    try:
        play.play(seconds, every, lengths)
        play.come_back(patience)
        stage.pass_by(CALM)
    finally:
        _judge(stage, play, worker)
    _judge_rest(stage, lab, worker, before)


def _judge(stage: Stage, play: Rough, worker: Replica) -> None:
    bars, labels = stage.bars, judge.by_camera(play.tail.labels)
    kinds = Counter(trouble.kind for trouble in play.history)
    bars.note("faults", f"{len(play.history)}: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}")
    known, allowed = (
        {
            name: share
            for name, windows in sorted(play.windows.items())
            if (share := judge.rate_share(labels.get(name, []), windows, FPS, spare=spare)) is not None
        }
        for spare in (0.0, 1.0)
    )
    if known:
        least, most = min(known, key=known.__getitem__), max(allowed, key=allowed.__getitem__)
        bars.at_least(f"least rate of a healthy camera ({least})", known[least] * 100, 95.0, " %")
        bars.at_most(f"greatest ({most}), but for a frame at each beginning", allowed[most] * 100, 105.0, " %")
    bars.exactly("cameras measured", len(known), len(play.maker.cameras))
    _judge_returns(stage, play, worker)
    dead = [
        f"{trouble.kind}: {label.captured_at - trouble.began:.2f} of {trouble.ending - trouble.began:.2f} s"
        for trouble in play.history
        if trouble.kind in DEAD and trouble.ending is not None
        for label in labels.get(trouble.camera, [])
        if trouble.began + ON_ITS_WAY < label.captured_at < trouble.ending
    ]
    bars.exactly("labels from a dead camera", dead, [])


def _judge_returns(stage: Stage, play: Rough, worker: Replica) -> None:
    """How long each took beyond the wait that its worker had chosen."""
    log = worker.events("source lost")
    beyond: dict[str, list[float]] = {}
    longest_wait = 0.0
    for trouble in play.history:
        if trouble.took is not None:
            wait = trouble.allowed(log)
            longest_wait = max(longest_wait, wait)
            beyond.setdefault(trouble.kind.value, []).append(trouble.took - wait)
    bars = stage.bars
    bars.exactly("cameras that did not come back", sorted(play.broken), [])
    bars.note("losses that the worker logged", len(log))
    bars.note("longest backoff", longest_wait, " s")
    for kind, times in beyond.items():
        bars.at_most(f"back after {kind}, beyond its backoff", max(times), BACK, " s")


def _judge_rest(stage: Stage, lab: Lab, worker: Replica, before: Usage) -> None:
    """It ends where it began, and its books balance."""
    after = _settled(worker, before)
    bars = stage.bars
    bars.at_most("processes at the end", after.processes, before.processes)
    bars.at_most("threads at the end", after.threads, before.threads)
    bars.at_most("file handles at the end", after.handles, before.handles)
    bars.at_most("memory at the end", after.memory, before.memory + GROWTH, " MB")
    bars.note("memory at the beginning", before.memory, " MB")
    lab.tell_all("silence")
    bars.exactly("the ledger balances", poll(lambda: _balances(worker), until=time.monotonic() + 10, every=0.2), True)
    bars.exactly("restarts of the worker", len(worker.events("worker crashed")), 0)
    told = time.monotonic()
    worker.terminate()
    bars.exactly("exit code", worker.process.wait(timeout=30), 0)
    bars.note("exit after", time.monotonic() - told, " s")
    stage.gone(worker)


def _settled(worker: Replica, before: Usage) -> Usage:
    """What it holds once closing is through: at once, or a few seconds later."""
    found = usage(worker.pid)

    def is_small() -> bool:
        nonlocal found
        found = usage(worker.pid)
        return (
            found.processes <= before.processes and found.threads <= before.threads and found.handles <= before.handles
        )

    poll(is_small, until=time.monotonic() + 10, every=0.5)
    return found


def _balances(worker: Replica) -> bool:
    try:
        worker.assert_balanced()
    except (AssertionError, OSError, httpx.HTTPError):
        return False
    return True
