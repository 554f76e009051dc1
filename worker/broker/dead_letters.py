"""Dead letters: reading them without their pictures, putting them back, deleting them. Retries nothing."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from config.settings import QueueSettings
from worker.broker.connection import Client, calls
from worker.broker.scripts import Script

PAGE: Final = 16  # letters of one call: a script holds up the server while it runs
LONGEST_TEXT: Final = 4096  # bytes of a value that is read in full
_NOT_TEXT: Final = frozenset({"image", "pixels"})
_APPENDED: Final = (
    "reason",
    "error",
    "deliveries",
    "entry_id",
    "died_at",
    "worker",
)  # by settle.lua, last and in order
_ID: Final = re.compile(r"(\d{1,20})-(\d{1,20})", re.ASCII)

_LETTERS = Script("letters")
_REPLAY = Script("replay")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A frame that could not be labelled, and why. What was no text is replaced by U+FFFD, what is missing is empty.

    letter       the entry in the stream of dead letters: what `get`, `replay` and `drop` take
    entry_id     the frame's former entry in the frames stream
    died_at      Unix seconds, or None where that cannot be read
    texts        the frame's own fields that are short text
    sizes        bytes of each of the others, pictures among them
    """

    letter: str
    reason: str
    error: str
    deliveries: str
    entry_id: str
    died_at: float | None
    worker: str
    texts: Mapping[str, str] = field(repr=False)
    sizes: Mapping[str, int]


class Replayed(Enum):
    """What became of a letter that was to be put back."""

    MOVED = "1"
    ABSENT = "0"
    IMPOSSIBLE = "2"  # it stays: its frame was gone already, or has thousands of fields


class DeadLetters:
    """The dead letters of one queue. Every method raises RedisUnavailable."""

    def __init__(self, client: Client, settings: QueueSettings) -> None:
        self._client = client
        self._stream = settings.dead_stream
        self._frames = settings.stream

    def all(self) -> Iterator[DeadLetter]:
        """Those that are there now, oldest first. Letters may come and go meanwhile."""
        start, end = "-", "+"
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

    def replay(self, letters: Sequence[str]) -> list[Replayed]:
        """Move each back to the frames stream, with its own fields, as a new entry: once, whoever tries."""
        known = [letter for letter in letters if _is_id(letter)]
        digits = bytearray()
        for page in _pages(known):
            with calls("dead letters cannot be put back"):
                digits += _REPLAY(self._client, keys=[self._stream, self._frames], args=page)
        replies = iter(digits.decode())
        return [Replayed(next(replies)) if _is_id(letter) else Replayed.ABSENT for letter in letters]

    def drop(self, letters: Sequence[str]) -> list[bool]:
        """Delete each; False where there is none of that id."""
        with calls("dead letters cannot be deleted"):
            pipe = self._client.pipeline(transaction=False)
            for letter in letters:
                if _is_id(letter):
                    pipe.xdel(self._stream, letter)
            deleted = iter(pipe.execute())
        return [bool(next(deleted)) if _is_id(letter) else False for letter in letters]

    def _read(self, start: str, end: str, count: int) -> tuple[str, list[DeadLetter]]:
        """The id of the last letter from `start` to `end`, and the first `count` of them."""
        with calls("dead letters cannot be read"):
            reply = _LETTERS(self._client, keys=[self._stream], args=[start, end, count, LONGEST_TEXT])
        if not reply:
            return end, []
        last, found = reply
        return last.decode(), [_letter(letter.decode(), fields) for letter, fields in found]


def _is_id(text: str) -> bool:
    """Whether the server would take it for the full id of one entry; it answers others with an error."""
    match = _ID.fullmatch(text)
    return match is not None and all(int(number) < 2**64 for number in match.groups())


def _pages(letters: Sequence[str]) -> Iterator[Sequence[str]]:
    return (letters[first : first + PAGE] for first in range(0, len(letters), PAGE))


def _letter(letter: str, flat: list[Any]) -> DeadLetter:
    """From letters.lua's triples of name, size and value."""
    fields = [(_text(flat[at]), flat[at + 1], flat[at + 2]) for at in range(0, len(flat), 3)]
    told = fields[-len(_APPENDED) :]
    if tuple(name for name, _, _ in told) != _APPENDED:  # somebody else wrote this entry
        told = []
    own = fields[: len(fields) - len(told)]
    why = {name: _text(value) for name, _, value in told}
    return DeadLetter(
        letter=letter,
        reason=why.get("reason", ""),
        error=why.get("error", ""),
        deliveries=why.get("deliveries", ""),
        entry_id=why.get("entry_id", ""),
        died_at=_moment(why.get("died_at", "")),
        worker=why.get("worker", ""),
        texts={name: _text(value) for name, size, value in own if _is_text(name, size)},
        sizes={name: size for name, size, _ in own if not _is_text(name, size)},
    )


def _is_text(name: str, size: int) -> bool:
    return name not in _NOT_TEXT and size <= LONGEST_TEXT


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _moment(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,10}(\.\d{0,20})?", text, re.ASCII) else None
