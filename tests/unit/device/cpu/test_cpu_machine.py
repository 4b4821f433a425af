import platform
from pathlib import Path

import psutil
import pytest

from aegis_pipe.device.cpu.machine import Machine

KIB = 1024


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "cgroup" / "pod" / "job").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("1:name=x:/other\n0::/pod/job\n")
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:  1000 kB\nMemAvailable:   600 kB\n")
    return Machine(tmp_path / "proc", tmp_path / "cgroup")


def _limit(machine: Machine, group: str, limit: str, used: int, cached: int = 0) -> None:
    folder = machine.cgroups / group
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")


def test_without_limits(machine: Machine) -> None:
    _limit(machine, "pod/job", "max", 100)
    assert machine.memory_bytes == 1000 * KIB
    assert machine.available_bytes == 600 * KIB


def test_tightest_control_group_decides(machine: Machine) -> None:
    _limit(machine, "pod/job", str(500 * KIB), 100 * KIB, cached=50 * KIB)
    _limit(machine, "pod", str(700 * KIB), 650 * KIB)
    assert machine.memory_bytes == 500 * KIB
    assert machine.available_bytes == 50 * KIB
    _limit(machine, "pod", "max", 650 * KIB)
    assert machine.available_bytes == 450 * KIB


def test_more_used_than_allowed_leaves_nothing(machine: Machine) -> None:
    _limit(machine, "pod/job", "100", 200)
    assert machine.available_bytes == 0


def test_missing_files_are_no_error(tmp_path: Path) -> None:
    nothing = Machine(tmp_path / "none", tmp_path / "none")
    assert nothing.memory_bytes == psutil.virtual_memory().total
    assert nothing.available_bytes == nothing.memory_bytes
    assert nothing.processor == platform.machine()


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor\t: 0\nmodel\t\t: 17\nmodel name\t: Fast Chip 9\n", "Fast Chip 9"),
        ("processor\t: 0\nHardware\t: BCM\nModel\t\t: Small Board 5\n", "Small Board 5"),
    ],
)
def test_processor_name(machine: Machine, cpuinfo: str, name: str) -> None:
    (machine.proc / "cpuinfo").write_text(cpuinfo)
    assert machine.processor == name


def test_this_machine() -> None:
    machine = Machine()
    assert machine.core_count >= 1
    assert 0 < machine.available_bytes <= machine.memory_bytes
