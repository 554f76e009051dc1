"""`coatstream watch`: labels or events as they are published, one line each."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from coatstream.broker.connection import Client, connect
from coatstream.broker.fleet_keys import fleet_keys
from coatstream.broker.preflight import check_server, check_types
from coatstream.commands.exit_codes import discard_stdout
from coatstream.commands.terminal import a_console, complain, shown, shown_json, time_of_day
from coatstream.errors import RedisUnavailable, Retries
from coatstream.results.events.reader import EventReader, PublishedEvent
from coatstream.results.labels import LabelReader, PublishedLabel, streams_of
from coatstream.results.since import entry_before
from coatstream.settings.model import SettingsTree

LONGEST_BLOCK = 1.0  # seconds


class _StreamItem(Protocol):
    @property
    def source(self) -> str: ...

    @property
    def json(self) -> str: ...


_ItemT = TypeVar("_ItemT", bound=_StreamItem)


def run_watch(
    settings: SettingsTree,
    *,
    source: str | None,
    count: int,
    as_json: bool,
    events: bool = False,
    since: str | None = None,
) -> int:
    """Follow the labels stream, or that of events, from `since` (None: from now) until `count` lines (0: for ever),
    Ctrl-C, or a closed stdout. 0.

    Raises ConfigError, and RedisUnavailable where Redis cannot be reached at the start; later it waits for Redis.
    """
    after = None if since is None else entry_before(since, now=time.time())
    block = min(LONGEST_BLOCK, settings.redis.socket_timeout / 5)
    with connect(settings.redis) as client:
        check_server(client, settings.redis)
        read, line = (_events if events else _labels)(client, settings, after, block)
        try:
            _show(read, line, source=source, count=count, as_json=as_json)
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:  # `coatstream watch | head`; typer would make it exit code 1
            discard_stdout()
    return 0


_Feed = tuple[Callable[[], Sequence[Any]], Callable[[Any, int], Text]]  # reads the next items, makes a line of one

NARROWEST: Final = 60  # columns that a line is made to fit into
_UNBOUNDED: Final = 0  # columns: no terminal
_SOURCE, _WHAT = 16, 32  # columns, where there are enough of them


def _labels(client: Client, settings: SettingsTree, after: str | None, block: float) -> _Feed:
    streams = streams_of(settings)
    check_types(client, dict.fromkeys(streams, "stream"))
    reader = LabelReader(client, streams, after=after, block=block)
    reader.start()
    return reader.read, _label_line


def _events(client: Client, settings: SettingsTree, after: str | None, block: float) -> _Feed:
    stream = fleet_keys(settings).events
    check_types(client, {stream: "stream"})
    reader = EventReader(client, [stream], after=after, block=block)
    reader.start()
    return reader.read, _event_line


def _show(
    read: Callable[[], Sequence[_ItemT]],
    line: Callable[[_ItemT, int], Text],
    *,
    source: str | None,
    count: int,
    as_json: bool,
) -> None:
    console = a_console()
    shown_so_far = 0
    for item in _follow(read):
        if source is not None and item.source != source:
            continue
        if as_json:
            print(shown_json(item.json), flush=True)
        elif console.is_terminal:
            fits = console.width >= NARROWEST
            console.print(line(item, console.width if fits else _UNBOUNDED), soft_wrap=not fits)
        else:  # print, because rich ends a process with code 1 when its reader has gone
            print(line(item, _UNBOUNDED).plain, flush=True)
        shown_so_far += 1
        if shown_so_far == count:
            return


def _follow(read: Callable[[], Sequence[_ItemT]]) -> Iterator[_ItemT]:
    """Everything from now on. While Redis is away: one line, and further tries."""
    retries = Retries()
    while True:
        try:
            items = read()
        except RedisUnavailable as trouble:
            if not retries.failures:
                complain(f"{shown(str(trouble))}; trying again until it is back")
            time.sleep(retries.failed(trouble))
        else:
            retries.worked()
            yield from items


def _label_line(label: PublishedLabel, width: int) -> Text:
    """When it was published, source, label, score, and the frame's age at that time."""
    source, what = _fitted(shown(label.source), shown(label.label), width - 37 if width else _UNBOUNDED)
    return Text.assemble(
        (time_of_day(label.published_at), "dim"),
        "  ",
        (source, "cyan"),
        "  ",
        (what, "bold"),
        f"  {label.score:6.1%}",
        (f"  {1000 * (label.published_at - label.captured_at):7.0f} ms", "dim"),
    )


def _event_line(event: PublishedEvent, width: int) -> Text:
    """When it happened, source, kind, the event's one word and its detail."""
    word, more = _told(event.kind, event.detail)
    source, what = _fitted(shown(event.source), shown(word), width - 32 if width else _UNBOUNDED)
    return Text.assemble(
        (time_of_day(event.at), "dim"),
        "  ",
        (source, "cyan"),
        "  ",
        f"{shown(event.kind):<14}",
        "  ",
        (what if more else what.rstrip(), "bold"),
        (f"  {shown(more)}" if more else "", "dim"),
    )


def _fitted(source: str, what: str, room: int) -> tuple[str, str]:
    """Both, padded to the width of their columns; with `room` columns for both together, cut off to these."""
    if not room:
        return f"{source:<{_SOURCE}}", f"{what:<{_WHAT}}"
    for_what = min(_WHAT, max(room - max(_SOURCE, cell_len(source)), 2 * room // 3))
    for_source = min(max(_SOURCE, cell_len(source)), room - for_what)
    return set_cell_size(source, for_source), set_cell_size(what, for_what)


def _told(kind: str, detail: Any) -> tuple[str, str]:
    """The one word of an event, and its detail."""
    match kind:
        case "tag.started":
            return str(detail.get("tag", "")), f"score {_number(detail.get('score')):.2f}"
        case "tag.ended":
            duration, peak = _number(detail.get("duration")), _number(detail.get("peak"))
            return str(detail.get("tag", "")), f"after {duration:.1f} s, peak {peak:.2f}, {detail.get('why', '')}"
        case "camera.state":
            return str(detail.get("state", "")), str(detail.get("message") or detail.get("reason") or "")
    return str(detail.get("fault") or ""), ""


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
