"""The sentences that docs/performance.md opens with: what a user gains, each with its figure and its command."""

from typing import Any

from bench.bars import Results, number

OPENING = """## What you gain

{gains}

Measured on {place}. The bars that we set ourselves, held or missed, are [at the end](#bars)."""


def gains(results: Results) -> str:
    """The page's first section, of what was measured; empty where nothing was."""
    said = [text for gain in (_speed, _delay, _cost, _start) if (text := gain(results))]
    if not said:
        return ""
    machine: dict[str, Any] = next(
        (line["machine"] for run in results.runs() for line in results.of(run) if "machine" in line), {}
    )
    parts = [f"{machine['cores']} cores" if "cores" in machine else "", machine.get("cpu"), machine.get("gpu")]
    return OPENING.format(gains="\n".join(said), place=", ".join(filter(None, parts)))


def _speed(results: Results) -> str:
    ours, loop, over, best = (
        results.best("peers", case) for case in ("coatstream", "naive_b1", "against_naive_b1", "against_*")
    )
    if not (ours and loop and over and best):
        return ""
    name = best["case"].removeprefix("against_")
    other = results.best("peers", name)
    return (
        f"- **{number(over['frames_ratio'])} times the frames of a loop of OpenCV and timm** on the same machine, with "
        f"the same five labels: {number(ours['frames_per_s'])} a second instead of {number(loop['frames_per_s'])}, at "
        f"{number(ours['cpu_ms_per_frame'])} ms of processor time a frame instead of "
        f"{number(loop['cpu_ms_per_frame'])}. The best other server tried, {name}, did "
        f"{number(other['frames_per_s'])} (`{ours['command']}`)."
    )


def _delay(results: Results) -> str:
    half = results.best("pipeline", "load_50")
    if not half:
        return ""
    return (
        f"- **A label {number(half['p50_ms'])} ms after its frame was due**, from Redis to Redis, JPEGs of 1080p at "
        f"half load; for one frame in a hundred it takes over {number(half['p99_ms'])} ms (`{half['command']}`)."
    )


def _cost(results: Results) -> str:
    large, medium = (results.best("pipeline", f"full_jpeg_{size}") for size in ("1080p", "720p"))
    if not (large and medium):
        return ""
    return (
        f"- **The promises cost a few percent**: reading, leases, batching, publishing and settling leave "
        f"{number(100 * large['share'])} % (1080p) and {number(100 * medium['share'])} % (720p) of what the same "
        f"decoding and the same engine do with nothing around them (`{large['command']}`)."
    )


def _start(results: Results) -> str:
    start, memory = results.best("footprint", "start"), results.best("footprint", "memory")
    if not (start and memory):
        return ""
    return (
        f"- **Ready {number(start['seconds_to_ready'])} s after its start**, once the first start has filled the "
        f"cache, and {number(memory['most_mb'])} MB at most over {number(memory['minutes'])} minutes of full load "
        f"(`{start['command']}`)."
    )
