"""Publishing goes on where Redis was away, and ends where Redis refuses for good."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from coatstream.broker.connection import Client, connect
from coatstream.errors import REFUSALS, SLOW_RETRY, RedisRefuses, RedisUnavailable
from coatstream.frames.frame import Label, Prediction, ScoredLabel
from coatstream.results.outcomes import Outcome, Published
from coatstream.results.publisher import Publisher
from coatstream.settings.model import RedisSettings

from tests.support.doubles import HeardHealth
from tests.support.redis_servers import TcpServer, tcp_server
from tests.support.settled import settler
from tests.support.workers import eventually

LABELS = (ScoredLabel(Label(285, "n02124075", "Egyptian cat"), 0.91),)


@pytest.fixture
def server() -> Iterator[TcpServer]:
    with tcp_server() as made:
        made.admin.execute_command("ACL", "SETUSER", "worker", "on", ">pw", "~*", "&*", "+@all")
        yield made


@pytest.fixture
def client(server: TcpServer) -> Iterator[Client]:
    settings = RedisSettings.model_validate({"url": server.url, "username": "worker", "password": "pw"})
    with connect(settings) as made:
        yield made


class Watched:
    """A publisher, and what it reported."""

    def __init__(self, client: Client) -> None:
        self.health = HeardHealth()
        self.publisher = Publisher(settler(client, "pump"), self.health)


def batch() -> list[Outcome]:
    return [Published(Prediction("door", "f1", 1_700_000_000.0, LABELS, 640, 360))]


def in_background(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def test_an_outage_is_waited_out(server: TcpServer, client: Client) -> None:
    watched = Watched(client)
    server.admin.config_set("min-replicas-to-write", 1)
    thread = in_background(lambda: watched.publisher.publish(batch()))
    eventually(lambda: len(watched.health.troubles) > REFUSALS, "many tries")

    server.admin.config_set("min-replicas-to-write", 0)
    thread.join(10)

    assert watched.health.successes == 1
    assert server.admin.xlen("labels") == 1


def test_a_refusal_is_tried_a_few_times_and_then_let_out(server: TcpServer, client: Client) -> None:
    watched = Watched(client)
    server.admin.execute_command("ACL", "SETUSER", "worker", "-xadd")

    with pytest.raises(RedisRefuses, match="ACL SETUSER"):
        watched.publisher.publish(batch())

    assert len(watched.health.troubles) == REFUSALS
    assert watched.health.successes == 0


def test_rights_that_come_back_in_time_are_no_end(server: TcpServer, client: Client) -> None:
    watched = Watched(client)
    server.admin.execute_command("ACL", "SETUSER", "worker", "-xadd")
    thread = in_background(lambda: watched.publisher.publish(batch()))
    eventually(lambda: len(watched.health.troubles) == 1, "the first refusal")

    server.admin.execute_command("ACL", "SETUSER", "worker", "+xadd")
    thread.join(10)

    assert watched.health.successes == 1
    assert server.admin.xlen("labels") == 1


def test_a_refused_password_is_tried_no_faster_than_that_makes_sense(server: TcpServer, client: Client) -> None:
    watched = Watched(client)
    server.admin.execute_command("ACL", "SETUSER", "worker", "nopass", "resetpass", ">other")
    server.admin.client_kill_filter(user="worker")
    started = time.monotonic()
    thread = in_background(lambda: watched.publisher.publish(batch()))
    eventually(lambda: len(watched.health.troubles) == 3, "some tries")

    assert time.monotonic() - started >= 2 * SLOW_RETRY
    server.admin.execute_command("ACL", "SETUSER", "worker", ">pw")
    thread.join(10)
    assert watched.health.successes == 1


def test_giving_up_ends_the_wait(server: TcpServer, client: Client) -> None:
    watched = Watched(client)
    server.admin.config_set("min-replicas-to-write", 1)
    watched.publisher.give_up()

    with pytest.raises(RedisUnavailable, match="min-replicas-to-write"):
        watched.publisher.publish(batch())
