"""Writes docs/performance.md and its plots from the benchmarks' JSON lines, and from nothing else.

    python bench/report.py [--lines build/bench.jsonl] [--docs docs]

`bench/collect.py` keeps the lines: of each run those of its last time, so that a page can be written after any of them.
What was not run is said to be not measured.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bars import Line, Results, bars_table, number, spread, table

ROOT = Path(__file__).parents[1]
MODELS = ("engine", "engine-lite0")  # runs, as the Makefile names them
KEYS_OF_ALL = {"run", "command", "date", "bench", "machine"}
VERSIONS = ("coatstream", "python", "torch", "timm", "openvino", "opencv", "numpy", "redis_py")

HEAD = """# How fast, measured

Written by `python bench/report.py` from the lines that `make bench` keeps in `build/bench.jsonl`; not edited by hand.
What each figure means, and where it ends, is in [bench/README.md](../bench/README.md).

A figure is the median of at least five interleaved rounds, in brackets the least and the most of them. What is compared
was measured in turns in one run, and a ratio is taken round by round: on a shared machine ratios hold better than
figures."""

LATENCY = """Frames leave on an even schedule, whatever the worker does. A frame's time runs from when it was due to
when its label has arrived, and `p99` is over the frames of all rounds.

![Labelled frames a second, and p50 and p99, against offered load](performance-load.svg)

{table}

![A frame's mean time by stage, at each load](performance-stages.svg)"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--lines", type=Path, default=ROOT / "build" / "bench.jsonl")
    options.add_argument("--docs", type=Path, default=ROOT / "docs")
    chosen = options.parse_args()
    if not chosen.lines.exists():
        sys.exit(f"report: there is no {chosen.lines}: run make bench first")
    results = Results.read(chosen.lines)
    (chosen.docs / "performance.md").write_text(page(results), "utf-8")
    for name, drawn in plots(results).items():
        (chosen.docs / name).write_text(drawn, "utf-8")


def page(results: Results) -> str:
    """The whole of docs/performance.md."""
    parts = [HEAD, f"## Bars\n\n{bars_table(results)}"]
    parts += [text for section in SECTIONS if (text := section(results))]
    return "\n\n".join(parts) + "\n"


# ---- the model alone


def _engines(results: Results) -> str:
    models = [_model(results, run) for run in MODELS if results.best(run, "best_*")]
    return "\n\n".join(["## The model alone", *models]) if models else ""


def _model(results: Results, run: str) -> str:
    best = [line for line in results.of(run, "best_*") if "ratio" in line]
    first = best[0]
    gflop = number(first["gflop_per_frame"])
    words = f"`{first['model']}`, {first['weights']} weights, on {first['device']}, {gflop} GFLOP a picture:"
    plot = ["![Share of the machine's limit, by engine](performance-limit.svg)"] if run == MODELS[0] else []
    text = [words, *plot, _best(best), "Frames/s of all streams together, by batch size:", _survey(results, run)]
    return "\n\n".join([*text, *_left_out(results, run)])


def _best(best: list[Line]) -> str:
    heads = (
        *(
            "engine",
            "streams x threads, batch",
            "frames/s",
            "times eager fp32",
            "times eager in one stream",
            "times at batch 1",
            "ms a batch",
        ),
        *("of the fp32 limit", "of the bf16 limit", "probability off by", "same class", "with a core taken, keeps"),
    )
    rows = [
        (
            f"{line['engine']} {line['precision']}",
            f"{line['streams']} x {line['threads']}, {line['batch']}",
            *(
                spread(line, name)
                for name in ("frames_per_s", "ratio", "ratio_to_one_stream", "batch1_ratio", "ms_per_batch")
            ),
            *(spread(line, name, "%") for name in ("share_of_limit", "share_of_bf16_limit")),
            spread(line, "max_probability_difference"),
            _agreement(line),
            spread(line, "kept_when_busy", "%"),
        )
        for line in best
    ]
    return table(heads, rows)


def _agreement(line: Line) -> str:
    """Over the pictures of which eager is sure, where there are any."""
    if line.get("top1_agreement_sure") is not None:
        return f"{100 * line['top1_agreement_sure']:.1f} % of {line['sure']} sure"
    return f"{100 * line['top1_agreement']:.1f} % of {line['pictures']}" if "pictures" in line else ""


def _survey(results: Results, run: str) -> str:
    """A row per engine and layout, a column per batch size."""
    found = {
        (_side(line), line["batch"]): line
        for line in results.of(run)
        if "frames_per_s" in line and not line["case"].startswith("best_")
    }
    sides, sizes = sorted({side for side, _ in found}), sorted({size for _, size in found})
    rows = [(side, *(spread_short(found.get((side, size))) for size in sizes)) for side in sides]
    return table(("engine, streams x threads", *map(str, sizes)), rows)


def _side(line: Line) -> str:
    return f"{line['engine']} {line['precision']}, {line['streams']} x {line['threads']}"


def spread_short(line: Line | None) -> str:
    """The median alone; nothing for what was too slow to measure."""
    return number(line["frames_per_s"]) if line else ""


def _left_out(results: Results, run: str) -> list[str]:
    """Engines that could not be had; sizes that were too slow are no news."""
    absent = [line for line in results.of(run) if "left_out" in line and "_batch" not in line["case"]]
    return [f"{line['case']} was left out: {line['left_out']}." for line in absent]


# ---- the whole path


def _path(results: Results) -> str:
    full = results.of("pipeline", "full_*")
    if not full:
        return ""
    first = full[0]
    words = f"`{first['model']}`, {first['weights']} weights, {first['engine']} {first['precision']}"
    heads = (
        "frames",
        "worker, frames/s",
        "bare, frames/s",
        "share",
        "CPU ms a frame",
        "bare",
        "frames a batch",
        "bare",
    )
    rows = [
        (
            line["case"].removeprefix("full_"),
            *(spread(line, name) for name in ("frames_per_s", "bare_frames_per_s")),
            spread(line, "share", "%"),
            *(spread(line, name) for name in ("cpu_ms_per_frame", "bare_cpu_ms_per_frame", "batch", "bare_batch")),
        )
        for line in full
    ]
    loads = _loads(results)
    latency = [LATENCY.format(table=_latency(loads))] if loads else []
    intro = f"{words}, {first['streams']} streams, from a full queue; bare is the same decoding and engine alone:"
    return "\n\n".join(["## Redis to Redis", intro, table(heads, rows), *latency])


def _latency(loads: list[Line]) -> str:
    names = ("offered_per_s", "frames_per_s", "p50_ms", "p99_ms", "p99_of_rounds_ms", "batch_frames")
    heads = (
        "load",
        "offered, frames/s",
        "labelled, frames/s",
        "p50, ms",
        "p99, ms",
        "p99 of a round, ms",
        "frames a batch",
    )
    return table(heads, [(f"{100 * line['load']:.0f} %", *(spread(line, name) for name in names)) for line in loads])


def _loads(results: Results) -> list[Line]:
    return sorted(results.of("pipeline", "load_*"), key=lambda line: line["load"])


# ---- other runs, as they are


def _others(results: Results) -> str:
    others = [run for run in results.runs() if run not in (*MODELS, "pipeline", "cameras")]
    return "\n\n".join(f"## {run.capitalize()}\n\n{_plain(results.of(run))}" for run in others)


def _plain(lines: list[Line]) -> str:
    """A row per line, a column per figure, whatever it is called; what is the same in all is said before.

    One line alone stands upright.
    """
    names = list(dict.fromkeys(name for line in lines for name in line if name not in KEYS_OF_ALL))
    names = [name for name in names if not (name.endswith(("_min", "_max")) and name[:-4] in names)]
    if len(lines) == 1:
        upright = [(_words(name), _cell(lines[0], name)) for name in names]
        return f"`{lines[0]['command']}`\n\n{table(('', 'figure'), upright)}"
    texts = [name for name in names if all(isinstance(line.get(name), str) for line in lines) and name != "case"]
    same = [name for name in texts if len({line[name] for line in lines}) == 1]
    columns = [name for name in names if name not in same]
    rows = [[_cell(line, name) for name in columns] for line in lines]
    said = "".join(f"{_words(name)} {lines[0][name]}. " for name in same)
    return f"{said}`{lines[0]['command']}`\n\n{table([_words(name) for name in columns], rows)}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _cell(line: Line, name: str) -> str:
    value = line.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return spread(line, name)


# ---- when, where, with what


def _conditions(results: Results) -> str:
    heads = ("run", "command", "begun", "machine", "versions", "load before")
    return f"## Conditions\n\n{table(heads, [_condition(results.of(run)[0]) for run in results.runs()])}"


def _condition(line: Line) -> tuple[str, ...]:
    machine = line.get("machine", {})
    place = [machine[key] for key in ("cpu", "gpu", "os", "server") if machine.get(key)]
    cores = [f"{machine['cores']} cores"] if "cores" in machine else []
    versions = ", ".join(f"{key} {machine[key]}" for key in VERSIONS if machine.get(key))
    load = str(machine.get("load_1min", ""))
    return line["run"], f"`{line['command']}`", line["date"], ", ".join([*cores, *place]), versions, load


SECTIONS: tuple[Callable[[Results], str], ...] = (_engines, _path, _others, _conditions)


# ---- plots


def plots(results: Results) -> dict[str, str]:
    """File name -> SVG, of what was measured."""
    import performance_plots as drawing

    drawn = {}
    if loads := _loads(results):
        drawn["performance-load.svg"] = drawing.load(loads, results.best("pipeline", "full_jpeg_1080p"))
        drawn["performance-stages.svg"] = drawing.stages(loads)
    if best := [line for line in results.of(MODELS[0], "best_*") if "ratio" in line]:
        drawn["performance-limit.svg"] = drawing.limit(best)
    return drawn


if __name__ == "__main__":
    main()
