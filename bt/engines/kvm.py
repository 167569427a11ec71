# SPDX-License-Identifier: GPL-2.0-or-later
"""Engine kvm: the processor of the host, by way of its /dev/kvm (bt/kvm)."""

from __future__ import annotations

from bt import boot
from bt.engines.base import Engine, GuestFile
from bt.errors import InputError
from bt.machine.cpu import CpuParts, EngineHost, VirtualCpu


class KvmEngine(Engine):
    """Opens /dev/kvm for each machine; nothing else is tried if that fails."""

    def unusable(self) -> str | None:
        from bt.kvm.device import Device, Unusable, Vm
        from bt.machine.ram import MIN_BYTES, Ram
        try:
            device = Device()
            try:
                Vm(device, Ram(MIN_BYTES)).close()
            finally:
                device.close()
        except Unusable as error:
            return error.why
        return None

    def remark(self) -> str:
        from bt.kvm.software import software
        module = software()
        if module is None:
            return ""
        return (f"the KVM of this host is a software one ({module}): it reads a kernel's code "
                "instruction by instruction, some hundred times slower than a processor")

    def make_vcpu(self, parts: CpuParts) -> VirtualCpu:
        if parts.deterministic:
            raise InputError("engine kvm cannot be --deterministic: guest code runs on the "
                             "processor, where what it has done is not counted")
        if parts.audit:
            raise InputError("engine kvm cannot be audited: nobody sees the guest's code run")
        from bt.kvm.vcpu import KvmVcpu
        return KvmVcpu(parts)

    def load(self, host: EngineHost, guest: GuestFile) -> boot.Loaded:
        from bt.kvm.software import PVM, software
        if guest.kind != "flat" and software() == PVM and boot.is_linux(guest.path):
            raise InputError(
                f"engine kvm cannot run Linux here: the KVM of this host is a software one ({PVM}) "
                "that reads a kernel's code instruction by instruction, and does not know them "
                "all; it runs small guests (hello, tasks, nano)")
        return super().load(host, guest)
