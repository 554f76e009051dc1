"""How many entries to ask for in one reply: one at first, then more, and fewer after a reply that was cut off.

A server closes a connection whose reply is over its bound (client-output-buffer-limit, maxmemory-clients), and the same
call again would end the same way.
"""

from typing import Final

MOST_CAUTION: Final = 64  # full replies between two attempts at larger ones


class ReplySize:
    """entries  to ask for now, 1 to `most`"""

    def __init__(self, most: int) -> None:
        self.entries = 1
        self._most = most
        self._caution = 0  # full replies before the next growth; doubles with each reply that is cut off
        self._wait = 0

    def arrived(self, came: int) -> None:
        """A reply with so many entries arrived. One with fewer than were asked for proves nothing."""
        if came < self.entries:
            return
        if self._wait:
            self._wait -= 1
            return
        self.entries = min(2 * self.entries, self._most)
        if self.entries == self._most:
            self._caution = 0

    def cut_off(self) -> None:
        """No reply arrived."""
        self.entries = max(1, self.entries // 2)
        self._caution = self._wait = min(2 * self._caution or 1, MOST_CAUTION)
