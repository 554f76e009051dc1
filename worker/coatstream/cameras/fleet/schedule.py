"""When the fleet's thread calls Redis next, and for what. Calls nothing itself.

A beat keeps the leases; the version is looked at between two beats, since it changes when a worker or a person
changes something; the registry is read when the version has changed, and once a lease in any case.
"""

from typing import Final

from coatstream.cameras.fleet.leases import BeatReply
from coatstream.errors import Backoff, CoatstreamError, Retries

BEATS_A_LEASE: Final = 5
POLL: Final = 0.1  # seconds between two looks at the version: how late a worker learns of a change; 1 % of a slow core
IDLE_POLL: Final = 1.0  # seconds, the same where there is no camera yet
GAP: Final = 0.05  # seconds at least between two beats
AFTER_TROUBLE: Final = 0.25  # seconds at most until Redis is tried again; doubles, up to the next
LONGEST_TROUBLE: Final = 1.0

_NEVER: Final = float("-inf")


class Schedule:
    """Used by the fleet's thread. Moments are monotonic seconds.

    version  of all that the workers share, as this one knows it
    stale    the registry in Redis may have changed: it must be read
    news     the server must learn something of this worker at once
    idle     there is no camera yet
    """

    def __init__(self, lease: float) -> None:
        self.version = b""
        self.stale = self.news = self.idle = True
        self._lease = lease
        self._read_at = self._beat_at = self._polled_at = self._resumes_at = _NEVER
        self._beat_every = lease / BEATS_A_LEASE
        self._retries = Retries(Backoff(AFTER_TROUBLE, min(LONGEST_TROUBLE, lease / BEATS_A_LEASE)))

    # ---- what is due

    def is_waiting(self, now: float) -> bool:
        """Whether a call failed so lately that the next one must wait."""
        return now < self._resumes_at

    def reads_registry(self, now: float) -> bool:
        return self.stale or now >= self._read_at + self._lease

    def beats(self, now: float, *, news: bool) -> bool:
        return now >= self._beat_at + (GAP if news or self.news else self._beat_every)

    def polls(self, now: float) -> bool:
        return now >= self._polled_at + self._poll_every

    def next_call(self, *, news: bool) -> float:
        """When the next call is due."""
        if news or self.news:
            return max(self._resumes_at, self._beat_at + GAP)
        return max(self._resumes_at, min(self._beat_at + self._beat_every, self._polled_at + self._poll_every))

    @property
    def _poll_every(self) -> float:
        return min(IDLE_POLL if self.idle else POLL, self._lease / 10)

    # ---- what was done

    def polled(self, now: float) -> None:
        self._polled_at = now

    def found(self, version: bytes) -> None:
        """This is the version now."""
        if version != self.version:
            self.version = version
            self.stale = self.news = self.idle = True

    def read(self, now: float, version: bytes) -> None:
        """The registry was read."""
        self._read_at, self.stale, self.version = now, False, version

    def beaten(self, now: float) -> None:
        """A beat was sent."""
        self._beat_at, self.news = now, False

    def answered(self, reply: BeatReply) -> None:
        """The server has answered a beat."""
        if reply.before != self.version:
            self.stale = True
        self.version = reply.version
        self._beat_every = min(self._lease / BEATS_A_LEASE, max(GAP, reply.next_in + 0.005))
        self._retries.worked()

    def failed(self, now: float, trouble: CoatstreamError) -> None:
        """A call failed. The next beat's version shows what was changed meanwhile."""
        delay = self._retries.failed(trouble)
        self._resumes_at = now + (self._lease / BEATS_A_LEASE if self.idle else delay)
        self.news = True
