# SPDX-License-Identifier: GPL-2.0-or-later
"""Why engine kvm cannot run: one line for each reason, on made-up devices. No KVM is needed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bt.cli import main as cli
from bt.engines import ENGINES
from bt.errors import InputError
from bt.kvm import abi, device
from bt.kvm.device import Device, Unusable, Vm
from bt.machine.ram import Ram


class FakeKvm:
    """Answers ioctl as a good KVM would; ``refuse`` maps a call to an errno."""

    def __init__(self) -> None:
        self.version = abi.KVM_API_VERSION
        self.lacks: set[int] = set()
        self.refuse: dict[int, int] = {}
        self.opened: list[int] = []

    def __call__(self, fd, call, argument=0):
        os.fstat(fd)        # a descriptor that is open
        if call in self.refuse:
            raise OSError(self.refuse[call], os.strerror(self.refuse[call]))
        if call == abi.KVM_GET_API_VERSION:
            return self.version
        if call == abi.KVM_CHECK_EXTENSION:
            return 0 if argument in self.lacks else 1
        if call in (abi.KVM_CREATE_VM, abi.KVM_CREATE_VCPU):
            fd = os.open(os.devnull, os.O_RDWR)
            self.opened.append(fd)
            return fd
        if call == abi.KVM_GET_VCPU_MMAP_SIZE:
            return 4096
        return 0

    def still_open(self) -> list[int]:
        return [fd for fd in self.opened if Path(f"/proc/self/fd/{fd}").exists()]


@pytest.fixture
def kvm(monkeypatch: pytest.MonkeyPatch) -> FakeKvm:
    fake = FakeKvm()
    monkeypatch.setattr(device, "ioctl", fake)
    monkeypatch.setattr(device, "DEVICE", os.devnull)
    monkeypatch.setattr(device.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(device, "map_page", lambda fd, size: bytearray(size))
    return fake


def why() -> str:
    return ENGINES["kvm"].open().unusable()


def test_a_good_one_is_usable(kvm: FakeKvm) -> None:
    assert why() is None
    assert kvm.opened and not kvm.still_open()


def test_no_device(kvm: FakeKvm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "DEVICE", str(tmp_path / "kvm"))
    assert why().startswith(f"there is no {tmp_path}/kvm (no KVM module is loaded")


@pytest.mark.parametrize(("number", "words"), [
    (errno.EACCES, "no permission for /dev/null (its group has it, often called kvm)"),
    (errno.EPERM, "no permission for /dev/null (its group has it, often called kvm)"),
    (errno.ENODEV, "/dev/null: No such device"), (errno.EMFILE, "Too many open files")])
def test_a_device_that_does_not_open(kvm, monkeypatch, number, words) -> None:
    def refuse(path, flags):
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(device.os, "open", refuse)
    assert words in why()


def test_another_processor(kvm: FakeKvm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.platform, "machine", lambda: "aarch64")
    assert why() == "it needs an x86-64 host, and this one is aarch64"


def test_a_device_that_is_no_kvm(kvm: FakeKvm) -> None:
    kvm.refuse[abi.KVM_GET_API_VERSION] = errno.ENOTTY
    assert why() == "/dev/null is not KVM: Inappropriate ioctl for device"


def test_another_version(kvm: FakeKvm) -> None:
    kvm.version = 13
    assert why() == "its interface has version 13, not 12"


@pytest.mark.parametrize("name", device.NEEDED)
def test_a_missing_capability(kvm: FakeKvm, name: str) -> None:
    kvm.lacks.add(device.NEEDED[name][0])
    assert name in why()


@pytest.mark.parametrize(("call", "number", "words"), [
    (abi.KVM_CREATE_VM, errno.EBUSY, "KVM will not make a machine: Device or resource busy"),
    (abi.KVM_CREATE_VCPU, errno.ENOMEM, "KVM will not make a vCPU: Cannot allocate memory"),
    (abi.KVM_SET_USER_MEMORY_REGION, errno.EEXIST, "does not take 1 MB of RAM at 0x0: File exists"),
])
def test_a_kvm_that_refuses(kvm: FakeKvm, call: int, number: int, words: str) -> None:
    kvm.refuse[call] = number
    assert words in why()
    assert not kvm.still_open()


def test_a_missing_tss_address_is_no_reason(kvm: FakeKvm) -> None:
    kvm.refuse[abi.KVM_SET_TSS_ADDR] = errno.EINVAL
    assert why() is None


def test_memory_is_given_in_regions(kvm: FakeKvm, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def ioctl(fd, call, argument=0):
        if call == abi.KVM_SET_USER_MEMORY_REGION:
            given.append(abi.MEMORY_REGION.unpack(argument))
        return kvm(fd, call, argument)

    monkeypatch.setattr(device, "ioctl", ioctl)
    ram = Ram(4 << 30, hole=True)
    vm = Vm(Device(), ram)
    assert [region[2:4] for region in given] == list(ram.regions)
    assert len({region[0] for region in given}) == 2
    assert {region[4] - region[2] for region in given} == {given[0][4]}    # one mapping
    vm.close()


def test_supported_cpuid_asks_for_more_room(kvm: FakeKvm, monkeypatch) -> None:
    asked = []

    def ioctl(fd, call, argument=0):
        if call != abi.KVM_GET_SUPPORTED_CPUID:
            return kvm(fd, call, argument)
        room, _ = abi.CPUID_HEAD.unpack_from(argument)
        asked.append(room)
        if room < 200:
            raise OSError(errno.E2BIG, "too many")
        abi.CPUID_HEAD.pack_into(argument, 0, 1, 0)
        abi.CPUID_ENTRY.pack_into(argument, abi.CPUID_HEAD.size, 7, 0, 1, 10, 11, 12, 13)
        return 0

    monkeypatch.setattr(device, "ioctl", ioctl)
    assert Device().supported_cpuid() == {(7, 0): (10, 11, 12, 13)}
    assert len(asked) == 2


def test_the_command_line_says_it_in_one_line(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(device, "DEVICE", str(tmp_path / "none"))
    assert cli.main(["run", "hello", "--engine", "kvm"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("bt: engine kvm cannot run here: there is no ")
    assert err.count("\n") == 1


def test_deterministic_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "hello", "--engine", "kvm", "--deterministic"]) == 2
    err = capsys.readouterr().err
    assert "cannot be --deterministic" in err and err.count("\n") == 1


def test_an_audit_is_refused() -> None:
    from bt.machine.machine import Machine
    with pytest.raises(InputError, match="audited"):
        Machine(engine="kvm", audit=True)


def test_unusable_is_bad_input() -> None:
    assert Unusable("x").exit_status == 2
