"""The ledger: every frame that came in, and what became of it.

Per source, at any moment: received = published + dropped + dead + in flight. The last term is not counted but derived,
so the sum balances by construction; what a test has to show is that in flight returns to 0.
"""

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from coatstream.errors import DeadReason

OTHER = "other"
MAX_SOURCES = 200  # distinct source names kept apart; strangers choose them, and each is a series in Prometheus


class DropReason(StrEnum):
    """Why a frame that could have been labelled was not."""

    EXPIRED = "expired"  # its producer's `expires_at` had passed
    REPLACED = "replaced"  # a live source sent a newer one
    STALE = "stale"  # older than its camera's `max_age`
    SUPERSEDED = "superseded"  # its entry was no longer there to settle: another worker settled it, or it was deleted


@dataclass(slots=True)
class Account:
    """One source's lines in the ledger."""

    received: int = 0
    published: int = 0
    dropped: Counter[DropReason] = field(default_factory=Counter)
    dead: Counter[DeadReason] = field(default_factory=Counter)

    @property
    def in_flight(self) -> int:
        return self.received - self.published - self.dropped.total() - self.dead.total()

    def add(self, other: "Account") -> None:
        self.received += other.received
        self.published += other.published
        self.dropped += other.dropped
        self.dead += other.dead

    def figures(self) -> dict[str, int]:
        """The whole account in one line of a log: received = published + dropped + dead + in_flight."""
        of = {f"dropped_{reason}": count for reason, count in self.dropped.items() if count}
        of |= {f"dead_{reason}": count for reason, count in self.dead.items() if count}
        dropped, dead = self.dropped.total(), self.dead.total()
        return {
            "received": self.received,
            "published": self.published,
            "dropped": dropped,
            "dead": dead,
            "in_flight": self.in_flight,
            **of,
        }

    def copy(self) -> "Account":
        return Account(self.received, self.published, Counter(self.dropped), Counter(self.dead))


class Ledger:
    """Counts frames by source. Called from any thread.

    `named` sources (cameras) and those of `name` always keep their own account, and the newest 200 of those that have
    gone; of the names that strangers choose, the first 200 do. The rest share `other`.
    """

    def __init__(self, named: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._accounts = {name: Account() for name in named}
        self._gone: dict[str, None] = {}  # cameras, in the order in which they went
        self._strangers = 0

    def name(self, source: str) -> None:
        """A camera: from now on it has its own account."""
        with self._lock:
            self._accounts.setdefault(source, Account())
            self._gone.pop(source, None)

    def gone(self, source: str) -> None:
        """A camera that no worker will read again under this name."""
        with self._lock:
            self._gone[source] = None
            balanced = [name for name in self._gone if not self._account(name).in_flight]
            for name in balanced[: max(0, len(self._gone) - MAX_SOURCES)]:
                del self._gone[name]
                account = self._accounts.pop(name, Account())
                self._accounts.setdefault(OTHER, Account()).add(account)

    def received(self, source: str) -> None:
        with self._lock:
            self._admit(source).received += 1

    def published(self, source: str) -> None:
        with self._lock:
            self._account(source).published += 1

    def dropped(self, source: str, reason: DropReason) -> None:
        with self._lock:
            self._account(source).dropped[reason] += 1

    def dead(self, source: str, reason: DeadReason) -> None:
        with self._lock:
            self._account(source).dead[reason] += 1

    def in_flight(self, source: str) -> int:
        """Frames of a source that are not settled yet."""
        with self._lock:
            return self._accounts[source].in_flight if source in self._accounts else 0

    def snapshot(self) -> dict[str, Account]:
        """A consistent copy: it balances whatever the threads are doing."""
        with self._lock:
            return {source: account.copy() for source, account in self._accounts.items()}

    def total(self) -> Account:
        """All sources together."""
        total = Account()
        for account in self.snapshot().values():
            total.add(account)
        return total

    def _admit(self, source: str) -> Account:
        if source not in self._accounts and self._strangers < MAX_SOURCES:
            self._strangers += 1
            self._accounts[source] = Account()
        return self._account(source)

    def _account(self, source: str) -> Account:
        """An unknown name is one that came when the book was full, and so it stays with `other` to the end."""
        if source in self._accounts:
            return self._accounts[source]
        return self._accounts.setdefault(OTHER, Account())
