"""A client of Redis Cluster that sends no command twice. Knows the commands that coatstream uses, and no settings.

redis-py's own cluster client repeats each command of a pipeline whose reply was lost, whatever `retry` says; refuses
EVALSHA and TIME in a pipeline; and asks the server for the key's place before each XREADGROUP.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from redis import Redis, RedisCluster
from redis.client import Pipeline
from redis.exceptions import (
    AskError,
    ClusterCrossSlotError,
    ConnectionError,  # noqa: A004
    RedisClusterException,
    RedisError,
    TimeoutError,  # noqa: A004
    TryAgainError,
)

# Commands whose first argument is the key; of XGROUP and XINFO it is the second. redis-py knows EVAL and EVALSHA.
_FIRST: Final = frozenset(
    {
        *("XADD", "XACK", "XDEL", "XLEN", "XRANGE", "XREVRANGE", "XTRIM", "XCLAIM", "XAUTOCLAIM", "XPENDING"),
        *("HGET", "HMGET", "HGETALL", "HSET", "HSETNX", "HINCRBY", "HDEL", "HLEN", "GET", "SET", "TYPE", "PEXPIRE"),
        *("HKEYS", "HEXISTS", "INCR", "SADD", "SREM", "SMEMBERS", "SISMEMBER"),
    }
)
_SECOND: Final = frozenset({"XGROUP", "XINFO"})
_ALL: Final = frozenset({"EXISTS", "DEL"})
_READS: Final = {"XREAD": 0, "XREADGROUP": 3}  # the keys follow STREAMS, which comes after so many arguments


class Cluster(RedisCluster):
    """A client that connects when it is made. All keys of one call must share a slot."""

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> Any:
        """Commands for one node in one round trip; commands without a key go there too."""
        if transaction:
            raise RedisClusterException("transactions are not used on a cluster")
        return _OneNodePipeline(self)

    def determine_slot(self, *args: Any) -> int | None:
        """The slot of a command, found without asking the server."""
        keys = _keys(args)
        return super().determine_slot(*args) if keys is None else self.slot_of(keys)

    def slot_of(self, keys: Sequence[Any]) -> int:
        """The slot that all keys share. Raises ClusterCrossSlotError."""
        slots = {int(self.keyslot(key)) for key in keys}
        if len(slots) != 1:
            raise ClusterCrossSlotError("keys of one call lie in different slots")
        return slots.pop()

    def node_of(self, slot: int) -> Redis:
        """The client of the primary that has the slot."""
        return self.get_redis_connection(self.nodes_manager.get_node_from_slot(slot))

    def look_around(self) -> None:
        """Drop idle connections, and ask which node has which slot. If no node answers, the next call asks again."""
        with suppress(RedisError, RedisClusterException, OSError):
            self.nodes_manager.initialize()
        for node in self.get_nodes():
            if node.redis_connection:
                node.redis_connection.connection_pool.disconnect(inuse_connections=False)


class _OneNodePipeline(Pipeline):
    """redis-py's plain pipeline, on the node of the keys."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        node = cluster.get_redis_connection(cluster.get_default_node() or cluster.get_nodes()[0])
        super().__init__(node.connection_pool, node.response_callbacks, False, None)

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Every command's reply. A redirected command was not run, and is sent once more, to the right node."""
        commands = list(self.command_stack)
        slots = {self._cluster.determine_slot(*args) for args, _ in commands if _has_key(args)}
        if len(slots) > 1:
            raise ClusterCrossSlotError("the keys of a pipeline lie in different slots")
        if slots:
            self.connection_pool = self._cluster.node_of(slots.pop() or 0).connection_pool
        try:
            replies = super().execute(raise_on_error=False)
        except (ConnectionError, TimeoutError):
            self._cluster.look_around()
            raise
        for number, (args, options) in enumerate(commands):
            if isinstance(replies[number], AskError | TryAgainError):  # MovedError is an AskError
                replies[number] = self._again(args, options)
        if raise_on_error:
            self.raise_first_error(commands, replies)
        return replies

    def _again(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        try:
            return self._cluster.execute_command(*args, **options)
        except RedisError as error:
            return error


def _keys(args: tuple[Any, ...]) -> Sequence[Any] | None:
    """The keys of a command; None if this module does not know them."""
    words = str(args[0]).upper().split()  # redis-py names subcommands in one string: "XGROUP CREATE"
    name, rest = words[0], (*words[1:], *args[1:])
    if name in _READS:
        at = next(at for at in range(_READS[name], len(rest)) if rest[at] in ("STREAMS", b"STREAMS"))
        streams = rest[at + 1 :]
        return streams[: len(streams) // 2]
    if name in _FIRST:
        return rest[:1]
    if name in _SECOND:
        return rest[1:2]
    return rest if name in _ALL else None


def _has_key(args: tuple[Any, ...]) -> bool:
    if str(args[0]).upper() in ("EVAL", "EVALSHA"):
        return int(args[2]) > 0
    return str(args[0]).upper() not in ("TIME", "PING", "INFO", "PUBLISH", "SCRIPT LOAD", "SCRIPT EXISTS")
