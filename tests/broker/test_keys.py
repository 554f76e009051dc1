"""Names of queues and of what belongs to them: from the settings, over partitions, without clashes."""

import pytest
from coatstream.broker.keys import Queue, by_slot, partitions, queues_of
from coatstream.errors import ConfigError
from coatstream.settings.model import SettingsTree
from redis.crc import key_slot


def queues(**settings: object) -> tuple[Queue, ...]:
    return queues_of(SettingsTree.model_validate(settings))


def slots(queue: Queue) -> set[int]:
    return {key_slot(key.encode()) for key in queue.keys}


def test_without_a_list_of_queues_there_is_the_one_of_the_contract() -> None:
    (queue,) = queues()

    assert queue == Queue("frames", "coatstream", "frames:dead", "labels")


def test_every_key_beside_the_streams_is_named_after_its_stream() -> None:
    queue = Queue("in", "g", "dead", "out")

    assert (queue.latest, queue.books, queue.sources, queue.gate) == ("out:latest", "in:books", "in:sources", "in:gate")
    assert queue.memo("host-1-ab", "pump") == "in:settled:host-1-ab:pump"
    assert queue.sequence("door") == "in:sequence:door"
    assert len(set(queue.keys)) == len(queue.keys) == 9


def test_all_that_is_known_of_keys_speaks_of_the_same_keys() -> None:
    queue = Queue("in", "g", "dead", "out")

    assert set(queue.types) <= set(queue.keys)
    assert set(queue.rights) <= set(queue.keys)
    assert set(queue.types) <= set(queue.rights)


def test_several_queues_come_in_the_order_of_their_priority_and_share_group_and_labels() -> None:
    found = queues(
        queue={"group": "g"},
        results={"stream": "out"},
        queues=[
            {"stream": "slow", "priority": 5},
            {"stream": "fast", "weight": 3, "dead_stream": "lost"},
            {"stream": "also-fast"},
        ],
    )

    assert found == (
        Queue("fast", "g", "lost", "out", 0, 3),
        Queue("also-fast", "g", "also-fast:dead", "out"),
        Queue("slow", "g", "slow:dead", "out", 5),
    )


def test_a_partitioned_queue_is_as_many_queues_each_with_all_its_keys_in_one_slot() -> None:
    found = queues(
        queue={"stream": "{door}frames", "dead_stream": "{door}dead", "partitions": 16},
        results={"stream": "{door}labels"},
    )

    assert [queue.stream for queue in found][:2] == ["{door:0}frames", "{door:1}frames"]
    assert (found[3].dead, found[3].latest) == ("{door:3}dead", "{door:3}labels:latest")
    assert all(len(slots(queue)) == 1 for queue in found)
    assert len(by_slot(found)) > 8


def test_partitions_keep_the_queues_order_and_share() -> None:
    queue = Queue("{a}in", "g", "{a}dead", "{a}out", priority=3, weight=4)

    assert {(part.priority, part.weight, part.group) for part in partitions(queue, 3)} == {(3, 4, "g")}
    assert partitions(queue, 1) == [queue]


@pytest.mark.parametrize(
    "names", [("in", "{a}dead", "{a}out"), ("{a}in", "dead", "{a}out"), ("{a}in", "{a}dead", "x{}")]
)
def test_a_name_that_cannot_be_numbered_is_named_where_there_are_partitions(names: tuple[str, str, str]) -> None:
    stream, dead, labels = names
    (culprit,) = (name for name in names if "{a}" not in name)

    with pytest.raises(ConfigError, match="partitions is 2") as caught:
        partitions(Queue(stream, "g", dead, labels), 2)

    assert culprit in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"queue": {"stream": "same", "dead_stream": "same"}},
        {"queue": {"stream": "same"}, "results": {"stream": "same"}},
        {"queue": {"dead_stream": "same"}, "results": {"stream": "same"}},
        {"queue": {"dead_stream": "labels:latest"}},
        {"queue": {"stream": "labels:latest"}},
        {"queue": {"dead_stream": "frames:books"}},
        {"queue": {"dead_stream": "frames:sources"}},
        {"queue": {"dead_stream": "frames:gate"}},
        {"results": {"stream": "frames:books"}},
        {"results": {"stream": "frames:gate"}},
    ],
)
def test_one_key_for_two_things_of_a_queue_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="need three different streams") as caught:
        queues(**settings)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "second",
    [
        {"stream": "a"},
        {"stream": "a:dead"},
        {"stream": "a:books"},
        {"stream": "a:sources"},
        {"stream": "a:gate"},
        {"stream": "b", "dead_stream": "a"},
        {"stream": "b", "dead_stream": "a:dead"},
        {"stream": "b", "dead_stream": "a:gate"},
    ],
)
def test_one_key_for_two_queues_is_refused_and_named(second: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="two queues use the key a"):
        queues(queues=[{"stream": "a"}, second])


def test_queues_that_share_nothing_but_the_labels_are_fine() -> None:
    assert len(queues(queues=[{"stream": "a"}, {"stream": "b"}, {"stream": "a:b"}])) == 3


def test_queues_of_one_slot_are_read_together_and_others_apart() -> None:
    first, second = Queue("{a}fast", "g", "{a}d", "{a}l"), Queue("{a}slow", "g", "{a}e", "{a}l")
    other = Queue("{b}in", "g", "{b}d", "{b}l")

    assert by_slot([first, other, second]) == [(first, second), (other,)]
    assert by_slot([]) == []
