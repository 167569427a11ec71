# SPDX-License-Identifier: GPL-2.0-or-later
"""Every number and layout of bt.xen.abi against what the C compiler makes of Xen's headers."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from structlayout import offsets

from bt.xen import abi

HEADERS = Path("/usr/include/xen")
pytestmark = pytest.mark.skipif(
    not (HEADERS / "arch-x86_64.h").exists() or shutil.which("cc") is None,
    reason="needs a C compiler and Xen's public headers (libxen-dev)")

INCLUDES = ("xen.h", "features.h", "elfnote.h", "memory.h", "vcpu.h", "event_channel.h",
            "grant_table.h", "physdev.h", "sched.h", "version.h", "io/console.h", "io/xs_wire.h",
            "errno.h", "io/xenbus.h", "io/blkif.h")

# Names of ours for the offset of a field, and names that are no macro of these headers.
OFFSETS = {
    "VCPU_INFO_PENDING": "offsetof(struct vcpu_info, evtchn_upcall_pending)",
    "VCPU_INFO_MASK": "offsetof(struct vcpu_info, evtchn_upcall_mask)",
    "VCPU_INFO_PENDING_SEL": "offsetof(struct vcpu_info, evtchn_pending_sel)",
    "VCPU_INFO_TIME": "offsetof(struct vcpu_info, time)",
    "VCPU_INFO_SIZE": "sizeof(struct vcpu_info)",
    "SHARED_EVTCHN_PENDING": "offsetof(struct shared_info, evtchn_pending)",
    "SHARED_EVTCHN_MASK": "offsetof(struct shared_info, evtchn_mask)",
    "SHARED_WC_VERSION": "offsetof(struct shared_info, wc_version)",
    "MEMORY_EXCHANGE_NR": "offsetof(struct xen_memory_exchange, nr_exchanged)",
    "MEMORY_EXCHANGE_SIZE": "sizeof(struct xen_memory_exchange)",
    "XENCONS_IN": "offsetof(struct xencons_interface, in)",
    "XENCONS_IN_SIZE": "sizeof(((struct xencons_interface *)0)->in)",
    "XENCONS_OUT": "offsetof(struct xencons_interface, out)",
    "XENCONS_OUT_SIZE": "sizeof(((struct xencons_interface *)0)->out)",
    "XENCONS_IN_CONS": "offsetof(struct xencons_interface, in_cons)",
    "XENCONS_IN_PROD": "offsetof(struct xencons_interface, in_prod)",
    "XENCONS_OUT_CONS": "offsetof(struct xencons_interface, out_cons)",
    "XENCONS_OUT_PROD": "offsetof(struct xencons_interface, out_prod)",
    "XENSTORE_REQ": "offsetof(struct xenstore_domain_interface, req)",
    "XENSTORE_RSP": "offsetof(struct xenstore_domain_interface, rsp)",
    "XENSTORE_REQ_CONS": "offsetof(struct xenstore_domain_interface, req_cons)",
    "XENSTORE_REQ_PROD": "offsetof(struct xenstore_domain_interface, req_prod)",
    "XENSTORE_RSP_CONS": "offsetof(struct xenstore_domain_interface, rsp_cons)",
    "XENSTORE_RSP_PROD": "offsetof(struct xenstore_domain_interface, rsp_prod)",
    "XENSTORE_SERVER_FEATURES": "offsetof(struct xenstore_domain_interface, server_features)",
    "BLKIF_REQ_PROD": "offsetof(struct blkif_sring, req_prod)",
    "BLKIF_REQ_EVENT": "offsetof(struct blkif_sring, req_event)",
    "BLKIF_RSP_PROD": "offsetof(struct blkif_sring, rsp_prod)",
    "BLKIF_RSP_EVENT": "offsetof(struct blkif_sring, rsp_event)",
    "BLKIF_RING": "offsetof(struct blkif_sring, ring)",
    "BLKIF_REQUEST_SEG": "offsetof(struct blkif_request, seg)",
    "XENSTORE_ERROR": "offsetof(struct xenstore_domain_interface, error)",
}
ELSEWHERE = {"PAGE_SHIFT", "PAGE_SIZE", "E820_RAM"}

# Each layout with its structure and the fields that its members stand for, in order.
LAYOUTS = {
    "START_INFO": ("start_info", "magic nr_pages shared_info flags store_mfn store_evtchn "
                   "console.domU.mfn console.domU.evtchn pt_base nr_pt_frames mfn_list mod_start "
                   "mod_len cmd_line first_p2m_pfn nr_p2m_frames"),
    "VCPU_TIME_INFO": ("vcpu_time_info", "version tsc_timestamp system_time tsc_to_system_mul "
                       "tsc_shift flags"),
    "COMPILE_INFO": ("xen_compile_info", "compiler compile_by compile_domain compile_date"),
    "FEATURE_INFO": ("xen_feature_info", "submap_idx submap"),
    "MEMORY_RESERVATION": ("xen_memory_reservation",
                           "extent_start nr_extents extent_order mem_flags domid"),
    "MACHPHYS_MAPPING": ("xen_machphys_mapping", "v_start v_end max_mfn"),
    "MEMORY_MAP": ("xen_memory_map", "nr_entries buffer"),
    "ALLOC_UNBOUND": ("evtchn_alloc_unbound", "dom remote_dom port"),
    "BIND_INTERDOMAIN": ("evtchn_bind_interdomain", "remote_dom remote_port local_port"),
    "BIND_VIRQ": ("evtchn_bind_virq", "virq vcpu port"),
    "BIND_IPI": ("evtchn_bind_ipi", "vcpu port"),
    "BIND_VCPU": ("evtchn_bind_vcpu", "port vcpu"),
    "PORT": ("evtchn_send", "port"),
    "EVTCHN_STATUS": ("evtchn_status", "dom port status vcpu u"),
    "EVTCHN_RESET": ("evtchn_reset", "dom"),
    "RUNSTATE_INFO": ("vcpu_runstate_info",
                      "state state_entry_time time[0] time[1] time[2] time[3]"),
    "MEMORY_AREA": ("vcpu_register_runstate_memory_area", "addr.v"),
    "PERIODIC_TIMER": ("vcpu_set_periodic_timer", "period_ns"),
    "SINGLESHOT_TIMER": ("vcpu_set_singleshot_timer", "timeout_abs_ns flags"),
    "REGISTER_VCPU_INFO": ("vcpu_register_vcpu_info", "mfn offset"),
    "SCHED_SHUTDOWN": ("sched_shutdown", "reason"),
    "SCHED_POLL": ("sched_poll", "ports nr_ports timeout"),
    "SETUP_TABLE": ("gnttab_setup_table", "dom nr_frames status frame_list"),
    "QUERY_SIZE": ("gnttab_query_size", "dom nr_frames max_nr_frames status"),
    "SET_VERSION": ("gnttab_set_version", "version"),
    "GET_VERSION": ("gnttab_get_version", "dom version"),
    "SET_IOPL": ("physdev_set_iopl", "iopl"),
    "SET_IOBITMAP": ("physdev_set_iobitmap", "bitmap nr_ports"),
    "GRANT_ENTRY": ("grant_entry_v1", "flags domid frame"),
    "BLKIF_REQUEST": ("blkif_request", "operation nr_segments handle id sector_number"),
    "BLKIF_SEGMENT": ("blkif_request_segment", "gref first_sect last_sect"),
    "BLKIF_RESPONSE": ("blkif_response", "id operation status"),
    "XSD_SOCKMSG": ("xsd_sockmsg", "type req_id tx_id len"),
}


def compile_and_run(folder: Path, lines: list[str]) -> dict[str, int]:
    source = folder / "abi.c"
    source.write_text(
        "#include <stdint.h>\n#include <stddef.h>\n#include <stdio.h>\n#include <errno.h>\n"
        "#define __XEN_INTERFACE_VERSION__ 0x00040d00\n"
        + "".join(f"#include <xen/{name}>\n" for name in INCLUDES)
        + "int main(void) {\n" + "\n".join(lines) + "\nreturn 0;\n}\n")
    program = folder / "abi"
    subprocess.run(["cc", "-w", "-o", str(program), str(source)], check=True)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in
            (line.rsplit(" ", 1) for line in output.splitlines())}


def show(name: str, expression: str) -> str:
    return f'printf("%s %lld\\n", "{name}", (long long)({expression}));'


def signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def test_numbers(tmp_path):
    ours = {name: value for name, value in vars(abi).items()
            if isinstance(value, int) and name[0] != "_" and name not in ELSEWHERE}
    assert len(ours) > 150
    theirs = compile_and_run(tmp_path, [show(name, OFFSETS.get(name, name)) for name in ours])
    assert theirs == {name: signed(value) for name, value in ours.items()}


def test_hypercall_numbers(tmp_path):
    theirs = compile_and_run(tmp_path, [
        show(name, f"__HYPERVISOR_{name}") for name in abi.HYPERCALLS.values()])
    assert theirs == {name: number for number, name in abi.HYPERCALLS.items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(tmp_path, name):
    struct_name, fields = LAYOUTS[name]
    layout = getattr(abi, name)
    lines = [show("size", f"sizeof(struct {struct_name})")]
    lines += [show(field, f"offsetof(struct {struct_name}, {field})") for field in fields.split()]
    theirs = compile_and_run(tmp_path, lines)
    assert layout.size == theirs.pop("size")
    assert offsets(layout.format) == list(theirs.values())


def test_wallclock_layout(tmp_path):
    """The four fields lie in a row in the middle of struct shared_info."""
    fields = ("wc_version", "wc_sec", "wc_nsec", "wc_sec_hi")
    theirs = compile_and_run(tmp_path, [
        show(field, f"offsetof(struct shared_info, {field})") for field in fields])
    start = abi.SHARED_WC_VERSION
    assert [at - start for at in theirs.values()] == offsets(abi.WALLCLOCK.format)


def test_all_layouts_are_tested():
    layouts = {name for name, value in vars(abi).items() if isinstance(value, struct.Struct)}
    assert layouts == set(LAYOUTS) | {"WALLCLOCK", "E820_ENTRY"}
