"""TCP ports for servers that a test starts."""

import socket

HOST = "127.0.0.1"


def free_port() -> int:
    """A port of the loopback address on which no process listened a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
