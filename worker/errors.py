"""Every error that coatstream raises on purpose, named by who must react to it.

A message is one line for a person: what happened, with which value, what to do. It never holds a credential.
"""

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
