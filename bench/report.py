"""Writes docs/performance.md and its plots from the benchmarks' JSON lines, and from nothing else.

    python -m bench report [--lines docs/performance.jsonl] [--docs docs]

`bench.collect` keeps the lines: of each run those of its last time, so the page can be written after any of them.
A figure that was not measured has no sentence, and its bar reads "not measured".
"""

from collections.abc import Callable
from pathlib import Path

from coatstream.errors import ConfigError

from bench.bars import Line, Results, bars_table, number, spread, table
from bench.gains import gains

ROOT = Path(__file__).parents[1]
MODELS = ("engine", "engine-lite0")  # runs, as the Makefile names them
KEYS_OF_ALL = {"run", "command", "date", "bench", "machine"}
VERSIONS = ("coatstream", "python", "torch", "timm", "openvino", "opencv", "numpy", "redis_py")

HEAD = """# How fast

Written by `python -m bench report` from [performance.jsonl](performance.jsonl), where `make bench` keeps its lines; not
edited by hand. [bench/README.md](../bench/README.md) explains each benchmark, its columns and its limits."""

READING = """## How to read the tables

A figure is the median of at least five rounds, with the lowest and the highest of them in brackets. Two things that are
compared were measured in turns in one run, and a ratio is taken round by round: on a shared machine ratios hold better
than figures. Weights are random where a table says so: speed does not depend on them, but a difference of probabilities
does, so read those only for real weights."""

LATENCY = """Below, frames arrive on an even schedule, whatever the worker does. A frame's time runs from the moment
when it was due until its label has arrived at the reader; `p99` is over the frames of all rounds.

![Labelled frames a second, and p50 and p99, against offered load](performance-load.svg)

{table}

![A frame's mean time by stage, at each load](performance-stages.svg)"""


PEERS = """The same pictures with the same weights through other servers, each at the best settings found, eager fp32 as
their users run it; `naive_b1` is a loop of OpenCV and timm. All gave the same five labels. `{command}`"""

TRIED = "Settings that were tried for them, in a short run each:"

BARS = """## Bars

What we set ourselves, and whether it is held on this machine. A bar that is missed stays here until it is held.

{}"""

# Run -> its title and what the table shows.
TITLES = {
    "host": (
        "The pipeline without a model",
        "The worker with an engine that does nothing (`noop`), beside two bare programs: a loop that only decodes and "
        "prepares the same pictures (`share`), and a consumer that reads, decodes, acknowledges and writes a label "
        "without any promise (`consumer share`). The smaller the picture, the less there is to decode, and the more of "
        "the time is the pipeline's own: for raw frames of the model's own size it is half. With a model it is a small "
        "part: it takes some 0.3 to 0.6 ms of processor time a frame, and the model some 25 ms.",
    ),
    "preparation": ("From bytes to pixels", ""),
    "queue": (
        "Settling, and an idle queue",
        "`settle_32`: settling 32 frames in one call of the script, beside a plain pipeline of XACK, XDEL and XADD; "
        "`_protocol`: the same with the documents built before. `latency_...`: one frame through an idle queue with "
        "the engine `noop`, beside a bare XADD and XREAD of the same entries.",
    ),
    "footprint": ("Start and memory", ""),
    "tags": (
        "Tags",
        "`places_...`: of 12 photos on 2 backgrounds, how many are found at the left, in the middle and at the right, "
        "by their height and the camera's view; a third input, of the middle, would find all 24 of full height there "
        "at three times the cost. `region_...`: of 12, by their area. `cuts`: seconds and shares at cuts of 3 s. "
        "`cost`: the whole of 16:9 over its middle.",
    ),
    "health": ("Picture health", "Rows that are printed, and how many of them missed their bar."),
}


def main(lines: Path = ROOT / "docs" / "performance.jsonl", docs: Path = ROOT / "docs") -> None:
    if not lines.exists():
        raise ConfigError(f"there is no {lines}: run make bench first")
    results = Results.read(lines)
    (docs / "performance.md").write_text(page(results), "utf-8")
    for name, drawn in plots(results).items():
        (docs / name).write_text(drawn, "utf-8")


def page(results: Results) -> str:
    """The whole of docs/performance.md."""
    parts = [
        HEAD,
        gains(results),
        READING,
        *(section(results) for section in SECTIONS),
        BARS.format(bars_table(results)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


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


# ---- other servers


def _peers(results: Results) -> str:
    """Each at its best settings first, then the settings that were tried."""
    shown = [line for line in results.of("peers") if "cpu_ms_per_frame" in line]
    if not shown:
        return ""
    heads = ("", "settings", "frames/s", "CPU ms a frame", "p50 at half load, ms", "p99, ms", "memory, MB", "start, s")
    names = ("frames_per_s", "cpu_ms_per_frame", "half_load_p50_ms", "half_load_p99_ms", "memory_mb", "start_s")
    rows = [(line["case"], line["setting"], *(spread(line, name) for name in names)) for line in shown]
    tried = [line for line in results.of("peers", "tried_*") if "frames_per_s" in line]
    settings = [(line["case"].removeprefix("tried_"), line["setting"], spread(line, "frames_per_s")) for line in tried]
    words = PEERS.format(command=shown[0]["command"])
    return "\n\n".join(
        ["## Other servers", words, table(heads, rows), TRIED, table(("", "settings", "frames/s"), settings)]
    )


# ---- other runs, as they are


def _others(results: Results) -> str:
    others = [run for run in results.runs() if run not in (*MODELS, "pipeline", "peers", "cameras")]
    parts = [(TITLES.get(run, (run.capitalize(), "")), _plain(results.of(run))) for run in others]
    return "\n\n".join("\n\n".join(filter(None, (f"## {title}", words, rows))) for (title, words), rows in parts)


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


SECTIONS: tuple[Callable[[Results], str], ...] = (_path, _engines, _peers, _others, _conditions)


# ---- plots


def plots(results: Results) -> dict[str, str]:
    """File name -> SVG, of what was measured."""
    from bench import performance_plots as drawing

    drawn = {}
    loads = _loads(results)
    if loads:
        drawn["performance-load.svg"] = drawing.load(loads, results.best("pipeline", "full_jpeg_1080p"))
    if staged := [line for line in loads if "mean_ms" in line]:
        drawn["performance-stages.svg"] = drawing.stages(staged)
    if best := [line for line in results.of(MODELS[0], "best_*") if "ratio" in line]:
        drawn["performance-limit.svg"] = drawing.limit(best)
    return drawn
