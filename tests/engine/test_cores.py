"""How many cores a process may use, under control groups as the kernel shows them."""

import os
from fractions import Fraction
from pathlib import Path

import pytest
from coatstream.engine.cores import cpu_quotas, usable_cores

V1 = "30 23 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
DISK = "29 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a large machine: else two cores would hide what a quota says."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)


def machine(root: Path, groups: str, mounts: str, limits: dict[str, str]) -> Path:
    """A file system whose kernel says this of its groups. `limits`: what the groups' files hold."""
    files = {"proc/self/cgroup": groups, "proc/self/mountinfo": DISK + mounts, **limits}
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode())
    return root


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("150000 100000", 2), ("50000 100000", 1), ("1000 100000", 1), ("max 100000", 64), ("", 64), ("x 0", 64)],
)
def test_a_containers_quota_bounds_the_cores(tmp_path: Path, quota: str, cores: int) -> None:
    root = machine(tmp_path, "0::/\n", V2, {"sys/fs/cgroup/cpu.max": quota + "\n"})

    assert usable_cores(root) == cores


def test_the_affinity_mask_bounds_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 7})
    root = machine(tmp_path, "0::/\n", V2, {"sys/fs/cgroup/cpu.max": "800000 100000\n"})

    assert usable_cores(root) == 3


def test_without_any_control_groups_every_core_may_be_used(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 64


def test_the_own_group_is_looked_up_and_not_the_root(tmp_path: Path) -> None:
    limits = {"sys/fs/cgroup/system.slice/coatstream.service/cpu.max": "400000 100000\n"}
    root = machine(tmp_path, "0::/system.slice/coatstream.service\n", V2, limits)

    assert usable_cores(root) == 4


def test_the_tightest_limit_of_all_groups_around_counts(tmp_path: Path) -> None:
    pod = "sys/fs/cgroup/kubepods.slice/pod7"
    limits = {f"{pod}/cpu.max": "300000 100000\n", f"{pod}/container/cpu.max": "max 100000\n"}
    limits["sys/fs/cgroup/kubepods.slice/cpu.max"] = "1600000 100000\n"
    root = machine(tmp_path, "0::/kubepods.slice/pod7/container\n", V2, limits)

    assert cpu_quotas(root) == [3, 16]
    assert usable_cores(root) == 3


def test_version_1_keeps_quota_and_period_in_two_files(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/cpu,cpuacct/docker/4f2a"
    limits = {f"{group}/cpu.cfs_quota_us": "250000\n", f"{group}/cpu.cfs_period_us": "100000\n"}
    limits |= {f"sys/fs/cgroup/cpu,cpuacct/{name}": "-1\n" for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")}
    root = machine(tmp_path, "5:memory:/elsewhere\n4:cpu,cpuacct:/docker/4f2a\n", V1, limits)

    assert cpu_quotas(root) == [Fraction(5, 2)]
    assert usable_cores(root) == 3


def test_a_container_of_version_1_that_knows_its_group_by_the_hosts_name(tmp_path: Path) -> None:
    mounts = "30 23 0:26 /docker/4f2a /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
    group = "sys/fs/cgroup/cpu,cpuacct"
    limits = {f"{group}/cpu.cfs_quota_us": "200000\n", f"{group}/cpu.cfs_period_us": "100000\n"}
    root = machine(tmp_path, "4:cpu,cpuacct:/docker/4f2a\n", mounts, limits)

    assert usable_cores(root) == 2


@pytest.mark.parametrize("group", ["/../../other", "/not/under/it"])
def test_a_group_that_the_mount_does_not_show_counts_from_where_the_mount_begins(tmp_path: Path, group: str) -> None:
    mounts = V2.replace(" / ", " / " if ".." in group else " /here ", 1)
    limits = {"sys/fs/cgroup/cpu.max": "200000 100000\n", "sys/other/cpu.max": "100000 100000\n"}
    root = machine(tmp_path, f"0::{group}\n", mounts, limits)

    assert usable_cores(root) == 2


def test_where_both_versions_are_mounted_the_one_that_has_the_controller_counts(tmp_path: Path) -> None:
    both = V1 + "31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    group = "sys/fs/cgroup/cpu,cpuacct/work"
    limits = {f"{group}/cpu.cfs_quota_us": "600000\n", f"{group}/cpu.cfs_period_us": "100000\n"}
    root = machine(tmp_path, "4:cpu,cpuacct:/work\n0::/work\n", both, limits)

    assert usable_cores(root) == 6


def test_a_mount_whose_name_has_a_space_is_found(tmp_path: Path) -> None:
    mounts = V2.replace("/sys/fs/cgroup ", "/sys/fs/control\\040groups ")
    root = machine(tmp_path, "0::/\n", mounts, {"sys/fs/control groups/cpu.max": "200000 100000\n"})

    assert usable_cores(root) == 2


@pytest.mark.parametrize("strange", ["a\rb", "a\x0cb", "a\x1cb", "a\u2028b", "a\u3000b", "a\xa0b"])
def test_another_mount_with_a_strange_name_hides_no_limit(tmp_path: Path, strange: str) -> None:
    # The kernel escapes no other blanks than space, tab and newline; Python splits lines and words at these, too.
    mounts = f"31 1 8:2 / /media/{strange} rw,relatime shared:2 - ext4 /dev/sdb1 rw\n" + V2
    root = machine(tmp_path, f"1:name=systemd:/{strange}\n0::/{strange}\n", mounts, {})
    (root / "sys/fs/cgroup" / strange).mkdir(parents=True)
    (root / "sys/fs/cgroup" / strange / "cpu.max").write_text("200000 100000\n")

    assert usable_cores(root) == 2


def test_lines_that_no_kernel_writes_set_no_limit(tmp_path: Path) -> None:
    root = machine(tmp_path, "nonsense\n", "nonsense\n", {"sys/fs/cgroup/cpu.max": "200000 100000\n"})

    assert usable_cores(root) == 64
