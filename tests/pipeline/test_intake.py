"""A thread per source: retried when lost, forgotten when ended, left behind when stuck."""

import asyncio
import random
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from coatstream.errors import DownReason, SourceLost
from coatstream.frames.frame import Frame
from coatstream.pipeline.intake import Intake, _Reader
from coatstream.pipeline.mailbox import Mailbox
from coatstream.telemetry.ledger import Ledger
from coatstream.telemetry.status import Status

from tests.support.doubles import ScriptedSource, SettableClock, make_frame


class Fixture:
    def __init__(self, room: int = 100, **more: Any) -> None:
        self.mailbox = Mailbox(room, on_replaced=lambda frame: None)
        self.ledger = Ledger()
        self.status = Status(stall_after=60)
        self.heard: list[tuple[str, str, DownReason | None]] = []
        self.ended: list[str] = []
        self.intake = Intake(
            self.mailbox,
            self.ledger,
            self.status,
            on_state=lambda name, state, reason, message: self.heard.append((name, state, reason)),
            on_ended=self.ended.append,
            **{"rng": random.Random(1)} | more,
        )

    def ids(self) -> list[str]:
        return [queued.frame.frame_id for queued in self.mailbox.take(100)]


def lose(stop: threading.Event) -> None:
    raise SourceLost("the cable is out")


async def test_a_file_is_read_to_its_end_and_then_everything_is_finished() -> None:
    fixture = Fixture()

    fixture.intake.add(ScriptedSource("clip", [make_frame(str(number)) for number in range(5)]))
    await asyncio.wait_for(fixture.intake.finished(), 5)

    assert fixture.ids() == ["0", "1", "2", "3", "4"]
    assert fixture.status.sources()["clip"].state == "ended"
    assert fixture.ledger.total().received == 5


async def test_a_queues_frame_is_not_received_when_it_is_read_for_it_can_still_go_back() -> None:
    fixture = Fixture()
    frames = [make_frame("1", entry_id="1-0"), make_frame("2"), make_frame("3", entry_id="3-0")]

    fixture.intake.add(ScriptedSource("mixed", frames))
    await asyncio.wait_for(fixture.intake.finished(), 5)

    assert fixture.ids() == ["1", "2", "3"]
    assert fixture.ledger.total().received == 1


async def test_a_lost_source_is_opened_again_and_its_status_says_why_it_was_down() -> None:
    fixture = Fixture()
    source = ScriptedSource("cam", [make_frame()], then=lose)

    fixture.intake.add(source)
    while source.opened < 3:
        assert await asyncio.wait_for(fixture.mailbox.filled(1), 5)
        fixture.ids()
    status = fixture.status.sources()["cam"]
    stuck = await fixture.intake.halt(within=5)

    assert stuck == []
    assert status.reopened >= 2
    assert fixture.ledger.total().received >= 3


async def test_one_source_that_is_lost_does_not_stop_another() -> None:
    fixture = Fixture()
    endless = threading.Event()

    def frames() -> Iterator[Frame]:
        while not endless.is_set():
            yield make_frame("good", source="good")

    fixture.intake.add(ScriptedSource("bad", [], live=True, then=lose))
    fixture.intake.add(ScriptedSource("good", frames(), live=True))
    for _ in range(20):
        assert await asyncio.wait_for(fixture.mailbox.filled(1), 5)
        assert fixture.ids() == ["good"]

    endless.set()
    assert await fixture.intake.halt(within=5) == []


async def test_a_source_that_hangs_is_named_and_does_not_hold_the_exit() -> None:
    fixture = Fixture()
    release = threading.Event()
    fixture.intake.add(ScriptedSource("hangs", [], then=lambda stop: assert_waited(release)))
    fixture.intake.add(ScriptedSource("stops", [], then=assert_waited))

    stuck = await asyncio.wait_for(fixture.intake.halt(within=0.2), 5)

    release.set()
    assert stuck == ["hangs"]
    assert await fixture.intake.halt(within=5) == []  # its thread must not outlive the loop


def assert_waited(event: threading.Event) -> None:
    assert event.wait(20)


async def test_a_bug_in_a_source_reaches_whoever_waits() -> None:
    fixture = Fixture()

    def bug(stop: threading.Event) -> None:
        raise ZeroDivisionError("a bug")

    fixture.intake.add(ScriptedSource("buggy", [], then=bug))

    with pytest.raises(ZeroDivisionError, match="a bug"):
        await asyncio.wait_for(fixture.intake.finished(), 5)


async def test_a_source_is_let_go_in_the_thread_that_read_it() -> None:
    fixture = Fixture(room=1)
    threads: list[str] = []

    class Endless(ScriptedSource):
        def frames(self, stop: threading.Event) -> Generator[Frame, None, None]:
            try:
                while True:
                    yield make_frame()
            finally:
                threads.append(threading.current_thread().name)

    fixture.intake.add(Endless("cam", []))
    assert await asyncio.wait_for(fixture.mailbox.filled(1), 5)
    fixture.mailbox.close()
    await asyncio.wait_for(fixture.intake.finished(), 5)

    assert threads == ["intake-cam"]


async def test_a_change_of_state_is_said_once_however_often_the_source_is_tried() -> None:
    fixture = Fixture()
    source = ScriptedSource("cam", [], then=lose)

    fixture.intake.add(source)
    while source.opened < 4:
        await asyncio.sleep(0.001)
    await fixture.intake.halt(within=5)

    assert fixture.heard == [("cam", "connecting", None), ("cam", "down", DownReason.UNREACHABLE)]


async def test_a_removed_source_stops_and_its_name_can_be_read_again_at_once() -> None:
    fixture = Fixture()
    fixture.intake.add(ScriptedSource("cam", [make_frame("1")], live=True, then=assert_waited))
    assert await asyncio.wait_for(fixture.mailbox.filled(1), 5)
    fixture.ids()

    fixture.intake.remove("cam")
    fixture.intake.add(ScriptedSource("cam", [make_frame("2")], live=True, then=assert_waited))

    assert await asyncio.wait_for(fixture.mailbox.filled(1), 5)
    assert fixture.ids() == ["2"]
    assert fixture.intake.names == ["cam"]
    assert await fixture.intake.halt(within=5) == []
    assert fixture.ended == []


async def test_everything_is_finished_only_when_no_more_sources_will_come() -> None:
    fixture = Fixture()
    more = True
    fixture.intake.add(ScriptedSource("clip", [make_frame()]))

    waiting = asyncio.create_task(fixture.intake.finished(more=lambda: more))
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done
    more = False
    fixture.intake.look()

    await asyncio.wait_for(waiting, 5)
    assert fixture.ended == ["clip"]


async def test_a_mailbox_that_takes_no_more_is_not_the_end_of_a_source() -> None:
    """A worker whose engine breaks closes it: a camera that had ended would be read by nobody ever again."""
    fixture = Fixture()

    def frames() -> Iterator[Frame]:
        while True:
            yield make_frame()

    fixture.intake.add(ScriptedSource("cam", frames(), live=True))
    assert await asyncio.wait_for(fixture.mailbox.filled(1), 5)
    fixture.mailbox.close()
    await asyncio.wait_for(fixture.intake.finished(), 5)

    assert fixture.ended == []
    assert fixture.status.sources()["cam"].state == "live"


@pytest.mark.parametrize(
    ("reason", "longest"),
    [
        (DownReason.CHANGED, 0.0),
        (DownReason.UNREACHABLE, 0.5),
        (DownReason.TIMEOUT, 0.5),
        (DownReason.AUTH, 5.0),
        (DownReason.REDIS, 0.05),
    ],
)
async def test_how_soon_a_camera_is_tried_again_depends_on_why_it_was_lost(reason: DownReason, longest: float) -> None:
    fixture = Fixture()
    delays = [fixture.intake._delay(SourceLost("", reason=reason), 0) for _ in range(200)]

    assert max(delays) <= longest
    assert longest == 0 or max(delays) > 0.9 * longest


@dataclass
class Losses:
    """A source that shows a picture, lasts so long, and is lost; each time its clock says when it was opened."""

    clock: SettableClock
    reason: DownReason
    lasts: float
    live: bool = True
    name: str = "cam"
    opened: int = 0

    def frames(self, stop: threading.Event) -> Generator[Frame, None, None]:
        self.opened += 1
        yield make_frame(str(self.opened))
        self.clock.now += self.lasts
        raise SourceLost("", reason=self.reason)


class Widest(random.Random):
    """Draws the longest pause each time."""

    def uniform(self, a: float, b: float) -> float:
        return b


@pytest.mark.parametrize(
    ("reason", "lasts", "live", "pauses"),
    [
        (DownReason.CRASHED, 1.0, False, [0.5, 1.0, 2.0, 4.0]),  # a file that kills its decoder, each time anew
        (DownReason.TIMEOUT, 61.0, True, [0.5, 0.5, 0.5, 0.5]),
        (DownReason.REDIS, 1.0, False, [0.05, 0.05, 0.05, 0.05]),
        (DownReason.CHANGED, 20.0, True, [0.0, 0.0, 0.0, 0.0]),  # day, night, day: nothing is wrong with it
        (DownReason.CHANGED, 0.1, True, [0.0, 1.0, 2.0, 4.0]),  # but it must show something in between
    ],
)
async def test_a_loss_counts_as_the_first_one_only_where_it_was_well_before(
    reason: DownReason, lasts: float, live: bool, pauses: list[float]
) -> None:
    clock = SettableClock()
    fixture = Fixture(monotonic=clock, rng=Widest())
    source, waited = Losses(clock, reason, lasts, live), list[float]()

    class Impatient(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0.0)
            if len(waited) == len(pauses):
                self.set()
            return self.is_set()

    await asyncio.to_thread(fixture.intake._keep_reading, _Reader(source, 1.0, Impatient()))

    assert waited == pauses


async def test_waits_after_a_wrong_password_grow_with_wrong_passwords_only() -> None:
    fixture = Fixture()
    asked: list[tuple[DownReason, int]] = []

    def at_once(lost: SourceLost, failures: int) -> float:
        asked.append((lost.reason, failures))
        return 0.0

    fixture.intake._delay = at_once  # type: ignore[method-assign]
    reasons = iter([DownReason.TIMEOUT] * 5 + [DownReason.AUTH] * 3 + [DownReason.TIMEOUT, DownReason.AUTH])

    def lose_for(stop: threading.Event) -> None:
        if (reason := next(reasons, None)) is None:
            stop.wait(20)
            return
        raise SourceLost("", reason=reason)

    fixture.intake.add(ScriptedSource("cam", [], live=True, then=lose_for))
    while len(asked) < 10:
        await asyncio.sleep(0.001)
    await fixture.intake.halt(within=5)

    assert [failures for reason, failures in asked if reason is DownReason.AUTH] == [0, 1, 2, 0]
    assert [failures for reason, failures in asked if reason is DownReason.TIMEOUT] == [0, 1, 2, 3, 4, 8]
