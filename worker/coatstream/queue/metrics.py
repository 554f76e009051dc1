"""Metrics of the queue: how full it is, and what happened to entries and their leases."""

from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge

QueueEvent = Literal["redelivered", "orphaned", "released", "leases_lost", "groups_made", "wrong_times", "no_memory"]

_EVENTS: Final[dict[QueueEvent, tuple[str, str]]] = {  # -> (metric, meaning)
    "redelivered": (
        "redelivered_frames",
        "Entries taken over from a worker that was silent, or that handed them back.",
    ),
    "orphaned": ("orphaned_frames", "Entries whose delivery never arrived here; they were handed back."),
    "released": ("released_frames", "Entries handed back unseen when this worker stopped."),
    "leases_lost": ("leases_lost", "Entries that went to another worker while this one held them."),
    "wrong_times": ("wrong_times", "Frames whose time cannot be right (queue.max_skew); they took the reading time."),
    "no_memory": ("returned_frames", "Entries handed back because there was no memory to decode their pictures."),
    "groups_made": ("groups_made", "Times that the consumer group was missing and was made again."),
}


class QueueMetrics:
    """Of all queues of one worker. Called from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = {
            event: Counter(f"coatstream_queue_{name}_total", meaning, registry=registry)
            for event, (name, meaning) in _EVENTS.items()
        }
        self.depth = _per_stream("queue_depth_frames", "Unfinished entries: waiting and in work.", registry)
        self.oldest = _per_stream("queue_oldest_age_seconds", "Age of the oldest unfinished entry.", registry)
        self.pending = _per_stream(
            "queue_pending_frames", "Entries that some worker has taken and not settled.", registry
        )
        self.trimmed = _per_stream(
            "queue_trimmed_frames", "Entries that vanished without an outcome: trimmed or deleted by others.", registry
        )
        self.stranded = _per_stream(
            "queue_stranded_frames",
            "Entries that were neither new nor in work when a worker found them; they were handed out.",
            registry,
        )
        self.clock_ahead = Gauge(
            "coatstream_clock_ahead_seconds", "This worker's clock minus the server's.", registry=registry
        )
        self.dead_letters = _per_stream("dead_letters", "Entries in the dead-letter stream.", registry)

    def count(self, event: QueueEvent, number: int) -> None:
        """So many entries, by what happened to them."""
        self._events[event].inc(number)


def _per_stream(name: str, meaning: str, registry: CollectorRegistry) -> Gauge:
    """All workers of a queue show the same figure: aggregate with max by (stream), not sum."""
    return Gauge(f"coatstream_{name}", meaning, ["stream"], registry=registry)
