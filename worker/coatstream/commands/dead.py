"""`coatstream dead list|show|replay|drop`: look at dead letters, put them back, delete them, of all queues or one."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from coatstream.broker.connection import Client, connect
from coatstream.broker.keys import Queue, queues_of
from coatstream.broker.preflight import check_rights, check_server
from coatstream.commands.dead_view import document, in_bytes, print_letter, print_letters, print_sums, source_of
from coatstream.commands.terminal import complain, print_json, shown
from coatstream.errors import ConfigError, DeadReason
from coatstream.queue.audit import audit
from coatstream.queue.dead.letters import DeadLetter, DeadLetters, LetterPicture, Replayed
from coatstream.settings.model import SettingsTree

AT_ONCE = 256  # letters that are put back or deleted between two looks at the stream
_ABSENT = "there is no such dead letter"

Work = Iterable[tuple[DeadLetters, Iterable[str]]]  # ids by the queue whose letters they are


def list_dead(
    settings: SettingsTree,
    entries: Sequence[str],
    *,
    as_json: bool,
    stream: str | None = None,
    source: str | None = None,
    reason: str | None = None,
) -> int:
    """A table, or one JSON object a line. 1 if one of `entries` is not there, else 0. Raises ConfigError.

    `source` and `reason` leave out all letters but theirs.
    """
    if reason is not None and reason not in list(DeadReason):
        raise ConfigError(f"--reason {shown(reason)}: there is no such reason; give one of {', '.join(DeadReason)}")
    with _opened(settings, stream) as (client, boxes):
        absent: list[str] = []
        found = _some(boxes, entries, absent) if entries else (letter for box in boxes for letter in box.all())
        found = (letter for letter in found if reason in (None, letter.reason) and source in (None, source_of(letter)))
        if as_json:
            for letter in found:
                print_json(document(letter))
        else:
            print_letters(found, with_queue=len(boxes) > 1)
            print_sums([audit(client, box.queue) for box in boxes], settings.queue)
    return _complain(dict.fromkeys(absent, _ABSENT))


def show_dead(
    settings: SettingsTree,
    entry: str,
    *,
    as_json: bool,
    save: Path | None = None,
    force: bool = False,
    stream: str | None = None,
) -> int:
    """Everything about one letter; `save` is a file for its picture. 1 if it is not there or has none, else 0."""
    with _opened(settings, stream) as (_, boxes):
        faults: dict[str, str] = {}
        box = next((box for box, _ in _sorted(boxes, [entry], faults)), boxes[0])
        letter = None if faults else box.get(entry)
        picture = None if save is None else box.picture(entry)
    if letter is None:
        return _complain(faults or {entry: _ABSENT})
    if picture is not None and save is not None:
        _save(picture, save, force=force)
    if as_json:
        print_json(document(letter))
    else:
        print_letter(letter)
    return _complain({entry: "it has no picture to save"} if save is not None and picture is None else {})


def replay_dead(settings: SettingsTree, entries: Sequence[str], *, every: bool, stream: str | None = None) -> int:
    """Back into the frames stream, each once. 1 if one of `entries` was not, else 0."""
    faults = {
        Replayed.ABSENT: _ABSENT,
        Replayed.IMPOSSIBLE: "it cannot be put back: it holds nothing of its frame, or thousands of fields",
    }
    _check_usage(entries, every=every)

    def replay(box: DeadLetters, page: Sequence[str]) -> list[str | None]:
        return [faults.get(one) for one in box.replay(page)]

    with _opened(settings, stream) as (client, boxes):
        check_rights(client, _needs(settings, stream), keyless=("EVAL", "EVALSHA"))
        return _act("replayed", replay, boxes, entries)


def _needs(settings: SettingsTree, stream: str | None) -> dict[str, tuple[str, ...]]:
    """The rights that replaying needs: without XDEL a letter would go back and stay, too."""
    queues = _chosen(queues_of(settings), stream)
    return {queue.dead: ("XRANGE", "XDEL", "TYPE") for queue in queues} | {
        queue.stream: ("XADD", "TYPE") for queue in queues
    }


def drop_dead(settings: SettingsTree, entries: Sequence[str], *, every: bool, stream: str | None = None) -> int:
    """Delete. 1 if one of `entries` was not there, else 0."""
    _check_usage(entries, every=every)

    def drop(box: DeadLetters, page: Sequence[str]) -> list[str | None]:
        return [None if dropped else _ABSENT for dropped in box.drop(page)]

    with _opened(settings, stream) as (_, boxes):
        return _act("dropped", drop, boxes, entries)


@contextmanager
def _opened(settings: SettingsTree, stream: str | None) -> Iterator[tuple[Client, list[DeadLetters]]]:
    """The dead letters of each queue, or of the one whose frames or dead letters are in `stream`."""
    queues = _chosen(queues_of(settings), stream)
    with connect(settings.redis) as client:
        check_server(client, settings.redis)
        yield client, [DeadLetters(client, queue) for queue in queues]


def _chosen(queues: Sequence[Queue], stream: str | None) -> Sequence[Queue]:
    if stream is None:
        return queues
    chosen = [queue for queue in queues if queue.is_called(stream)]
    if not chosen:
        known = ", ".join(queue.stream for queue in queues[:8]) + (", ..." if len(queues) > 8 else "")
        raise ConfigError(f"no queue has the stream {shown(stream)}: --stream takes one of {known}")
    return chosen


def _check_usage(entries: Sequence[str], *, every: bool) -> None:
    if bool(entries) == every:
        raise ConfigError("name the entries (`coatstream dead list` shows them), or give --all; not both")


def _sorted(boxes: Sequence[DeadLetters], entries: Sequence[str], faults: dict[str, str]) -> Work:
    """The entries by queue; which are in none or in several goes into `faults`. A single queue is not asked first."""
    ids = list(dict.fromkeys(entries))
    if len(boxes) == 1:
        return [(boxes[0], ids)]
    homes: dict[str, list[DeadLetters]] = {entry: [] for entry in ids}
    for box in boxes:
        for entry, there in zip(ids, box.holds(ids), strict=True):
            if there:
                homes[entry].append(box)
    faults |= {entry: _misplaced(found) for entry, found in homes.items() if len(found) != 1}
    return [(box, mine) for box in boxes if (mine := [entry for entry in ids if homes[entry] == [box]])]


def _misplaced(homes: Sequence[DeadLetters]) -> str:
    if not homes:
        return _ABSENT
    streams = ", ".join(box.queue.stream for box in homes)
    return f"several queues have a dead letter of this name ({streams}): name one with --stream"


def _act(
    done: str,
    act: Callable[[DeadLetters, Sequence[str]], list[str | None]],
    boxes: Sequence[DeadLetters],
    entries: Sequence[str],
) -> int:
    """Do it to the entries, or to every letter if there are none. `act` returns why each was not done, or None."""
    count, faults = 0, dict[str, str]()
    try:
        for box, page in _pages(_sorted(boxes, entries, faults) if entries else _every(boxes)):
            answers = dict(zip(page, act(box, page), strict=True))
            faults |= {entry: answer for entry, answer in answers.items() if answer is not None}
            count += sum(answer is None for answer in answers.values())
    finally:  # also where Redis went away half-way
        print(f"{done} {count}", flush=True)
    return _complain(faults)


def _every(boxes: Sequence[DeadLetters]) -> Work:
    return ((box, (letter.letter for letter in box.all())) for box in boxes)


def _pages(work: Work) -> Iterator[tuple[DeadLetters, list[str]]]:
    for box, some in work:
        ids = iter(some)
        while page := list(islice(ids, AT_ONCE)):
            yield box, page


def _complain(faults: dict[str, str]) -> int:
    for entry, fault in faults.items():
        complain(f"{shown(entry)}: {fault}")
    return int(bool(faults))


def _some(boxes: Sequence[DeadLetters], entries: Iterable[str], absent: list[str]) -> Iterator[DeadLetter]:
    for entry in dict.fromkeys(entries):
        found = [letter for box in boxes if (letter := box.get(entry)) is not None]
        if not found:
            absent.append(entry)
        yield from found


def _save(picture: LetterPicture, path: Path, *, force: bool) -> None:
    """Write the bytes as they came, without looking at them."""
    name = shown(str(path))
    try:
        with path.open("wb" if force else "xb") as file:
            file.write(picture.data)
    except FileExistsError:
        raise ConfigError(f"{name} is there already: give --force to overwrite it, or another name") from None
    except OSError as error:
        raise ConfigError(f"the picture cannot be saved as {name}: {error.strerror or error}") from None
    note = f"; raw pixels, {shown(picture.raw)}" if picture.raw else ""
    print(f"saved {in_bytes(len(picture.data))} as {name}{note}", file=sys.stderr)
