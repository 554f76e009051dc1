"""Logs: JSON for machines, lines for people, never a credential."""

import json
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog
from coatstream.settings.model import LogSettings
from coatstream.telemetry import logs


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """What is configured here writes to this test's own stderr, which ends with it."""
    yield
    structlog.reset_defaults()


def test_json_lines_go_to_stderr_without_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(format="json"))

    structlog.get_logger("x").info("lost rtsp://a:hunter2@cam/1", url="redis://:hunter2@host", number=3)

    captured = capsys.readouterr()
    entry = json.loads(captured.err)
    assert captured.out == ""
    assert "hunter2" not in captured.err
    assert (entry["number"], entry["level"]) == (3, "info")


def test_the_level_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(level="warning", format="json"))

    structlog.get_logger("x").info("quiet")
    structlog.get_logger("x").warning("loud")

    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["loud"]


def test_people_get_lines_that_are_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(format="console"))

    structlog.get_logger("x").info("ready", port=8080)

    text = capsys.readouterr().err
    assert "ready" in text
    assert "8080" in text
    assert not text.startswith("{")
    assert sys.stderr is not None


def test_a_kind_of_line_that_libraries_repeat_is_logged_once_a_second_with_the_number_left_out() -> None:
    now = 0.0
    throttle = logs.Throttle(monotonic=lambda: now)

    def passes(text: str, number: int) -> str | None:
        record = logging.LogRecord("asyncio", logging.ERROR, "base_events.py", 7, text, (number,), None)
        return record.getMessage() if throttle.filter(record) else None

    first = [passes("socket.accept() out of system resource: %d", number) for number in range(1000)]
    other = passes("a task was destroyed: %d", 1)
    now = 1.5
    later = passes("socket.accept() out of system resource: %d", 1000)

    assert [line for line in first if line] == ["socket.accept() out of system resource: 0"]
    assert other == "a task was destroyed: 1"
    assert later == "socket.accept() out of system resource: 1000 (and 999 more like it)"
