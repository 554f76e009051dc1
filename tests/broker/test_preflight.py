"""What is looked at before the work begins, on real servers."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from coatstream.broker import preflight
from coatstream.broker.connection import Client, connect
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.broker.keys import Queue
from coatstream.broker.picture_keys import PictureKeys
from coatstream.broker.preflight import (
    KEYLESS,
    check,
    check_keys,
    check_rights,
    check_server,
    check_slots,
    check_types,
    check_usage,
    server_infos,
)
from coatstream.errors import ConfigError, RedisRefuses, RedisUnavailable
from coatstream.settings.model import RedisSettings, SettingsTree

from tests.service.test_story import settings, until, working
from tests.support.doubles import FixedEngine
from tests.support.paths import PACKAGE
from tests.support.pictures import CLIP
from tests.support.redis_servers import TcpServer, debian_redis, tcp_server

QUEUE = Queue("frames", "coatstream", "frames:dead", "labels")
KEYS = ("frames", "frames:dead", "labels", "labels:latest", "frames:books", "frames:sources", "frames:gate")


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[TcpServer]:
    with tcp_server(binary=debian_redis() if request.param == "redis" else None) as made:
        yield made


@pytest.fixture
def admin(server: TcpServer) -> Client:
    server.admin.flushall()
    server.admin.script_flush()
    server.admin.execute_command("ACL", "SETUSER", "worker", "reset", "on", ">pw", "~*", "&*", "+@all")
    return server.admin


@pytest.fixture
def client(server: TcpServer, admin: Client) -> Iterator[Client]:
    """The user `worker`, who has all rights until a test takes some."""
    with connect(as_worker(server)) as made:
        yield made


def as_worker(server: TcpServer) -> RedisSettings:
    return RedisSettings.model_validate({"url": server.url, "username": "worker", "password": "pw"})


def allow(admin: Client, *rules: str) -> None:
    admin.execute_command("ACL", "SETUSER", "worker", *rules)


def lacks(client: Client, queue: Queue = QUEUE) -> str:
    with pytest.raises(ConfigError) as caught:
        check_rights(client, queue.rights)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def fill(admin: Client) -> None:
    """A queue in the middle of its work: read, unread, dead, labelled."""
    for number in range(3):
        admin.xadd("frames", {"image": f"{number}"})
    admin.xgroup_create("frames", "coatstream", id="0")
    admin.xreadgroup("coatstream", "me", {"frames": ">"}, count=2)
    admin.xadd("frames:dead", {"reason": "invalid"})
    admin.xadd("labels", {"label": "cat"})
    for key in ("labels:latest", "frames:books", "frames:sources"):
        admin.hset(key, "f", 1)
    for key in ("frames:gate", "frames:settled:worker:caller", "frames:sequence:source"):
        admin.set(key, "1", ex=1000)


def everything(admin: Client) -> dict[bytes, object]:
    """All that a look could have changed, down to the consumers."""
    keys = {key: (admin.dump(key), admin.expiretime(key)) for key in admin.keys("*")}
    return keys | {b"consumers": [one["name"] for one in admin.xinfo_consumers("frames", "coatstream")]}


class TestRights:
    def test_who_has_all_is_asked_in_vain(self, client: Client) -> None:
        assert check_rights(client, QUEUE.rights, channels=["labels:door"]) == ()

    @pytest.mark.parametrize("multi", ["+multi", "-multi"])
    def test_the_look_changes_nothing_of_a_queue_in_work(self, client: Client, admin: Client, multi: str) -> None:
        allow(admin, multi)
        fill(admin)
        before = everything(admin)

        check_rights(client, QUEUE.rights, channels=["labels:door"])

        assert everything(admin) == before
        assert admin.info("memory")["number_of_cached_scripts"] == 0

    @pytest.mark.parametrize("multi", ["+multi", "-multi"])
    def test_the_look_makes_nothing_where_nothing_is(self, client: Client, admin: Client, multi: str) -> None:
        allow(admin, multi)

        check_rights(client, QUEUE.rights)

        assert admin.keys("*") == []

    def test_every_known_command_may_be_asked_for_without_multi_too(self, client: Client, admin: Client) -> None:
        allow(admin, "-multi")
        fill(admin)
        before = everything(admin)
        known = [*preflight.HARMLESS, *preflight.IN_MULTI_ONLY]

        check_rights(client, dict.fromkeys(KEYS, known))

        assert everything(admin) == before

    def test_each_single_right_is_missed_by_name(self, client: Client, admin: Client) -> None:
        wanted = {command: key for key, commands in QUEUE.rights.items() for command in commands}
        for command in (*wanted, *KEYLESS):
            allow(admin, "+@all", f"-{command.lower()}")

            told = lacks(client)

            where = f" on {wanted[command]}" if command in wanted else ""
            assert f"{command.replace('|', ' ')}{where}" in told
            assert told.endswith(f"(ACL SETUSER worker +{command.lower()})")

    def test_without_multi_all_but_a_few_are_missed_too(self, client: Client, admin: Client) -> None:
        wanted = {command for commands in QUEUE.rights.values() for command in commands}
        for command in wanted - set(preflight.IN_MULTI_ONLY) | set(KEYLESS):
            allow(admin, "+@all", "-multi", f"-{command.lower()}")

            assert f"+{command.lower()})" in lacks(client)

    def test_following_the_advice_gives_all_that_was_missing(self, client: Client, admin: Client) -> None:
        allow(admin, "resetkeys", "-@all", "+multi", "+acl|whoami")
        for _ in range(2):  # commands come first, then what keys they may be used on
            told = lacks(client)
            advice = told.partition("(ACL SETUSER worker ")[2].removesuffix(")").split()
            admin.execute_command("ACL", "SETUSER", "worker", *advice)

        check_rights(client, QUEUE.rights)
        assert " more (" in told
        assert admin.acl_getuser("worker")["keys"] == ["~frames*", "~labels*"]

    def test_keys_out_of_reach_are_named(self, client: Client, admin: Client) -> None:
        allow(admin, "resetkeys", "~frames*")

        told = lacks(client)

        assert told.startswith("the Redis user worker lacks: XADD on labels, ")
        assert "on frames" not in told
        assert told.endswith("(ACL SETUSER worker ~labels*)")

    def test_a_user_who_may_not_ask_for_its_own_name_is_called_name(self, client: Client, admin: Client) -> None:
        allow(admin, "-acl", "-xadd")

        assert lacks(client).endswith("(ACL SETUSER NAME +xadd)")

    def test_channels_out_of_reach_are_no_fault(self, client: Client, admin: Client) -> None:
        allow(admin, "resetchannels", "&labels:d*")

        assert check_rights(client, QUEUE.rights, channels=["labels:door", "labels:gate"]) == ("labels:gate",)

    def test_the_connection_is_clean_afterwards(self, client: Client) -> None:
        check_rights(client, QUEUE.rights)

        assert client.set("other", "x")
        assert client.get("other") == b"x"

    def test_a_full_server_can_be_asked(self, client: Client, admin: Client) -> None:
        admin.config_set("maxmemory", 1)
        try:
            assert check_rights(client, QUEUE.rights) == ()
            allow(admin, "-xadd")
            assert "XADD on frames" in lacks(client)
        finally:
            admin.config_set("maxmemory", 0)

    def test_a_command_that_is_not_known_here_is_a_bug(self, client: Client) -> None:
        with pytest.raises(KeyError, match="SINTER"):
            check_rights(client, {"frames": ["SINTER"]})


SCRIPTS = sorted((PACKAGE).rglob("*.lua"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_command_of_our_scripts_is_asked_for(script: Path) -> None:
    rights = [*QUEUE.rights.values(), *FleetKeys().rights.values(), *PictureKeys().rights.values()]
    asked = {command for commands in rights for command in commands} | {"PUBLISH", *KEYLESS}
    if script.stem == "register":  # an operator's, who is told when a right is missing
        asked |= {"HEXISTS", "SADD", "SREM"}
    if script.stem == "reclaim":  # by pcall, and EXISTS follows: users of earlier releases lack this right
        asked |= {"PTTL"}
    if script.stem == "strand":  # by pcall: without it, each entry behind a wrong position is found by a look
        asked |= {"XGROUP|SETID"}
    called = re.findall(r"redis\.p?call\(\s*'(\w+)'(?:\s*,\s*'(\w+)')?", script.read_text())

    used = {f"{name}|{sub}" if name in ("XGROUP", "XINFO") else name for name, sub in called}

    assert {command.upper() for command in used} <= asked
    assert len(called) == script.read_text().count("redis.call(") + script.read_text().count("redis.pcall(")


class TestQueues:
    def test_a_queue_with_everything_is_well(self, client: Client) -> None:
        assert check_keys(client, [QUEUE], channels=["labels:door"]) == ()

    def test_missing_rights_are_all_named_where_even_types_cannot_be_looked_at(
        self, client: Client, admin: Client
    ) -> None:
        allow(admin, "-type", "-xadd")

        with pytest.raises(ConfigError, match=r"lacks: XADD on frames, TYPE on frames, .*\+type \+xadd\)"):
            check_keys(client, [QUEUE])

    def test_a_key_of_a_wrong_type_is_named(self, client: Client, admin: Client) -> None:
        admin.set("frames:dead", "x")

        with pytest.raises(ConfigError, match="the key frames:dead holds a string, not a stream"):
            check_keys(client, [QUEUE])


class TestServer:
    def test_its_name_and_version_are_told(self, server: TcpServer, client: Client) -> None:
        name, _, version = check_server(client, as_worker(server)).partition(" ")

        assert name in ("Redis", "Valkey")
        assert int(version.split(".")[0]) >= 7
        assert [info["role"] for info in server_infos(client)] == ["master"]

    def test_a_replica_is_an_outage_since_it_may_be_the_primary_in_a_moment(
        self, server: TcpServer, client: Client, admin: Client
    ) -> None:
        admin.replicaof("127.0.0.1", 1)
        try:
            with pytest.raises(RedisUnavailable, match="is a replica and refuses writes"):
                check_server(client, as_worker(server))
        finally:
            admin.replicaof("NO", "ONE")
        check_server(client, as_worker(server))

    def test_a_user_who_may_not_ask_is_refused_with_a_line(
        self, server: TcpServer, client: Client, admin: Client
    ) -> None:
        allow(admin, "-info")

        with pytest.raises(RedisRefuses, match=r"cannot reach Redis at redis://127.*lacks a right.*info"):
            check_server(client, as_worker(server))


class TestKeys:
    def test_keys_that_are_missing_or_right_are_well(self, client: Client, admin: Client) -> None:
        check_types(client, QUEUE.types)
        fill(admin)
        check_types(client, QUEUE.types)

    @pytest.mark.parametrize("key", KEYS)
    def test_a_key_that_holds_something_else_is_named(self, client: Client, admin: Client, key: str) -> None:
        admin.rpush(key, "x")

        with pytest.raises(ConfigError, match=f"the key {key} holds a list, not a "):
            check_types(client, QUEUE.types)


def test_slots_are_no_matter_on_a_single_server(client: Client) -> None:
    check_slots(client, QUEUE.keys)


class TestUsage:
    """Only what the settings make use of is asked for."""

    CAMERA: ClassVar = {"name": "door", "url": str(CLIP), "fps": 10, "realtime": True, "loop": True}

    def tree(self, server: TcpServer, **sections: object) -> SettingsTree:
        return settings("", redis={"url": server.url, "username": "worker", "password": "pw"}, **sections)

    def test_a_worker_without_a_queue_needs_no_right_to_read_one(
        self, server: TcpServer, client: Client, admin: Client
    ) -> None:
        allow(admin, "-xreadgroup", "-xack", "-xdel", "-xclaim", "-xgroup", "-hincrby")

        assert check_usage(client, self.tree(server, queue={"enabled": False}, cameras=[self.CAMERA])) == ()
        with pytest.raises(ConfigError, match="lacks: XREADGROUP on frames"):
            check_usage(client, self.tree(server, cameras=[self.CAMERA]))

    def test_a_worker_that_shares_no_camera_needs_no_right_to_the_fleets_keys(
        self, server: TcpServer, client: Client, admin: Client
    ) -> None:
        allow(admin, "resetkeys", *(f"~{key}" for key in ("frames*", "labels*", "events", "tags:*")))
        allow(admin, "~cameras:states", "~cameras:fences")
        alone, shared = {**self.CAMERA, "shared": False}, {**self.CAMERA, "name": "gate"}

        assert check_usage(client, self.tree(server, cameras=[alone])) == ()
        with pytest.raises(ConfigError, match="on cameras:members"):
            check_usage(client, self.tree(server, cameras=[alone, shared]))

    def test_a_missing_right_to_info_hides_no_other_missing_right(
        self, server: TcpServer, client: Client, admin: Client
    ) -> None:
        allow(admin, "-info", "-xpending", "-smembers", "-hkeys")

        with pytest.raises(ConfigError) as caught:
            check(client, self.tree(server, cameras=[self.CAMERA]))

        for right in ("INFO", "XPENDING on frames", "on cameras:"):
            assert right in str(caught.value)
        allow(admin, "+info", "+xpending", "+smembers", "+hkeys")
        name, silent = check(client, self.tree(server, cameras=[self.CAMERA]))
        assert name.split()[0] in ("Redis", "Valkey")
        assert silent == ()

    def test_a_key_that_a_script_only_looks_at_may_not_be_barred_from_writing(
        self, server: TcpServer, client: Client, admin: Client
    ) -> None:
        """Else the first label would be refused: of a script's keys the server does not know which are written to."""
        allow(admin, "resetkeys", "%R~frames*", "~frames:settled*", "~labels*", "~events", "~tags:*")
        allow(admin, "~cameras:states", "%R~cameras:fences")
        alone = self.tree(server, queue={"enabled": False}, cameras=[{**self.CAMERA, "shared": False}])

        with pytest.raises(ConfigError, match=r"EVALSHA on frames, .* EVALSHA on cameras:fences \(.* ~frames\*\)"):
            check_usage(client, alone)
        allow(admin, "~frames*")
        with pytest.raises(ConfigError, match=r"lacks: EVALSHA on cameras:fences"):
            check_usage(client, alone)

    async def test_these_rights_are_enough(self, server: TcpServer, admin: Client) -> None:
        allow(admin, "resetkeys", *(f"~{key}" for key in ("frames*", "labels*", "events", "tags:*")))
        allow(admin, "~cameras:states", "~cameras:fences", "-xreadgroup", "-xack", "-xdel", "-xclaim", "-xgroup")
        tree = self.tree(server, queue={"enabled": False}, cameras=[{**self.CAMERA, "shared": False}])

        async with working(tree, FixedEngine()) as (service, _):
            await until(lambda: admin.hexists("labels:latest", "door") and admin.hexists("cameras:states", "door"))
            assert service.telemetry.status.redis_is_up()
            assert service.telemetry.status.unready_because() == []
