"""Who this worker is: the consumer name in the group, and `worker` in each label."""

import os
import secrets
import socket


def worker_name() -> str:
    """host-pid-random: never a stable name, since two processes of one name would share a list of pending entries."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
