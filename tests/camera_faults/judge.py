"""The verdicts on what was published: rates, gaps, owners, fences, tags. Functions of plain data; reads nothing."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from tests.camera_faults.streams import Label, TagEvent

LATE: Final = 1.5  # periods after which a label that was due is missing
PAUSE: Final = 1.0  # seconds without a label after which no worker has seen how a scene went on
WHOLE: Final = 2.5  # seconds of a scene after which its tag must be there and that of the other scene gone
BACK_AND_FORTH: Final = 1.0  # seconds: no camera is handed over twice in these


@dataclass(frozen=True, slots=True)
class Fences:
    """`fell`: labels with a lower number than the one before; `shared`: numbers that two workers used; `missing`:
    labels without one; `together`: labels whose picture was taken before one that an earlier owner published;
    `mingled`: how often a camera went to another worker and back within a second, whatever the numbers say.
    """

    fell: int
    shared: int
    missing: int
    together: int
    mingled: int


@dataclass(frozen=True, slots=True)
class Window:
    """A time in which a camera and its server were well, Unix seconds. It begins with a label."""

    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Story:
    """How tags started and ended. `twice`: started or ended again without the other between; `strange`: ends that tell
    of another start than the one before; `open`: not ended.
    """

    started: int
    ended: int
    twice: tuple[str, ...]
    strange: int
    open: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Scene:
    """A time in which a camera's labels without a pause were those of one tag, Unix seconds of capture."""

    camera: str
    tag: str
    begin: float
    end: float


def by_camera(labels: Iterable[Label]) -> dict[str, list[Label]]:
    found: dict[str, list[Label]] = defaultdict(list)
    for label in labels:
        found[label.camera].append(label)
    return dict(found)


def fences(labels: Sequence[Label]) -> Fences:
    """Whether two workers ever spoke for one camera, in the order of the stream."""
    fell = together = 0
    users: dict[tuple[str, int], set[str]] = defaultdict(set)
    for camera, some in by_camera(labels).items():
        newest, newest_picture, before = -1, 0.0, 0.0  # before: the last picture under an earlier number
        for label in some:
            if label.fence is None:
                continue
            users[camera, label.fence].add(label.worker)
            fell += label.fence < newest
            if label.fence > newest:
                newest, before = label.fence, newest_picture
            together += label.captured_at < before
            newest_picture = max(newest_picture, label.captured_at)
    shared = sum(len(workers) > 1 for workers in users.values())
    return Fences(fell, shared, sum(label.fence is None for label in labels), together, mingled(labels))


def mingled(labels: Iterable[Label]) -> int:
    """How often one camera's labels went to another worker and came back so soon that both must read it."""
    count = 0
    for some in by_camera(labels).values():
        last: dict[str, float] = {}  # worker -> moment of its last label
        for before, label in pairwise(some):
            last[before.worker] = before.added
            count += before.worker != label.worker and label.added - last.get(label.worker, 0.0) < BACK_AND_FORTH
    return count


def rate_share(labels: Sequence[Label], windows: Sequence[Window], fps: float, *, spare: float = 0.0) -> float | None:
    """One camera's labels over those that were due, by the times of capture; None: too little time to say.

    From label to label, so that where a window begins and ends within a period does not matter; but a silence at its
    end counts. `spare` frames more are due in each window: where too many are looked for, a first picture that came
    late on a busy machine, and the others in time behind it, do not count as a camera that runs too fast.
    """
    came = due = 0.0
    for window in windows:
        times = sorted(label.captured_at for label in labels if window.begin <= label.captured_at <= window.end)
        if not times:
            due += max(0.0, window.end - window.begin) * fps
            continue
        silent = window.end - times[-1]
        came += len(times) - 1
        due += (times[-1] - times[0] + (silent if silent > LATE / fps else 0.0)) * fps + spare
    return came / due if due >= fps else None


def longest_gap(labels: Sequence[Label], begin: float, end: float) -> float:
    """One camera's longest time without a label between two moments, both of which count as labels."""
    times = [begin, *sorted(label.added for label in labels if begin < label.added < end), end]
    return max(later - earlier for earlier, later in pairwise(times))


def owners(labels: Iterable[Label]) -> dict[str, int]:
    """Camera -> the process that published its last label among these."""
    return {label.camera: label.pid for label in labels}


def spread(owned: Mapping[str, int], pids: Iterable[int]) -> int:
    """By how many cameras the largest share is above the smallest, among these workers."""
    counts = Counter(owned.values())
    shares = [counts[pid] for pid in pids]
    return max(shares) - min(shares)


def first_elsewhere(
    labels: Iterable[Label], cameras: Iterable[str], left: int, since: float
) -> dict[str, float | None]:
    """Seconds until another worker than `left` labelled each of these cameras; None: no worker did."""
    found: dict[str, float | None] = dict.fromkeys(cameras)
    for label in labels:
        if found.get(label.camera, 0) is None and label.added >= since and label.pid != left:
            found[label.camera] = label.added - since
    return found


def slowest(times: Iterable[float | None]) -> float | None:
    """The longest of them; None if one never came to its end, or there is none."""
    some = list(times)
    known = [seconds for seconds in some if seconds is not None]
    return max(known) if known and len(known) == len(some) else None


def tag_story(events: Sequence[TagEvent]) -> Story:
    """Whether starts and ends alternate for each tag."""
    began: dict[tuple[str, str], object] = {}  # -> started_at
    twice: list[str] = []
    strange = 0
    for event in events:
        place = (event.camera, event.tag)
        if event.started == (place in began):
            twice.append(f"{event.tag} on {event.camera} {'started' if event.started else 'ended'} twice")
        if event.started:
            began[place] = event.detail.get("started_at")
        elif place in began:
            strange += began.pop(place) != event.detail.get("started_at")
    count = Counter(event.started for event in events)
    return Story(count[True], count[False], tuple(twice), strange, frozenset(began))


def scenes(labels: Iterable[Label], classes: Mapping[str, range]) -> list[Scene]:
    """What was seen, by the labels themselves. `classes`: those of each tag."""
    found: list[Scene] = []
    for camera, some in by_camera(labels).items():
        last: Scene | None = None
        for label in some:
            tag = next((name for name, indices in classes.items() if label.top in indices), "")
            if last is not None and last.tag == tag and label.captured_at - last.end < PAUSE:
                last = replace(last, end=label.captured_at)
                found[-1] = last
            else:
                last = Scene(camera, tag, label.captured_at, label.captured_at)
                found.append(last)
    return [scene for scene in found if scene.tag]


def untold(seen: Iterable[Scene], events: Sequence[TagEvent]) -> tuple[list[Scene], list[Scene]]:
    """Scenes that were long enough and had no tag, and those in which another scene's tag was still there."""
    spans: list[tuple[str, str, float, float]] = []
    for event in events:
        if event.started:
            spans.append((event.camera, event.tag, event.detail["started_at"], math.inf))
        else:
            place = (event.camera, event.tag, event.detail["started_at"])
            spans = [(*span[:3], event.detail["ended_at"]) if span[:3] == place else span for span in spans]
    lost, stuck = [], []
    for scene in seen:
        if scene.end - scene.begin >= WHOLE:
            there = {
                tag
                for camera, tag, begin, end in spans
                if camera == scene.camera and begin < scene.end <= end + WHOLE / 2
            }
            lost += [scene] if scene.tag not in there else []
            stuck += [scene] if there - {scene.tag} else []
    return lost, stuck
