"""Every error that coatstream raises on purpose, named by who must react to it.

A message is one line for a person: what happened, with which value, what to do. It never holds a credential.
"""

from enum import StrEnum


class CoatstreamError(Exception):
    """The root: whatever is not one of these is a bug and ends the process with exit code 1."""


class ConfigError(CoatstreamError):
    """Wrong usage or settings. The command line prints the message and exits with code 2."""


class EngineError(CoatstreamError):
    """The model cannot be loaded or warmed. The command line prints the message and exits with code 3."""


class EngineBroken(CoatstreamError):
    """The engine fails on every picture, whoever's it is. The worker ends with exit code 1 and leaves the frames be."""


class RedisUnavailable(CoatstreamError):
    """Redis cannot be reached. At start: exit code 4. Later: whoever called waits, then tries the same call again."""


class SourceLost(CoatstreamError):
    """A source's connection is gone or silent. Its intake backs off and opens it again."""


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
