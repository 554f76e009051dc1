"""Who reads which camera, decided by one script on real servers: fair, gapless, and never by two under one number."""

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from coatstream.broker.connection import Client, connect
from coatstream.broker.embedded import EmbeddedServer, embedded_server
from coatstream.broker.fleet_keys import FleetKeys, fleet_keys
from coatstream.broker.script import Script
from coatstream.cameras.fleet.leases import BeatReply, Catalogue, CatalogueEntry, Holder, Leases, Mode, holders
from coatstream.errors import RedisRefuses, RedisUnavailable
from coatstream.settings.model import RedisSettings, SettingsTree
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.redis_servers import cluster
from tests.support.servers import ON_ONE_SERVER
from tests.support.workers import eventually

KEYS = FleetKeys()
LEASE = 10.0
NOW = 1_800_000_000.0


def cameras(count: int, *, cold: bool = False, rate: float = 1.0) -> Catalogue:
    return Catalogue(tuple(CatalogueEntry(f"cam-{number:02}", "d", rate=rate, cold=cold) for number in range(count)))


@dataclass
class Member:
    """One worker's side; `now` is the server's time, as all of them see it."""

    client: Client
    name: str
    catalogue: Catalogue
    now: float = NOW
    warm: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    room: float | None = None
    mode: Mode = "stay"
    predecessors: tuple[str, ...] = ()
    answer: BeatReply = field(default_factory=lambda: BeatReply(b"", b""))

    def beat(self, *, after: float = 0.0) -> BeatReply:
        """After so many seconds, in which it beats as a worker does."""
        until = self.now + after
        while self.now + LEASE / 5 < until:
            self.now += LEASE / 5
            self._beat()
        self.now = until
        return self._beat()

    def _beat(self) -> BeatReply:
        leases = Leases(self.client, KEYS, worker=self.name, lease=LEASE)
        self.answer = leases.beat(
            self.catalogue,
            warm=self.warm,
            ended=self.ended,
            room=self.room,
            mode=self.mode,
            predecessors=self.predecessors,
            server_time=self.now,
        )
        return self.answer

    def open_all(self) -> None:
        """Pictures of all that it holds or has to open come in."""
        self.warm = {*self.answer.held, *self.answer.open}

    @property
    def held(self) -> set[str]:
        return set(self.answer.held)


def team(client: Client, names: str, catalogue: Catalogue) -> list[Member]:
    """Workers that have joined one after the other and share the cameras evenly, with pictures of all they hold."""
    members: list[Member] = []
    for name in names:
        members.append(Member(client, name, catalogue))
        settle(members)
    return members


def settle(members: Iterable[Member], *, rounds: int = 8) -> None:
    """Everybody beats and opens what it shall, until nothing changes any more; no time passes."""
    for _ in range(rounds):
        for member in members:
            member.beat()
            member.open_all()


def owners(client: Client) -> dict[str, str]:
    found = {name.decode(): json.loads(text) for name, text in client.hgetall(KEYS.leases).items()}
    return {name: lease["owner"] for name, lease in found.items() if "owner" in lease}


def fences(client: Client) -> dict[str, int]:
    return {name.decode(): int(fence) for name, fence in client.hgetall(KEYS.fences).items()}


def sizes(members: Iterable[Member]) -> list[int]:
    return [len(member.held) for member in members]


# ---- fair shares


def test_a_free_camera_is_granted_at_once_under_a_number_made_of_the_time(client: Client) -> None:
    answer = Member(client, "a", cameras(2)).beat()

    assert {name: (lease.fence, lease.why) for name, lease in answer.held.items()} == {
        "cam-00": (int(NOW * 1e6), "granted"),
        "cam-01": (int(NOW * 1e6), "granted"),
    }
    assert (answer.members, answer.standbys, [*answer.open, *answer.refused]) == (1, 0, [])
    assert owners(client) == {"cam-00": "a", "cam-01": "a"}


def test_without_a_time_from_the_test_the_numbers_are_the_servers_time(client: Client) -> None:
    answer = Leases(client, KEYS, worker="a", lease=LEASE).beat(cameras(1))

    assert abs(answer.held["cam-00"].fence / 1e6 - time.time()) < 5


@pytest.mark.parametrize("count", [0, 1, 7, 12, 40])
@pytest.mark.parametrize("names", ["a", "ab", "abcd"])
def test_shares_differ_by_one_at_most(client: Client, names: str, count: int) -> None:
    members = team(client, names, cameras(count))

    assert sum(sizes(members)) == count
    assert max(sizes(members)) - min(sizes(members)) <= 1


def test_a_worker_that_joins_gets_its_share_and_nothing_else_moves(client: Client) -> None:
    before = team(client, "abc", cameras(12))
    had = owners(client)

    settle([*before, newcomer := Member(client, "d", cameras(12))])

    moved = {camera for camera, owner in owners(client).items() if had[camera] != owner}
    assert len(moved) == 3
    assert moved == newcomer.held


def test_who_beats_again_and_again_changes_nothing_and_wakes_nobody(client: Client) -> None:
    members = team(client, "abc", cameras(10))
    version = client.get(KEYS.version)

    settle(members)

    assert client.get(KEYS.version) == version


@ON_ONE_SERVER
def test_moving_many_cameras_is_done_in_parts_and_ends_evenly(client: Client) -> None:
    old, new = team(client, "a", cameras(100))[0], Member(client, "b", cameras(100))
    new.beat()
    at_once = len(new.answer.open)

    settle([old, new], rounds=12)

    assert at_once == 32
    assert sizes([old, new]) == [50, 50]


def test_a_camera_that_a_worker_does_not_know_is_not_given_to_it(client: Client) -> None:
    old, new = Member(client, "a", cameras(2)), Member(client, "b", cameras(8))

    settle([old, new])

    assert old.held == {"cam-00", "cam-01"}
    assert sizes([old, new]) == [2, 6]


def test_a_worker_that_no_longer_knows_its_camera_loses_it_to_one_that_does(client: Client) -> None:
    one, other = team(client, "ab", cameras(2))

    one.catalogue = Catalogue()
    settle([one, other])

    assert sizes([one, other]) == [0, 2]


# ---- make before break


def test_the_owner_keeps_a_camera_until_its_standby_sees_pictures_and_then_it_moves_in_that_very_step(
    client: Client,
) -> None:
    (owner,) = team(client, "a", cameras(2))
    standby = Member(client, "b", cameras(2))

    (camera,) = standby.beat().open
    assert standby.held == set()
    assert set(owner.beat().held) == {"cam-00", "cam-01"}
    assert owner.answer.standbys == 1
    old = owner.answer.held[camera].fence
    standby.open_all()
    lease = standby.beat(after=1.0).held[camera]

    assert (lease.why, lease.fence > old) == ("handed_over", True)
    assert camera not in owner.beat().held


def test_where_the_owner_sees_nothing_either_nothing_is_waited_for(client: Client) -> None:
    owner, standby = Member(client, "a", cameras(2)), Member(client, "b", cameras(2))
    owner.beat()

    standby.beat()
    owner.beat()

    assert sizes([owner, standby]) == [1, 1]


def test_an_owner_that_leaves_keeps_its_cameras_until_others_are_ready(client: Client) -> None:
    leaver, *others = team(client, "abc", cameras(6))
    leaver.mode = "leaving"

    assert (len(leaver.beat().held), leaver.beat().standbys) == (2, 2)
    settle(others)

    assert (leaver.beat().held, leaver.beat().standbys) == ({}, 0)
    assert sizes(others) == [3, 3]


def test_who_leaves_alone_is_told_that_nobody_comes(client: Client) -> None:
    (member,) = team(client, "a", cameras(3))
    member.mode = "leaving"

    answer = member.beat()

    assert (len(answer.held), answer.standbys) == (3, 0)


def test_who_has_gone_holds_nothing_and_its_cameras_are_free_in_that_very_step(client: Client) -> None:
    leaver, *others = team(client, "abc", cameras(6))
    leaver.mode = "gone"

    answer = leaver.beat()

    assert (answer.held, answer.members) == ({}, 2)
    assert Counter(owners(client).values()) == {"b": 3, "c": 3}
    assert {lease.why for lease in others[0].beat().held.values()} == {"handed_over"}


def test_a_silent_owner_gets_standbys_after_half_a_lease_and_loses_its_cameras_only_when_the_lease_is_over(
    client: Client,
) -> None:
    silent, other = team(client, "ab", cameras(4))

    assert other.beat(after=LEASE / 2 - 0.1).open == set()
    assert other.beat(after=0.1).open == silent.held
    assert other.answer.next_in == pytest.approx(LEASE / 2)
    other.open_all()
    assert len(other.beat(after=LEASE / 2 - 0.1).held) == 2
    answer = other.beat(after=0.1)

    assert {camera: answer.held[camera].why for camera in silent.held} == dict.fromkeys(silent.held, "taken_over")
    assert answer.members == 1


def test_an_owner_that_is_back_in_time_keeps_everything(client: Client) -> None:
    late, other = team(client, "ab", cameras(4))
    had = owners(client)
    other.beat(after=LEASE * 0.6)
    other.open_all()

    late.beat(after=LEASE * 0.7)
    settle([late, other])

    assert owners(client) == had
    assert other.answer.open == set()


def test_an_owner_that_is_back_too_late_learns_it_and_starts_again_with_a_fair_share(client: Client) -> None:
    late, other = team(client, "ab", cameras(4))
    other.beat(after=LEASE)
    late.now = other.now
    late.warm.clear()  # it had to stop reading
    for _ in range(2):
        other.beat()
        other.open_all()

    assert late.beat().held == {}
    settle([late, other])

    assert sizes([late, other]) == [2, 2]


@pytest.mark.parametrize("outage", [7.0, 13.0, 3600.0])
def test_after_an_outage_of_the_server_no_member_is_blamed_for_its_silence(client: Client, outage: float) -> None:
    members = team(client, "abc", cameras(9))
    before = owners(client)
    for number, member in enumerate(members):
        member.now += outage + number * 0.8  # the last one comes back later
        member.beat()

    assert owners(client) == before
    assert all(not member.answer.open for member in members)
    settle(members)
    assert owners(client) == before


def test_who_does_not_come_back_after_an_outage_is_replaced_within_a_lease(client: Client) -> None:
    dead, other = team(client, "ab", cameras(4))
    other.now += 60.0
    other.beat()
    assert dead.held <= set(owners(client))

    other.beat(after=LEASE * 0.8)

    assert set(owners(client).values()) == {"b"}


def test_who_joins_long_after_a_fleet_has_crashed_need_not_wait(client: Client) -> None:
    team(client, "ab", cameras(4))
    late = Member(client, "z", cameras(4), now=NOW + 10 * LEASE)

    assert len(late.beat().held) == 4


def test_a_standby_that_never_sees_a_picture_is_replaced_and_the_owner_keeps_the_camera_meanwhile(
    client: Client,
) -> None:
    owner, blind = Member(client, "a", cameras(2)), Member(client, "b", cameras(2))
    settle([owner])
    (camera,) = blind.beat().open

    for _ in range(2 * 5 + 1):
        for member in (owner, blind):
            member.beat(after=LEASE / 5)
        assert owner.held == {"cam-00", "cam-01"}
    assert camera not in blind.answer.open
    settle([owner, third := Member(client, "c", cameras(2), now=owner.now)])

    assert sizes([owner, third]) == [1, 1]


def test_after_a_long_time_it_may_try_again(client: Client) -> None:
    owner, blind = Member(client, "a", cameras(2)), Member(client, "b", cameras(2))
    settle([owner])
    offered = []

    for _ in range(5 * 33):
        owner.beat(after=LEASE / 5)
        offered.append(bool(blind.beat(after=LEASE / 5).open))

    first, second = offered.index(True), len(offered) - offered[::-1].index(True)
    assert first == 0
    assert second > 5 * 30
    assert offered[2 * 5 + 1 : 5 * 30] == [False] * (5 * 30 - 11)


def test_a_file_has_no_standby_it_moves_when_it_is_free(client: Client) -> None:
    owner, other = team(client, "ab", cameras(4, cold=True))
    owner.mode = "leaving"

    assert owner.beat().standbys == 0
    assert other.beat().open == set()
    assert sizes([owner, other]) == [4, 0]  # and it is not moved for fairness either
    owner.mode = "gone"
    owner.beat()

    assert len(other.beat().held) == 4


def test_what_a_crashed_predecessor_held_is_its_successors_at_once(client: Client) -> None:
    dead, other = team(client, "ab", cameras(6))
    successor = Member(client, "a2", cameras(6), predecessors=("a", "long gone"))

    answer = successor.beat()

    assert set(answer.held) == dead.held
    assert {lease.why for lease in answer.held.values()} == {"taken_over"}
    assert answer.members == 2
    assert len(other.beat().held) == 3


# ---- files that end


def test_a_file_that_has_ended_is_not_read_again_while_anybody_lives(client: Client) -> None:
    reader, other = Member(client, "a", cameras(1, cold=True)), Member(client, "b", cameras(1, cold=True))
    reader.beat()
    other.beat()

    reader.ended = {"cam-00"}

    assert reader.beat().held == {}
    assert reader.beat().ended == {"cam-00"}
    assert dict(other.beat().held) == {}
    assert other.beat().ended == {"cam-00"}
    reader.mode = "gone"
    reader.beat()
    assert other.beat().held == {}


def test_only_who_reads_a_file_can_say_that_it_has_ended(client: Client) -> None:
    reader, other = Member(client, "a", cameras(1)), Member(client, "b", cameras(1))
    reader.beat()

    other.ended = {"cam-00"}
    other.beat()

    assert set(reader.beat().held) == {"cam-00"}


def test_it_is_read_again_by_who_joins_when_nobody_is_there_but_not_by_the_successor_of_a_crash(client: Client) -> None:
    first = Member(client, "a", cameras(1), ended={"cam-00"})
    first.beat()
    first.beat()
    successor = Member(client, "a2", cameras(1), predecessors=("a",))
    after_crash = successor.beat().held
    successor.mode = "gone"
    successor.beat()

    assert after_crash == {}
    assert set(Member(client, "b", cameras(1)).beat().held) == {"cam-00"}


def test_it_is_read_again_when_its_settings_change(client: Client) -> None:
    member = Member(client, "a", cameras(1), ended={"cam-00"})
    member.beat()
    member.beat()

    member.ended, member.catalogue = set(), Catalogue((CatalogueEntry("cam-00", "other settings"),))

    assert set(member.beat().held) == {"cam-00"}


def test_workers_whose_settings_differ_read_a_file_once_each_and_then_it_is_quiet(client: Client) -> None:
    """As in a rolling upgrade: the newer program knows one setting more, so all its digests are others."""
    old = Member(client, "a", Catalogue((CatalogueEntry("clip", "old", cold=True),)))
    new = Member(client, "b", Catalogue((CatalogueEntry("clip", "new", cold=True),)))
    assert set(old.beat().held) == {"clip"}
    new.beat()
    old.ended = {"clip"}
    old.beat()
    assert set(new.beat().held) == {"clip"}
    new.ended = {"clip"}
    new.beat()
    quiet = client.get(KEYS.version)

    for _ in range(3):
        assert old.beat().held == new.beat().held == {}

    assert client.get(KEYS.version) == quiet
    assert old.answer.ended == new.answer.ended == {"clip"}


def test_a_worker_that_only_looks_whether_it_may_come_in_makes_no_file_be_read_again(client: Client) -> None:
    """`fleet.access.reachable` does, also in a successor that took longer to start than the dead one's lease."""
    dead = Member(client, "a", cameras(1, cold=True), ended={"cam-00"})
    dead.beat()
    Member(client, "a2", Catalogue(), NOW + 2 * LEASE, mode="gone").beat()

    successor = Member(client, "a2", cameras(1, cold=True), NOW + 2 * LEASE, predecessors=("a",))

    assert successor.beat().held == {}
    assert successor.answer.ended == {"cam-00"}


def test_what_a_worker_has_read_to_its_end_is_not_read_again_when_redis_forgets_it(client: Client) -> None:
    reader = Member(client, "a", cameras(1, cold=True), ended={"cam-00"})
    client.flushall()

    assert reader.beat().ended == {"cam-00"}
    assert reader.held == set()


# ---- paused, removed, too many


def test_a_paused_camera_is_nobodys(client: Client) -> None:
    member, other = team(client, "ab", cameras(4))
    client.sadd(KEYS.paused, "cam-00")

    settle([member, other])
    paused = owners(client)
    client.srem(KEYS.paused, "cam-00")
    settle([member, other])

    assert "cam-00" not in paused
    assert sizes([member, other]) == [2, 2]


def test_a_camera_from_redis_is_nobodys_once_it_is_removed_there_whoever_still_knows_it(client: Client) -> None:
    client.hset(KEYS.registry, "cam-00", "{}")
    member = Member(client, "a", Catalogue((CatalogueEntry("cam-00", "d", added=True), CatalogueEntry("cam-01", "d"))))
    before = set(member.beat().held)

    client.hdel(KEYS.registry, "cam-00")

    assert (before, set(member.beat().held)) == ({"cam-00", "cam-01"}, {"cam-01"})


def test_a_worker_is_given_no_more_frames_a_second_than_it_has_room_for_and_the_most_important_first(
    client: Client,
) -> None:
    rates = {"low": (1.0, 5.0), "high": (3.0, 5.0), "middle": (2.0, 5.0)}
    catalogue = Catalogue(tuple(CatalogueEntry(name, "d", priority, rate) for name, (priority, rate) in rates.items()))
    member = Member(client, "a", catalogue, room=12.0)

    answer = member.beat()

    assert (set(answer.held), set(answer.refused)) == ({"high", "middle"}, {"low"})
    member.room = 5.0
    assert (set(member.beat().held), set(member.beat().refused)) == ({"high"}, {"low", "middle"})
    member.room = None
    assert set(member.beat().held) == {"high", "middle", "low"}


def test_an_important_camera_puts_out_one_of_lower_priority(client: Client) -> None:
    low, high = CatalogueEntry("low", "d", 1.0, 5.0), CatalogueEntry("high", "d", 2.0, 5.0)
    member = Member(client, "a", Catalogue((low,)), room=5.0)
    member.beat()

    member.catalogue = Catalogue((low, high))

    assert (set(member.beat().held), set(member.beat().refused)) == ({"high"}, {"low"})


def test_what_one_has_no_room_for_goes_to_one_that_has(client: Client) -> None:
    small, large = Member(client, "a", cameras(8), room=2.0), Member(client, "b", cameras(8))

    settle([small, large])

    assert sizes([small, large]) == [2, 6]
    assert small.answer.refused == set()


# ---- numbers


@pytest.mark.parametrize(
    "stored",
    [b"1800000000000000", b"1799999999000000", b"", b"nonsense", b"-5", b"1e300", b"nan", b"1900000000000000"],
)
def test_a_number_is_above_the_last_one_and_never_below_the_time(client: Client, stored: bytes) -> None:
    client.hset(KEYS.fences, "cam-00", stored)

    fence = Member(client, "a", cameras(1)).beat().held["cam-00"].fence

    assert fence >= NOW * 1e6
    assert not stored.isdigit() or fence > int(stored)
    assert fences(client) == {"cam-00": fence}


def test_after_redis_lost_everything_the_same_worker_is_granted_its_cameras_under_higher_numbers(
    client: Client,
) -> None:
    member, other = team(client, "ab", cameras(4))
    before = fences(client)
    client.flushall()

    member.now = other.now = NOW + 1
    settle([member, other])

    assert sizes([member, other]) == [2, 2]
    assert all(fence > before[camera] for camera, fence in fences(client).items())


def test_a_server_clock_that_is_put_back_keeps_a_dead_worker_for_one_lease_only(client: Client) -> None:
    dead, other = team(client, "ab", cameras(2))
    back = NOW - 3600
    other.now = back

    kept = set(other.beat().held)
    other.beat(after=LEASE)

    assert (len(dead.held), len(kept), len(other.held)) == (1, 1, 2)


# ---- what others write, what is refused


@pytest.mark.parametrize(
    "junk", [b"", b"no json", b"[]", b"null", b"5", b'{"beat": "x"}', b"\xff\xfe", b'{"owner": 7}']
)
def test_damaged_records_count_as_none(client: Client, junk: bytes) -> None:
    for key in (KEYS.members, KEYS.leases):
        client.hset(key, mapping={"stranger": junk, "cam-00": junk, ":catalogue": junk})

    answer = Member(client, "a", cameras(2)).beat()

    assert set(answer.held) == {"cam-00", "cam-01"}
    assert answer.members == 1


@pytest.mark.parametrize(
    "spoilt",
    [
        {"fence": "nonsense"},
        {"fence": ""},
        {"fence": "1" * 5000},
        {"why": {}},
        {"passed": {"b": "x"}},
        {"heir": "b", "heir_at": float("nan")},
    ],
)
def test_a_lease_that_is_damaged_in_part_counts_as_none(client: Client, spoilt: dict[str, object]) -> None:
    members = team(client, "ab", cameras(4))
    for name, text in client.hgetall(KEYS.leases).items():
        client.hset(KEYS.leases, name, json.dumps(json.loads(text) | spoilt))

    settle(members)

    assert sizes(members) == [2, 2]


@pytest.mark.parametrize("spoilt", [{"beat": float("nan")}, {"lease": 1e300}, {"lease": float("nan")}])
def test_a_member_that_would_live_for_ever_is_none(client: Client, spoilt: dict[str, float]) -> None:
    dead, other = team(client, "ab", cameras(4))
    client.hset(KEYS.members, "a", json.dumps(json.loads(client.hget(KEYS.members, "a")) | spoilt))

    other.beat(after=LEASE)

    assert (len(dead.held), len(other.held)) == (2, 4)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
def test_a_catalogue_with_numbers_that_are_none_costs_only_that_worker(client: Client, number: float) -> None:
    good, bad = team(client, "ab", cameras(4))
    bad.catalogue = Catalogue((CatalogueEntry("cam-00", "d", number), CatalogueEntry("cam-01", "d", 1.0, number)))
    bad.beat()

    settle([good, bad])

    assert (len(good.held), len(bad.held)) == (4, 0)


def test_a_damaged_catalogue_of_another_worker_costs_only_that_worker(client: Client) -> None:
    good, bad = team(client, "ab", cameras(4))
    bad.catalogue = Catalogue((CatalogueEntry("other", "d"),))
    bad.beat()
    client.hset(KEYS.members, ":" + bad.catalogue.digest, '[[1], "x", ["cam-00", "d", "high", {}], null]')

    settle([good])

    assert good.held == {"cam-00", "cam-01", "cam-02", "cam-03"}


@pytest.mark.parametrize("key", [KEYS.members, KEYS.leases, KEYS.fences, KEYS.registry, KEYS.paused, KEYS.version])
def test_a_key_that_holds_something_else_is_refused_before_anything_is_written(client: Client, key: str) -> None:
    client.xadd(key, {"no": "hash"})

    with pytest.raises(RedisRefuses, match=f"WRONGTYPE {key}"):
        Member(client, "a", cameras(1)).beat()
    assert client.keys() == [key.encode()]


def test_a_version_that_a_stranger_spoilt_still_changes(client: Client) -> None:
    client.set(KEYS.version, "nonsense")

    answer = Member(client, "a", cameras(1)).beat()

    assert (answer.before, answer.version != b"nonsense") == (b"nonsense", True)


def test_a_full_server_still_renews_and_grants() -> None:
    with embedded_server("--maxmemory-policy", "noeviction") as server, _client(server) as full:
        owner, other = team(full, "ab", cameras(4))
        full.config_set("maxmemory", "1")

        with pytest.raises(Exception, match=r"OOM|maxmemory"):
            full.set("anything", "x" * 100)
        settle([owner])
        owner.beat(after=LEASE)

        assert len(owner.held) == 4
        assert other.held


def _client(server: EmbeddedServer) -> Client:
    return connect(RedisSettings.model_validate({"url": server.url}))


def test_a_catalogue_is_sent_once_and_then_only_named(client: Client) -> None:
    catalogue = cameras(50)
    one, other = Member(client, "a", catalogue), Member(client, "b", catalogue)
    one.beat()
    client.config_resetstat()

    one.beat()
    other.beat()

    commands = client.info("commandstats")
    assert commands.get("cmdstat_evalsha", {"calls": 0})["calls"] == 2
    assert len([field for field in client.hkeys(KEYS.members) if field.startswith(b":")]) == 1


def test_a_catalogue_that_nobody_has_any_more_is_deleted(client: Client) -> None:
    member = Member(client, "a", cameras(3))
    member.beat()

    member.catalogue = cameras(4)
    member.beat()

    assert sorted(client.hkeys(KEYS.members)) == sorted([b"a", b":" + member.catalogue.digest.encode()])


def test_names_may_be_any_text(client: Client) -> None:
    names = ['quo"te', "Straße 5", "a\nb", "back\\slash", "鍵", "{tag}", " "]
    catalogue = Catalogue(tuple(CatalogueEntry(name, "d") for name in names))

    settle([member := Member(client, "a", catalogue)])

    assert member.held == set(names)


def test_who_reads_what_can_be_asked_and_the_dead_read_nothing(client: Client) -> None:
    leases = Leases(client, KEYS, worker="a", lease=1.0)
    fence = leases.beat(cameras(1)).held["cam-00"].fence
    found = holders(client, KEYS)

    assert found == {"cam-00": Holder("a", fence, found["cam-00"].since)}
    assert abs(found["cam-00"].since - time.time()) < 5
    eventually(lambda: holders(client, KEYS) == {}, "the lease ended")


@pytest.mark.parametrize("name", ["lease", "leased", "registry", "register"])
def test_no_script_has_a_header_that_would_stop_it_on_a_full_server(name: str) -> None:
    assert not Script(f"cameras/fleet/{name}", after=("broker/keys", "cameras/fleet/fleet")).source.startswith("#!")


def test_on_a_cluster_all_keys_lie_in_one_slot() -> None:
    settings = SettingsTree.model_validate({"queue": {"enabled": False}, "results": {"stream": "{door}labels"}})
    keys = fleet_keys(settings)
    with cluster(2) as servers, connect(RedisSettings.model_validate({"url": servers.url})) as client:
        leases = Leases(client, keys, worker="a", lease=LEASE)

        assert keys.leases == "{door}cameras:leases"
        assert set(leases.beat(cameras(2)).held) == set(holders(client, keys)) == {"cam-00", "cam-01"}
        assert leases.version() == b"1"


def test_without_redis_there_is_no_answer() -> None:
    with connect(RedisSettings.model_validate({"url": "redis://127.0.0.1:1"})) as client:
        leases = Leases(client, KEYS, worker="a", lease=1.0)

        with pytest.raises(RedisUnavailable):
            leases.beat(Catalogue())
        with pytest.raises(RedisUnavailable):
            leases.version()


# ---- everything at once


@ON_ONE_SERVER
@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(0, 12), crowd=st.integers(1, 5), leaver=st.integers(0, 4))
def test_only_what_must_move_moves(client: Client, count: int, crowd: int, leaver: int) -> None:
    client.flushall()
    members = team(client, "abcde"[:crowd], cameras(count))
    before = owners(client)

    settle([*members, Member(client, "z", cameras(count))])
    joined = owners(client)
    gone = members.pop(leaver % crowd)
    gone.mode = "gone"
    gone.beat()
    settle(members)

    assert sum(before[camera] != owner for camera, owner in joined.items()) == count // (crowd + 1)
    assert {camera for camera, owner in owners(client).items() if joined[camera] != owner} == {
        camera for camera, owner in joined.items() if owner == gone.name
    }


@dataclass
class Simulated(Member):
    """A member with a clock for its rights, as the fleet has one."""

    alive: bool = True
    cut_off: bool = False
    until: float = 0.0

    def speaks(self, now: float) -> dict[str, int]:
        if not self.alive or now >= self.until:
            return {}
        return {camera: lease.fence for camera, lease in self.answer.held.items()}


class Sharing(RuleBasedStateMachine):
    """Workers come, go, die and are cut off, cameras come and go, pictures come in or not."""

    client: Client

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.now = NOW
        self.members: list[Simulated] = []
        self.born = 0
        self.count = 0
        self.owners: dict[str, str] = {}
        self.highest: dict[str, int] = {}
        self.reported: dict[str, set[str]] = {}  # worker -> cameras whose pictures it gets, by its last beat

    @initialize(count=st.integers(0, 12))
    def begin(self, count: int) -> None:
        self.count = count
        self.join()

    def _catalogue(self) -> Catalogue:
        return cameras(self.count)

    def _reaching(self) -> list[Simulated]:
        return [member for member in self.members if member.alive and not member.cut_off]

    def _beat(self, member: Simulated) -> None:
        """One beat, and what may be said of it."""
        member.catalogue, member.now = self._catalogue(), self.now
        self.reported[member.name] = set(member.warm)
        answer = member.beat()
        member.until = self.now + LEASE * 0.9
        member.warm &= {*answer.held, *answer.open}
        now_owned, numbers = owners(self.client), fences(self.client)
        by_name = {other.name: other for other in self.members}
        for camera, owner in now_owned.items():
            before = self.owners.get(camera)
            if before != owner:
                assert numbers[camera] > self.highest.get(camera, 0)
            self.highest[camera] = numbers[camera]
            if before in by_name and before != owner and by_name[before].mode != "gone":
                self._check_taken(by_name[before], by_name[owner], camera)
        self.owners = now_owned

    def _check_taken(self, old: Simulated, new: Simulated, camera: str) -> None:
        """From who holds it still only when the new one is ready, or the old one has nothing to lose."""
        if camera in old.speaks(self.now) and camera in self.reported[old.name]:
            assert camera in self.reported[new.name], f"{camera} went from {old.name} to {new.name} with a gap"
        if self.now - old.now >= LEASE / 2:
            assert camera not in old.speaks(self.now), f"{old.name} was silent and still spoke for {camera}"

    @precondition(lambda self: sum(member.alive for member in self.members) < 5)
    @rule()
    def join(self) -> None:
        self.born += 1
        self.members.append(Simulated(self.client, f"w{self.born}", self._catalogue(), self.now))
        self._beat(self.members[-1])

    @rule(order=st.randoms(use_true_random=False), steps=st.integers(1, 8))
    def time_passes(self, order: object, steps: int) -> None:
        for _ in range(steps):
            self.now += LEASE / 5
            turn = self._reaching()
            order.shuffle(turn)  # type: ignore[attr-defined]
            for member in turn:
                self._beat(member)

    @rule(which=st.integers(0, 9), steps=st.integers(1, 12))
    def one_falls_silent(self, which: int, steps: int) -> None:
        if turn := self._reaching():
            turn[which % len(turn)].cut_off = True
        for _ in range(steps):
            self.now += LEASE / 10
            for member in self._reaching():
                self._beat(member)
                member.open_all()

    @rule(seconds=st.floats(0.05, 25))
    def nobody_can_reach_redis_for_a_while(self, seconds: float) -> None:
        self.now += seconds

    @rule(which=st.integers(0, 9))
    def beat(self, which: int) -> None:
        if turn := self._reaching():
            self._beat(turn[which % len(turn)])

    @rule(which=st.integers(0, 9))
    def pictures_come_in(self, which: int) -> None:
        if turn := self._reaching():
            member = turn[which % len(turn)]
            member.open_all()
            self._beat(member)

    @rule(which=st.integers(0, 9))
    def pictures_stop(self, which: int) -> None:
        if turn := self._reaching():
            turn[which % len(turn)].warm.clear()
            self._beat(turn[which % len(turn)])

    @rule(which=st.integers(0, 9))
    def die(self, which: int) -> None:
        if living := [member for member in self.members if member.alive]:
            living[which % len(living)].alive = False

    @rule(which=st.integers(0, 9))
    def cut_off_or_healed(self, which: int) -> None:
        if living := [member for member in self.members if member.alive]:
            member = living[which % len(living)]
            member.cut_off = not member.cut_off

    @rule(which=st.integers(0, 9), at_once=st.booleans())
    def leave(self, which: int, at_once: bool) -> None:
        if turn := self._reaching():
            member = turn[which % len(turn)]
            member.mode = "gone" if at_once else "leaving"
            self._beat(member)
            member.alive = not at_once

    @rule(number=st.integers(0, 11))
    def pause_or_resume(self, number: int) -> None:
        camera = f"cam-{number:02}"
        if not self.client.srem(KEYS.paused, camera):
            self.client.sadd(KEYS.paused, camera)

    @rule(count=st.integers(0, 12))
    def cameras_come_or_go(self, count: int) -> None:
        self.count = count

    @rule()
    def redis_forgets_everything(self) -> None:
        self.client.flushall()
        self.owners = {}
        self.now += 0.001

    @invariant()
    def one_speaks_under_the_newest_number(self) -> None:
        newest = fences(self.client)
        heard = Counter(
            camera
            for member in self.members
            for camera, fence in member.speaks(self.now).items()
            if fence == newest.get(camera)
        )
        assert max(heard.values(), default=1) == 1

    def teardown(self) -> None:
        """When it is quiet again, every camera has one reader and the shares are fair."""
        for member in self.members:
            member.cut_off = False
            member.alive = member.alive and member.mode == "stay"
        self.now += LEASE
        for _ in range(5 * 35):  # longer than it takes to forgive a standby that saw nothing
            self.now += LEASE / 5
            for member in self._reaching():
                self._beat(member)
                member.open_all()
        paused = {name.decode() for name in self.client.smembers(KEYS.paused)}
        expected = {entry.name for entry in self._catalogue().entries} - paused
        living = self._reaching()
        if living:
            assert set(owners(self.client)) == expected
            held = sizes(living)
            assert sum(held) == len(expected)
            assert max(held) - min(held) <= 1
            version = self.client.get(KEYS.version)
            for member in living:
                self._beat(member)
                assert not member.answer.open
            assert self.client.get(KEYS.version) == version


def test_whatever_happens_one_speaks_for_a_camera_and_all_are_read_in_the_end(client: Client) -> None:
    machine = type("Sharing", (Sharing,), {"client": client})

    # Without shrinking, which takes minutes: add Phase.shrink to see what a failure boils down to.
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    run_state_machine_as_test(
        machine, settings=hypothesis_settings(max_examples=30, stateful_step_count=25, deadline=None, phases=phases)
    )
