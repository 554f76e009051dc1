"""What settle.lua leaves behind where the server refuses it in the middle of a batch."""

import pytest
from coatstream.broker.connection import Client, connect
from coatstream.errors import RedisRefuses
from coatstream.settings.model import RedisSettings

from tests.support.settled import NOW, add, dropped, labels, member, pending, published, read, settler


def test_a_right_to_add_that_went_while_a_worker_runs_costs_no_frame(client: Client) -> None:
    add(client, 3)
    member(client).join()
    first, second, third = read(client)
    client.execute_command("ACL", "SETUSER", "weak", "on", ">pw", "~*", "&*", "+@all", "-xadd")
    path = client.connection_pool.connection_kwargs["path"]
    try:
        with (
            connect(RedisSettings.model_validate({"url": f"unix://weak:pw@{path}"})) as weak,
            pytest.raises(RedisRefuses, match="lacks a right"),
        ):
            settler(weak).settle([dropped(first), published(second), dropped(third)], now=NOW)
    finally:
        client.execute_command("ACL", "DELUSER", "weak")

    assert [item["message_id"].decode() for item in pending(client)] == [first, second, third]
    assert [entry_id.decode() for entry_id, _ in client.xrange("frames")] == [first, second, third]


def test_a_batch_of_more_entries_than_one_call_can_delete_leaves_none(client: Client) -> None:
    add(client, 1030)
    member(client).join()
    outcomes = [published(entry_id) for entry_id in read(client, count=1030)]

    settlement = settler(client).settle(outcomes, now=NOW)

    assert all(settlement.done)
    assert (client.xlen("frames"), len(pending(client)), len(labels(client))) == (0, 0, 1030)
