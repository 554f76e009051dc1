"""The benchmarks' lines, and the bars that their figures must keep to. Says so in words; draws and measures nothing."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

Line = dict[str, Any]

NOT_MEASURED = "not measured"


class Results:
    """The lines of all runs."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = [_flat(line) for line in lines]

    @classmethod
    def read(cls, file: Path) -> "Results":
        return cls(json.loads(line) for line in file.read_text("utf-8").splitlines() if line)

    def runs(self) -> list[str]:
        return list(dict.fromkeys(line["run"] for line in self._lines))

    def of(self, run: str, case: str = "*") -> list[Line]:
        """The lines of a run, of cases that match a pattern."""
        return [line for line in self._lines if line["run"] == run and fnmatch(str(line.get("case", "")), case)]

    def best(self, run: str, case: str) -> Line:
        """The line of a case, or an empty one. Of several that match the engine with the highest ratio, and the
        peer over which ours is the least.

        Cases that were left out have no figures.
        """
        found = [line for line in self.of(run, case) if "left_out" not in line]
        return max(found, key=lambda line: line.get("ratio", -line.get("frames_ratio", 0.0)), default={})


def _flat(line: Line) -> Line:
    """`{"ms": {"a": 1}}` becomes `{"ms: a": 1}`; a list becomes words. The machine stays as it is."""
    flat: Line = {}
    for name, value in line.items():
        if isinstance(value, dict) and name != "machine":
            flat |= {f"{name}: {inner}": one for inner, one in value.items()}
        else:
            flat[name] = " x ".join(map(str, value)) if isinstance(value, list) else value
    return flat


# ---- words


def number(value: float) -> str:
    """Three digits, and all of a larger whole number."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def spread(line: Line, name: str, unit: str = "") -> str:
    """`median (least to most)`, or the figure alone, or nothing; the unit `%` is of a share."""
    if line.get(name) is None:
        return ""
    scale = 100 if unit == "%" else 1
    text = f"{number(scale * line[name])} {unit}".rstrip()
    if f"{name}_min" not in line:
        return text
    return f"{text} ({number(scale * line[f'{name}_min'])} to {number(scale * line[f'{name}_max'])})"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


# ---- bars


@dataclass(frozen=True)
class Bar:
    """A bound for one figure of one line.

    case     a pattern; of several lines the best one counts
    sense    whether the figure has to be at least or at most the bound
    bound    a number, or the name of the figure of the same line that says it
    """

    what: str
    run: str
    case: str
    figure: str
    sense: Literal["at least", "at most"]
    bound: float | str
    unit: str = ""

    def row(self, results: Results) -> tuple[str, ...]:
        """what, bar, figure, whether it is held, command"""
        line = results.best(self.run, self.case)
        bound = line.get(self.bound) if isinstance(self.bound, str) else self.bound
        if line.get(self.figure) is None or bound is None:
            return self.what, self._words(bound), NOT_MEASURED, "", ""
        held = line[self.figure] >= bound if self.sense == "at least" else line[self.figure] <= bound
        shown = spread(line, self.figure, self.unit) + (f", {_name(line)}" if "*" in self.case else "")
        return self.what, self._words(bound), shown, "held" if held else "**missed**", f"`{line['command']}`"

    def _words(self, bound: float | None) -> str:
        return f"{self.sense} {spread({'bound': bound}, 'bound', self.unit)}" if bound is not None else ""


def _name(line: Line) -> str:
    return f"{line['engine']} {line['precision']}" if "engine" in line else str(line["case"]).replace("_", " ")


_BF16 = "best_*_bf16"
_PLAIN = "ratio_to_one_stream"  # one batch at a time on all cores, as whoever loops over timm's model runs it
_BARE_TORCH = "ratios: raw frame / bare torch call"
_PIL = "ratios: PIL + timm / JPEG, auto"

BARS = (
    Bar("fused fp32, times eager fp32 in a plain loop", "engine", "best_fused_fp32", _PLAIN, "at least", 2.7),
    Bar("... times eager fp32 with a stream a core", "engine", "best_fused_fp32", "ratio", "at least", 2.7),
    Bar("its probabilities, off by", "engine", "best_fused_fp32", "max_probability_difference", "at most", 1e-4),
    Bar("best engine in bf16, times eager fp32 in a plain loop", "engine", _BF16, _PLAIN, "at least", 5.5),
    Bar("... times eager fp32 with a stream a core", "engine", _BF16, "ratio", "at least", 5.5),
    Bar("its share of the bf16 limit", "engine", _BF16, "share_of_bf16_limit", "at least", 0.6, "%"),
    Bar("its batches of one, times eager fp32's", "engine", _BF16, "batch1_ratio", "at least", 5.0),
    Bar("what it keeps with one core taken", "engine", _BF16, "kept_when_busy", "at least", 0.75, "%"),
    Bar("Lite0, best engine, times eager fp32", "engine-lite0", "best_*", "ratio", "at least", 2.0),
    Bar("the same class where eager is sure", "engine-lite0", "best_*", "top1_agreement_sure", "at least", 0.995, "%"),
    Bar("1080p raw frame, times the bare torch call", "preparation", "", _BARE_TORCH, "at most", 1.15),
    Bar("1080p JPEG to pixels, times faster than PIL and timm", "preparation", "", _PIL, "at least", 4.5),
    Bar("host, 1080p JPEG, of the bare loop", "host", "jpeg_1080p", "share", "at least", 0.8, "%"),
    Bar("host, 720p JPEG, of the bare loop", "host", "jpeg_720p", "share", "at least", 0.8, "%"),
    Bar("host, raw 224 x 224, of a bare consumer", "host", "raw_224x224", "consumer_share", "at least", 0.7, "%"),
    Bar("host, small JPEG, of a bare consumer", "host", "jpeg_small", "consumer_share", "at least", 0.7, "%"),
    Bar("whole path, 1080p JPEG, of the bare work", "pipeline", "full_jpeg_1080p", "share", "at least", 0.95, "%"),
    Bar("whole path, 720p JPEG, of the bare work", "pipeline", "full_jpeg_720p", "share", "at least", 0.95, "%"),
    Bar("p99 at half load: two batches, max_wait, 10 ms", "pipeline", "load_50", "p99_ms", "at most", "bar_ms", "ms"),
    Bar("frames/s, times the best peer's", "peers", "against_*", "frames_ratio", "at least", 5.0),
    Bar("CPU time a frame, the best peer's over ours", "peers", "against_*", "cpu_ratio", "at least", 2.0),
    Bar("p99 at half load, the best peer's over ours", "peers", "against_*", "p99_ratio", "at least", 5.0),
    Bar("process start to ready, warm caches", "footprint", "start", "seconds_to_ready", "at most", 6.0, "s"),
    Bar("memory at 1080p, batch 32, full load", "footprint", "memory", "most_mb", "at most", 1000.0, "MB"),
    Bar("its growth", "footprint", "memory", "growth_mb_per_minute", "at most", 1.0, "MB a minute"),
    *(
        Bar(
            f"{place}, {height} of the height, view whole: of 24",
            "tags",
            f"places_{height}_whole",
            place,
            "at least",
            bound,
        )
        for height, bounds in (("100%", (23, 23, 23)), ("75%", (17, 10, 16)))
        for place, bound in zip(("left", "middle", "right"), bounds, strict=True)
    ),
    Bar("10 % of the area, in a region of 13 %: of 12", "tags", "region_10%", "found", "at least", 10),
    Bar("tags at cuts of 3 s: recall", "tags", "cuts", "recall", "at least", 0.86, "%"),
    Bar("... precision", "tags", "cuts", "precision", "at least", 0.89, "%"),
    Bar("... from the cut to the event of the start", "tags", "cuts", "said", "at most", 1.2, "s"),
    Bar("... from the cut to the event of the end", "tags", "cuts", "gone", "at most", 1.6, "s"),
    Bar("view whole over centre at 16:9: the engine's time", "tags", "cost", "engine", "at most", 2.1),
    Bar("... the camera's process, CPU time", "tags", "cost", "process", "at most", 1.2),
    Bar("picture health: bars missed", "health", "all", "missed", "at most", 0),
)


def bars_table(results: Results) -> str:
    return table(("what", "bar", "figure", "", "command"), [bar.row(results) for bar in BARS])
