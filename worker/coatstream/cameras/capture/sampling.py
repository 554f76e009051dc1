"""Which pictures of a stream are taken, and when: arithmetic on timestamps. Never reads a clock, never waits."""

_SLACK = 1e-6  # seconds: timestamps such as 150.00000000000003 ms must not shift the choice by one picture


class Sampler:
    """Takes `fps` pictures a second of a stream whose own rate is unknown, uneven or higher.

    Counts time, not pictures, so a camera's claimed rate does not matter. 10 of a 25 fps camera are 10 on average: a
    picture that came late does not delay the ones after it, but a silence is made up for by one extra at most.
    """

    def __init__(self, fps: float) -> None:
        self._period = 1 / fps if fps else 0.0
        self._due: float | None = None

    def is_due(self, at: float) -> bool:
        """Whether the picture of time `at` (seconds, from any origin) is taken. Call once a picture, in their order."""
        if not self._period:
            return True
        # A due time is at most one period ahead: further means that the timestamps began anew.
        if self._due is None or self._due - at > self._period + _SLACK:
            self._due = at
        if at < self._due - _SLACK:
            return False
        self._due = max(self._due + self._period, at - self._period / 2)
        return True


class Pacer:
    """Plays a file at its own speed: how long to wait until a picture of a given media time is to be shown."""

    def __init__(self, *, behind: float = 1.0, ahead: float = 10.0) -> None:
        self._behind = behind
        self._ahead = ahead
        self._origin: float | None = None

    def delay(self, media: float, now: float) -> float:
        """Seconds to wait, 0 or more. `media` is the picture's time in the file, `now` a monotonic clock's.

        Time begins anew at the first picture, and wherever the file's timestamps jump: more than `behind` seconds late
        (the reader was held up: no racing to catch up) or `ahead` seconds early.
        """
        delay = 0.0 if self._origin is None else self._origin + media - now
        if self._origin is None or not -self._behind <= delay <= self._ahead:
            self._origin, delay = now - media, 0.0
        return max(0.0, delay)


class BurstPacer:
    """Spreads out what comes in bursts, as the segments of HLS do: how long to wait until a picture is to be shown.

    Each picture follows the one before it as its media time says, so that samples are evenly spaced. One that comes
    late moves all after it. Playing is 2 % faster than the media time, which gives back the delay so gained and keeps
    up with a camera whose clock is fast. Only a picture that is more than `most` seconds late is not waited for, nor
    those after it, until they are in time again.

    A stream's own clock may jump: a step of the media time that is not in 0 to `gap` seconds counts as the last one.
    """

    def __init__(self, *, most: float = 15.0, gap: float = 10.0, speed: float = 1.02) -> None:
        self.media = 0.0  # seconds shown so far: the media time without its jumps
        self._most = most
        self._gap = gap
        self._speed = speed
        self._step = 0.04  # seconds: a guess until two pictures have come
        self._last: float | None = None  # media time
        self._due = 0.0  # when the last picture was to be shown
        self._racing = False

    def delay(self, media: float, now: float) -> float:
        """Seconds to wait, 0 or more. `media` is the picture's time in the stream, `now` a monotonic clock's."""
        if self._last is None:
            self._due = now
        else:
            step = media - self._last
            self._step = step if 0 < step <= self._gap else self._step
            self.media += self._step
            self._due += self._step / self._speed
        self._last = media
        wait = self._due - now
        self._racing = -wait > self._most or (self._racing and wait < 0)
        if wait < 0 and not self._racing:
            self._due = now
        return max(0.0, wait)
