"""Every fault test with its two sizes: the quick one for the test suite, the full one for `python -m tests.faults`."""

from dataclasses import dataclass

from tests.faults import drains, kills, leases, outages, producers, replicas, replies, soak, torn
from tests.faults.cases import Case
from tests.faults.controls import Protocol
from tests.faults.kills import TICK
from tests.faults.servers import KINDS, VALKEY
from tests.faults.stage import MIN_IDLE

_BOTH = KINDS
_VALKEY = (VALKEY,)

CASES: tuple[Case, ...] = (
    Case(
        "F1",
        "SIGKILL at random",
        "lost 0, doubled 0, dead letters 0",
        kills.killed,
        quick={"frame_count": 5_000, "kills": 10, "whole": 2, "workers": 3},
        full={"frame_count": 100_000, "kills": 100, "whole": 20},
        quick_kinds=_BOTH,
    ),
    Case(
        "F2",
        f"kills, and batches stalled for {1.6:g} leases",
        "lost 0, doubled 0",
        kills.stalled,
        quick={"frame_count": 4_000, "kills": 2, "workers": 3},
        full={"frame_count": 40_000, "kills": 40},
        quick_kinds=_BOTH,
    ),
    Case(
        "F3",
        "2 % of replies lost",
        "lost 0, doubled 0",
        replies.lost_replies,
        quick={"frame_count": 4_000},
        full={"frame_count": 40_000, "workers": 4},
        quick_kinds=_BOTH,
    ),
    Case(
        "F4",
        "5 % of replies lost, leases of 30 s",
        "drained within 3 s: orphans do not wait for their lease",
        replies.orphans,
        quick={"frame_count": 2_000, "drained_within": 3.0},
        full={"frame_count": 8_000, "drained_within": 3.0},
    ),
    Case(
        "F5",
        "SIGSTOP past the lease, then SIGCONT",
        "lost 0, doubled 0",
        kills.frozen,
        quick={"frame_count": 2_000, "freezes": 3, "delay": 0.02},
        full={"frame_count": 20_000, "freezes": 12, "delay": 0.02},
    ),
    Case(
        "F6",
        "frames that kill the process",
        "a dead letter each, 0 innocent, at most 3 deaths each",
        kills.poisoned,
        quick={"frame_count": 600, "poison": 3},
        full={"frame_count": 6_000, "poison": 20},
        quick_kinds=_BOTH,
    ),
    Case(
        "F7",
        "rubbish among good frames",
        "a dead letter each, 0 restarts",
        producers.rubbish,
        quick={"frame_count": 300, "broken": 100},
        full={"frame_count": 3_000, "broken": 1_000},
    ),
    Case(
        "F8",
        "batches of 4 leases' length",
        "inferences = frames, delivered once each",
        leases.long_batches,
        quick={"frame_count": 8},
        full={"frame_count": 160},
    ),
    Case(
        "F9",
        "a model that never returns",
        f"done elsewhere once, within batch.timeout + lease + {TICK + 0.3:g} s; /healthz fails",
        leases.stuck,
        quick={"frame_count": 16},
        full={"frame_count": 64},
    ),
    Case(
        "F10",
        "50 idle frames behind 100 busy ones",
        "all 50 done within 2 ticks",
        leases.behind_busy_ones,
        quick={},
        full={},
    ),
    Case(
        "F11",
        "from SIGKILL to another worker's label",
        f"at most lease + tick + 0.3 s = {MIN_IDLE + TICK + 0.3:g} s",
        kills.recovered,
        quick={"kills": 3},
        full={"kills": 20},
    ),
    Case(
        "F12",
        "rolling restarts under load",
        "lost 0, longest latency 0.5 s, exit within a batch + 2 s, delivered once each",
        drains.rolling,
        quick={"stops": 2, "rate": 300.0, "pause": 0.3},
        full={"stops": 12, "rate": 2_500.0, "pause": 0.5},
    ),
    Case(
        "F13",
        "SIGTERM while the server is frozen",
        "exit within drain.timeout + 2 s, lost 0, doubled 0",
        drains.without_server,
        quick={"timeout": 1.0, "socket_timeout": 0.5, "frame_count": 100},
        full={"timeout": 10.0, "socket_timeout": 5.0, "frame_count": 2_000},
    ),
    Case(
        "F14",
        "append-only file cut at random bytes",
        "each frame is published or waiting, never both or neither",
        torn.cut,
        quick={"frame_count": 1_000, "cuts": 10},
        full={"frame_count": 4_000, "cuts": 200, "workers": 2},
    ),
    Case(
        "F15",
        "server killed and started again, fsync every second",
        "accepted and lost 0, resumed within 2 s, processor below 0.2 cores while down",
        outages.restarted,
        quick={"times": 1, "rate": 300.0, "down": 1.5, "fsync": "everysec"},
        full={"times": 4, "rate": 500.0, "workers": 2, "down": 5.0, "fsync": "everysec"},
    ),
    Case(
        "F15a",
        "the same, fsync always",
        "the same",
        outages.restarted,
        quick=None,
        full={"times": 4, "rate": 300.0, "workers": 2, "down": 5.0, "fsync": "always"},
    ),
    Case(
        "F16",
        "replica cut off for 1 s, then promoted",
        "accepted by WAIT and lost 0, doubled 0",
        replicas.promoted,
        quick={"rate": 300.0, "before": 0.4, "frozen": 1.0},
        full={"rate": 1_000.0, "workers": 2, "before": 5.0, "frozen": 1.0},
    ),
    Case(
        "F17",
        "Sentinel failover, primary killed",
        "accepted by WAIT and lost 0, resumed within 5 s",
        replicas.failed_over,
        quick={"rate": 300.0, "before": 0.4, "planned": False},
        full={"rate": 500.0, "workers": 2, "before": 5.0, "planned": False},
        kinds=_VALKEY,
    ),
    Case(
        "F17a",
        "Sentinel failover, planned",
        "the same",
        replicas.failed_over,
        quick={"rate": 300.0, "before": 0.4, "planned": True},
        full={"rate": 500.0, "workers": 2, "before": 5.0, "planned": True},
        kinds=_VALKEY,
    ),
    Case(
        "F18",
        "FLUSHALL, DEL, XGROUP DESTROY, RENAME",
        "group made again within 1 s and counted once, all later frames done",
        outages.emptied,
        quick={"frame_count": 200},
        full={"frame_count": 1_000},
    ),
    Case(
        "F19",
        "memory full",
        "drains to 0, a label each",
        outages.full,
        quick={"megabytes": 4},
        full={"megabytes": 64},
    ),
    Case(
        "F20",
        "a key of ours holds something else",
        "nothing settled, exit code 2, one line that names the key",
        outages.misnamed,
        quick={"frame_count": 50},
        full={"frame_count": 500},
    ),
    Case(
        "F21",
        "READONLY, NOREPLICAS, MISCONF, LOADING, WRONGPASS",
        "same process, not ready but healthy, at most 10 commands/s, resumed within 2 s",
        outages.refused,
        quick={"seconds": 3.0},
        full={"seconds": 5.0},
    ),
    Case(
        "F22",
        "SCRIPT FLUSH and CLIENT KILL every 0.2 s",
        "lost 0, doubled 0",
        replies.flushed,
        quick={"frame_count": 3_000, "seconds": 1.5, "delay": 0.05},
        full={"frame_count": 30_000, "seconds": 15.0, "delay": 0.05},
    ),
    Case(
        "F23",
        "password changed, the file follows",
        "lost 0, new connections within 5 s of the file",
        outages.rotated,
        quick={"rotations": 1, "frame_count": 60},
        full={"rotations": 4, "frame_count": 400},
    ),
    Case(
        "F24",
        "a producer that trims (MAXLEN)",
        "each frame that it deleted is counted, nothing left pending",
        producers.trimmed,
        quick={"frame_count": 1_500, "keep": 200, "metric": False},
        full={"frame_count": 20_000, "keep": 500},
    ),
    Case(
        "F25",
        "ten times too many frames, replies to the producer lost",
        "never above the cap; put = sent + refused; a label for each one sent, for none twice",
        producers.overloaded,
        quick={"frame_count": 2_000, "cap": 200},
        full={"frame_count": 50_000, "cap": 1_000},
    ),
    Case(
        "F26",
        "ten minutes with stragglers and kills",
        "server memory back within 2 %, consumers at most live + 1, worker memory flat",
        soak.soaked,
        quick=None,
        full={"seconds": 600.0, "rate": 300.0, "kills": 4},
        kinds=_VALKEY,
        full_limit=900.0,
    ),
    Case(
        "F27",
        "a reaper without patience",
        "lost 0, nothing stuck",
        leases.reaped,
        quick={"frame_count": 500},
        full={"frame_count": 10_000},
    ),
    Case(
        "F29",
        "cluster of three, kills",
        "lost 0, doubled 0",
        replicas.clustered,
        quick={"frame_count": 2_000, "kills": 3},
        full={"frame_count": 20_000, "kills": 20, "workers": 4},
        kinds=_VALKEY,
    ),
    Case(
        "F30",
        "all of it: kills, freezes, stalls, lost replies, cut connections, flushed scripts, poison",
        "lost 0, doubled 0, 0 innocent dead letters",
        kills.everything,
        quick={"frame_count": 3_000, "each": 2, "poison": 2},
        full={"frame_count": 20_000, "each": 8, "poison": 5},
        seeds=25,
    ),
)


@dataclass(frozen=True, slots=True)
class Control:
    """A bad protocol under the faults of a case, and the figure in which the harness must see that it is bad."""

    case: str
    protocol: Protocol
    size: dict[str, object]
    seen_in: str
    limit: float = 120.0  # seconds


CONTROLS: tuple[Control, ...] = (
    Control("F1", Protocol.ACK_FIRST, {"frame_count": 5_000, "kills": 10, "whole": 10}, "lost"),
    Control("F2", Protocol.PUBLISH_FIRST, {"frame_count": 4_000, "kills": 5}, "doubled"),
    Control("F2", Protocol.MULTI, {"frame_count": 4_000, "kills": 0}, "doubled"),
    Control("F3", Protocol.PIPELINE, {"frame_count": 4_000}, "doubled"),
    Control("F3", Protocol.MULTI, {"frame_count": 4_000}, "doubled"),
    Control("F6", Protocol.WHOLE_BATCH, {"frame_count": 600, "poison": 3}, "innocent dead letters"),
    Control("F14", Protocol.PIPELINE, {"frame_count": 1_000, "cuts": 30}, "frames half done"),
    Control("F19", Protocol.HEADER, {"megabytes": 4, "patience": 3.0}, "frames stuck"),
)


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)
