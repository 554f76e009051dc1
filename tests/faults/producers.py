"""F7, F24, F25: producers that send rubbish, trim their stream, or send more than there is room for."""

from coatstream.broker.connection import Client
from coatstream.broker.keys import Queue
from coatstream.queue.audit import audit
from coatstream.queue.producing.outbox import Terms
from coatstream.queue.producing.picture import Picture, RawPicture
from coatstream.queue.producing.producer import Producer
from coatstream.settings.model import SettingsTree

from tests.faults import frames
from tests.faults.stage import Stage

TRIMMED = "coatstream_queue_trimmed_frames"


def rubbish(stage: Stage, *, frame_count: int, broken: int) -> None:
    """F7: random bytes, empty pictures, missing and wrong fields among good frames: one letter each, no restart."""
    server = stage.server()
    client, good, bad = server.client(), frames.names(frame_count), frames.names(broken, "bad")
    frames.send(client, good)
    _send_rubbish(stage, client, bad)
    fleet = stage.fleet(server.url, 1)
    found = stage.settle_up(client, fleet, good + bad, dead=broken)
    stage.findings.exactly("good frames among the letters", sum(1 for name in found.dead if name in set(good)), 0)
    stage.findings.exactly("process deaths", fleet.crashes(), 0)
    stage.findings.note("reasons", ", ".join(f"{count} {reason}" for reason, count in found.reasons.most_common()))


def _send_rubbish(stage: Stage, client: Client, names: list[str]) -> None:
    rng = stage.rng
    for name in names:
        made: dict[str, str | bytes] = rng.choice(
            [
                {"image": rng.randbytes(rng.randrange(1, 5000))},
                {"image": b""},
                {"image": b"\xff\xd8\xff\xe0" + rng.randbytes(rng.randrange(1, 5000))},
                {"image": b"\x89PNG\r\n\x1a\n" + rng.randbytes(rng.randrange(1, 5000))},
                {"pixels": rng.randbytes(7), "width": "640", "height": "360"},
                {"width": "640", "height": "360"},
                {"pixels": b"1", "width": "-1", "height": str(rng.random())},
                {"image": rng.randbytes(100), "meta": "{" * rng.randrange(1, 9000)},
            ]
        )
        client.xadd(frames.KEYS.stream, {**made, "frame_id": name})


def trimmed(stage: Stage, *, frame_count: int, keep: int, metric: bool = True) -> None:
    """F24: a producer with MAXLEN, faster than its workers. What it deletes is counted, to the frame."""
    server = stage.server()
    client, sent = server.client(), frames.names(frame_count)
    fleet = stage.fleet(server.url, 1, model__noop_delay=0.02, batch__max_size=8)
    for page in range(0, frame_count, 50):
        pipe = client.pipeline(transaction=False)
        for name in sent[page : page + 50]:
            pipe.xadd(frames.KEYS.stream, frames.fields(name), maxlen=keep, approximate=False)
        pipe.execute()
        stage.until(lambda: client.xlen(frames.KEYS.stream) <= keep, "the producer's bound")
    stage.empty(client)
    stage.until(lambda: not frames.pending(client), "nothing is left pending", within=10)
    found = frames.outcomes(client)
    lost = found.lost(sent)
    stage.findings.note("frames", frame_count)
    stage.findings.at_least("trimmed", lost, 1)
    counted = audit(client, Queue(frames.KEYS.stream, frames.KEYS.group, frames.KEYS.dead, frames.KEYS.labels)).gone
    stage.findings.exactly("counted as trimmed", counted, lost)
    if metric:  # the workers look every ten seconds
        stage.until(lambda: all(m.total(TRIMMED) == lost for m in fleet.members), f"the metric shows {lost}", within=25)
    stage.findings.exactly("doubled", found.doubled(), 0)
    stage.close_books(fleet)


def overloaded(stage: Stage, *, frame_count: int, cap: int, share: float = 0.05) -> None:
    """F25: our own producer against slow workers, and it must send a part again since replies to it are lost."""
    server = stage.server()
    client, proxy = server.client(), stage.proxy(server.port)
    fleet = stage.fleet(server.url, 1, model__noop_delay=0.05, batch__max_size=8)
    settings = SettingsTree.model_validate({"redis": {"url": proxy.url}, "queue": {"max_length": cap}})
    deepest = 0
    with Producer.connect(settings, Terms(when_full="drop", batch=8, retry_time=30)) as producer:
        proxy.lose = share
        for number in range(frame_count):
            producer.put(_picture(number))
            if number % 10 == 0:
                deepest = max(deepest, client.xlen(frames.KEYS.stream))
        producer.flush()
    found = stage.settle_up(client, fleet, [])
    findings = stage.findings
    findings.note("frames", frame_count)
    findings.note("replies lost", proxy.lost)
    findings.at_most("most frames in the queue", deepest, cap)
    findings.exactly("put, and neither sent nor refused", frame_count - producer.sent - producer.refused, 0)
    findings.at_least("refused", producer.refused, 1)
    findings.at_least("sent again and known", producer.duplicates, 1)
    findings.exactly("labels more or less than sent", len(found.labels) - producer.sent, 0)


def _picture(number: int) -> Picture:
    return Picture(RawPicture(bytes(64), 8, 8, "gray8"), source=f"door-{number % 4}", frame_id=f"f{number}")
