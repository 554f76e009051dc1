"""The one screen of `coatstream top`, line by line, for a terminal of any size, with colour or without. Asks no server.

What a colour says, a word says too. Text of strangers is made harmless, and no line is wider than the terminal.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from rich.cells import set_cell_size
from rich.text import Text

from coatstream.commands.terminal import shown, time_of_day
from coatstream.results.events.reader import PublishedEvent
from coatstream.results.reports import WorkerReport
from coatstream.web.snapshot import ShownCamera, ShownQueue, Snapshot

Sort = Literal["name", "state", "rate", "age"]
Filter = Literal["all", "trouble", "tagged"]
SORTS: Final[tuple[Sort, ...]] = ("name", "state", "rate", "age")
FILTERS: Final[tuple[Filter, ...]] = ("all", "trouble", "tagged")
EVENTS: Final = 5  # lines at least, of 24
NARROW: Final = 20  # columns at least
_WELL: Final = ("live", "connecting", "ended", "paused")
_STYLES: Final = {"live": "green", "down": "red", "stalled": "red", "unread": "red", "connecting": "yellow"}
_TROUBLE: Final = ("picture.sick", "camera.state")


@dataclass(frozen=True, slots=True)
class TopChoice:
    """What the user has chosen with the keys. `first`: the first camera shown; `typing`: keys go into `find`."""

    sort: Sort = "name"
    filter: Filter = "all"
    find: str = ""
    typing: bool = False
    first: int = 0

    def after(self, key: str) -> "TopChoice | None":
        """None: the user quits."""
        if self.typing:
            return self._typed(key)
        match key:
            case "q" | "Q" | "\x03":
                return None
            case "s":
                return replace(self, sort=SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)], first=0)
            case "f":
                return replace(self, filter=FILTERS[(FILTERS.index(self.filter) + 1) % len(FILTERS)], first=0)
            case "/":
                return replace(self, typing=True, find="", first=0)
            case "j" | "\x1b[B":
                return replace(self, first=self.first + 1)
            case "k" | "\x1b[A":
                return replace(self, first=max(0, self.first - 1))
        return self

    def _typed(self, key: str) -> "TopChoice":
        match key:
            case "\r" | "\n" | "\x1b":
                return replace(self, typing=False, find="" if key == "\x1b" else self.find)
            case "\x7f" | "\x08":
                return replace(self, find=self.find[:-1])
        return replace(self, find=self.find + key) if key.isprintable() and len(self.find) < 40 else self


@dataclass(frozen=True, slots=True)
class Sight:
    """What was read last. `trouble`: why nothing newer could be."""

    snapshot: Snapshot | None = None
    events: Sequence[PublishedEvent] = ()
    trouble: str = ""


def screen(sight: Sight, choice: TopChoice, *, where: str, width: int, height: int) -> list[Text]:
    """At most `height` lines of at most `width` cells."""
    width = max(NARROW, width)
    head = list(_head(sight, where))
    room = max(2, height - len(head) - 1)
    cameras = list(_cameras(sight.snapshot, choice, max(2, room - EVENTS - 1), width))
    events = list(_events(sight.events, room - len(cameras), width))
    gap = [Text("")] * (room - len(cameras) - len(events))
    lines = [*head, *cameras, *events, *gap, _keys(choice)]
    return [_cut(line, width) for line in lines[: max(1, height)]]


# ---- the parts


def _head(sight: Sight, where: str) -> Iterator[Text]:
    snapshot = sight.snapshot
    if sight.trouble:
        yield Text(f"NOT UP TO DATE: {shown(sight.trouble)}", style="bold red")
    if snapshot is None:
        yield Text(f"coatstream top  {shown(where)}", style="bold")
        return
    workers = snapshot.overview.workers
    rate = sum(worker.frames_per_second for worker in workers)
    ages = [worker.age_p95 for worker in workers if worker.age_p95 is not None]
    age = f"  age p95 {_seconds(max(ages))}" if ages else ""
    plural = "" if len(workers) == 1 else "s"
    moment = time_of_day(snapshot.overview.at)[:8]
    yield Text(f"{moment}  {len(workers)} replica{plural}  {rate:.1f} labels/s{age}  {shown(where)}", style="bold")
    yield from map(_worker, workers[:3])
    yield from map(_queue, snapshot.overview.queues[:2])
    if workers:
        yield _ledger(workers)
    else:
        yield Text("NO WORKER RUNS: coatstream run starts one", style="bold red")
    for name, fault in list(snapshot.overview.faults.items())[:1]:
        yield Text(f"left out {shown(name)}: {shown(fault)}", style="red")


def _worker(worker: WorkerReport) -> Text:
    model = worker.model
    what = f"{model.name} ({model.weights}) {model.engine} {model.precision} on {model.device}" if model else "loading"
    line = Text(f"{shown(worker.worker)}  {shown(what)}  batch {worker.batches.size:.1f}")
    if model is not None and model.weights == "random":
        line.append("  RANDOM WEIGHTS", style="bold red")
    if worker.because:
        line.append(f"  not ready: {shown(', '.join(worker.because))}", style="yellow")
    return line


def _queue(queue: ShownQueue) -> Text:
    line = Text(
        f"{shown(queue.stream)}: {queue.entries - queue.in_work} waiting, {queue.in_work} in work, "
        f"oldest {_seconds(queue.oldest_age)}, "
    )
    line.append(f"{queue.dead} dead letters", style="red" if queue.dead else "")
    if queue.stranded:
        line.append(f", {queue.stranded} were stranded")
    line.append(
        ", books balance" if queue.balanced else ", BOOKS DO NOT BALANCE", style="" if queue.balanced else "red"
    )
    return line


def _ledger(workers: Sequence[WorkerReport]) -> Text:
    """Of the replicas that live, since each one's start."""
    dropped, dead = Counter[str](), Counter[str]()
    for worker in workers:
        dropped.update(worker.frames.dropped)
        dead.update(worker.frames.dead)
    received, published, waiting = (
        sum(getattr(worker.frames, word) for worker in workers) for word in ("received", "published", "in_flight")
    )
    return Text(
        f"received {received} = labelled {published} + dropped {_by_reason(dropped)} + dead {_by_reason(dead)} "
        f"+ in flight {waiting}"
    )


def _by_reason(counts: Counter[str]) -> str:
    reasons = ", ".join(f"{shown(reason)} {count}" for reason, count in counts.most_common(3) if count)
    return f"{counts.total()} ({reasons})" if reasons else "0"


def _cameras(snapshot: Snapshot | None, choice: TopChoice, room: int, width: int) -> Iterator[Text]:
    if snapshot is None:
        return
    found = _chosen(snapshot, choice)
    of = f" {len(found)} of {len(snapshot.cameras)}" if len(found) != len(snapshot.cameras) else f" {len(found)}"
    name = max(12, min(24, width // 5))
    columns = f"{set_cell_size(f'CAMERA{of}', name)} STATE       SINCE    FPS    AGE  TAGS, ELSE LABEL OR WHY"
    yield Text(set_cell_size(columns, width), "reverse")
    first = min(choice.first, max(0, len(found) - (room - 1)))
    for camera in found[first : first + room - 1]:
        yield _camera(camera, name, snapshot.overview.at)


def _camera(camera: ShownCamera, name: int, now: float) -> Text:
    since = "" if camera.since is None else _seconds(now - camera.since)
    fps = "" if camera.fps is None else f"{camera.fps:.1f}"
    age = "" if camera.latest is None else _seconds(now - camera.latest.at)
    line = Text(set_cell_size(shown(camera.name), name))
    line.append(f" {shown(camera.state):<11}", style=_STYLES.get(camera.state, ""))
    line.append(f"{since:>6} {fps:>6} {age:>6}  ")
    if camera.sick:
        line.append(f"{', '.join(map(shown, camera.sick))}  ", style="red")
    line.append(shown(_what(camera, now)))
    if camera.gate:
        line.append(f"  reuse saves nothing: {shown(camera.gate)}", style="dim")
    return line


def _what(camera: ShownCamera, now: float) -> str:
    if camera.tags:
        return ", ".join(f"{tag.tag} {_seconds(now - tag.since)}" for tag in camera.tags)
    if camera.state not in _WELL:
        why = camera.message.removeprefix(f"camera {camera.name!r} ")
        return f"{camera.reason}: {why}" if camera.reason and why else camera.reason or why
    if camera.latest and camera.latest.labels:
        best = camera.latest.labels[0]
        return f"({best.label} {best.score:.0%})"
    return ""


def _chosen(snapshot: Snapshot, choice: TopChoice) -> list[ShownCamera]:
    def shows(camera: ShownCamera) -> bool:
        words = " ".join((camera.name, camera.state, camera.worker, *(tag.tag for tag in camera.tags)))
        if choice.find.lower() not in words.lower():
            return False
        if choice.filter == "tagged":
            return bool(camera.tags)
        return choice.filter == "all" or camera.state not in _WELL or bool(camera.sick)

    def order(camera: ShownCamera) -> tuple[float | str, str]:
        match choice.sort:
            case "state":
                return camera.state, camera.name
            case "rate":
                return -(camera.fps or 0.0), camera.name
            case "age":
                return (camera.latest.at if camera.latest else 0.0), camera.name
        return "", camera.name

    return sorted(filter(shows, snapshot.cameras), key=order)


def _events(events: Sequence[PublishedEvent], room: int, width: int) -> Iterator[Text]:
    if room < 2:
        return
    yield Text(set_cell_size("LAST EVENTS", width), style="reverse")
    for event in list(events)[-(room - 1) :]:
        detail = event.detail
        words = [str(detail[word]) for word in ("tag", "state", "reason", "fault", "message") if detail.get(word)]
        bad = event.kind in _TROUBLE and detail.get("state") not in _WELL
        line = Text(f"{time_of_day(event.at)[:8]}  {set_cell_size(shown(event.source), 12)}  {shown(event.kind):<12}  ")
        yield line.append(shown(" ".join(words)), style="red" if bad else "")


def _keys(choice: TopChoice) -> Text:
    if choice.typing:
        return Text(f"find: {shown(choice.find)}_   Enter keeps it, Esc clears it", style="bold")
    found = f"   found by {shown(choice.find)!r}" if choice.find else ""
    return Text(f"q quit   s sort: {choice.sort}   f show: {choice.filter}   / find   j k scroll{found}", style="dim")


def _cut(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line


def _seconds(seconds: float) -> str:
    """`0.12s`, `12s`, `5m`, `3h`, `2d`."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.2f}s" if seconds < 1 else f"{seconds:.1f}s"
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f}{unit}"
    return f"{seconds:.0f}s"
