"""How large a look at the socket should be: processor time to read a picture, by `socket_read_size`.

    python -m bench read-size

A line for each size of picture: microseconds of the reading thread a picture, median of rounds in turns.
"""

import json
import time
from collections.abc import Mapping
from statistics import median
from typing import Final

import redis
from coatstream.broker.embedded import embedded_server

PICTURES: Final = {"jpeg_small": 12_000, "jpeg_1080p": 132_000, "raw_224x224": 150_528}  # bytes
READ_SIZES: Final = tuple(1024 * kib for kib in (64, 128, 256, 512, 1024))
TOGETHER: Final = 16  # pictures in a reply
REPLIES, ROUNDS = 40, 15


def main() -> None:
    with embedded_server() as server:
        clients = {size: redis.Redis.from_url(server.url, protocol=2, socket_read_size=size) for size in READ_SIZES}
        for name, size in PICTURES.items():
            clients[READ_SIZES[0]].flushall()
            for _ in range(TOGETHER):
                clients[READ_SIZES[0]].xadd("frames", {"image": bytes(size)})
            print(json.dumps({"picture": name, "bytes": size, "us_by_read_size": _measured(clients)}))


def _measured(clients: "Mapping[int, redis.Redis]") -> dict[int, float]:
    rounds = [{size: _microseconds(client) for size, client in clients.items()} for _ in range(ROUNDS)]
    return {size: round(median(one[size] for one in rounds), 1) for size in clients}


def _microseconds(client: "redis.Redis") -> float:
    began = time.thread_time()
    for _ in range(REPLIES):
        client.xrange("frames")
    return (time.thread_time() - began) * 1e6 / REPLIES / TOGETHER
