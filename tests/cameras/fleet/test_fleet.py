"""A worker's part in the fleet: readers start and stop as the server says, and rights end in time; whole fleets too."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from coatstream.broker.connection import Client, connect
from coatstream.broker.embedded import embedded_server
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.cameras.fleet import member, schedule
from coatstream.cameras.fleet.access import brisk, reachable, registry
from coatstream.cameras.fleet.assignments import Departure
from coatstream.cameras.fleet.lease import CameraLease
from coatstream.cameras.fleet.leases import Catalogue, Leases
from coatstream.cameras.fleet.member import Fleet
from coatstream.cameras.fleet.stats import Transfer
from coatstream.errors import ConfigError, RedisUnavailable
from coatstream.settings.model import CameraSettings, RedisSettings, SettingsTree
from coatstream.telemetry.identity import Lineage
from coatstream.telemetry.telemetry import Telemetry
from structlog.testing import capture_logs

from tests.support.load import slack
from tests.support.paths import ROOT
from tests.support.servers import ON_ONE_SERVER
from tests.support.workers import eventually

pytestmark = ON_ONE_SERVER  # the scripts are tested on both, by test_leases

KEYS = FleetKeys()
LEASE = 2.0


@pytest.fixture(autouse=True)
def _on_an_empty_server(redis_url: str) -> None:
    """Also those that do not ask for one: a module has one kind of server."""


def tree(count: int = 0, *, lease: float = LEASE, **more: Any) -> SettingsTree:
    cameras = [{"name": f"cam-{number:02}", "url": f"rtsp://10.0.0.7/{number}"} for number in range(count)]
    return SettingsTree.model_validate({"cameras": cameras, "fleet": {"lease": lease}} | more)


def camera(name: str = "door", url: str = "rtsp://10.0.0.7/1", **more: object) -> CameraSettings:
    return CameraSettings.model_validate({"name": name, "url": url, **more})


@dataclass
class Worker:
    """A fleet in a thread, and what it was told to read. Each camera has a picture at once, unless `blind`."""

    client: Client
    settings: SettingsTree
    name: str = "a"
    more: Mapping[str, Any] = field(default_factory=dict)
    predecessors: tuple[str, ...] = ()
    blind: bool = False
    unable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.reading: dict[str, tuple[CameraSettings, CameraLease]] = {}
        self.told: list[str] = []
        self.departures: list[Departure] = []
        self.done = threading.Event()
        self.stopping = threading.Event()
        self.telemetry = Telemetry.of(self.settings, self.name, Lineage(predecessors=self.predecessors))
        self.telemetry.status.warm()
        self.telemetry.status.redis_up("start")
        self.fleet = Fleet(self.client, KEYS, self.settings, self.telemetry, self, **self.more)
        self.thread = threading.Thread(target=self.fleet.run, args=(self.stopping,), daemon=True)
        self.fleet.begin()

    def start(self, camera: CameraSettings, lease: CameraLease) -> None:
        if camera.name in self.unable:
            raise ConfigError("no tag like that in rtsp://me:hunter2@h/1")
        self.told.append(f"start {camera.name}")
        assert camera.name not in self.reading
        self.reading[camera.name] = camera, lease
        if not self.blind:
            lease.arrived()

    def stop(self, name: str, departure: Departure) -> None:
        self.told.append(f"stop {name}")
        self.departures.append(departure)
        del self.reading[name]

    def all_ended(self) -> None:
        self.done.set()

    def end(self, name: str) -> None:
        """This camera comes to its own end."""
        self.reading[name][1].camera_ended()

    def fences(self) -> dict[str, int]:
        """By camera, of those that it may speak for."""
        found = {name: lease.fence for name, (_, lease) in dict(self.reading).items()}
        return {name: fence for name, fence in found.items() if fence is not None}

    def transfers(self) -> Mapping[Transfer, int]:
        return self.fleet.stats().transfers


@contextmanager
def working(
    client: Client,
    settings: SettingsTree,
    name: str = "a",
    *,
    blind: bool = False,
    unable: tuple[str, ...] = (),
    predecessors: tuple[str, ...] = (),
    **more: Any,
) -> Iterator[Worker]:
    worker = Worker(client, settings, name, more, predecessors, blind, unable)
    worker.thread.start()
    try:
        yield worker
    finally:
        worker.stopping.set()
        worker.thread.join(5)
        assert not worker.thread.is_alive()


def last_beat(client: Client, name: str = "a") -> int:
    return int(json.loads(client.hget(KEYS.members, name) or "{}")["beat"])


def has(worker: Worker, count: int) -> Callable[[], bool]:
    return lambda: len(worker.fences()) == count


# ---- one worker


def test_it_reads_what_it_is_granted_under_the_numbers_that_the_server_keeps(client: Client) -> None:
    with working(client, tree(3)) as worker:
        eventually(has(worker, 3), "all cameras are read")

        kept = {name.decode(): int(fence) for name, fence in client.hgetall(KEYS.fences).items()}
        eventually(lambda: worker.fleet.stats().held == 3, "its statistics show it")
        stats = worker.fleet.stats()
        assert worker.fences() == kept
        assert (stats.members, stats.known, stats.standby, stats.refused) == (1, 3, 0, 0)
        assert stats.lease_left is not None
        assert 0 < stats.lease_left < LEASE
        assert worker.transfers() == {"granted": 3}
    assert worker.fences() == {}  # the thread has ended


def test_rights_are_renewed_for_as_long_as_it_runs(client: Client) -> None:
    with working(client, tree(1, lease=1.0)) as worker:
        eventually(has(worker, 1), "it is read")
        first = worker.fences()
        ends = time.monotonic() + 2.5

        eventually(lambda: worker.fences() != first or time.monotonic() > ends, "two leases pass")

        assert (worker.fences(), worker.told) == (first, ["start cam-00"])


def test_cameras_are_added_paused_resumed_changed_and_removed_while_it_runs(client: Client) -> None:
    settings = tree()
    cameras = registry(client, KEYS, settings.fleet)
    with working(client, settings) as worker:
        for change, told in (
            (lambda: cameras.add(camera()), ["start door"]),
            (lambda: cameras.pause("door"), ["stop door"]),
            (lambda: cameras.resume("door"), ["start door"]),
            (lambda: cameras.add(camera(fps=1), replace=True), ["stop door", "start door"]),
            (lambda: cameras.remove("door"), ["stop door"]),
        ):
            worker.told.clear()
            began = time.monotonic()
            assert change()  # type: ignore[no-untyped-call]
            eventually(lambda: worker.told == told, f"{told}")  # noqa: B023
            assert time.monotonic() - began < 2 + slack()
        assert worker.transfers()["granted"] >= 2


def test_a_changed_camera_begins_anew_under_its_old_number(client: Client) -> None:
    settings = tree()
    cameras = registry(client, KEYS, settings.fleet)
    cameras.add(camera())
    with working(client, settings) as worker:
        eventually(has(worker, 1), "it is read")
        before = worker.fences()
        cameras.add(camera(password="hunter2", username="me"), replace=True)

        eventually(lambda: len(worker.told) == 3, "it begins anew")
        eventually(has(worker, 1), "it is read")

        assert worker.told == ["start door", "stop door", "start door"]
        assert worker.fences() == before


def test_what_is_not_shared_is_read_by_everybody_who_has_it_and_for_ever(client: Client) -> None:
    settings = SettingsTree(cameras=(camera("own", shared=False),))
    cameras = registry(client, KEYS, settings.fleet)
    with working(client, settings) as one, working(client, settings, "b") as other:
        eventually(lambda: one.fences() == other.fences() == {"own": 0}, "both read it")
        cameras.pause("own")
        eventually(lambda: one.reading == other.reading == {}, "a pause holds for it too")
        cameras.resume("own")
        eventually(lambda: one.fences() == other.fences() == {"own": 0}, "both read it again")

        assert not client.exists(KEYS.leases)


def test_the_settings_file_wins_and_bad_entries_are_told_once(client: Client) -> None:
    client.hset(
        KEYS.registry, mapping={"cam-00": '{"url": "rtsp://evil/1"}', "bad": "{}", "good": '{"url": "rtsp://h/1"}'}
    )
    with capture_logs() as logs, working(client, tree(1)) as worker:
        eventually(has(worker, 2), "the others live")
        for _ in range(6):  # at least every other time it looks at the version in between
            client.incr(KEYS.version)
            before = last_beat(client)
            eventually(lambda: last_beat(client) > before, "another beat")  # noqa: B023

    assert sorted(worker.reading) == ["cam-00", "good"]
    assert worker.reading["cam-00"][0].url.get_secret_value() == "rtsp://10.0.0.7/0"
    told = [(line["camera"], line["why"]) for line in logs if line["event"] == "a camera in Redis is left out"]
    assert told == [
        ("bad", "url: Field required"),
        ("cam-00", "the settings file has one of this name, which is read"),
    ]
    assert worker.fleet.stats().faults == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "/etc/passwd"},
        {"url": "0"},
        {"url": "/dev/video0"},
        {"url": "file:///clip.mp4"},
        {"url": "rtsp://h/1", "username": "me", "password_file": "/etc/shadow"},
        {"url": "rtsps://h/1", "tls_ca": "/etc/shadow"},
        {"url": "concat:/etc/passwd"},
    ],
)
def test_a_camera_from_redis_may_not_touch_this_machine_unless_the_settings_say_so(
    client: Client, fields: dict[str, str]
) -> None:
    client.hset(KEYS.registry, "door", json.dumps(fields))

    assert list(registry(client, KEYS, tree().fleet).read().faults) == ["door"]
    local = tree(fleet={"local": True})
    assert set(registry(client, KEYS, local.fleet).read().cameras) == (set() if "concat" in fields["url"] else {"door"})


def test_a_camera_that_a_worker_cannot_read_is_left_to_others_and_disturbs_no_other(client: Client) -> None:
    settings, unable = tree(3), ("cam-00", "cam-01")
    with capture_logs() as logs, working(client, settings, unable=unable) as poor:
        eventually(lambda: client.hkeys(KEYS.leases) == [b"cam-02"], "both are left out, and the other one is read")
        eventually(lambda: json.loads(client.hget(KEYS.members, "a"))["warm"] == ["cam-02"], "the server knows")
        before = poor.fences()
        with working(client, settings, "b") as rich:
            eventually(lambda: sorted(rich.fences())[:2] == ["cam-00", "cam-01"], "who can read them does")

        assert poor.told == ["start cam-02"]
        assert poor.fences() == before
        assert poor.fleet.stats().faults == 2
    told = [line for line in logs if line["event"] == "a camera cannot be read here"]
    assert [line["camera"] for line in told] == ["cam-00", "cam-01"]
    assert "hunter2" not in str(told)


def test_a_camera_that_a_worker_could_not_read_is_tried_again_under_new_settings(client: Client) -> None:
    settings = tree()
    cameras = registry(client, KEYS, settings.fleet)
    cameras.add(camera())
    with working(client, settings, unable=("door",)) as worker:
        eventually(lambda: worker.fleet.stats().faults == 1, "it is left out")
        worker.unable = ()
        cameras.add(camera(fps=1), replace=True)

        eventually(has(worker, 1), "it is read")
        assert worker.fleet.stats().faults == 0


@pytest.mark.parametrize("url", ["x" * 5000, "file://[::1/clip.mp4", "/proc/1/root/clip.mp4", "rtsp://h/\ud800"])
def test_no_entry_in_redis_however_odd_keeps_a_worker_from_its_other_cameras(client: Client, url: str) -> None:
    client.hset(KEYS.registry, "odd", json.dumps({"url": url}))
    with capture_logs() as logs, working(client, tree(1)) as worker:
        eventually(has(worker, 1), "the other one is read")

        assert worker.fleet.stats().faults == 1
    assert [line["camera"] for line in logs if line["event"] == "a camera in Redis is left out"] == ["odd"]


def test_what_it_has_no_room_for_is_counted(client: Client) -> None:
    with working(client, tree(3), room=21.0) as worker:
        eventually(lambda: worker.fleet.stats().refused == 1, "one finds no room")

        assert sorted(worker.fences()) == ["cam-00", "cam-01"]


def test_that_pictures_come_is_said_at_once_and_not_with_the_next_beat(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "POLL", 3600.0)
    monkeypatch.setattr(member, "TICK", 3600.0)

    def said() -> list[str]:
        found: list[str] = json.loads(client.hget(KEYS.members, "a"))["warm"]
        return found

    with working(client, tree(2, lease=600), blind=True) as worker:
        eventually(has(worker, 2), "both are read")
        for _, lease in dict(worker.reading).values():
            lease.arrived()
        eventually(lambda: sorted(said()) == ["cam-00", "cam-01"], "the server knows")
        worker.reading["cam-00"][1].lost()
        eventually(lambda: said() == ["cam-01"], "the server knows that too")
        monkeypatch.undo()
        assert worker.fleet.leave()


@pytest.mark.parametrize("departure", ["removed", "paused"])
def test_a_camera_that_a_beat_takes_away_before_the_registry_was_read_is_said_to_be_removed_or_paused(
    client: Client, monkeypatch: pytest.MonkeyPatch, departure: Departure
) -> None:
    monkeypatch.setattr(schedule, "POLL", 3600.0)
    monkeypatch.setattr(member, "TICK", 3600.0)
    settings = tree(lease=600)
    cameras = registry(client, KEYS, settings.fleet)
    cameras.add(camera())

    with working(client, settings, blind=True) as worker:
        eventually(has(worker, 1), "it is read")
        assert cameras.remove("door") if departure == "removed" else cameras.pause("door")
        worker.reading["door"][1].arrived()  # news, so a beat is the next call
        eventually(lambda: not worker.reading, "it is read no more")
        monkeypatch.undo()
        assert worker.fleet.leave()

    assert worker.departures == [departure]


# ---- files that end


def test_it_has_finished_when_all_files_have_ended_whoever_read_them(client: Client) -> None:
    settings = SettingsTree(
        cameras=(camera("clip", "clip.mp4"), camera("own", "own.mp4", shared=False)), fleet=tree().fleet
    )
    with working(client, settings) as reader, working(client, settings, "b") as other:
        eventually(lambda: len(reader.fences()) + len(other.fences()) == 3, "all are read")
        clip, idle = (reader, other) if "clip" in reader.fences() else (other, reader)
        clip.end("clip")
        clip.end("own")
        eventually(lambda: "clip" not in clip.reading, "it is not read any more")
        assert not idle.fleet.finished
        idle.end("own")

        eventually(lambda: reader.done.is_set() and other.done.is_set(), "both have finished")
        assert (clip.fleet.finished, idle.fleet.finished) == (True, True)
        assert "start clip" not in idle.told


@pytest.mark.parametrize("more", [{}, {"cameras": [{"name": "live", "url": "rtsp://h/1"}]}])
def test_it_never_finishes_where_a_camera_may_still_deliver(client: Client, more: dict[str, Any]) -> None:
    settings = tree(**more)
    registry(client, KEYS, settings.fleet).add(camera())
    with working(client, settings) as worker:
        eventually(lambda: "door" in worker.fences(), "it is read")
        worker.end("door")
        eventually(lambda: "door" not in worker.reading, "it has ended")

        assert not worker.fleet.finished


@pytest.mark.parametrize("backlog", [True, False])
def test_a_folder_whose_backlog_is_read_has_no_standby_that_would_pass_over_it(client: Client, backlog: bool) -> None:
    settings = SettingsTree(cameras=(camera("pictures", "pictures/", backlog=backlog),), fleet=tree().fleet)
    with working(client, settings) as owner:
        eventually(has(owner, 1), "it is read")
        eventually(lambda: json.loads(client.hget(KEYS.members, "a"))["warm"] == ["pictures"], "the server knows")
        with working(client, settings, "b", blind=True) as other:
            eventually(lambda: owner.fleet.stats().members == 2, "another one is there")
            owner.fleet.retire()

            assert ("start pictures" in other.told) is not backlog


# ---- Redis goes away


def test_when_redis_falls_silent_readers_stop_before_the_lease_is_over_and_start_again_when_it_is_back() -> None:
    # This client waits five seconds for an answer, far longer than the lease.
    with embedded_server() as server, connect(RedisSettings.model_validate({"url": server.url})) as patient:
        with working(patient, tree(2)) as worker:
            eventually(has(worker, 2), "they are read")
            server.process.send_signal(signal.SIGSTOP)
            frozen = time.monotonic()
            try:
                eventually(lambda: not worker.reading, "it lets them go")
                stopped = time.monotonic()
            finally:
                server.process.send_signal(signal.SIGCONT)
            eventually(has(worker, 2), "they are read again")

        assert stopped - frozen < LEASE
        assert worker.transfers()["lost"] == 2


def test_when_redis_falls_silent_a_file_only_waits_and_goes_on_when_it_is_back() -> None:
    settings = SettingsTree(cameras=(camera("clip", "clip.mp4"), camera("door")), fleet=tree().fleet)
    with (
        embedded_server() as server,
        connect(RedisSettings.model_validate({"url": server.url})) as patient,
        capture_logs() as logs,
        working(patient, settings) as worker,
    ):
        eventually(has(worker, 2), "they are read")
        server.process.send_signal(signal.SIGSTOP)
        try:
            eventually(lambda: "stop door" in worker.told, "the camera is let go")
            assert worker.fences() == {}
            time.sleep(0.3)
        finally:
            server.process.send_signal(signal.SIGCONT)
        eventually(has(worker, 2), "both are read again")

        assert worker.told == ["start clip", "start door", "stop door", "start door"]
    assert len([line for line in logs if "no answer from Redis" in line["event"]]) == 1


def test_after_redis_lost_its_data_the_cameras_are_granted_anew_under_higher_numbers(client: Client) -> None:
    with working(client, tree(2)) as worker:
        eventually(has(worker, 2), "they are read")
        before = worker.fences()
        client.flushall()

        eventually(lambda: all(fence > before[name] for name, fence in worker.fences().items()), "new numbers")

        assert worker.told == ["start cam-00", "start cam-01"]  # and no reader noticed


def test_a_late_answer_gives_no_right(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    now, beat = [1000.0], Leases.beat

    def slow(leases: Leases, *arguments: Any, **named: Any) -> Any:
        reply = beat(leases, *arguments, **named)
        now[0] += LEASE
        return reply

    monkeypatch.setattr(Leases, "beat", slow)
    with working(client, tree(1), monotonic=lambda: now[0]) as worker:
        eventually(lambda: now[0] > 1000 + 3 * LEASE, "it asked several times")

    assert worker.told == []


def test_trouble_is_reported_and_over_when_redis_is_there(client: Client) -> None:
    with working(client, tree(1)) as worker:
        status = worker.telemetry.status
        eventually(has(worker, 1), "it is read")
        client.delete(KEYS.members)
        client.set(KEYS.members, "no hash")
        eventually(lambda: bool(status.unready_because()), "it is reported")
        assert "WRONGTYPE" in status.unready_because()[0]
        client.delete(KEYS.members)

        eventually(lambda: not status.unready_because(), "it goes on")


# ---- leaving


def test_who_retires_alone_does_not_wait_and_who_leaves_frees_everything_at_once(client: Client) -> None:
    with working(client, tree(2, lease=60.0)) as worker:
        eventually(has(worker, 2), "they are read")
        began = time.monotonic()

        assert worker.fleet.retire()
        assert time.monotonic() - began < 1 + slack()
        assert len(worker.fences()) == 2
        assert worker.fleet.leave()
        assert (worker.fences(), worker.reading) == ({}, {})
    assert client.exists(KEYS.leases, KEYS.members) == 0


def test_who_retires_waits_until_others_see_pictures_and_no_longer_than_it_may(client: Client) -> None:
    settings = tree(4, lease=60.0, drain={"timeout": 2.0})
    with working(client, settings) as old:
        eventually(
            lambda: b'"cam-03"' in (client.hget(KEYS.members, "a") or b""), "the server knows that it sees pictures"
        )
        with working(client, settings, "b", blind=True) as standby:
            eventually(lambda: len(standby.reading) == 2, "two are to be moved")
            assert not old.fleet.retire()  # a quarter of the drain's time
            assert len(old.fences()) == 4
            for _, lease in list(standby.reading.values()):
                lease.arrived()

            eventually(has(standby, 4), "they have moved")
            assert old.fleet.retire()
            assert standby.transfers() == {"handed_over": 4}


def test_a_successor_has_the_cameras_of_the_crashed_one_at_once(client: Client) -> None:
    settings = tree(2, lease=60.0)
    Leases(client, KEYS, worker="dead", lease=60.0).beat(Catalogue())
    with working(client, settings, "dead") as dead:
        eventually(has(dead, 2), "they are read")
    with working(client, settings, "next", predecessors=("dead",)) as successor:
        eventually(has(successor, 2), "they are read again")

        assert successor.transfers() == {"taken_over": 2}


# ---- rights on the server


@contextmanager
def as_user(client: Client, redis_url: str, *rules: str) -> Iterator[Client]:
    client.execute_command("ACL", "SETUSER", "poor", "reset", "on", "nopass", "+@all", "~frames*", *rules)
    try:
        settings = RedisSettings.model_validate({"url": redis_url, "username": "poor", "password": "x"})
        with connect(settings) as poor:
            yield poor
    finally:
        client.execute_command("ACL", "DELUSER", "poor")


def test_without_rights_on_the_keys_a_worker_without_cameras_goes_on(client: Client, redis_url: str) -> None:
    with as_user(client, redis_url) as poor, capture_logs() as logs:
        assert reachable(poor, KEYS, tree(), worker="a") is False
        assert [line["event"] for line in logs] == ["no cameras can be added at run time"]
        with working(poor, SettingsTree(cameras=(camera("own", shared=False),)), connected=False) as worker:
            eventually(lambda: worker.fences() == {"own": 0}, "its own is read")
            assert worker.fleet.retire()
            assert worker.fleet.leave()


def test_without_rights_a_worker_with_shared_cameras_is_told_what_to_do(client: Client, redis_url: str) -> None:
    with as_user(client, redis_url) as poor, pytest.raises(ConfigError, match=r"cameras\*.*shared: false"):
        reachable(poor, KEYS, tree(1), worker="a")


def test_with_rights_all_is_well_and_nothing_is_left_behind(client: Client, redis_url: str) -> None:
    with as_user(client, redis_url, "~cameras*") as user:
        assert reachable(user, KEYS, tree(1), worker="a") is True
    assert client.keys() == []


def test_a_redis_that_is_away_is_no_matter_of_rights() -> None:
    with (
        connect(RedisSettings.model_validate({"url": "redis://127.0.0.1:1"})) as client,
        pytest.raises(RedisUnavailable),
    ):
        reachable(client, KEYS, tree(), worker="a")


def test_the_fleets_client_waits_no_longer_than_a_part_of_the_lease() -> None:
    assert brisk(RedisSettings(), 10.0).socket_timeout == 1.25
    assert brisk(RedisSettings(connect_timeout=0.1), 1.0).connect_timeout == 0.1


# ---- many workers, in processes of their own


@dataclass
class Process:
    """One of them, and what it has said: (monotonic seconds, number) by camera."""

    name: str
    process: "subprocess.Popen[str]"
    said: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("}}\n"):  # a killed one may leave half a line
                entry = json.loads(line)
                self.now = entry["publishes"]
                for name, fence in entry["publishes"].items():
                    self.said.setdefault(name, []).append((entry["at"], fence))
        self.now = {}

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()


class Crowd:
    """All processes on one server."""

    def __init__(self, url: str, settings: SettingsTree, stack: ExitStack) -> None:
        values = settings.model_dump(mode="json", exclude_defaults=True)
        for entry, own in zip(values["cameras"], settings.cameras, strict=True):
            entry["url"] = own.url.get_secret_value()
        self._document = json.dumps(values | {"redis": {"url": url}})
        self._stack = stack
        self.all: list[Process] = []

    def join(self) -> Process:
        name = f"w{len(self.all)}"
        process = self._stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.fleet_worker", name, self._document],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        one = Process(name, process)
        ear = threading.Thread(target=one.listen, daemon=True)
        self._stack.callback(ear.join, 5)  # after the kill, and before its pipe is closed
        self._stack.callback(process.kill)
        ear.start()
        self.all.append(one)
        return one

    def shares(self) -> list[int]:
        return sorted(len(one.now) for one in self.all if one.process.poll() is None)

    def is_even(self, count: int, workers: int) -> bool:
        shares = self.shares()
        return (len(shares), sum(shares)) == (workers, count) and shares[-1] - shares[0] <= 1

    def first_published(self, camera: str, *, after: float, but: Process) -> float:
        """When somebody else spoke for it; for ever where nobody has."""
        times = [at for one in self.all if one is not but for at, _ in one.said.get(camera, []) if at >= after]
        return min(times, default=float("inf"))

    def assert_one_at_a_time(self, slack: float = 0.5) -> None:
        """An old number is not spoken under once a newer one has been for `slack` seconds: the server refuses it from
        the first moment on, and whoever had it hears of that within two looks at the version.
        """
        for name in {name for one in self.all for name in one.said}:
            spoken = sorted((at, fence) for one in self.all for at, fence in one.said.get(name, []))
            risen: dict[int, float] = {}
            for at, fence in spoken:
                risen.setdefault(fence, at)
            late = [
                (at, fence)
                for at, fence in spoken
                if any(newer > fence and at > since + slack for newer, since in risen.items())
            ]
            assert late == [], name
            speakers = {
                fence: {one.name for one in self.all for _, f in one.said.get(name, []) if f == fence}
                for fence in risen
            }
            assert all(len(names) == 1 for names in speakers.values()), name


@pytest.fixture
def crowd(redis_url: str) -> Iterator[Crowd]:
    """Three workers that share twelve cameras evenly."""
    with ExitStack() as stack:
        crowd = Crowd(redis_url, tree(12), stack)
        for _ in range(3):
            crowd.join()
        eventually(lambda: crowd.is_even(12, 3), "all cameras are shared")
        yield crowd


def test_the_cameras_of_a_killed_worker_are_read_elsewhere_within_a_lease_and_a_second(crowd: Crowd) -> None:
    victim = crowd.all[0]
    orphans = set(victim.now)
    victim.process.kill()
    killed = time.monotonic()

    eventually(lambda: crowd.is_even(12, 2), "the others read all")

    taken = [crowd.first_published(name, after=killed, but=victim) - killed for name in orphans]
    assert len(taken) == 4
    assert max(taken) < LEASE + 1 + slack()
    crowd.assert_one_at_a_time()


def test_the_cameras_of_a_worker_that_retires_are_read_elsewhere_within_a_second_and_without_a_gap(
    crowd: Crowd,
) -> None:
    leaver = crowd.all[0]
    cameras = set(leaver.now)
    leaver.tell("retire")
    began = time.monotonic()

    eventually(lambda: crowd.shares() == [0, 6, 6], "the others read all")

    for name in cameras:
        first = crowd.first_published(name, after=began, but=leaver)
        assert first - began < 1 + slack()
        assert first < leaver.said[name][-1][0] + 0.3 + slack()
    crowd.assert_one_at_a_time()
    leaver.tell("leave")
    leaver.process.wait(timeout=10)


def test_from_one_worker_to_four_to_two_the_shares_stay_even_and_no_two_speak_under_one_number(redis_url: str) -> None:
    with ExitStack() as stack:
        crowd = Crowd(redis_url, tree(10), stack)
        crowd.join()
        eventually(lambda: crowd.is_even(10, 1), "one reads all")
        for _ in range(3):
            crowd.join()
        eventually(lambda: crowd.is_even(10, 4), "four share them")
        for leaver in crowd.all[:2]:
            leaver.tell("retire")
        eventually(lambda: crowd.all[0].now == crowd.all[1].now == {}, "two have retired")
        for leaver in crowd.all[:2]:
            leaver.tell("leave")

        eventually(lambda: crowd.is_even(10, 2), "two share them")
        crowd.assert_one_at_a_time()


def test_a_worker_that_was_frozen_beyond_its_lease_says_nothing_under_its_old_numbers(crowd: Crowd) -> None:
    victim = crowd.all[0]
    had = dict(victim.now)
    victim.process.send_signal(signal.SIGSTOP)
    eventually(lambda: sum(len(one.now) for one in crowd.all[1:]) == 12, "the others read all")
    woken = time.monotonic()
    victim.process.send_signal(signal.SIGCONT)

    eventually(lambda: crowd.is_even(12, 3), "it has its share again")

    late = [
        (name, at) for name, says in victim.said.items() for at, fence in says if at > woken and fence == had.get(name)
    ]
    assert late == []
    crowd.assert_one_at_a_time()
