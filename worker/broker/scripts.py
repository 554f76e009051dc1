"""Lua that runs on the server: named by the hash of its text, so that old and new workers live side by side."""

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from worker.broker.connection import Client


class Script:
    """One .lua file of this package; `after` are files that are put in front of it."""

    def __init__(self, name: str, *, after: Sequence[str] = ()) -> None:
        folder = files("worker.broker")
        self.source = "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in (*after, name))
        self._sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: Client, *, keys: Sequence[str], args: Sequence[str | bytes | int | float]) -> Any:
        """Run it in one round trip; two where the server has forgotten it (restart, failover, SCRIPT FLUSH)."""
        try:
            return client.evalsha(self._sha, len(keys), *keys, *args)
        except NoScriptError:
            return client.eval(self.source, len(keys), *keys, *args)
