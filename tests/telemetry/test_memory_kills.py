"""Kills for want of memory, as the kernel counts them."""

from pathlib import Path

import pytest
from coatstream.telemetry.memory_kills import memory_kills


@pytest.mark.parametrize(
    ("own", "file"),
    [
        ("0::/kubepods/pod1", "kubepods/pod1/memory.events"),
        ("0::/", "memory.events"),
        ("0::/of/the/host", "memory.events"),  # a container that sees its own group as the root
        ("4:memory:/docker/1\n0::/", "memory/docker/1/memory.oom_control"),
        ("4:memory:/of/the/host\n0::/", "memory/memory.oom_control"),
    ],
)
def test_the_count_of_the_own_group_is_found_in_both_versions(tmp_path: Path, own: str, file: str) -> None:
    (tmp_path / "own").write_text(own)
    events = tmp_path / "groups" / file
    events.parent.mkdir(parents=True)
    events.write_text("low 0\nhigh 0\nmax 3\noom 2\noom_kill 5\n")

    assert memory_kills(tmp_path / "groups", tmp_path / "own") == 5


def test_a_kernel_that_does_not_tell_is_no_fault(tmp_path: Path) -> None:
    assert memory_kills(tmp_path, tmp_path / "missing") is None
