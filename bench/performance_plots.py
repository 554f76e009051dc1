"""The plots of docs/performance.md, as SVG: lines of a benchmark in, a picture out. Readable on light and on dark."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
from matplotlib.figure import Figure

Line = dict[str, Any]

WHISKERS: dict[str, Any] = {"elinewidth": 1, "capsize": 2}
GREY = "#76808b"  # text and axes: a contrast of 4 and more on white as on GitHub's dark grey
FAINT = "#76808b55"
BLUE, ORANGE, GREEN, PURPLE, SKY = "#2f81c7", "#d9822b", "#2a9d78", "#b05fa0", "#6fb1de"
STAGES = (  # in the order in which a frame passes them
    ("decode_ms", "decode", BLUE),
    ("prepare_ms", "resize", SKY),
    ("wait_ms", "wait for the engine", FAINT),
    ("infer_ms", "model (the whole batch)", ORANGE),
    ("publish_ms", "publish and settle (the whole batch)", GREEN),
)

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "coatstream",
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}


def load(loads: Sequence[Line], full: Line) -> str:
    """Labels a second, and p50 and p99, against what was offered."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 5.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        offered = [line["offered_per_s"] for line in loads]
        most = 1.05 * max(offered)
        above.plot([0, most], [0, most], color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="all that was offered")
        _with_spread(above, offered, loads, "frames_per_s", BLUE, "labelled")
        if full.get("frames_per_s") is not None:
            above.axhline(full["frames_per_s"], color=GREEN, linewidth=1, label="from a full queue")
        above.set(ylabel="frames/s", ylim=(0, None), title="Labelled against offered load")
        above.legend(loc="lower right")
        _with_spread(below, offered, loads, "p50_ms", BLUE, "p50")
        below.plot(offered, [line["p99_ms"] for line in loads], color=ORANGE, marker="o", markersize=4, label="p99")
        for line in loads:
            if line.get("bar_ms") is not None:
                below.plot(line["offered_per_s"], line["bar_ms"], color=PURPLE, marker="_", markersize=18, linestyle="")
                below.annotate(
                    f"bar of p99: {line['bar_ms']:.0f} ms",
                    (line["offered_per_s"], line["bar_ms"]),
                    xytext=(0, 6),
                    textcoords="offset points",
                    ha="center",
                    color=PURPLE,
                )
        below.set(yscale="log", xlabel="offered, frames/s", ylabel="ms (log)", xlim=(0, most))
        below.set_title("From when a frame was due to its label")
        below.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        below.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        below.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        below.legend(loc="upper left")
        return _svg(figure)


def _with_spread(axes: Any, x: Sequence[float], lines: Sequence[Line], name: str, color: str, label: str) -> None:
    """A line through the medians; the rounds' least and most as whiskers."""
    middle = [line[name] for line in lines]
    below = [line[name] - line[f"{name}_min"] for line in lines]
    above = [line[f"{name}_max"] - line[name] for line in lines]
    axes.errorbar(
        x, middle, (below, above), color=color, marker="o", markersize=4, elinewidth=1, capsize=2, label=label
    )


def stages(loads: Sequence[Line]) -> str:
    """A frame's mean time by stage, a bar for each load; what lies between the stages is the rest.

    At full load and above it is the queue that takes the time, and its length is the run's.
    """
    shown = [line for line in loads if line["load"] < 1]
    with mpl.rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=(7.2, 1.5 + 0.42 * len(shown)), layout="constrained")
        axes = figure.subplots()
        names = [f"{100 * line['load']:.0f} %" for line in shown]
        left = [0.0] * len(shown)
        for key, name, color in STAGES:
            widths = [line.get(key, 0.0) for line in shown]
            axes.barh(names, widths, left=left, height=0.62, color=color, label=name, edgecolor=GREY, linewidth=0.4)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        rest = [max(0.0, line["mean_ms"] - so_far) for line, so_far in zip(shown, left, strict=True)]
        axes.barh(
            names, rest, left=left, height=0.62, color=PURPLE, label="reading, queues, the label's way", linewidth=0.4
        )
        axes.set(xlabel="ms of a frame, mean", ylabel="offered load", title="Where a frame's time goes")
        axes.invert_yaxis()
        figure.legend(loc="outside lower center", ncols=3, fontsize=9)
        return _svg(figure)


def limit(best: Sequence[Line]) -> str:
    """Each engine's best case as a share of what matrix products reach in its own precision."""
    with mpl.rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=(7.2, 1.2 + 0.42 * len(best)), layout="constrained")
        axes = figure.subplots()
        names = [f"{line['engine']} {line['precision']}" for line in best]
        keys = ["share_of_limit" if line["precision"] == "fp32" else "share_of_bf16_limit" for line in best]
        low, middle, high = (
            [100 * (line.get(key + end) or 0.0) for line, key in zip(best, keys, strict=True)]
            for end in ("_min", "", "_max")
        )
        around = [[b - a for a, b in zip(low, middle, strict=True)], [b - a for a, b in zip(middle, high, strict=True)]]
        colors = [BLUE if line["precision"] == "fp32" else ORANGE for line in best]
        axes.barh(names, middle, xerr=around, height=0.62, color=colors, error_kw={"ecolor": GREY, **WHISKERS})
        for row, (line, end) in enumerate(zip(best, high, strict=True)):
            words = f"{line['frames_per_s']:.0f} frames/s, {line['ratio']:.1f} x eager fp32"
            axes.annotate(words, (end, row), xytext=(6, 0), textcoords="offset points", va="center")
        axes.set(
            xlim=(0, max(100.0, *high)),
            xlabel="% of the matrix products' rate in the same precision (blue fp32, orange bf16)",
        )
        axes.set_title("How much of the machine the model reaches")
        axes.invert_yaxis()
        return _svg(figure)


def _svg(figure: Figure) -> str:
    """Without a date, so that the same lines give the same file."""
    out = io.StringIO()
    figure.savefig(
        out, format="svg", transparent=True, metadata={"Date": None, "Creator": "bench/performance_plots.py"}
    )
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
