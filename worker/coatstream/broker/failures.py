"""The one rule for failed calls: an error means that Redis is unavailable, unless Redis would always refuse the call.

A script's error carries the code of the command that failed in it. Only for missing rights each server has its own
text.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.sentinel import MasterNotFoundError

from coatstream.broker.cluster import Cluster
from coatstream.errors import RedisRefuses, RedisUnavailable, redact

LONGEST_LINE: Final = 500

RefusedCall = ResponseError  # the server's answer is an error
REDIRECTIONS: Final = (AskError, TryAgainError)  # a cluster's answer for a key on another node; MOVED is an ASK

# redis-py removes these codes from the text. The order matters: some classes are subclasses of others.
_CODES: Final[tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...]] = (
    (NoPermissionError, "NOPERM"),
    (ReadOnlyError, "READONLY"),
    (OutOfMemoryError, "OOM"),
    (BusyLoadingError, "LOADING"),
    (MasterDownError, "MASTERDOWN"),
    (ClusterDownError, "CLUSTERDOWN"),
    (ClusterCrossSlotError, "CROSSSLOT"),
    (TryAgainError, "TRYAGAIN"),
    (AskError, "MOVED"),
    (MasterNotFoundError, "NOMASTER"),
    ((AuthenticationError, AuthenticationWrongNumberOfArgsError), "NOAUTH"),
)

# Errors without a code of their own, or whose code does not tell their meaning.
_TEXTS: Final[tuple[tuple[str, str], ...]] = (
    (r"instance state changed", "READONLY"),
    (r"stream key no longer exists", "NOGROUP"),  # Redis 7.0: UNBLOCKED
    (r"max number of clients reached", "MAXCLIENTS"),
    (r"ACL failure in script|^The user executing the script can't", "NOPERM"),  # Valkey and Redis 7.2; Redis 7.0
    (r"all keys must map to the same key slot|do not hash to the same slot|non local key in a cluster", "CROSSSLOT"),
    (r"^unknown command 'SENTINEL'", "NOSENTINEL"),
    (r"^unknown (sub)?command|^Unknown (Redis )?command called from script", "UNKNOWN"),
    (r"cluster support disabled", "NOCLUSTER"),
)

_OUTAGES: Final = {
    "LOADING": "Redis is loading its data and answers when that is done",
    "MISCONF": "Redis cannot save its data and so refuses writes: look at its disk and its log",
    "OOM": "Redis has reached its maxmemory: workers free memory as they settle frames, or raise maxmemory",
    "NOREPLICAS": "Redis has too few replicas in reach (min-replicas-to-write) and so refuses writes",
    "READONLY": "this Redis is a replica, for now or for good: its connections are dropped, to find the primary",
    "MASTERDOWN": "this Redis is a replica that has lost its primary: its connections are dropped, to find another",
    "NOMASTER": "no Sentinel names a primary: are they in reach, and is the service's name in redis.url right",
    "CLUSTERDOWN": "the cluster does not serve all its slots now",
    "TRYAGAIN": "the cluster is moving the slot from one node to another",
    "NOGROUP": "the stream or its consumer group is gone: a worker makes them again when it reads next",
    "BUSY": "another client's script blocks Redis: SCRIPT KILL ends it",
    "NOAUTH": "Redis refuses the login: is the password right and the user on (redis.username, redis.password_file)",
    "MAXCLIENTS": "Redis has reached its maxclients: raise it",
    "EXECABORT": "Redis dropped a transaction",
    "UNBLOCKED": "Redis ended a blocking read",
}

_REFUSALS: Final = {
    "NOPERM": "the Redis user lacks a right: `coatstream check` lists all that it lacks, ACL SETUSER gives them",
    "WRONGTYPE": "a key holds another type: `coatstream check` names the key; rename it, or choose another name",
    "CROSSSLOT": "keys of one queue lie in different slots of the cluster: give their names one hash tag, say {frames}",
    "UNKNOWN": "this Redis lacks a command: is it 7.0 or newer, and was the command renamed or disabled",
    "NOCLUSTER": "this Redis is no cluster: write redis:// (rediss://) in redis.url",
    "NOSENTINEL": "this is no Sentinel: redis+sentinel:// in redis.url takes the Sentinels' own ports, mostly 26379",
    "MOVED": "this Redis is a node of a cluster: write redis+cluster:// (rediss+cluster://) in redis.url",
}

# After these errors the connection may lead to the wrong server, so the name is looked up again.
_STALE: Final = frozenset({"READONLY", "NOREPLICAS", "MASTERDOWN"})


@contextmanager
def calls(what: str, client: Any = None) -> Iterator[None]:
    """Turn an error of Redis or the network into RedisUnavailable, or into RedisRefuses if waiting is of no use.

    The message begins with `what`, is one line, and holds no credentials. If the server is no longer the primary,
    `client` drops its connections to it.
    """
    try:
        yield
    except (RedisError, RedisClusterException, OSError) as error:
        cause = _root(error)
        code = code_of(cause)
        if client is not None and code in _STALE:
            drop_connections(client)
        line = f"{what}: {describe(cause)}"
        if code in _REFUSALS:
            raise RedisRefuses(line) from cause
        raise RedisUnavailable(line, slow=code == "NOAUTH", full=code == "OOM") from cause


def code_of(error: BaseException) -> str:
    """The code of an error: the first word of Redis' text, or one of ours; empty if it is unknown."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    text = str(error)
    for pattern, code in _TEXTS:
        if re.search(pattern, text):
            return code
    word = text.partition(" ")[0]
    return word if word in _OUTAGES or word in _REFUSALS else ""


def describe(error: BaseException) -> str:
    """What went wrong, in one line: the meaning, if it is known, and Redis' own text."""
    code = code_of(error)
    meaning = _OUTAGES.get(code) or _REFUSALS.get(code)
    text = _said(error)
    return redact(f"{meaning} ({text})" if meaning else text)[:LONGEST_LINE]


def is_stale(reply: object) -> bool:
    """Whether a reply says that its connection leads to the wrong server, or may."""
    return isinstance(reply, Exception) and code_of(reply) in _STALE


def drop_connections(client: Any) -> None:
    """Close connections to servers whose role has changed. Other threads notice on the connections that they use."""
    if isinstance(client, Cluster):
        client.look_around()
    else:
        client.connection_pool.disconnect(inuse_connections=False)


def _root(error: BaseException) -> BaseException:
    """The cause of an error of the cluster client, whose own text does not help."""
    inner = error.__cause__ or error.__context__
    if isinstance(error, RedisClusterException) and isinstance(inner, RedisError | RedisClusterException | OSError):
        return _root(inner)
    return error


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MasterNotFoundError):  # the rest of its text are redis-py's objects
        text = text.partition(" : ")[0]
    text = text.partition(", with args beginning")[0]  # the arguments of AUTH are a password, those of XADD a picture
    return re.sub(r",? script: ?\w*,? ?on @user_script:\d+\.?$", "", text)[:300]
