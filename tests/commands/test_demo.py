"""`coatstream demo`: the main job with nothing else installed, and what it says at the end."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from coatstream.commands.demo_view import nearest_rank, summary
from coatstream.errors import DeadReason
from coatstream.telemetry.ledger import Account, DropReason

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("COATSTREAM_")}
OFFLINE = CLEAN | {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": "/nonexistent"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_labels_a_camera_and_the_queue_and_its_ledger_balances() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "coatstream", "demo", "--seconds", "15"],
        env=OFFLINE,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "tf_efficientnet_lite0" in lines[0]
    assert any("cockatoo" in line for line in lines)
    assert any("tiger cat" in line for line in lines)
    assert "the model hub cannot be reached" in done.stderr
    warnings = [line for line in done.stderr.splitlines() if "slower than at an earlier start" not in line]
    assert len(warnings) == 1  # a busy machine says the other one
    assert re.search(r"the page: http://127\.0\.0\.1:\d+; it ends after 15 s", lines[0])
    received, published, in_flight = (
        int(re.search(rf"{word} (\d+)", lines[-1])[1])  # type: ignore[index]
        for word in ("received", "published", "in flight")
    )
    dropped = sum(int(count) for count in re.findall(r"(\d+) replaced", lines[-1]))
    assert received == published + dropped
    assert in_flight == 0
    assert published >= 3  # a photo a second; how many of the clip's frames join them is the machine's affair
    assert "p99" in lines[-1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_a_terminal_a_table_is_shown_and_ctrl_c_ends_it_with_0() -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "coatstream", "demo", "--set", "model.engine=noop"],
        env=CLEAN | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    seen = b""
    deadline = time.monotonic() + 150
    while b"cockatoo" not in seen and time.monotonic() < deadline:
        seen += _read(master)
    process.send_signal(signal.SIGINT)
    while process.poll() is None and time.monotonic() < deadline:
        seen += _read(master)
    seen += _read(master)
    os.close(master)

    assert process.returncode == 0
    assert b"cockatoo" in seen
    assert b"received" in seen


def _read(terminal: int) -> bytes:
    if not select.select([terminal], [], [], 0.1)[0]:
        return b""
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other side is closed
        return b""


def test_the_summary_names_every_reason() -> None:
    account = Account(received=10, published=6)
    account.dropped.update({DropReason.REPLACED: 2, DropReason.EXPIRED: 1})
    account.dead.update({DeadReason.UNDECODABLE: 1})

    text = summary(account, [0.010, 0.020, 0.030, 0.100], seconds=2.0)

    assert text == (
        "received 10, published 6, dropped 1 expired, 2 replaced, dead 1, in flight 0; 3.0 frames/s; "
        "age at publication p50 20 ms, p99 100 ms"
    )


def test_percentiles_are_of_the_nearest_rank() -> None:
    values = [float(number) for number in range(1, 101)]

    assert [nearest_rank(values, percent) for percent in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert nearest_rank([7.0], 50) == 7.0
