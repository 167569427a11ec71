# SPDX-License-Identifier: GPL-2.0-or-later
"""/dev/kvm: opening it, one machine with one vCPU, and one clear line when that cannot be had."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from contextlib import suppress
from fcntl import ioctl
from mmap import mmap as map_page

from bt.errors import InputError
from bt.kvm import abi
from bt.machine.ram import Ram

DEVICE = "/dev/kvm"
#: Without these there is no running a guest here. Name -> what for.
NEEDED = {
    "KVM_CAP_USER_MEMORY": (abi.KVM_CAP_USER_MEMORY, "guest memory of ours"),
    "KVM_CAP_EXT_CPUID": (abi.KVM_CAP_EXT_CPUID, "CPUID of our choice"),
    "KVM_CAP_IMMEDIATE_EXIT": (abi.KVM_CAP_IMMEDIATE_EXIT, "timers that are never late"),
}
#: Three pages that KVM needs for itself on old Intel processors, where no RAM and no device is
#: (api.rst, 4.35).
_TSS_ADDRESS = 0xFFFB_D000


class Unusable(InputError):
    """Why engine kvm cannot run here; one line."""

    def __init__(self, why: str) -> None:
        super().__init__(f"engine kvm cannot run here: {why}")
        self.why = why


def _open() -> int:
    """A descriptor of /dev/kvm. Raises Unusable."""
    if platform.machine() not in ("x86_64", "AMD64"):
        raise Unusable(f"it needs an x86-64 host, and this one is {platform.machine()}")
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Unusable(f"there is no {DEVICE} (no KVM module is loaded, or this is a machine or "
                       "container without one)") from None
    except PermissionError:
        raise Unusable(f"no permission for {DEVICE} (its group has it, often called kvm)") \
            from None
    except OSError as error:
        raise Unusable(f"{DEVICE}: {error.strerror}") from None


class Device:
    """/dev/kvm, opened and looked at. Raises Unusable."""

    def __init__(self) -> None:
        self.fd = _open()
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        try:
            version = ioctl(self.fd, abi.KVM_GET_API_VERSION, 0)
        except OSError as error:
            raise Unusable(f"{DEVICE} is not KVM: {error.strerror}") from None
        if version != abi.KVM_API_VERSION:
            raise Unusable(f"its interface has version {version}, not {abi.KVM_API_VERSION}")
        for name, (number, purpose) in NEEDED.items():
            if not self.has(number):
                raise Unusable(f"this KVM does not have {name} ({purpose})")

    def has(self, capability: int) -> bool:
        """Whether this KVM has a capability."""
        return ioctl(self.fd, abi.KVM_CHECK_EXTENSION, capability) > 0

    def supported_cpuid(self) -> dict[tuple[int, int], tuple[int, int, int, int]]:
        """{(leaf, subleaf): (EAX, EBX, ECX, EDX)} that this KVM and its processor can give."""
        room = 64
        while True:
            data = bytearray(abi.CPUID_HEAD.size + room * abi.CPUID_ENTRY.size)
            abi.CPUID_HEAD.pack_into(data, 0, room, 0)
            try:
                ioctl(self.fd, abi.KVM_GET_SUPPORTED_CPUID, data)
                break
            except OSError as error:
                if error.errno != errno.E2BIG or room > 4096:
                    raise Unusable(f"it does not say what its CPU can do: {error.strerror}") \
                        from None
                room *= 4
        count, _ = abi.CPUID_HEAD.unpack_from(data)
        found = {}
        for i in range(count):
            leaf, subleaf, _, *words = abi.CPUID_ENTRY.unpack_from(
                data, abi.CPUID_HEAD.size + i * abi.CPUID_ENTRY.size)
            found[leaf, subleaf] = tuple(words)
        return found

    def close(self) -> None:
        os.close(self.fd)


class Vm:
    """One virtual machine with ``ram`` and one vCPU: descriptors, and the page shared with it.

    ``run`` is that page (struct kvm_run). Raises Unusable.
    """

    def __init__(self, device: Device, ram: Ram) -> None:
        self._descriptors: list[int] = []
        try:
            self.fd = self._add(device.fd, abi.KVM_CREATE_VM, "make a machine")
            if not ram.contains(_TSS_ADDRESS, 1):
                # As a C int, which is what fcntl.ioctl takes. Not every KVM needs it; one that
                # does says so when the guest is entered.
                with suppress(OSError):
                    ioctl(self.fd, abi.KVM_SET_TSS_ADDR, _TSS_ADDRESS - (1 << 32))
            self._set_memory(ram)
            self.cpu = self._add(self.fd, abi.KVM_CREATE_VCPU, "make a vCPU")
            size = ioctl(device.fd, abi.KVM_GET_VCPU_MMAP_SIZE, 0)
            self.run = map_page(self.cpu, size)
        except BaseException:
            self.close()
            raise

    def _add(self, fd: int, call: int, purpose: str) -> int:
        try:
            made = ioctl(fd, call, 0)
        except OSError as error:
            # EBUSY: another hypervisor has the processor. ENOMEM, EMFILE, EINVAL: it says so.
            raise Unusable(f"KVM will not {purpose}: {error.strerror}") from None
        self._descriptors.append(made)
        return made

    def _set_memory(self, ram: Ram) -> None:
        # The only way in Python to the address of a mapping. The object keeps it mapped.
        self._pin = ctypes.c_char.from_buffer(ram.view)
        base = ctypes.addressof(self._pin)
        for slot, (start, length) in enumerate(ram.regions):
            try:
                ioctl(self.fd, abi.KVM_SET_USER_MEMORY_REGION,
                      abi.MEMORY_REGION.pack(slot, 0, start, length, base + start))
            except OSError as error:
                raise Unusable(f"KVM does not take {length >> 20} MB of RAM at {start:#x}: "
                               f"{error.strerror}") from None

    def enable(self, capability: int, argument: int) -> bool:
        """Turn a capability on; whether this KVM did."""
        try:
            ioctl(self.fd, abi.KVM_ENABLE_CAP, abi.ENABLE_CAP.pack(capability, 0, argument))
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Give back what the kernel holds for it. The RAM may be freed after that."""
        while self._descriptors:
            os.close(self._descriptors.pop())
