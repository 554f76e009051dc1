"""What becomes of a frame: it is published, dropped or buried. Plain data, and how each is booked in the ledger."""

from dataclasses import dataclass

from coatstream.errors import DeadReason
from coatstream.frames.frame import Prediction, Receipt
from coatstream.telemetry.ledger import DropReason, Ledger


@dataclass(frozen=True, slots=True)
class Published:
    """A label goes out, and the frame's entry (if it has one) is settled."""

    prediction: Prediction

    @property
    def source(self) -> str:
        return self.prediction.source

    @property
    def receipt(self) -> Receipt | None:
        return self.prediction.receipt


@dataclass(frozen=True, slots=True)
class Dropped:
    """The frame is settled without a label. A frame without a receipt needs no settling, only counting.

    frame_id  for a producer that waits for the label; empty: the entry's id
    """

    source: str
    reason: DropReason
    receipt: Receipt | None
    frame_id: str = ""


@dataclass(frozen=True, slots=True)
class Buried:
    """The frame becomes a dead letter; one without a receipt is only counted. `frame_id` as above."""

    source: str
    reason: DeadReason
    error: str
    receipt: Receipt | None
    frame_id: str = ""


Outcome = Published | Dropped | Buried


def book(ledger: Ledger, outcome: Outcome, *, done: bool) -> None:
    """Write an outcome into the ledger; not `done`: another worker had settled the frame's entry before."""
    match outcome:
        case _ if not done:
            ledger.dropped(outcome.source, DropReason.SUPERSEDED)
        case Published():
            ledger.published(outcome.source)
        case Dropped():
            ledger.dropped(outcome.source, outcome.reason)
        case Buried():
            ledger.dead(outcome.source, outcome.reason)
