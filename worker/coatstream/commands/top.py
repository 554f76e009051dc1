"""`coatstream top`: the whole installation on one screen of a terminal, by reading Redis. Changes nothing there."""

import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from rich.console import Group
from rich.live import Live

from coatstream.broker.connection import Client, address, connect
from coatstream.broker.failures import calls
from coatstream.broker.fleet_keys import fleet_keys
from coatstream.broker.preflight import check_server
from coatstream.commands.exit_codes import discard_stdout
from coatstream.commands.terminal import a_console, wide_console
from coatstream.commands.top_view import Sight, TopChoice, screen
from coatstream.errors import REDIS_TROUBLE
from coatstream.results.events.reader import PublishedEvent, parse_event
from coatstream.settings.model import SettingsTree
from coatstream.web.snapshot import Snapshots

EVERY: Final = 1.0  # seconds
NEWEST: Final = 50  # events that are read
WITHOUT_TERMINAL: Final = (200, 1100)  # columns and lines: all that there is, for grep


def run_top(settings: SettingsTree, *, once: bool) -> int:
    """Until q or Ctrl-C; without a terminal, or `once`, one screen. 0. Raises as `watch`."""
    with connect(settings.redis) as client:
        check_server(client, settings.redis)
        look = looking(client, settings)
        where = address(settings.redis)
        try:
            if once or not (sys.stdin.isatty() and sys.stdout.isatty()):
                _print(look(), where)
            else:
                _follow(look, where)
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:
            discard_stdout()
    return 0


def looking(client: Client, settings: SettingsTree) -> Callable[[], Sight]:
    """What reads everything once. Raises RedisUnavailable and RedisRefuses."""
    snapshots, stream = Snapshots(client, settings), fleet_keys(settings).events
    return lambda: Sight(snapshots.read(), _newest_events(client, stream))


def _newest_events(client: Client, stream: str) -> Sequence[PublishedEvent]:
    with calls("the events cannot be read", client):
        entries = client.xrevrange(stream, count=NEWEST)
    found = (parse_event(entry.decode(), fields) for entry, fields in reversed(entries))
    return [event for event in found if event is not None]


def _print(sight: Sight, where: str) -> None:
    console, (width, height) = wide_console(), WITHOUT_TERMINAL
    if console.is_terminal:
        width = console.width
    for line in screen(sight, TopChoice(), where=where, width=width, height=height):
        if line.plain.strip() and not line.plain.startswith("q quit"):
            print(line.plain.rstrip(), flush=True) if not console.is_terminal else console.print(line)


def _follow(look: Callable[[], Sight], where: str) -> None:
    """The screen again after each second and each key."""
    console = a_console()
    sight, choice, due = Sight(), TopChoice(), 0.0
    with Live(console=console, screen=True, auto_refresh=False) as live, _keys_as_they_come():
        while True:
            if time.monotonic() >= due:
                sight, due = _looked(look, sight), time.monotonic() + EVERY
            lines = screen(sight, choice, where=where, width=console.width, height=console.height)
            live.update(Group(*lines), refresh=True)
            for key in _pressed(within=max(0.0, due - time.monotonic())):
                after = choice.after(key)
                if after is None:
                    return
                choice = after


def _looked(look: Callable[[], Sight], before: Sight) -> Sight:
    """What is there now; while Redis is away, what was there before, and why it is old."""
    try:
        return look()
    except REDIS_TROUBLE as trouble:
        return Sight(before.snapshot, before.events, str(trouble))


@contextmanager
def _keys_as_they_come() -> Iterator[None]:
    """Each key at once and unseen, until the end of the block."""
    import termios  # not on every system
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _pressed(within: float) -> list[str]:
    """The keys that are pressed within so many seconds; an arrow is one key."""
    if not select.select([sys.stdin], [], [], within)[0]:
        return []
    data = os.read(sys.stdin.fileno(), 64)
    if not data:  # the terminal is gone
        return ["q"]
    text = data.decode(errors="ignore")
    return [text] if text.startswith("\x1b") else list(text)
