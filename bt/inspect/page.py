# SPDX-License-Identifier: GPL-2.0-or-later
"""A recording as one self-contained HTML page: it opens from disk, with no server and no network.

The data is columns of plain values (a block's n-th number in each list), as JSON, packed with gzip,
in base64 in a script element; the browser unpacks it (DecompressionStream). A boot of Linux is
54,000 blocks and some 2 MB so. Everything is text to the page: nothing of the guest's is markup.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bt.errors import InputError
from bt.inspect.data import overview
from bt.inspect.listing import Lister, Listing
from bt.record import schema
from bt.record.reader import Recording

_WEB = Path(__file__).parent / "web"
_HOT = 500


def write(recording: Recording, path: Path, comparison: Path | None = None) -> None:
    """Write the page. Raises InputError if it cannot be written or the comparison is none."""
    text = render(recording, _charts(comparison) if comparison is not None else "")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def render(recording: Recording, charts: str = "") -> str:
    """The page as text. ``charts``: SVG of `bt compare`, shown as it is."""
    import jinja2

    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_WEB), autoescape=True, trim_blocks=True
    ).get_template("page.html.j2")
    packed = gzip.compress(json.dumps(content(recording), separators=(",", ":")).encode(), 6)
    guest = recording.meta.get("guest", "a guest")
    return template.render(
        title=f"{Path(guest).name} under {recording.meta.get('engine', '?')}",
        style=(_WEB / "page.css").read_text(encoding="utf-8"),
        script=(_WEB / "page.js").read_text(encoding="utf-8"),
        data=base64.b64encode(packed).decode(), charts=charts)


def _charts(path: Path) -> str:
    from bt.compare import chart

    try:
        return chart.render(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        raise InputError(f"{path} is not what `bt compare --json` writes") from None


class _Strings:
    """Each text once; a column has their numbers."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._known: dict[str, int] = {}

    def number(self, text: str) -> int:
        at = self._known.get(text)
        if at is None:
            at = self._known[text] = len(self.all)
            self.all.append(text)
        return at


def content(recording: Recording) -> dict[str, Any]:
    """What the page shows, as plain data; page.js says how it reads each column."""
    lister, strings = Lister(recording), _Strings()
    columns: dict[str, list[Any]] = {name: [] for name in (
        "address", "size", "bits", "kernel", "first", "times", "dropped", "exits", "ns", "symbol",
        "code", "texts", "lengths", "state")}
    changes: dict[int, list[list[Any]]] = {}
    stubs: dict[int, list[list[Any]]] = {}
    for number, block in enumerate(recording.blocks):
        listing = lister.listing(block)
        columns["address"].append(f"{block.gva:x}")
        columns["size"].append(len(block.code))
        columns["bits"].append(block.bits)
        columns["kernel"].append(int(block.kernel))
        columns["first"].append(block.first_ns // 1000)
        columns["times"].append(block.times)
        columns["dropped"].append(len(block.dropped))
        columns["exits"].append(listing.exits)
        columns["ns"].append(listing.ns)
        columns["symbol"].append(strings.number(listing.symbol or ""))
        columns["code"].append(block.code.hex())
        columns["texts"].append([strings.number(line.text) for line in listing.lines])
        columns["lengths"].append([len(line.code) for line in listing.lines])
        columns["state"].append(_state(listing))
        if listing.changed or listing.exits:
            changes[number] = [
                [at, line.now.hex() if line.now is not None else "",
                 strings.number(line.now_text), line.state, strings.number(line.why), line.exits,
                 line.ns]
                for at, line in enumerate(listing.lines) if line.state or line.exits]
        if listing.stubs:
            stubs[number] = [[f"{site.gva:x}", [[f"{address:x}", raw.hex(), strings.number(text)]
                                                for address, raw, text in code]]
                             for site, code in listing.stubs]
    return {
        **overview(recording, _HOT), "strings": strings.all, "blocks": columns,
        "changes": changes, "stubs": stubs, "timeline": _timeline(recording),
        "pages": [list(page) for page in recording.pages], "events": _events(recording),
    }


def _state(listing: Listing) -> int:
    """Bit 0: has a trap, bit 1: has a stub."""
    states = {line.state for line in listing.lines}
    return int("trap" in states) | int("stub" in states) << 1


def _timeline(recording: Recording) -> Mapping[str, Any]:
    """{"ns": times, "series": {reason: counts}}: a count for each time."""
    times = sorted({ns for ns, _, _ in recording.timeline})
    at = {ns: i for i, ns in enumerate(times)}
    series: dict[str, list[int]] = {}
    for ns, reason, count in recording.timeline:
        series.setdefault(reason, [0] * len(times))[at[ns]] += count
    return {"ns": times, "series": series}


def _events(recording: Recording) -> list[list[Any]]:
    """What became of rewritten code: [ns, kind, address], without the traps themselves."""
    wanted = (schema.STUB, schema.UNSTUB, schema.DATA)
    return [[event.ns, schema.KIND_NAMES[event.kind], f"{event.gva:x}"]
            for event in recording.events if event.kind in wanted][-5000:]
