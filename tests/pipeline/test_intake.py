"""A thread per source: retried when lost, forgotten when ended, left behind when stuck."""

import asyncio
import random
import threading
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from coatstream.errors import DownReason, SourceLost
from coatstream.frames.frame import Frame
from coatstream.pipeline.intake import Intake
from coatstream.pipeline.mailbox import Mailbox
from coatstream.settings.model import SettingsTree
from coatstream.telemetry.status import State
from coatstream.telemetry.telemetry import Telemetry

from tests.support.doubles import ScriptedSource, make_frame


class Fixture:
    """An intake; it observes what becomes of its sources."""

    def __init__(self, room: int = 100, **more: Any) -> None:
        telemetry = Telemetry.of(SettingsTree())
        self.ledger, self.status = telemetry.ledger, telemetry.status
        self.mailbox = Mailbox(room, self.ledger)
        self.heard: list[tuple[State, DownReason | None]] = []
        self.intake = Intake(self.mailbox, telemetry, **{"rng": random.Random(1)} | more)

    def on_state(self, state: State, reason: DownReason | None, message: str) -> None:
        self.heard.append((state, reason))

    def ids(self) -> list[str]:
        return [queued.frame.frame_id for queued in self.mailbox.take(100)]


def lose(stop: threading.Event) -> None:
    raise SourceLost("the cable is out")


async def test_a_file_is_read_to_its_end_and_then_everything_is_finished() -> None:
    fixture = Fixture()

    fixture.intake.add(ScriptedSource("clip", [make_frame(str(number)) for number in range(5)]), observer=fixture)
    await asyncio.wait_for(fixture.intake.finished(), 5)

    assert fixture.ids() == ["0", "1", "2", "3", "4"]
    assert fixture.status.sources()["clip"].state == "ended"
    assert fixture.ledger.total().received == 5


async def test_a_queues_frame_is_not_received_when_it_is_read_for_it_can_still_go_back() -> None:
    fixture = Fixture()
    frames = [make_frame("1", entry_id="1-0"), make_frame("2"), make_frame("3", entry_id="3-0")]

    fixture.intake.add(ScriptedSource("mixed", frames), observer=fixture)
    await asyncio.wait_for(fixture.intake.finished(), 5)

    assert fixture.ids() == ["1", "2", "3"]
    assert fixture.ledger.total().received == 1


async def test_a_lost_source_is_opened_again_and_its_status_says_why_it_was_down() -> None:
    fixture = Fixture()
    source = ScriptedSource("cam", [make_frame()], then=lose)

    fixture.intake.add(source, observer=fixture)
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

    fixture.intake.add(ScriptedSource("bad", [], live=True, then=lose), observer=fixture)
    fixture.intake.add(ScriptedSource("good", frames(), live=True), observer=fixture)
    for _ in range(20):
        assert await asyncio.wait_for(fixture.mailbox.filled(1), 5)
        assert fixture.ids() == ["good"]

    endless.set()
    assert await fixture.intake.halt(within=5) == []


async def test_a_source_that_hangs_is_named_and_does_not_hold_the_exit() -> None:
    fixture = Fixture()
    release = threading.Event()
    fixture.intake.add(ScriptedSource("hangs", [], then=lambda stop: assert_waited(release)), observer=fixture)
    fixture.intake.add(ScriptedSource("stops", [], then=assert_waited), observer=fixture)

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

    fixture.intake.add(ScriptedSource("buggy", [], then=bug), observer=fixture)

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

    fixture.intake.add(Endless("cam", []), observer=fixture)
    assert await asyncio.wait_for(fixture.mailbox.filled(1), 5)
    fixture.mailbox.close()
    await asyncio.wait_for(fixture.intake.finished(), 5)

    assert threads == ["intake-cam"]


async def test_a_change_of_state_is_said_once_however_often_the_source_is_tried() -> None:
    fixture = Fixture()
    source = ScriptedSource("cam", [], then=lose)

    fixture.intake.add(source, observer=fixture)
    while source.opened < 4:
        await asyncio.sleep(0.001)
    await fixture.intake.halt(within=5)

    assert fixture.heard == [("connecting", None), ("down", DownReason.UNREACHABLE)]


async def test_a_removed_source_stops_and_its_name_can_be_read_again_at_once() -> None:
    fixture = Fixture()
    fixture.intake.add(ScriptedSource("cam", [make_frame("1")], live=True, then=assert_waited), observer=fixture)
    assert await asyncio.wait_for(fixture.mailbox.filled(1), 5)
    fixture.ids()

    fixture.intake.remove("cam")
    fixture.intake.add(ScriptedSource("cam", [make_frame("2")], live=True, then=assert_waited), observer=fixture)

    assert await asyncio.wait_for(fixture.mailbox.filled(1), 5)
    assert fixture.ids() == ["2"]
    assert await fixture.intake.halt(within=5) == []
    assert ("ended", DownReason.ENDED) not in fixture.heard


async def test_everything_is_finished_only_when_no_more_sources_will_come() -> None:
    fixture = Fixture()
    more = True
    fixture.intake.add(ScriptedSource("clip", [make_frame()]), observer=fixture)

    waiting = asyncio.create_task(fixture.intake.finished(more=lambda: more))
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done
    more = False
    fixture.intake.look()

    await asyncio.wait_for(waiting, 5)
    assert fixture.heard[-1] == ("ended", DownReason.ENDED)


async def test_a_mailbox_that_takes_no_more_is_not_the_end_of_a_source() -> None:
    """A worker whose engine breaks closes it: a camera that had ended would be read by nobody ever again."""
    fixture = Fixture()

    def frames() -> Iterator[Frame]:
        while True:
            yield make_frame()

    fixture.intake.add(ScriptedSource("cam", frames(), live=True), observer=fixture)
    assert await asyncio.wait_for(fixture.mailbox.filled(1), 5)
    fixture.mailbox.close()
    await asyncio.wait_for(fixture.intake.finished(), 5)

    assert ("ended", DownReason.ENDED) not in fixture.heard
    assert fixture.status.sources()["cam"].state == "live"
