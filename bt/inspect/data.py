# SPDX-License-Identifier: GPL-2.0-or-later
"""A recording as plain data, for ``bt inspect --json`` and the HTML page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bt.inspect.listing import Lister, Listing
from bt.inspect.select import by_reason, by_symbol, hottest
from bt.record import schema
from bt.record.reader import Recording


def overview(recording: Recording, hot: int) -> dict[str, Any]:
    """Everything but the blocks. Addresses are hexadecimal text: JSON numbers lose bits."""
    return {
        "meta": recording.meta,
        "counts": {"blocks": len(recording.blocks), "sites": len(recording.sites),
                   "pages": len(recording.pages)},
        "reasons": [{"reason": reason, "unit": unit, "exits": count, "ns": ns}
                    for reason, unit, count, ns in by_reason(recording)],
        "symbols": [{"symbol": name, "exits": count, "ns": ns}
                    for name, count, ns in by_symbol(recording)],
        "hot": [{"address": f"{e.gva:x}", "symbol": recording.symbol(e.gva), "reason": e.reason,
                 "unit": e.unit, "exits": e.count, "ns": e.ns}
                for e in hottest(recording, hot)],
    }


def block(listing: Listing) -> dict[str, Any]:
    """One block, both sides."""
    shown = listing.block
    return {
        "address": f"{shown.gva:x}", "physical": f"{shown.gpa:x}", "bits": shown.bits,
        "source": listing.source, "symbol": listing.symbol, "size": len(shown.code),
        "first_ns": shown.first_ns, "translated": shown.times, "last_ns": shown.last_ns,
        "dropped_ns": list(shown.dropped),
        "exits": listing.exits, "ns": listing.ns,
        "lines": [{"address": f"{line.address:x}", "code": line.code.hex(), "text": line.text,
                   **({"now": line.now.hex() if line.now is not None else None,
                       "now_text": line.now_text, "state": line.state, "why": line.why}
                      if line.state else {}),
                   **({"exits": line.exits, "ns": line.ns} if line.exits else {})}
                  for line in listing.lines],
        "stubs": [{"site": f"{site.gva:x}", "code": [
            {"address": f"{address:x}", "code": raw.hex(), "text": text}
            for address, raw, text in code]} for site, code in listing.stubs],
    }


def events(recording: Recording) -> list[dict[str, Any]]:
    """The log without its blocks, oldest first."""
    return [{"ns": event.ns, "event": schema.KIND_NAMES.get(event.kind, str(event.kind)),
             "address": f"{event.gva:x}", "physical": f"{event.gpa:x}"}
            for event in recording.events]


def blocks(recording: Recording, chosen: Iterable[Any]) -> list[dict[str, Any]]:
    """The chosen blocks of the recording."""
    lister = Lister(recording)
    return [block(lister.listing(one)) for one in chosen]
