"""The one rule for failures: any error on a call of ours means that Redis is away, unless it would refuse us for ever.

Scripts' errors carry the code of the command that failed within, but for rights: there each server has its own words.
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

RefusedCall = ResponseError  # the server's own answer: no
REDIRECTIONS: Final = (AskError, TryAgainError)  # what a cluster answers for a key that is elsewhere; MOVED is an ASK

# redis-py takes these codes off the text. The order matters: some are kinds of others.
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

# What has no code of its own, or another one than its meaning.
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
    "MISCONF": "Redis cannot save its data and so takes no writes: look at its disk and its log",
    "OOM": "Redis is at its maxmemory: workers free some as they settle frames, else raise maxmemory",
    "NOREPLICAS": "Redis has too few replicas in reach (min-replicas-to-write) and so takes no writes",
    "READONLY": "this Redis is a replica, now or for good: its connections are dropped, to find the primary",
    "MASTERDOWN": "this Redis is a replica that has lost its primary: its connections are dropped, to find another",
    "NOMASTER": "no Sentinel names a primary: are they in reach, and is the service's name in redis.url right",
    "CLUSTERDOWN": "the cluster does not serve all its slots now",
    "TRYAGAIN": "the cluster moves our slot from one node to another",
    "NOGROUP": "the stream or its consumer group is gone: a worker makes them again when it reads next",
    "BUSY": "somebody's script holds Redis up: SCRIPT KILL ends it",
    "NOAUTH": "Redis does not know us: is the password right and the user on (redis.username, redis.password_file)",
    "MAXCLIENTS": "Redis has as many clients as it takes: raise its maxclients",
    "EXECABORT": "Redis dropped a transaction",
    "UNBLOCKED": "Redis ended a blocking read",
}

_REFUSALS: Final = {
    "NOPERM": "the Redis user lacks a right: `coatstream check` lists all that it lacks, ACL SETUSER gives them",
    "WRONGTYPE": "a key of ours holds something else: `coatstream check` names it; rename it or choose another name",
    "CROSSSLOT": "keys of one queue lie in different slots of the cluster: give their names one hash tag, say {frames}",
    "UNKNOWN": "this Redis lacks a command that we need: is it 7.0 or newer, and was the command renamed or disabled",
    "NOCLUSTER": "this Redis is no cluster: write redis:// (rediss://) in redis.url",
    "NOSENTINEL": "this is no Sentinel: redis+sentinel:// in redis.url takes the Sentinels' own ports, mostly 26379",
    "MOVED": "this Redis is a node of a cluster: write redis+cluster:// (rediss+cluster://) in redis.url",
}

# After these the connection leads to the wrong server, or may: the same name is looked up anew.
_STALE: Final = frozenset({"READONLY", "NOREPLICAS", "MASTERDOWN"})


@contextmanager
def calls(what: str, client: Any = None) -> Iterator[None]:
    """Turns whatever Redis or the network says during a call into RedisUnavailable, or RedisRefuses where waiting is
    no use: one line, no credentials. Where the server is no primary any more, `client` drops its connections to it.
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
        raise RedisUnavailable(line, slow=code == "NOAUTH") from cause


def code_of(error: BaseException) -> str:
    """The first word of what Redis said, or one of ours; empty where it said nothing that we know."""
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
    """What went wrong, in one line: what it means, where that is known, and Redis' own words."""
    code = code_of(error)
    meaning = _OUTAGES.get(code) or _REFUSALS.get(code)
    text = _said(error)
    return redact(f"{meaning} ({text})" if meaning else text)[:LONGEST_LINE]


def is_stale(reply: object) -> bool:
    """Whether a reply says that its connection leads to the wrong server, or may."""
    return isinstance(reply, Exception) and code_of(reply) in _STALE


def drop_connections(client: Any) -> None:
    """Close what leads to servers that have changed their part; those in use by other threads find out themselves."""
    if isinstance(client, Cluster):
        client.look_around()
    else:
        client.connection_pool.disconnect(inuse_connections=False)


def _root(error: BaseException) -> BaseException:
    """What is behind an error of the cluster client, whose own text is no help."""
    inner = error.__cause__ or error.__context__
    if isinstance(error, RedisClusterException) and isinstance(inner, RedisError | RedisClusterException | OSError):
        return _root(inner)
    return error


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MasterNotFoundError):  # its text goes on with redis-py's own objects
        text = text.partition(" : ")[0]
    text = text.partition(", with args beginning")[0]  # those of AUTH are a password, those of XADD a picture
    return re.sub(r",? script: ?\w*,? ?on @user_script:\d+\.?$", "", text)[:300]
