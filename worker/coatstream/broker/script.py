"""Lua that runs on the server, named by the hash of its text, so that workers of two releases run side by side."""

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from coatstream.broker.connection import Client

Argument = str | bytes | int | float


class Script:
    """One .lua file of the package, with the files `after` in front of it.

    name, after   paths in the package without the suffix: `queue/beat`, `broker/keys`
    """

    def __init__(self, name: str, *, after: Sequence[str] = ()) -> None:
        package = files("coatstream")
        self.source = "\n".join((package / f"{part}.lua").read_text("utf-8") for part in (*after, name))
        self.sha1 = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: Client, *, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run it in one round trip, or two if the server has forgotten it (restart, failover, SCRIPT FLUSH)."""
        try:
            return client.evalsha(self.sha1, len(keys), *keys, *args)
        except NoScriptError:
            return client.eval(self.source, len(keys), *keys, *args)

    def by_hash(self, keys: Sequence[str], args: Sequence[Argument]) -> tuple[Argument, ...]:
        """The command that runs it where the server knows it."""
        return ("EVALSHA", self.sha1, len(keys), *keys, *args)

    def by_text(self, keys: Sequence[str], args: Sequence[Argument]) -> tuple[Argument, ...]:
        """The command that runs it anywhere."""
        return ("EVAL", self.source, len(keys), *keys, *args)


def unix_seconds(moment: float) -> str:
    """A moment as a decimal number to the microsecond, never in exponent form."""
    return f"{moment:.6f}"
