"""The memory that may still be taken, read from files of the kernel."""

import pytest
import torch

from metatoolkit.training.available_memory import available_memory

CPU = torch.device("cpu")
MIB = 2**20


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text), "utf-8")


def machine(root, mebibytes=1000):
    lines = f"MemTotal:  99999999 kB\nMemAvailable:  {1024 * mebibytes} kB\nHugePages_Total: 0\n"
    write(root, {"proc/meminfo": lines})


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


def test_this_machine_has_some():
    assert available_memory(CPU) > MIB


def test_what_the_machine_has(tmp_path):
    assert available_memory(CPU, tmp_path) is None
    machine(tmp_path)
    assert available_memory(CPU, tmp_path) == 1000 * MIB
    write(tmp_path, {"proc/self/cgroup": "0::/\n"})
    assert available_memory(CPU, tmp_path) == 1000 * MIB


def group(root, folder, limit, used=0, cached=0, version=2):
    new = version == 2
    base = root / "sys/fs/cgroup" / ("" if new else "memory") / folder
    names = ("max", "current") if new else ("limit_in_bytes", "usage_in_bytes")
    cache = "inactive_file" if new else "total_inactive_file"
    amounts = dict(zip((f"memory.{name}" for name in names), (limit, used), strict=True))
    write(base, {**amounts, "memory.stat": f"anon 5\n{cache} {cached}\n"})


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_of_the_groups_is_the_limit(tmp_path, version):
    machine(tmp_path)
    line = "0::/a/b\n" if version == 2 else "3:cpu:/\n4:memory:/a/b\n"
    write(tmp_path, {"proc/self/cgroup": line})
    group(tmp_path, "", 900 * MIB, 100 * MIB, version=version)
    assert available_memory(CPU, tmp_path) == 800 * MIB
    group(tmp_path, "a", 500 * MIB, 300 * MIB, cached=50 * MIB, version=version)
    assert available_memory(CPU, tmp_path) == 250 * MIB
    group(tmp_path, "a/b", "max" if version == 2 else 2**63 - 4096, 5, version=version)
    assert available_memory(CPU, tmp_path) == 250 * MIB
    group(tmp_path, "a/b", 200 * MIB, 190 * MIB, version=version)
    assert available_memory(CPU, tmp_path) == 10 * MIB
    group(tmp_path, "a/b", 200 * MIB, 210 * MIB, version=version)
    assert available_memory(CPU, tmp_path) == 0


def test_a_container_sees_its_group_at_the_top(tmp_path):
    machine(tmp_path)
    write(tmp_path, {"proc/self/cgroup": "0::/docker/1234\n"})
    group(tmp_path, "", 300 * MIB)
    assert available_memory(CPU, tmp_path) == 300 * MIB


def test_processes_of_one_machine_share_it(tmp_path, monkeypatch):
    machine(tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_memory(CPU, tmp_path) == 250 * MIB


def test_a_gpu_has_what_is_free_or_held_without_use(monkeypatch):
    numbers = {"mem_get_info": (600, 1000), "memory_reserved": 300, "memory_allocated": 100}
    for name, value in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for processes, share in ((1, 800), (2, 800), (3, 400), (4, 400)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert available_memory(torch.device("cuda", 0)) == share
    assert available_memory(torch.device("meta")) is None
