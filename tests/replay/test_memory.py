"""Available memory from written-out kernel files; the refusal is one line with all its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from qfleet.errors import ConfigError
from qfleet.replay.memory import available_memory, check_memory

MIB = 1 << 20


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def machine(tmp_path):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", f"MemTotal: {99 * 1024} kB\nMemAvailable: {50 * 1024} kB\n")
    return proc, cgroups


def test_without_control_groups_the_machine_decides(machine):
    assert available_memory(*machine) == 50 * MIB


def test_version_2_counts_ancestors_and_gives_back_idle_cache(machine):
    proc, cgroups = machine
    write(proc / "self/cgroup", "0::/job/step\n")
    write(cgroups / "job/step/memory.max", "max\n")
    write(cgroups / "job/memory.max", str(40 * MIB))
    write(cgroups / "job/memory.current", str(30 * MIB))
    write(cgroups / "job/memory.stat", f"anon 99\ninactive_file {5 * MIB}\nactive_file 99\n")
    assert available_memory(proc, cgroups) == 15 * MIB


def test_version_1_reads_the_memory_controller_only(machine):
    proc, cgroups = machine
    write(proc / "self/cgroup", "5:cpu:/job\n4:memory:/job\n")
    write(cgroups / "cpu/job/memory.limit_in_bytes", "1")  # a decoy
    write(cgroups / "memory/job/memory.limit_in_bytes", str(20 * MIB))
    write(cgroups / "memory/job/memory.usage_in_bytes", str(8 * MIB))
    write(cgroups / "memory/job/memory.stat", f"inactive_file 99\ntotal_inactive_file {MIB}\n")
    assert available_memory(proc, cgroups) == 13 * MIB


def test_version_1_writes_no_limit_as_a_huge_number(machine):
    proc, cgroups = machine
    write(proc / "self/cgroup", "4:memory:/\n")
    write(cgroups / "memory/memory.limit_in_bytes", "9223372036854771712")
    write(cgroups / "memory/memory.usage_in_bytes", "1")
    assert available_memory(proc, cgroups) == 50 * MIB


def test_inside_a_container_the_mounted_root_is_read(machine):
    proc, cgroups = machine
    write(proc / "self/cgroup", "0::/not/visible/here\n")
    write(cgroups / "memory.max", str(10 * MIB))
    write(cgroups / "memory.current", str(12 * MIB))
    assert available_memory(proc, cgroups) == 0


def test_refusal_says_what_is_asked_what_there_is_and_what_would_fit():
    with pytest.raises(ConfigError) as raised:
        check_memory(1000, 200 * MIB, available=100 * MIB)
    assert str(raised.value) == (
        "replay.capacity: 1000 transitions take 200 MiB when full, but 100 MiB are available; at most 450 would fit"
    )
    check_memory(1000, 100 * MIB, available=100 * MIB)


def test_this_machine_has_memory():
    room = available_memory()
    assert room is not None
    assert room > 0
