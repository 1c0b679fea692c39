"""What is found out about the machine."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from runtime.system import machine


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    return tmp_path / "cpuinfo"


X86 = "processor\t: {}\nvendor_id\t: GenuineIntel\nmodel\t\t: 143\nmodel name\t: Intel(R) Xeon(R) Platinum 8488C\n"
ARM = "processor\t: {}\nFeatures\t: fp\nCPU implementer\t: {}\nCPU variant\t: 0x0\nCPU part\t: {}\n"
JETSON = "processor\t: {}\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("\n".join(X86.format(core) for core in range(4)), "Intel(R) Xeon(R) Platinum 8488C"),
        ("\n".join(JETSON.format(core) for core in range(12)), "Cortex-A78AE"),
        (ARM.format(0, "0x41", "0xd83"), "Neoverse-V3AE"),
        (ARM.format(0, "0x4e", "0x004"), "Carmel"),
        (ARM.format(0, "0x41", "0xd08") + "\nHardware\t: BCM2711\nModel\t\t: Raspberry Pi 4\n", "Cortex-A72"),
        (
            "\n".join(ARM.format(core, "0x41", "0xd05" if core < 4 else "0xd0b") for core in range(8)),
            "Cortex-A55 + Cortex-A76",
        ),
        (ARM.format(0, "0x61", "0x022"), f"{platform.machine()} implementer 0x61 part 0x022"),
        ("processor\t: 0\nisa\t\t: rv64imafdc\n", platform.machine()),
        ("", platform.machine()),
    ],
)
def test_a_processor_is_named_by_its_model_or_its_cores(cpuinfo: Path, text: str, name: str) -> None:
    cpuinfo.write_text(text)
    assert machine.cpu_name() == name


def test_where_the_kernel_names_no_processor_its_kind_is_the_name(cpuinfo: Path) -> None:
    assert not cpuinfo.exists()
    assert machine.cpu_name() == platform.machine()


def test_a_board_is_what_its_device_tree_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_BOARD", tmp_path / "model")
    assert machine.board_name() is None
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    assert machine.board_name() == "NVIDIA Jetson AGX Orin Developer Kit"


@pytest.mark.parametrize(
    ("callers", "threads", "each"), [(1, None, None), (1, 3, 3), (2, 8, 4), (3, 8, 2), (16, 8, 1), (4, None, 2)]
)
def test_callers_share_the_threads_and_have_one_at_least(
    monkeypatch: pytest.MonkeyPatch, callers: int, threads: int | None, each: int | None
) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    assert machine.threads_per_caller(callers, threads) == each


def test_only_an_installed_package_has_a_version() -> None:
    assert machine.package_version("torch") == metadata.version("torch")
    assert machine.package_version("not-installed-anywhere") is None


def test_a_power_mode_is_what_nvpmodel_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert machine.power_mode() is None
    (tmp_path / "nvpmodel").write_text('#!/bin/sh\n[ "$1" = -q ] && printf "NV Power Mode: 15W\\n2\\n"\n')
    (tmp_path / "nvpmodel").chmod(0o755)
    assert machine.power_mode() == "NV Power Mode: 15W 2"


def test_a_program_that_fails_hangs_or_prints_nothing_has_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.command_output("no-such-program") is None
    assert machine.command_output("false") is None
    assert machine.command_output("true") is None
    assert machine.command_output("echo", "yes") == "yes"

    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("echo", 10)

    monkeypatch.setattr(subprocess, "run", hang)
    assert machine.command_output("echo", "yes") is None
