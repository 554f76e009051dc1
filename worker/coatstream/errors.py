"""Every error that coatstream raises on purpose, named by who must react; the wait before a retry; redaction.

A message is one line for a person: what happened, with which value, what to do. It never holds a credential.
"""

import random
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SLOW_RETRY: Final = 1.0  # seconds


class CoatstreamError(Exception):
    """The root. Any other exception is a bug and ends the process with exit code 1."""


class ConfigError(CoatstreamError):
    """Wrong usage or settings. The command line prints the message and exits with code 2."""


class EngineError(CoatstreamError):
    """The model cannot be loaded or warmed. The command line prints the message and exits with code 3."""


class EngineBroken(CoatstreamError):
    """The engine fails on every picture. The worker ends with exit code 1 and leaves its frames to other workers."""


class RedisRefuses(ConfigError):
    """Redis refuses a call, and always will: a right is missing, or a key holds another type. Exit code 2, at any time.

    A server that reloads its rights may refuse for a moment, so callers that can wait may try a few times more.
    """


class RedisUnavailable(CoatstreamError):
    """Redis cannot be reached. At the start: exit code 4. Later the caller waits and then makes the same call again.

    slow  the next try should wait for `SLOW_RETRY` seconds at least, because the password was refused, for instance
    full  the server is there, and has reached its maxmemory
    """

    def __init__(self, message: str, *, slow: bool = False, full: bool = False) -> None:
        super().__init__(message)
        self.slow = slow
        self.full = full


REDIS_TROUBLE = (RedisUnavailable, RedisRefuses)  # for code that only observes: readers and publishers decide


def first_line(error: BaseException) -> str:
    """The first line of another library's error, at most 200 characters, to be quoted in a line of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


class DownReason(StrEnum):
    """Why a source is down, for people, gauges and events."""

    UNREACHABLE = "unreachable"  # no route, no such name, nothing listens
    REFUSED = "refused"  # the other side refuses: no such path, too many viewers, an unknown certificate
    AUTH = "auth"  # user or password are wrong
    TIMEOUT = "timeout"  # connected, then silence
    NO_VIDEO = "no_video"  # a stream without video
    CODEC = "codec"  # this machine cannot decode its pictures
    ENDED = "ended"  # the other side closed
    CRASHED = "crashed"  # the process that read it died
    CHANGED = "changed"  # its pictures have another size: only workers of earlier releases open it again for that
    REDIS = "redis"  # of the queue: Redis cannot be reached


class SourceLost(CoatstreamError):
    """A source's connection is gone or silent. Its intake waits and opens it again.

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
    """No worker can label this frame. A queue's frame becomes a dead letter, a camera's frame is counted."""

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
    """Random waits of 0 to min(longest, first * 2**attempt) seconds, so that many clients of one server spread out.

    This is "full jitter" of M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
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

    def failed(self, trouble: CoatstreamError | None = None) -> float:
        """Count a failure, of Redis or for want of room; the seconds to wait."""
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


# user:password@ in a URL. A password may hold '@' and '/', so the match runs to the last '@' before white space or a
# quote.
_USERINFO = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^\s\"'<>]*@", re.IGNORECASE)
# Cameras take them in the path too: /user=admin_password=x_channel=1, /admin:x/live. A value ends where another key
# begins.
_LONG_KEY = (
    r"[\w-]*(?:pass|pwd|psw|secret|token|auth|signature|api_?key|loginuse|loginpas|credential|session|ticket|jwt|cookie)"
    r"[\w-]*"
)
_SHORT_KEY = r"(?:key|sig|hash|code|pin|basic|user(?:name)?|usr|login|pw|u|p|k)"
_SECRET = re.compile(
    rf"(?P<key>(?:[?&;/#_]{_LONG_KEY}|[?&;/#]{_SHORT_KEY}|_(?:user(?:name)?|usr|pw))=).*?(?=_\w+=|[&;/#\s\"'<>]|$)",
    re.IGNORECASE,
)
_IN_PATH = re.compile(r"(?P<host>\b[a-z][a-z0-9+.-]*://[^\s\"'<>/?#]*)(?P<path>/[^\s\"'<>?#]*)", re.IGNORECASE)
_PAIR = re.compile(r"/[^/:]+:[^/]+")
_FRAGMENT = re.compile(r"(?P<url>\b[a-z][a-z0-9+.-]*://[^\s\"'<>#]*#)[^\s\"'<>]+", re.IGNORECASE)


def redact(text: str) -> str:
    """`text` with the credentials of every URL in it replaced by ***, as far as they can be told from the rest.

    These are user and password before the host, in the path and in the query, other secrets there, and fragments.
    """
    text = _USERINFO.sub(r"\g<scheme>***@", text)
    text = _SECRET.sub(r"\g<key>***", text)
    text = _IN_PATH.sub(lambda url: url["host"] + _PAIR.sub("/***", url["path"]), text)
    return _FRAGMENT.sub(r"\g<url>***", text)
