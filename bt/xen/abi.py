# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers and layouts of Xen's public interface: the one place they are written down.

Names are the headers' own, so that tests/xen/test_xen_abi.py can compare each value with what the
C compiler says (Debian package libxen-dev, <xen/...>). All layouts are those of a 64-bit guest.
Only what is used here or checked by the builder is listed.
"""

from __future__ import annotations

from struct import Struct

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

# <xen/errno.h>: a hypercall returns one of them negated.
XEN_EPERM = 1
XEN_ENOENT = 2
XEN_ESRCH = 3
XEN_E2BIG = 7
XEN_ENOMEM = 12
XEN_EFAULT = 14
XEN_EEXIST = 17
XEN_EINVAL = 22
XEN_ENOSPC = 28
XEN_ENOSYS = 38
XEN_ETIME = 62

#: <xen/xen.h>: hypercalls by number, without the prefix __HYPERVISOR_.
HYPERCALLS = {
    0: "set_trap_table", 1: "mmu_update", 2: "set_gdt", 3: "stack_switch", 4: "set_callbacks",
    5: "fpu_taskswitch", 6: "sched_op_compat", 7: "platform_op", 8: "set_debugreg",
    9: "get_debugreg", 10: "update_descriptor", 12: "memory_op", 13: "multicall",
    14: "update_va_mapping", 15: "set_timer_op", 16: "event_channel_op_compat", 17: "xen_version",
    18: "console_io", 19: "physdev_op_compat", 20: "grant_table_op", 21: "vm_assist",
    22: "update_va_mapping_otherdomain", 23: "iret", 24: "vcpu_op", 25: "set_segment_base",
    26: "mmuext_op", 27: "xsm_op", 28: "nmi_op", 29: "sched_op", 30: "callback_op",
    31: "xenoprof_op", 32: "event_channel_op", 33: "physdev_op", 34: "hvm_op", 35: "sysctl",
    36: "domctl", 37: "kexec_op", 38: "tmem_op", 39: "argo_op", 40: "xenpmu_op", 41: "dm_op",
    42: "hypfs_op", 48: "arch_0", 49: "arch_1",
}

# <xen/xen.h>
DOMID_FIRST_RESERVED = 0x7FF0
DOMID_SELF = 0x7FF0
CONSOLEIO_write = 0
CONSOLEIO_read = 1
VIRQ_TIMER = 0
VIRQ_DEBUG = 1
VIRQ_XENOPROF = 7
VIRQ_XENPMU = 13
NR_VIRQS = 24
XEN_LEGACY_MAX_VCPUS = 32
MAX_GUEST_CMDLINE = 1024
SIF_MOD_START_PFN = 1 << 3
XEN_PVCLOCK_TSC_STABLE_BIT = 1

#: struct start_info: magic, nr_pages, shared_info, flags, store_mfn, store_evtchn,
#: console.domU.mfn, console.domU.evtchn, pt_base, nr_pt_frames, mfn_list, mod_start, mod_len,
#: cmd_line, first_p2m_pfn, nr_p2m_frames.
START_INFO = Struct("<32sQQI4xQI4xQI4xQQQQQ1024sQQ")
#: struct vcpu_info: evtchn_upcall_pending, evtchn_upcall_mask, evtchn_pending_sel, arch.cr2, then
#: struct vcpu_time_info.
VCPU_INFO_SIZE = 64
VCPU_INFO_PENDING = 0
VCPU_INFO_MASK = 1
VCPU_INFO_PENDING_SEL = 8
VCPU_INFO_TIME = 32
#: struct vcpu_time_info: version, tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift, flags.
VCPU_TIME_INFO = Struct("<I4xQQIbB2x")
# Offsets in struct shared_info.
SHARED_EVTCHN_PENDING = 2048
SHARED_EVTCHN_MASK = 2560
SHARED_WC_VERSION = 3072
#: wc_version, wc_sec, wc_nsec, wc_sec_hi at SHARED_WC_VERSION.
WALLCLOCK = Struct("<IIII")
EVTCHN_2L_NR_CHANNELS = 4096

# <xen/arch-x86/xen-x86_64.h>
FLAT_KERNEL_CS = 0xE033
FLAT_KERNEL_SS = 0xE02B
HYPERVISOR_VIRT_START = 0xFFFF_8000_0000_0000
HYPERVISOR_VIRT_END = 0xFFFF_8800_0000_0000
MACH2PHYS_VIRT_START = 0xFFFF_8000_0000_0000
MACH2PHYS_VIRT_END = 0xFFFF_8040_0000_0000

# <xen/elfnote.h>
XEN_ELFNOTE_ENTRY = 1
XEN_ELFNOTE_HYPERCALL_PAGE = 2
XEN_ELFNOTE_VIRT_BASE = 3
XEN_ELFNOTE_PADDR_OFFSET = 4
XEN_ELFNOTE_XEN_VERSION = 5
XEN_ELFNOTE_GUEST_OS = 6
XEN_ELFNOTE_GUEST_VERSION = 7
XEN_ELFNOTE_FEATURES = 10
XEN_ELFNOTE_INIT_P2M = 15
XEN_ELFNOTE_MOD_START_PFN = 16

# <xen/features.h>
XENFEAT_mmu_pt_update_preserve_ad = 5
XENFEAT_highmem_assist = 6
XENFEAT_gnttab_map_avail_bits = 7
XENFEAT_memory_op_vnode_supported = 13
XENFEAT_direct_mapped = 17

# <xen/version.h>
XENVER_version = 0
XENVER_extraversion = 1
XENVER_compile_info = 2
XENVER_capabilities = 3
XENVER_changeset = 4
XENVER_platform_parameters = 5
XENVER_get_features = 6
XENVER_pagesize = 7
XENVER_guest_handle = 8
XENVER_commandline = 9
XENVER_build_id = 10
XEN_EXTRAVERSION_LEN = 16
XEN_CAPABILITIES_INFO_LEN = 1024
XEN_CHANGESET_INFO_LEN = 64
#: struct xen_compile_info: compiler, compile_by, compile_domain, compile_date.
COMPILE_INFO = Struct("<64s16s32s32s")
#: struct xen_feature_info: submap_idx, submap.
FEATURE_INFO = Struct("<II")

# <xen/memory.h>
XENMEM_increase_reservation = 0
XENMEM_decrease_reservation = 1
XENMEM_maximum_ram_page = 2
XENMEM_current_reservation = 3
XENMEM_maximum_reservation = 4
XENMEM_populate_physmap = 6
XENMEM_memory_map = 9
XENMEM_exchange = 11
XENMEM_machphys_mapping = 12
XENMEM_maximum_gpfn = 14
#: struct xen_memory_reservation: extent_start, nr_extents, extent_order, mem_flags, domid.
MEMORY_RESERVATION = Struct("<QQIIH6x")
#: struct xen_memory_exchange: two reservations, then nr_exchanged.
MEMORY_EXCHANGE_NR = 64
MEMORY_EXCHANGE_SIZE = 72
#: struct xen_machphys_mapping: v_start, v_end, max_mfn.
MACHPHYS_MAPPING = Struct("<QQQ")
#: struct xen_memory_map: nr_entries, buffer.
MEMORY_MAP = Struct("<I4xQ")
#: One entry as the BIOS call E820 gives it: address, size, type (not in the headers: ACPI 15.3).
E820_ENTRY = Struct("<QQI")
E820_RAM = 1

# <xen/event_channel.h>
EVTCHNOP_bind_interdomain = 0
EVTCHNOP_bind_virq = 1
EVTCHNOP_bind_pirq = 2
EVTCHNOP_close = 3
EVTCHNOP_send = 4
EVTCHNOP_status = 5
EVTCHNOP_alloc_unbound = 6
EVTCHNOP_bind_ipi = 7
EVTCHNOP_bind_vcpu = 8
EVTCHNOP_unmask = 9
EVTCHNOP_reset = 10
EVTCHNSTAT_closed = 0
EVTCHNSTAT_unbound = 1
EVTCHNSTAT_interdomain = 2
EVTCHNSTAT_virq = 4
EVTCHNSTAT_ipi = 5
#: struct evtchn_alloc_unbound: dom, remote_dom, port.
ALLOC_UNBOUND = Struct("<HHI")
#: struct evtchn_bind_interdomain: remote_dom, remote_port, local_port.
BIND_INTERDOMAIN = Struct("<H2xII")
#: struct evtchn_bind_virq: virq, vcpu, port.
BIND_VIRQ = Struct("<III")
#: struct evtchn_bind_ipi: vcpu, port.
BIND_IPI = Struct("<II")
#: struct evtchn_bind_vcpu: port, vcpu.
BIND_VCPU = Struct("<II")
#: struct evtchn_close, evtchn_send, evtchn_unmask: port.
PORT = Struct("<I")
#: struct evtchn_status: dom, port, status, vcpu, u (8 bytes).
EVTCHN_STATUS = Struct("<H2xIII8s")
#: struct evtchn_reset: dom.
EVTCHN_RESET = Struct("<H")

# <xen/vcpu.h>
VCPUOP_initialise = 0
VCPUOP_up = 1
VCPUOP_down = 2
VCPUOP_is_up = 3
VCPUOP_get_runstate_info = 4
VCPUOP_register_runstate_memory_area = 5
VCPUOP_set_periodic_timer = 6
VCPUOP_stop_periodic_timer = 7
VCPUOP_set_singleshot_timer = 8
VCPUOP_stop_singleshot_timer = 9
VCPUOP_register_vcpu_info = 10
VCPUOP_register_vcpu_time_memory_area = 13
VCPU_SSHOTTMR_future = 1
RUNSTATE_running = 0
#: struct vcpu_runstate_info: state, state_entry_time, time[4].
RUNSTATE_INFO = Struct("<i4xQ4Q")
#: struct vcpu_register_runstate_memory_area and the one for time: addr.
MEMORY_AREA = Struct("<Q")
#: struct vcpu_set_periodic_timer: period_ns.
PERIODIC_TIMER = Struct("<Q")
#: struct vcpu_set_singleshot_timer: timeout_abs_ns, flags.
SINGLESHOT_TIMER = Struct("<QI4x")
#: struct vcpu_register_vcpu_info: mfn, offset.
REGISTER_VCPU_INFO = Struct("<QI4x")

# <xen/sched.h>
SCHEDOP_yield = 0
SCHEDOP_shutdown = 2
SCHEDOP_poll = 3
SHUTDOWN_poweroff = 0
SHUTDOWN_reboot = 1
SHUTDOWN_suspend = 2
SHUTDOWN_crash = 3
SHUTDOWN_watchdog = 4
SHUTDOWN_soft_reset = 5
#: struct sched_shutdown: reason.
SCHED_SHUTDOWN = Struct("<I")
#: struct sched_poll: ports, nr_ports, timeout.
SCHED_POLL = Struct("<QI4xQ")

# <xen/grant_table.h>
GTF_permit_access = 1
GTF_type_mask = 3
GTF_readonly = 4
#: struct grant_entry_v1: flags, domid, frame.
GRANT_ENTRY = Struct("<HHI")
GNTTABOP_setup_table = 2
GNTTABOP_query_size = 6
GNTTABOP_set_version = 8
GNTTABOP_get_version = 10
GNTST_okay = 0
GNTST_general_error = -1
GNTST_bad_domain = -2
#: struct gnttab_setup_table: dom, nr_frames, status, frame_list.
SETUP_TABLE = Struct("<H2xIh6xQ")
#: struct gnttab_query_size: dom, nr_frames, max_nr_frames, status.
QUERY_SIZE = Struct("<H2xIIh2x")
#: struct gnttab_set_version: version.
SET_VERSION = Struct("<I")
#: struct gnttab_get_version: dom, version.
GET_VERSION = Struct("<H2xI")

# <xen/physdev.h>
PHYSDEVOP_set_iopl = 6
PHYSDEVOP_set_iobitmap = 7
#: struct physdev_set_iopl: iopl.
SET_IOPL = Struct("<I")
#: struct physdev_set_iobitmap: bitmap, nr_ports.
SET_IOBITMAP = Struct("<QI4x")

# <xen/io/console.h>: offsets in struct xencons_interface.
XENCONS_IN = 0
XENCONS_IN_SIZE = 1024
XENCONS_OUT = 1024
XENCONS_OUT_SIZE = 2048
XENCONS_IN_CONS = 3072
XENCONS_IN_PROD = 3076
XENCONS_OUT_CONS = 3080
XENCONS_OUT_PROD = 3084

# <xen/io/xs_wire.h>
XS_CONTROL = 0
XS_DIRECTORY = 1
XS_READ = 2
XS_GET_PERMS = 3
XS_WATCH = 4
XS_UNWATCH = 5
XS_TRANSACTION_START = 6
XS_TRANSACTION_END = 7
XS_INTRODUCE = 8
XS_RELEASE = 9
XS_GET_DOMAIN_PATH = 10
XS_WRITE = 11
XS_MKDIR = 12
XS_RM = 13
XS_SET_PERMS = 14
XS_WATCH_EVENT = 15
XS_ERROR = 16
XS_IS_DOMAIN_INTRODUCED = 17
XS_RESUME = 18
XS_SET_TARGET = 19
XS_RESET_WATCHES = 21
XS_DIRECTORY_PART = 22
XENSTORE_PAYLOAD_MAX = 4096
XENSTORE_ABS_PATH_MAX = 3072
XENSTORE_REL_PATH_MAX = 2048
XENSTORE_RING_SIZE = 1024
XENSTORE_SERVER_FEATURE_ERROR = 2
XENSTORE_ERROR_RINGIDX = 2
XENSTORE_ERROR_PROTO = 3
#: struct xsd_sockmsg: type, req_id, tx_id, len.
XSD_SOCKMSG = Struct("<IIII")
# Offsets in struct xenstore_domain_interface.
XENSTORE_REQ = 0
XENSTORE_RSP = 1024
XENSTORE_REQ_CONS = 2048
XENSTORE_REQ_PROD = 2052
XENSTORE_RSP_CONS = 2056
XENSTORE_RSP_PROD = 2060
XENSTORE_SERVER_FEATURES = 2064
XENSTORE_ERROR = 2072

# <xen/io/xenbus.h>
XenbusStateInitialising = 1
XenbusStateInitWait = 2
XenbusStateInitialised = 3
XenbusStateConnected = 4
XenbusStateClosing = 5
XenbusStateClosed = 6

# <xen/io/blkif.h>, the ring of <xen/io/ring.h>
BLKIF_OP_READ = 0
BLKIF_OP_WRITE = 1
BLKIF_OP_FLUSH_DISKCACHE = 3
BLKIF_MAX_SEGMENTS_PER_REQUEST = 11
BLKIF_RSP_EOPNOTSUPP = -2
BLKIF_RSP_ERROR = -1
BLKIF_RSP_OKAY = 0
BLKIF_REQ_PROD = 0
BLKIF_REQ_EVENT = 4
BLKIF_RSP_PROD = 8
BLKIF_RSP_EVENT = 12
BLKIF_RING = 64
#: struct blkif_request: operation, nr_segments, handle, id, sector_number, and room for segments.
BLKIF_REQUEST = Struct("<BBH4xQQ88x")
BLKIF_REQUEST_SEG = 24
#: struct blkif_request_segment: gref, first_sect, last_sect.
BLKIF_SEGMENT = Struct("<IBB2x")
#: struct blkif_response: id, operation, status.
BLKIF_RESPONSE = Struct("<QBxh4x")
