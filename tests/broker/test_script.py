"""Scripts on the server: sent again where it forgot them, named by what they say."""

import hashlib

import pytest
from coatstream.broker.connection import Client
from coatstream.broker.script import Script
from redis.exceptions import ResponseError

from tests.support.settled import NOW, add, labels, member, published, read, settler


def calls(client: Client) -> dict[str, int]:
    """How often the server was called, by command."""
    stats = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): stats["calls"] for name, stats in stats.items()}


def test_a_script_that_the_server_does_not_know_is_sent_in_full_and_then_only_named(client: Client) -> None:
    script = Script("queue/beat")
    member(client).join()
    client.config_resetstat()

    for _ in range(3):
        assert script(client, keys=["frames"], args=["coatstream", "me", "1-1"]) == [b"1-1"]

    assert (calls(client)["eval"], calls(client)["evalsha"]) == (1, 3)


@pytest.mark.parametrize("every", [1, 2])
def test_scripts_that_are_flushed_again_and_again_lose_and_double_nothing(client: Client, every: int) -> None:
    group = member(client)
    group.join()
    worker = settler(client)
    add(client, 12)

    for number, entry_id in enumerate(read(client)):
        if number % every == 0:
            client.script_flush()
        assert group.beat([entry_id]) == []
        assert worker.settle([published(entry_id), published(None)], now=NOW).done == (True, True)

    assert len(labels(client)) == 24
    assert client.xlen("frames") == 0


def test_a_script_is_known_by_the_hash_of_its_whole_text(client: Client) -> None:
    script = Script("queue/reclaim", after=("broker/keys", "broker/accounts", "queue/fetch"))

    loaded = client.script_load(script.source)

    assert loaded == hashlib.sha1(script.source.encode()).hexdigest()
    assert script.source.index("local function bury") < script.source.index("XPENDING")
    member(client).join()
    client.config_resetstat()
    member(client).reclaim(1, alone=False)
    assert "eval" not in calls(client)


def test_an_error_in_a_script_is_no_reason_to_run_it_again(client: Client) -> None:
    client.set("frames", "no stream")
    script = Script("queue/beat")
    client.script_load(script.source)
    client.config_resetstat()

    with pytest.raises(ResponseError, match="WRONGTYPE"):
        script(client, keys=["frames"], args=["coatstream", "me", "1-1"])

    assert "eval" not in calls(client)


@pytest.mark.parametrize(
    "name", ["results/settle", *(f"queue/{word}" for word in ("reclaim", "beat", "release", "reap", "join", "measure"))]
)
def test_no_script_has_a_header_that_would_stop_it_on_a_full_server(name: str) -> None:
    assert not Script(name).source.startswith("#!")
