"""Dead letters: reading them without their pictures, putting them back, deleting them. Retries nothing."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.keys import Queue
from coatstream.broker.script import Script

PAGE: Final = 16  # letters of one call: a script holds up the server while it runs
LONGEST_TEXT: Final = 4096  # bytes of a value that is read in full
MOST_TEXT: Final = 65_536  # bytes of such values of one letter
_NOT_TEXT: Final = frozenset({"image", "pixels"})
_APPENDED: Final = (
    "reason",
    "error",
    "deliveries",
    "entry_id",
    "died_at",
    "worker",
)  # by accounts.lua, last and in order
_ID: Final = re.compile(r"(\d{1,20})-(\d{1,20})", re.ASCII)

_LETTERS = Script("queue/dead/list")
_HELD = Script("queue/dead/held")
_REPLAY = Script("queue/dead/replay", after=("broker/keys", "broker/accounts"))
_DISCARD = Script("queue/dead/discard", after=("broker/keys", "broker/accounts"))


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A frame that could not be labelled, and why. What was no text is replaced by U+FFFD, what is missing is empty.

    stream       the frames stream that the frame came from, and that `replay` puts it back into
    letter       the entry in the stream of dead letters: what `get`, `replay` and `drop` take
    entry_id     the frame's former entry in the frames stream
    died_at      Unix seconds, or None where that cannot be read
    texts        the frame's own fields that are short text, up to MOST_TEXT bytes of them
    sizes        bytes of each of the others, pictures among them
    """

    stream: str
    letter: str
    reason: str
    error: str
    deliveries: str
    entry_id: str
    died_at: float | None
    worker: str
    texts: Mapping[str, str] = field(repr=False)
    sizes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class LetterPicture:
    """A letter's picture as its producer sent it. `shape`: width, height and format of raw pixels; else empty."""

    data: bytes = field(repr=False)
    shape: Mapping[str, str]

    @property
    def raw(self) -> str:
        """The same in words."""
        return ", ".join(f"{name} {value}" for name, value in self.shape.items())


class Replayed(Enum):
    """What became of a letter that was to be put back."""

    MOVED = "1"
    ABSENT = "0"
    IMPOSSIBLE = "2"  # it stays: its frame was gone already, or has thousands of fields


class DeadLetters:
    """The dead letters of one queue. Every method raises RedisUnavailable."""

    def __init__(self, client: Client, queue: Queue) -> None:
        self.queue = queue
        self._client = client

    def all(self, *, after: str = "") -> Iterator[DeadLetter]:
        """Those that are there now, oldest first; those `after` a letter. Letters may come and go meanwhile."""
        start, end = f"({after}" if after else "-", "+"
        while True:
            end, page = self._read(start, end, PAGE)
            if not page:
                return
            yield from page
            start = f"({page[-1].letter}"

    def get(self, letter: str) -> DeadLetter | None:
        """One of them, or None where there is none of that id."""
        if not _is_id(letter):
            return None
        _, found = self._read(letter, letter, 1)
        return found[0] if found else None

    def holds(self, letters: Sequence[str]) -> list[bool]:
        """Which of them are there."""

        def look(page: Sequence[str]) -> bytes:
            with calls("dead letters cannot be read", self._client):
                return bytes(_HELD(self._client, keys=[self.queue.dead], args=page))

        return [digit == "1" for digit in _digits(letters, look)]

    def picture(self, letter: str) -> LetterPicture | None:
        """The one picture that does travel; None where the letter is gone or has none."""
        if not _is_id(letter):
            return None
        with calls("the dead letter cannot be read", self._client):
            found = self._client.xrange(self.queue.dead, letter, letter)
        return _picture(found[0][1]) if found else None

    def replay(self, letters: Sequence[str]) -> list[Replayed]:
        """Move each back to the frames stream, with its own fields, as a new entry: once, however many callers try."""
        keys = [self.queue.dead, self.queue.stream, self.queue.books]

        def replay(page: Sequence[str]) -> bytes:
            with calls("dead letters cannot be put back", self._client):
                return bytes(_REPLAY(self._client, keys=keys, args=page))

        return [Replayed(digit) for digit in _digits(letters, replay)]

    def drop(self, letters: Sequence[str]) -> list[bool]:
        """Delete each; False where there is none of that id."""

        def discard(page: Sequence[str]) -> bytes:
            with calls("dead letters cannot be deleted", self._client):
                return bytes(_DISCARD(self._client, keys=[self.queue.dead, self.queue.books], args=page))

        return [digit == "1" for digit in _digits(letters, discard)]

    def _read(self, start: str, end: str, count: int) -> tuple[str, list[DeadLetter]]:
        """The id of the last letter from `start` to `end`, and the first `count` of them."""
        with calls("dead letters cannot be read", self._client):
            reply = _LETTERS(self._client, keys=[self.queue.dead], args=[start, end, count, LONGEST_TEXT, MOST_TEXT])
        if not reply:
            return end, []
        last, found = reply
        return last.decode(), [parse_letter(self.queue.stream, letter.decode(), fields) for letter, fields in found]


def _digits(letters: Sequence[str], call: Callable[[Sequence[str]], bytes]) -> list[str]:
    """The script's digit for each letter, "0" for what is no id. `call` gets a page of ids at a time."""
    known = [letter for letter in letters if _is_id(letter)]
    digits = "".join(call(known[first : first + PAGE]).decode() for first in range(0, len(known), PAGE))
    replies = iter(digits)
    return [next(replies) if _is_id(letter) else "0" for letter in letters]


def _is_id(text: str) -> bool:
    """Whether the server would take it for the full id of one entry; it answers others with an error."""
    match = _ID.fullmatch(text)
    return match is not None and all(int(number) < 2**64 for number in match.groups())


def parse_letter(stream: str, letter: str, flat: Sequence[Any]) -> DeadLetter:
    """From letters.lua's triples of name, size and value; a value that was left out is empty."""
    fields = [(_text(flat[at]), flat[at + 1], flat[at + 2]) for at in range(0, len(flat), 3)]
    appended = fields[-len(_APPENDED) :]
    if tuple(name for name, _, _ in appended) != _APPENDED:  # no worker wrote this entry
        appended = []
    own = fields[: len(fields) - len(appended)]
    why = {name: _text(value) for name, _, value in appended}
    return DeadLetter(
        stream=stream,
        letter=letter,
        reason=why.get("reason", ""),
        error=why.get("error", ""),
        deliveries=why.get("deliveries", ""),
        entry_id=why.get("entry_id", ""),
        died_at=_seconds_of(why.get("died_at", "")),
        worker=why.get("worker", ""),
        texts={name: _text(value) for name, size, value in own if _is_text(name, size, value)},
        sizes={name: size for name, size, value in own if not _is_text(name, size, value)},
    )


def _is_text(name: str, size: int, value: bytes) -> bool:
    return name not in _NOT_TEXT and size == len(value)


def _picture(fields: Mapping[bytes, bytes]) -> LetterPicture | None:
    if b"image" in fields:
        return LetterPicture(fields[b"image"], {})
    if b"pixels" not in fields:
        return None
    shape = {"width": b"?", "height": b"?", "format": b"bgr24"}
    shape |= {name: fields[name.encode()][:40] for name in shape if name.encode() in fields}
    return LetterPicture(fields[b"pixels"], {name: _text(value) for name, value in shape.items()})


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _seconds_of(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,10}(\.\d{0,20})?", text, re.ASCII) else None
