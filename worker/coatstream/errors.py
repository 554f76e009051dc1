"""Every error that coatstream raises on purpose, named by who must react to it; redaction; backoff.

A message is one line for a person: what happened, with which value, what to do. It never holds a credential.
"""

import random
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SLOW_RETRY: Final = 1.0  # seconds


class CoatstreamError(Exception):
    """The root: whatever is not one of these is a bug and ends the process with exit code 1."""


class ConfigError(CoatstreamError):
    """Wrong usage or settings. The command line prints the message and exits with code 2."""


class EngineError(CoatstreamError):
    """The model cannot be loaded or warmed. The command line prints the message and exits with code 3."""


class EngineBroken(CoatstreamError):
    """The engine fails on every picture, whoever's it is. The worker ends with exit code 1 and leaves the frames be."""


class RedisRefuses(ConfigError):
    """Redis will refuse this for ever: a right is missing, a key holds something else. Exit code 2, at any time.

    While rights are being reloaded a server may say so for a moment; who can wait may try a few times more.
    """


class RedisUnavailable(CoatstreamError):
    """Redis cannot be reached. At start: exit code 4. Later: whoever called waits, then tries the same call again.

    slow  trying again before `SLOW_RETRY` seconds have passed is no use: the password was refused, say
    """

    def __init__(self, message: str, *, slow: bool = False) -> None:
        super().__init__(message)
        self.slow = slow


REDIS_TROUBLE = (RedisUnavailable, RedisRefuses)  # for those who only look on: who reads or publishes decides


def first_line(error: BaseException) -> str:
    """What an error that is not ours says, for one line of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


class DownReason(StrEnum):
    """Why a source is down, for people, gauges and events."""

    UNREACHABLE = "unreachable"  # no route, no such name, nothing listens
    REFUSED = (
        "refused"  # somebody answers and says no: no such path, too many viewers, a certificate nobody vouches for
    )
    AUTH = "auth"  # user or password are wrong
    TIMEOUT = "timeout"  # connected, then silence
    NO_VIDEO = "no_video"  # a stream without pictures
    CODEC = "codec"  # pictures that nobody here can decode
    ENDED = "ended"  # the other side closed
    CRASHED = "crashed"  # the process that read it died
    CHANGED = "changed"  # its pictures have another size now, which takes a new opening
    REDIS = "redis"  # the queue: Redis is away


class SourceLost(CoatstreamError):
    """A source's connection is gone or silent. Its intake backs off and opens it again.

    slow  as above
    """

    def __init__(self, message: str, *, slow: bool = False, reason: DownReason = DownReason.UNREACHABLE) -> None:
        super().__init__(message)
        self.slow = slow
        self.reason = reason


class DeadReason(StrEnum):
    """Why a frame can never be labelled (the `reason` of a dead letter)."""

    UNDECODABLE = "undecodable"
    INVALID = "invalid"
    TOO_LARGE = "too_large"
    MODEL_ERROR = "model_error"
    DELIVERY_LIMIT = "delivery_limit"


class BadFrame(CoatstreamError):
    """One frame cannot be labelled, whoever tries. A queue frame becomes a dead letter, a camera's frame is counted."""

    def __init__(self, reason: DeadReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class FrameFailed(CoatstreamError):
    """A frame of the queue ended without a label. `reason` as in the messages of `failures:<source>`."""

    def __init__(self, message: str, *, frame_id: str, reason: str) -> None:
        super().__init__(message)
        self.frame_id = frame_id
        self.reason = reason


class FrameDead(FrameFailed):
    """It is a dead letter now, for an operator to look at (`coatstream dead`)."""


class FrameDropped(FrameFailed):
    """It is gone: it had expired, or its entry was deleted."""


class NoOutcome(CoatstreamError, TimeoutError):
    """In the given time nothing became known of a frame. It may still be labelled later."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits are drawn from 0..min(longest, first * 2**attempt) seconds: many who lost the same server spread out.

    "Full jitter" as compared in M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    first: float
    longest: float

    def delay(self, attempt: int, rng: random.Random) -> float:
        """Seconds before try number `attempt` + 1; `attempt` counts failures from 0."""
        return rng.uniform(0, min(self.longest, self.first * 2.0 ** min(attempt, 60)))


RETRY: Final = Backoff(first=0.05, longest=2.0)  # between two tries while Redis is away
REFUSALS: Final = 3  # in a row before a refusal is believed: an operator may just be reloading rights


class Retries:
    """Failures in a row of one call, and how long to wait before the next try. Used by one thread at a time."""

    def __init__(self, backoff: Backoff = RETRY, rng: random.Random | None = None) -> None:
        self.failures = 0
        self._refusals = 0
        self._backoff = backoff
        self._rng = rng or random.Random()

    def failed(self, trouble: CoatstreamError) -> float:
        """Count a failure; the seconds to wait."""
        refused = isinstance(trouble, RedisRefuses)
        delay = self._backoff.delay(self.failures, self._rng)
        self.failures += 1
        self._refusals = self._refusals + 1 if refused else 0
        return max(delay, SLOW_RETRY) if refused or getattr(trouble, "slow", False) else delay

    def worked(self) -> None:
        """The call went through."""
        self.failures = self._refusals = 0

    @property
    def refused(self) -> bool:
        """Whether Redis has refused so often that trying again is no use."""
        return self._refusals >= REFUSALS


# user:password@ in a URL. The password may hold anything but white space and quotes, '@' and '/' too, so the match is
# greedy up to the last '@' before one of those.
_USERINFO = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^\s\"'<>]*@", re.IGNORECASE)
_QUERY_SECRET = re.compile(
    r"(?P<key>[?&;](?:[\w-]*(?:pass|pwd|secret|token|auth|signature|api_?key)[\w-]*|key|sig|user(?:name)?)=)[^&;\s\"'<>]*",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` with the credentials of every URL in it replaced by ***: user and password, and secrets in the query."""
    text = _USERINFO.sub(r"\g<scheme>***@", text)
    return _QUERY_SECRET.sub(r"\g<key>***", text)
