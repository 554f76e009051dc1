"""docs/performance.md and its plots are made of the benchmarks' lines alone; bench_lines.jsonl holds recorded ones."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

from bench import bars, report
from tests.support.absence import missing
from tests.support.paths import ROOT

RECORDED = Path(__file__).with_name("bench_lines.jsonl")


def changed(case: str, **values: object) -> list[dict[str, object]]:
    """The recorded lines with other values in one case."""
    lines = [json.loads(line) for line in RECORDED.read_text("utf-8").splitlines()]
    assert any(line.get("case") == case for line in lines)
    return [line | values if line.get("case") == case else line for line in lines]


def bar_row(page: str, what: str) -> list[str]:
    [row] = [line for line in page.splitlines() if line.startswith(f"| {what} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


# ---- the page


def test_every_bar_has_its_figure_with_spread_verdict_and_command() -> None:
    stats = {"ratio_to_one_stream": 2.9, "ratio_to_one_stream_min": 2.75, "ratio_to_one_stream_max": 3.1}
    lines = changed("best_fused_fp32", **stats)

    page = report.page(bars.Results(lines))

    _, bar, figure, held, command = bar_row(page, "fused fp32, times eager fp32 in a plain loop")
    assert (bar, figure, held) == ("at least 2.7", "2.9 (2.75 to 3.1)", "held")
    assert command.startswith("`coatstream bench engine")


def test_a_bar_that_is_not_kept_is_said_to_be_missed() -> None:
    lines = changed("load_50", p99_ms=200.0, bar_ms=150.0)

    page = report.page(bars.Results(lines))

    assert bar_row(page, "p99 at half load: two batches, max_wait, 10 ms")[1:4] == [
        "at most 150 ms",
        "200 ms",
        "**missed**",
    ]


def test_what_was_not_run_is_said_to_be_not_measured() -> None:
    page = report.page(bars.Results([]))

    assert bar_row(page, "process start to ready, warm caches")[2] == bars.NOT_MEASURED
    assert "## Redis to Redis" not in page


def test_shares_are_percent_and_the_best_engine_is_named() -> None:
    lines = changed("best_fused_bf16", ratio=99.0, share_of_bf16_limit=0.7)

    page = report.page(bars.Results(lines))

    assert bar_row(page, "its share of the bf16 limit")[2].endswith(", fused bf16")
    assert bar_row(page, "its share of the bf16 limit")[2].startswith("70 %")


def test_a_run_that_nobody_knows_is_a_table_of_its_own() -> None:
    line = {"run": "novel", "command": "novel --now", "date": "today", "ms": {"a": 1.5, "b": 1234.0}, "size": [2, 3]}

    page = report.page(bars.Results([line]))

    assert "## Novel" in page
    assert "| ms: a | 1.5 |" in page
    assert "| ms: b | 1,234 |" in page
    assert "| size | 2 x 3 |" in page
    assert "| novel | `novel --now` | today |" in page


def test_the_page_opens_with_what_a_user_gains_and_ends_with_the_bars() -> None:
    page = report.page(bars.Results(changed("load_50", p50_ms=12.5)))

    titles = [line for line in page.splitlines() if line.startswith("## ")]
    assert titles[0] == "## What you gain"
    assert titles[-1] == "## Bars"
    assert "**A label 12.5 ms after its frame was due**" in page


def test_the_page_in_docs_is_made_of_the_lines_beside_it() -> None:
    docs = ROOT / "docs"

    page = report.page(bars.Results.read(docs / "performance.jsonl"))

    assert (docs / "performance.md").read_text("utf-8") == page, "run: python bench/report.py"


# ---- the plots


def test_plots_are_whole_svg_with_their_words_and_the_same_for_the_same_lines() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        missing("matplotlib is not installed (the dependency group `bench`)")
    results = bars.Results.read(RECORDED)

    drawn = report.plots(results)

    assert drawn.keys() == {"performance-load.svg", "performance-stages.svg", "performance-limit.svg"}
    for name, wanted in (("load", "p99"), ("stages", "decode"), ("limit", "eager fp32")):
        root = ET.fromstring(drawn[f"performance-{name}.svg"])
        words = [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]
        assert any(wanted in text for text in words)
    assert report.plots(results) == drawn


# ---- keeping lines


def test_the_lines_of_a_run_take_the_place_of_its_last_ones_and_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "build" / "bench.jsonl"

    for name, said in (("a", '{"x": 1}'), ("b", '{"x": 2}'), ("a", 'words\n{"x": 3}\n[4]')):
        done = collect(file, name, f"print({said!r})")
        assert done.returncode == 0
        assert done.stdout.strip() == said

    kept = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [(line["run"], line["x"]) for line in kept] == [("b", 2), ("a", 3)]
    assert kept[0]["command"].startswith(f"{Path(sys.executable).name} -c ")
    assert kept[0]["date"].endswith("UTC")


def test_a_benchmark_that_fails_leaves_the_lines_of_its_last_run(tmp_path: Path) -> None:
    file = tmp_path / "bench.jsonl"
    collect(file, "a", "print('{\"x\": 1}')")

    failed = collect(file, "a", "print('{\"x\": 2}'); raise SystemExit(3)")

    assert failed.returncode == 3
    assert json.loads(file.read_text("utf-8"))["x"] == 1


def collect(file: Path, name: str, program: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bench.collect", str(file), name, "--", sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, cwd=ROOT)
