"""Keeps the ledger and the holdings in step: what a batch takes, and what became of it."""

from collections.abc import Sequence

from coatstream.errors import DeadReason
from coatstream.pipeline.holdings import Holdings
from coatstream.pipeline.mailbox import QueuedFrame
from coatstream.results.metrics import SettlementMetrics
from coatstream.results.outcomes import Outcome, book
from coatstream.results.settler import Settlement
from coatstream.telemetry.ledger import Ledger


class Accounting:
    """One for the pump and all queue sources of a worker. Called from any thread."""

    def __init__(self, ledger: Ledger, metrics: SettlementMetrics) -> None:
        self.holdings = Holdings()
        self._ledger = ledger
        self._metrics = metrics

    def begin(self, queued: Sequence[QueuedFrame]) -> list[QueuedFrame]:
        """A batch takes these. Returns those that it may: the entries of the others went to another worker meanwhile.

        A queue's frame counts as received from here on; until now it could go back to the server.
        """
        begun = self.holdings.begin(one.frame.receipt for one in queued)
        ours = [one for one, is_ours in zip(queued, begun, strict=True) if is_ours]
        for one in ours:
            if one.frame.receipt is not None:
                self._ledger.received(one.frame.source)
        return ours

    def received(self, outcomes: Sequence[Outcome]) -> None:
        """These frames will be settled without a batch."""
        for outcome in outcomes:
            self._ledger.received(outcome.source)

    def gave_up(self, source: str) -> None:
        """A frame of this source was delivered to workers too often: the server has made it a dead letter."""
        self._ledger.received(source)
        self._ledger.dead(source, DeadReason.DELIVERY_LIMIT)

    def letters_dropped(self, number: int) -> None:
        """Dead letters had to go for newer ones."""
        self._metrics.letters_dropped(number)

    def settled(self, outcomes: Sequence[Outcome], settlement: Settlement) -> None:
        """Write the outcomes into the ledger; what is settled is no longer held."""
        self.holdings.settled(outcome.receipt for outcome in outcomes)
        self._metrics.settled(settlement)
        for outcome, done in zip(outcomes, settlement.done, strict=True):
            book(self._ledger, outcome, done=done)
