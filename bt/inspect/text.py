# SPDX-License-Identifier: GPL-2.0-or-later
"""A recording as text: a summary, the hottest places, blocks with both sides beside each other."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bt.inspect.listing import Line, Listing
from bt.inspect.select import by_reason, by_symbol, hottest
from bt.record.reader import Recording

_REASONS = 12
_SYMBOLS = 10
_STATE_STYLE = {"trap": "bold red", "stub": "bold green", "absorbed": "yellow"}


def summary(recording: Recording) -> RenderableType:
    """What the run was, and where its exits went."""
    meta = recording.meta
    head = Text(f"{meta.get('guest', '?')} under {meta.get('engine', '?')}: "
                f"{meta.get('outcome', '?')}, status {meta.get('status', '?')}, "
                f"{float(meta.get('wall_s', 0)):.2f} s", style="bold")
    stubs = sum(site.stub is not None and not site.taken_back
                for site in recording.sites.values())
    facts = Text(f"{len(recording.blocks)} blocks, {len(recording.sites)} sites ({stubs} stubs), "
                 f"{sum(1 for page in recording.pages if page[2])} of {len(recording.pages)} code "
                 f"pages written again")
    if meta.get("lost", "0") != "0":
        facts.append(f"; {meta['lost']} log entries lost", style="red")
    reasons = _table("exits by reason", ("reason", "unit", "exits", "ms in the VMM"))
    for reason, unit, count, ns in by_reason(recording)[:_REASONS]:
        reasons.add_row(Text(reason), unit, f"{count}", f"{ns / 1e6:.2f}" if ns else "")
    symbols = _table("exits by symbol", ("symbol", "exits", "ms in the VMM"))
    for name, count, ns in by_symbol(recording)[:_SYMBOLS]:
        symbols.add_row(Text(name), f"{count}", f"{ns / 1e6:.2f}")
    return Group(head, facts, Text(), reasons, Text(), symbols)


def hot(recording: Recording, count: int) -> RenderableType:
    """The places with most exits."""
    table = _table(f"the {count} hottest places",
                   ("exits", "ms", "ns each", "address", "symbol", "reason", "now"))
    for entry in hottest(recording, count):
        site = recording.sites.get(entry.gva)
        now = "" if site is None else "stub" if site.stub and not site.taken_back else "trap"
        table.add_row(f"{entry.count}", f"{entry.ns / 1e6:.2f}",
                      f"{entry.ns / entry.count:.0f}" if entry.count else "", f"{entry.gva:x}",
                      Text(recording.symbol(entry.gva) or ""), Text(entry.reason), now)
    return table


def listings(found: Iterable[Listing]) -> RenderableType:
    """Blocks, each with its head line."""
    return Group(*(block(listing) for listing in found))


def block(listing: Listing) -> RenderableType:
    """One block: address, bytes and text on both sides; what changed is marked with ``*``."""
    shown = listing.block
    head = Text(f"{shown.gva:016x} {listing.symbol or ''}".rstrip(), style="bold")
    head.append(f"  {shown.bits}-bit {listing.source}, {len(shown.code)} bytes, "
                f"translated {shown.times}x", style="dim")
    if shown.times > 1:
        head.append(f" (at {_ms(shown.first_ns)}, last at {_ms(shown.last_ns)})", style="dim")
    if shown.dropped:
        head.append(f", dropped {len(shown.dropped)}x by a write to its page, first at "
                    f"{_ms(shown.dropped[0])}", style="dim")
    if listing.exits:
        head.append(f", {listing.exits} exits in {listing.ns / 1e6:.2f} ms", style="dim")
    table = Table(box=None, padding=(0, 1), show_header=False)
    for line in listing.lines:
        table.add_row(*_cells(line))
    parts: list[RenderableType] = [head, table]
    parts += [Text(f"    {line.address:x}: {line.why}", style="dim")
              for line in listing.lines if line.state in ("trap", "stub")]
    for site, code in listing.stubs:
        stub = Table(box=None, padding=(0, 1), show_header=False)
        for address, raw, text in code:
            stub.add_row("     ", f"{address:x}", raw.hex(), Text(text))
        parts += [Text(f"    the stub of {site.gva:x}:", style="dim"), stub]
    return Group(*parts, Text())


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.1f} ms"


def _cells(line: Line) -> tuple[RenderableType, ...]:
    style = _STATE_STYLE.get(line.state, "")
    now = Text(line.now.hex() if line.now is not None else "", style=style)
    count = f"{line.exits}x" if line.exits else ""
    return ("*" if line.state else " ", f"{line.address:x}", line.code.hex(),
            Text(line.text, style=style), now, Text(line.now_text, style=style), count)


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in columns:
        right = name in ("exits", "ms", "ns each", "ms in the VMM")
        table.add_column(name, justify="right" if right else "left")
    return table


def show(content: RenderableType, *, pager: bool) -> None:
    """Print; through the pager where a person reads. Plain, and as wide as needed, in a pipe."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    if pager and console.is_terminal:
        with console.pager(styles=True):
            console.print(content)
    else:
        console.print(content)
