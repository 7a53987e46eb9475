from __future__ import annotations

import platform
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dropgen import memory

MIB = 2**20


def group(folder: Path, names: tuple[str, str], limit: str, used: int, idle: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{idle}\n")


V1, V2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")


def rooms(root: Path, lines: str) -> list[int]:
    (root / "membership").write_text(lines)
    return list(memory.group_room(root / "membership", root))


def test_the_limits_of_a_group_and_of_those_around_it_count_and_idle_file_pages_are_free(tmp_path: Path) -> None:
    group(tmp_path, V2, "max", 900 * MIB, "inactive_file 0")
    group(tmp_path / "pods", V2, str(500 * MIB), 100 * MIB, "inactive_file 0")
    group(tmp_path / "pods/one", V2, str(300 * MIB), 250 * MIB, f"inactive_file {200 * MIB}")
    assert rooms(tmp_path, "0::/pods/one\n") == [250 * MIB, 400 * MIB]


def test_version_1_is_read_beside_other_controllers_and_its_huge_number_is_no_limit(tmp_path: Path) -> None:
    group(tmp_path / "memory", V1, "9223372036854771712", 5 * MIB, "total_inactive_file 0")
    group(tmp_path / "memory/job", V1, str(64 * MIB), 16 * MIB, f"total_inactive_file {MIB}")
    assert rooms(tmp_path, "9:cpu,cpuacct:/job\n4:memory:/job\n0::/\n") == [49 * MIB]


def test_a_group_that_the_container_does_not_mount_is_asked_at_the_mounted_root(tmp_path: Path) -> None:
    group(tmp_path / "memory", V1, str(64 * MIB), 16 * MIB, "total_inactive_file 0")
    assert rooms(tmp_path, "4:memory:/docker/0123\n") == [48 * MIB]


def test_a_system_without_groups_has_no_such_limit(tmp_path: Path) -> None:
    assert list(memory.group_room(tmp_path / "missing", tmp_path)) == []


def test_the_tightest_limit_is_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    free = psutil.virtual_memory().available
    monkeypatch.setattr(memory, "group_room", lambda: iter([7 * MIB, 9 * MIB]))
    assert memory.available() == 7 * MIB
    monkeypatch.setattr(memory, "group_room", lambda: iter([2**62]))
    assert 0 < memory.available() < 2 * free


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_what_was_freed_below_a_block_in_use_goes_back_to_the_system() -> None:
    process = psutil.Process()
    blocks = [bytes([1]) * 4096 for _ in range(25_000)]
    kept, taken = blocks[-1], process.memory_info().rss
    blocks.clear()
    memory.give_back()
    assert process.memory_info().rss < taken - 50 * MIB
    assert len(kept) == 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_within_kept_a_large_block_is_made_of_pages_that_are_there_and_afterwards_they_are_given_back() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytearray(64 * MIB)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert faults() > 10_000
    process = psutil.Process()
    resident = process.memory_info().rss
    with memory.kept():
        with memory.kept():
            faults()
        assert faults() < 1000  # the inner block gave nothing back
    assert process.memory_info().rss < resident + 16 * MIB
    assert faults() > 10_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_with_one_arena_a_thread_keeps_its_large_blocks_too() -> None:
    program = """
import resource, threading
from dropgen import memory
memory.one_arena()
def work():
    with memory.kept():
        bytearray(2**28)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytearray(2**28)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000
