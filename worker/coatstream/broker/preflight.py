"""Checks before work begins: the server, the types of keys, the user's rights, the cluster's slots.

Changes nothing on the server. Reports as many mistakes at once as possible.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis.exceptions import NoPermissionError, ResponseError

from coatstream.broker.cluster import Cluster
from coatstream.broker.connection import Client, address
from coatstream.broker.failures import calls
from coatstream.broker.fleet_keys import FleetKeys, fleet_keys
from coatstream.broker.keys import Queue, queues_of
from coatstream.errors import ConfigError, RedisRefuses, RedisUnavailable
from coatstream.settings.model import RedisSettings, SettingsTree

OLDEST_SERVER: Final = (7, 0)
MOST_NAMED: Final = 20  # missing rights in one line
KEYLESS: Final = ("EVAL", "EVALSHA", "INFO", "PING", "TIME")  # commands that are checked without a key, too

# Arguments with which a command fails or finds nothing after the server has checked the rights, so that it does no harm
# even if MULTI is not allowed. {} is the key. No group has that name.
_GROUP: Final = "coatstream:no-such-group"
HARMLESS: Final[Mapping[str, tuple[str, ...]]] = {
    "XADD": ("{}", "0-0", "f", "v"),
    "XACK": ("{}", _GROUP, "0-0"),
    "XDEL": ("{}", "0-0"),
    "XLEN": ("{}",),
    "XRANGE": ("{}", "x", "x"),
    "XREVRANGE": ("{}", "x", "x"),
    "XTRIM": ("{}", "MAXLEN", "-1"),
    "XCLAIM": ("{}", _GROUP, "c", "x", "0-0"),
    "XAUTOCLAIM": ("{}", _GROUP, "c", "x", "x"),
    "XPENDING": ("{}", _GROUP),
    "XREAD": ("STREAMS", "{}", "x"),
    "XREADGROUP": ("GROUP", _GROUP, "c", "STREAMS", "{}", "x"),
    "XGROUP|CREATE": ("{}", _GROUP, "x"),
    "XGROUP|CREATECONSUMER": ("{}", _GROUP, "c"),
    "XGROUP|DELCONSUMER": ("{}", _GROUP, "c"),
    "XGROUP|DESTROY": ("{}", _GROUP),
    "XGROUP|SETID": ("{}", _GROUP, "x"),
    "XINFO|STREAM": ("{}",),
    "XINFO|GROUPS": ("{}",),
    "XINFO|CONSUMERS": ("{}", _GROUP),
    "HGET": ("{}", "f"),
    "HMGET": ("{}", "f"),
    "HGETALL": ("{}",),
    "HKEYS": ("{}",),
    "HEXISTS": ("{}", "f"),
    "HLEN": ("{}",),
    "HSTRLEN": ("{}", "f"),
    "SMEMBERS": ("{}",),
    "HSET": ("{}", "f", "v", "odd"),
    "HINCRBY": ("{}", "f", "x"),
    "HDEL": ("{}", _GROUP),
    "GET": ("{}",),
    "SET": ("{}", "v", "PX", "0"),
    "MGET": ("{}",),
    "LINDEX": ("{}", "x"),
    "LRANGE": ("{}", "x", "x"),
    "LPOP": ("{}", "-1"),
    "PEXPIRE": ("{}", "x"),
    "PTTL": ("{}",),
    "TYPE": ("{}",),
    "EXISTS": ("{}",),
    "PUBLISH": ("{}", ""),
    "EVAL": ("return 0", "-1"),
    "EVALSHA": ("0" * 40, "-1"),
    "INFO": (),
    "PING": (),
    "TIME": (),
}
# Commands without such arguments. They are tried only inside MULTI, which never ends.
IN_MULTI_ONLY: Final[Mapping[str, tuple[str, ...]]] = {
    "DEL": ("{}",),
    "UNLINK": ("{}",),
    "HSETNX": ("{}", "f", "v"),
    "INCR": ("{}",),
    "RPUSH": ("{}", "v"),
    "SCRIPT|LOAD": ("return 0",),
    "COPY": ("{}", "{}:copy"),
}


def check(client: Client, settings: SettingsTree) -> tuple[str, tuple[str, ...]]:
    """Check all that a worker with these settings needs. Returns the server's name and version, and the channels that
    `check_rights` returns. Raises RedisUnavailable, ConfigError.
    """
    try:
        server = check_server(client, settings.redis)
    except RedisRefuses:
        check_usage(client, settings)  # INFO is one of the rights that it names
        raise
    return server, check_usage(client, settings)


def check_server(client: Client, settings: RedisSettings) -> str:
    """The server's name and version. Raises RedisUnavailable, or ConfigError if it cannot be used (too old, say)."""
    place = address(settings)
    with calls(f"cannot reach Redis at {place}", client):
        info = client.info()
        client.ping()
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST_SERVER:
        raise ConfigError(f"{name} {version} at {place} is too old: 7.0 or newer is needed")
    if info.get("cluster_enabled") and not isinstance(client, Cluster):
        scheme = "rediss" if place.startswith("rediss") else "redis"
        raise ConfigError(f"{name} at {place} is a node of a cluster: write {scheme}+cluster:// in redis.url")
    if info.get("role") == "slave":  # it may become the primary in a moment, so the settings may be right
        raise RedisUnavailable(
            f"{name} at {place} is a replica and refuses writes: redis.url must lead to the primary "
            "(redis+sentinel:// follows it), or a failover is going on"
        )
    return f"{name} {version}"


def server_infos(client: Client) -> list[dict[str, Any]]:
    """INFO of the server, or of each primary of a cluster. Raises RedisUnavailable."""
    with calls("the server cannot be asked about itself", client):
        if isinstance(client, Cluster):
            return [client.info(target_nodes=node) for node in client.get_primaries()]
        return [client.info()]


def dangers(infos: Sequence[Mapping[str, Any]]) -> list[str]:
    """What could lose frames one day, by the INFO of the servers: one line each, with what to do."""
    found = []
    if policies := {info.get("maxmemory_policy", "noeviction") for info in infos} - {"noeviction"}:
        found.append(
            f"maxmemory-policy is {', '.join(sorted(policies))}: a full server would evict the queue; set noeviction"
        )
    if not all(info.get("aof_enabled") for info in infos):
        found.append("no append-only file: a restart of the server loses the queue; set appendonly yes")
    return found


def full_servers(infos: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each server that has reached its `maxmemory`, by its INFO."""
    numbers = [(int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))) for info in infos]
    return [
        f"Redis has reached its maxmemory: {used:,} of {most:,} bytes. Producers are refused, and events wait; raise "
        "maxmemory, or free memory"
        for used, most in numbers
        if 0 < most <= used
    ]


def check_types(client: Client, types: Mapping[str, str]) -> None:
    """Raises ConfigError if one of these keys exists and has another type."""
    for key, kind in types.items():
        with calls(f"the type of the key {key} cannot be read", client):
            found = client.type(key).decode()
        if found not in (kind, "none"):
            raise ConfigError(
                f"the key {key} holds a {found}, not a {kind}: "
                "rename it, or give coatstream another name for it (queue.stream, queue.dead_stream, results.stream)"
            )


def check_usage(client: Client, settings: SettingsTree) -> tuple[str, ...]:
    """Check slots, rights and types of exactly the keys that a worker with these settings uses.

    Returns what `check_rights` returns. Raises ConfigError.
    """
    queues = queues_of(settings)
    channels = (queues[0].channel("source"), queues[0].failure_channel("source"))
    fleet = fleet_keys(settings) if settings.cameras else None
    shared = any(camera.shared for camera in settings.cameras)
    if settings.queue.enabled:
        return check_keys(client, queues, fleet, channels=channels, shared=shared)
    # all labels of cameras go where those of the first queue do
    return check_keys(client, queues[:1], fleet, channels=channels, shared=shared, read=False)


def check_keys(
    client: Client,
    queues: Sequence[Queue],
    fleet: FleetKeys | None = None,
    *,
    channels: Sequence[str] = (),
    shared: bool = False,
    read: bool = True,
) -> tuple[str, ...]:
    """Check slots, rights and types of all keys of these queues and of the cameras; returns as `check_rights`. Raises
    ConfigError.

    Rights come first, and all together: otherwise a missing right to read a type would be the only one reported.
    `shared` is True for a worker that shares cameras, `read` False for one that only publishes labels of cameras.
    """
    needs: dict[str, Sequence[str]] = {}
    types: dict[str, str] = {}
    for queue in queues:
        check_slots(client, queue.keys)
        needs |= queue.rights if read else queue.rights_of_cameras
        types |= queue.types
    if fleet:
        rights = fleet.rights if shared else fleet.rights_unshared
        check_slots(client, list(rights))
        needs |= {key: (*needs.get(key, ()), *commands) for key, commands in rights.items()}
        types |= fleet.types
    silent = check_rights(client, needs, channels=channels)
    check_types(client, {key: kind for key, kind in types.items() if key in needs})
    return silent


def check_slots(client: Client, keys: Sequence[str]) -> None:
    """Raises ConfigError if these keys of one queue lie in several slots of a cluster, where no script could run."""
    if not keys or not isinstance(client, Cluster):
        return
    first = keys[0]
    for key in keys[1:]:
        if client.slot_of([key]) != client.slot_of([first]):
            tag = "{" + first.replace("{", "").replace("}", "") + "}"
            raise ConfigError(
                f"the keys {first} and {key} lie in different slots of the cluster: give all names of one queue the "
                f"same hash tag, for example {tag}, {tag}:dead and {tag}:labels "
                "(queue.stream, queue.dead_stream, results.stream)"
            )


def check_rights(
    client: Client,
    needs: Mapping[str, Sequence[str]],
    *,
    channels: Sequence[str] = (),
    keyless: Sequence[str] = KEYLESS,
) -> tuple[str, ...]:
    """Check all rights at once. Raises ConfigError, which names all that are missing.

    needs     key -> commands on it ("XADD", "XGROUP|CREATE")
    keyless   commands without a key
    channels  Pub/Sub channels; those that the user may not publish to are returned, since they are worth only a warning

    No command runs: they wait in a MULTI that never ends, and most could do no harm anyway.
    """
    wanted = [(command, key) for key, commands in needs.items() for command in commands]
    lacking: dict[tuple[str, str], str] = {}
    silent: list[str] = []
    name = ""
    with calls("the rights of the Redis user cannot be checked", client):
        everywhere = [(command, "") for command in keyless] + [("PUBLISH", channel) for channel in channels]
        for pool, asked in _by_node(client, wanted).items():
            name, refused = _refused(pool, asked + everywhere)
            silent += [key for command, key in refused if command == "PUBLISH"]
            lacking |= {pair: text for pair, text in refused.items() if pair[0] != "PUBLISH"}
    if lacking:
        raise ConfigError(_lacks(name, lacking, list(needs)))
    return tuple(dict.fromkeys(silent))


def _by_node(client: Client, wanted: Sequence[tuple[str, str]]) -> dict[Any, list[tuple[str, str]]]:
    """The questions for each server: on a cluster each has its own users."""
    found: dict[Any, list[tuple[str, str]]] = {}
    for command, key in wanted:
        node = client.node_of(client.slot_of([key])) if isinstance(client, Cluster) else client
        found.setdefault(node.connection_pool, []).append((command, key))
    return found


def _refused(pool: Any, asked: Sequence[tuple[str, str]]) -> tuple[str, dict[tuple[str, str], str]]:
    """The user's name, and the server's answer for each command that this user may not run."""
    connection = pool.get_connection()
    try:
        name = _answers(connection, [("ACL", "WHOAMI")])[0]
        held = not isinstance(_answers(connection, [("MULTI",)])[0], ResponseError)
        asked = [pair for pair in asked if held or pair[0] not in IN_MULTI_ONLY]
        answers = _answers(connection, [_trial(command, key) for command, key in asked])
    finally:
        connection.disconnect()  # the server forgets the MULTI
        pool.release(connection)
    refused = {pair: str(answer) for pair, answer in zip(asked, answers, strict=True) if _is_refusal(answer)}
    return ("" if isinstance(name, Exception) else name.decode()), refused


def _trial(command: str, key: str) -> tuple[str, ...]:
    words = HARMLESS[command] if command in HARMLESS else IN_MULTI_ONLY[command]
    if command == "EVALSHA" and key:  # the server cannot know which keys a script writes: all must be writable
        words = (words[0], "1", "{}")
    return (*command.split("|"), *(word.replace("{}", key) for word in words))


def _answers(connection: Any, commands: Sequence[tuple[str, ...]]) -> list[Any]:
    """The answers in one round trip; an error of the server is an answer too."""
    connection.send_packed_command(connection.pack_commands(commands))
    answers: list[Any] = []
    for _ in commands:
        try:
            answers.append(connection.read_response())
        except ResponseError as error:
            answers.append(error)
    return answers


def _is_refusal(answer: object) -> bool:
    return isinstance(answer, NoPermissionError)


def _lacks(name: str, lacking: Mapping[tuple[str, str], str], keys: Sequence[str]) -> str:
    """One line: what is missing, and the ACL rules that give it."""
    named = [f"{command.replace('|', ' ')} on {key}" if key else command for command, key in lacking]
    if len(named) > MOST_NAMED:
        named[MOST_NAMED:] = [f"and {len(named) - MOST_NAMED} more"]
    rules: dict[str, None] = {}
    for (command, key), text in lacking.items():
        if "to run the" in text:
            rules[f"+{command.lower()}"] = None
        else:
            rules[f"~{min((stem for stem in keys if key.startswith(stem)), key=len)}*"] = None
    user = name or "NAME"
    return f"the Redis user {user} lacks: {', '.join(named)} (ACL SETUSER {user} {' '.join(sorted(rules))})"
