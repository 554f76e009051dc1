"""What the monitor says of the queue."""

from coatstream.broker.connection import Client, connect
from coatstream.broker.keys import Queue
from coatstream.errors import RedisUnavailable
from coatstream.queue.metrics import QueueMetrics
from coatstream.queue.monitor import Monitor, measure
from coatstream.settings.model import RedisSettings
from prometheus_client import CollectorRegistry
from redis.crc import key_slot

from tests.support.doubles import HeardHealth
from tests.support.redis_servers import cluster
from tests.support.settled import QUEUE, add, member, read


def test_depth_pending_dead_and_age_are_those_of_the_server(client: Client) -> None:
    now = client.time()[0] * 1000
    client.xgroup_create("frames", "coatstream", id="0", mkstream=True)
    client.xadd("frames", {"image": b"x"}, id=f"{now - 5000}-0")
    client.xadd("frames", {"image": b"x"})
    client.xadd("frames:dead", {"reason": "invalid"})
    client.xreadgroup("coatstream", "me", {"frames": ">"}, count=1)

    depth = measure(client, QUEUE)

    assert (depth.entries, depth.pending, depth.dead) == (2, 1, 1)
    assert 4 < depth.oldest_age < 20


def test_a_queue_that_does_not_exist_yet_is_empty(client: Client) -> None:
    depth = measure(client, QUEUE)

    assert (depth.entries, depth.pending, depth.dead, depth.oldest_age) == (0, 0, 0, 0)


def test_a_look_sets_the_gauges_or_reports_the_trouble(client: Client) -> None:
    client.xadd("frames", {"image": b"x"})
    registry, health = CollectorRegistry(), HeardHealth()
    metrics = QueueMetrics(registry)
    with connect(RedisSettings.model_validate({"url": "redis://127.0.0.1:1"})) as nowhere:
        for server in (client, nowhere):
            Monitor(server, [QUEUE], metrics, health, labels=QUEUE.labels).look()

    assert (health.successes, [type(trouble) for trouble in health.troubles]) == (1, [RedisUnavailable])
    assert registry.get_sample_value("coatstream_queue_depth_frames", {"stream": "frames"}) == 1


def test_without_a_queue_it_still_says_whether_redis_answers(client: Client) -> None:
    metrics, health = QueueMetrics(CollectorRegistry()), HeardHealth()
    with connect(RedisSettings.model_validate({"url": "redis://127.0.0.1:1"})) as nowhere:
        for server in (client, nowhere):
            Monitor(server, [], metrics, health, labels=QUEUE.labels).look()

    assert (health.successes, [type(trouble) for trouble in health.troubles]) == (1, [RedisUnavailable])


def test_each_queue_has_its_own_figures_and_what_strangers_deleted_shows(client: Client) -> None:
    other = Queue("other", "coatstream", "other:dead", "labels")
    for queue in (QUEUE, other):
        member(client, queue=queue).join()
    add(client, 3)
    first, *_ = add(client, 5, stream="other")
    read(client, "me", 2)
    client.xdel("other", first)
    client.xadd("other:dead", {"reason": "invalid"})
    registry, health = CollectorRegistry(), HeardHealth()

    Monitor(client, [QUEUE, other], QueueMetrics(registry), health, labels=QUEUE.labels).look()

    def shown(stream: str) -> list[float | None]:
        names = ("queue_depth_frames", "queue_pending_frames", "queue_trimmed_frames", "dead_letters")
        return [registry.get_sample_value(f"coatstream_{name}", {"stream": stream}) for name in names]

    assert health.troubles == []
    assert (shown("frames"), shown("other")) == ([3, 2, 0, 0], [4, 0, 1, 1])


def test_without_a_queue_the_node_of_a_cluster_that_has_the_labels_is_asked_and_no_other() -> None:
    health = HeardHealth()
    labels = "{door}labels"
    with cluster(3, "--cluster-require-full-coverage", "no") as servers:
        first, home = servers.nodes[0], servers.nodes[key_slot(labels.encode()) * len(servers.nodes) // 16_384]
        assert first is not home  # redis-py sends what has no key to the first
        with connect(RedisSettings.model_validate({"url": servers.url, "socket_timeout": 2})) as client:
            monitor = Monitor(client, [], QueueMetrics(CollectorRegistry()), health, labels=labels)
            monitor.look()
            for node in (first, home):
                node.process.kill()
                node.process.wait()
                monitor.look()

    assert (health.successes, [type(trouble) for trouble in health.troubles]) == (2, [RedisUnavailable])
