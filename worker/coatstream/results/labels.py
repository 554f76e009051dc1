"""Labels as they are published: what one is, and the readers of their stream."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from coatstream.broker.keys import queues_of
from coatstream.results.documents import LabelDocument
from coatstream.results.following import AsyncStreamReader, Feed, StreamReader
from coatstream.settings.model import SettingsTree

LATEST_MOMENT: Final = 10_000_000_000.0  # Unix seconds: the year 2286


@dataclass(frozen=True, slots=True)
class PublishedLabel:
    """One label as it stands in the stream.

    entry                        its id there: `since=label.entry` goes on behind it
    label, score                 of the best class, 0..1
    captured_at, published_at    Unix seconds
    json                         the document, as it was written
    """

    entry: str
    source: str
    label: str
    score: float
    captured_at: float
    published_at: float
    json: str = field(repr=False)

    @property
    def document(self) -> LabelDocument:
        """All that is known of the frame, parsed anew at each call. Raises ValueError where a stranger wrote it."""
        return LabelDocument.model_validate_json(self.json)


def streams_of(settings: SettingsTree) -> Sequence[str]:
    """All streams that labels go to."""
    return sorted({queue.labels for queue in queues_of(settings)})


def parse_label(entry: str, fields: Mapping[bytes, bytes]) -> PublishedLabel | None:
    """None for what coatstream did not write."""
    try:
        return PublishedLabel(
            entry=entry,
            source=fields[b"source"].decode(),
            label=fields[b"label"].decode(),
            score=float(fields[b"score"]),
            captured_at=_moment(fields[b"captured_at"]),
            published_at=_moment(fields[b"published_at"]),
            json=fields[b"json"].decode(),
        )
    except (KeyError, ValueError):
        return None


def _moment(text: bytes) -> float:
    moment = float(text)
    if not 0 <= moment < LATEST_MOMENT:
        raise ValueError(moment)
    return moment


FEED: Final = Feed("labels cannot be read", streams_of, parse_label)


class LabelReader(StreamReader[PublishedLabel]):
    """Labels of all sources, each stream's oldest first."""

    feed: ClassVar[Feed[PublishedLabel]] = FEED


class AsyncLabelReader(AsyncStreamReader[PublishedLabel]):
    """`LabelReader` for an event loop."""

    feed: ClassVar[Feed[PublishedLabel]] = FEED
