"""F14: the server's append-only file, cut anywhere, as a power failure cuts it."""

import shutil
from pathlib import Path

from coatstream.broker.connection import Client

from tests.faults import frames
from tests.faults.servers import Server
from tests.faults.stage import Stage

CUT_OPTIONS = ("--appendonly", "yes", "--auto-aof-rewrite-percentage", "0", "--aof-load-truncated", "yes")


def cut(stage: Stage, *, frame_count: int, cuts: int, workers: int = 1) -> None:
    """Workers settle while the file is written; then it is cut at random bytes, and a server loads what is left."""
    server = stage.server(*CUT_OPTIONS)
    client, sent = server.client(), frames.names(frame_count)
    fleet = stage.fleet(server.url, workers, batch__max_size=8)
    begun = _log_of(server.folder).stat().st_size
    for page in range(0, frame_count, 100):
        frames.send(client, sent[page : page + 100])
        stage.until(lambda: client.xlen(frames.KEYS.stream) <= 100, "they are nearly done")
    stage.settle_up(client, fleet, sent)
    client.shutdown(nosave=True)
    assert server.process is not None
    server.process.wait(10)
    whole = _log_of(server.folder).stat().st_size
    torn = 0
    for _ in range(cuts):
        torn += _torn_frames(stage, server, stage.rng.randrange(begun, whole))
    stage.findings.note("cuts", cuts)
    stage.findings.exactly("frames half done", torn, 0)


def _torn_frames(stage: Stage, server: Server, at: int) -> int:
    """Frames that a server which loads the first `at` bytes finds both published and waiting, or neither."""
    folder = stage.folder / "cut"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(server.folder, folder, ignore=lambda *_: ["log"])
    with _log_of(folder).open("r+b") as file:
        file.truncate(at)
    reader = Server(server.kind, folder, server.port, CUT_OPTIONS)
    try:
        reader.start()
        return _torn(reader)
    finally:
        reader.close()


def _torn(server: Server) -> int:
    client = server.client()
    if not client.exists(frames.KEYS.stream):
        return 0
    waiting = {entry.decode() for entry, _ in frames.read(client, frames.KEYS.stream)}
    published = {label[b"entry_id"].decode() for _, label in frames.read(client, frames.KEYS.labels)}
    pending = set(frames.pending(client))
    neither = frames.added(client) - len(waiting | published)
    forgotten = {entry for entry in waiting - pending if _number(entry) <= _delivered(client)}
    return len(waiting & published) + neither + len(pending - waiting) + len(forgotten)


def _delivered(client: Client) -> tuple[int, int]:
    """The newest entry that any worker was ever given."""
    groups = client.xinfo_groups(frames.KEYS.stream)
    return _number(groups[0]["last-delivered-id"].decode()) if groups else (0, 0)


def _number(entry: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry.partition("-")
    return int(milliseconds), int(sequence)


def _log_of(folder: Path) -> Path:
    """The file that grows."""
    [found] = (folder / "appendonlydir").glob("*.incr.aof")
    return found
