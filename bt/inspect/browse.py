# SPDX-License-Identifier: GPL-2.0-or-later
"""The interactive view: a list of blocks, the chosen one beside it."""

from __future__ import annotations

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import DataTable, Footer, Header, Input, Static

from bt.inspect import text
from bt.inspect.listing import Lister
from bt.inspect.select import Filter
from bt.record.reader import Block, Recording

#: The orders that ``s`` goes through: name, and what to sort by.
_ORDERS = ("address", "exits", "first run", "translations")


class Browser(App[None]):
    """Blocks of one recording that fit a filter."""

    CSS = """
    #list { width: 52; } #found { height: 1; } #block { padding: 0 1; }
    Input { border: none; height: 1; background: $surface; }
    """
    BINDINGS = [
        Binding("slash", "search", "search"), Binding("s", "sort", "sort"),
        Binding("c", "changed", "only rewritten"), Binding("q", "quit", "leave"),
        Binding("escape", "list", "list", show=False),
    ]

    def __init__(self, recording: Recording, chosen: Filter) -> None:
        super().__init__()
        self.title = f"{recording.meta.get('guest', '?')} under {recording.meta.get('engine', '?')}"
        self._recording = recording
        self._lister = Lister(recording)
        self._all = list(chosen.blocks(recording))
        self._changed = {id(block) for block in
                         Filter(changed=True).blocks(recording)}
        self._order = 0
        self._only_changed = False
        self._shown: list[Block] = []

    def compose(self) -> ComposeResult:
        """The widgets."""
        yield Header(show_clock=False)
        yield Input(placeholder="/ symbol or address", id="search")
        with Horizontal():
            yield DataTable(id="list", cursor_type="row", zebra_stripes=False)
            with VerticalScroll():
                yield Static(id="block")
        yield Footer()

    def on_mount(self) -> None:
        """Fill the list."""
        table = self.query_one(DataTable)
        table.add_columns("address", "exits", "symbol")
        self._fill()
        table.focus()

    def _exits(self, block: Block) -> int:
        exits = self._lister.exits
        return sum(entry.count for address in range(block.gva, block.gva + len(block.code))
                   for entry in exits.get(address, ()))

    def _fill(self) -> None:
        words = self.query_one(Input).value.lower().split()
        found = []
        for block in self._all:
            if self._only_changed and id(block) not in self._changed:
                continue
            name = self._recording.symbol(block.gva) or ""
            if all(word in name.lower() or word.removeprefix("0x") in f"{block.gva:x}"
                   for word in words):
                found.append((block, self._exits(block), name))
        if _ORDERS[self._order] == "exits":
            found.sort(key=lambda one: -one[1])
        elif _ORDERS[self._order] == "first run":
            found.sort(key=lambda one: one[0].first_ns)
        elif _ORDERS[self._order] == "translations":
            found.sort(key=lambda one: -one[0].times)
        self._shown = [block for block, _, _ in found]
        table = self.query_one(DataTable)
        table.clear()
        table.add_rows((f"{block.gva:x}", str(exits or ""), Text(name))
                       for block, exits, name in found)
        self.sub_title = f"{len(found)} of {len(self._all)} blocks by {_ORDERS[self._order]}"
        if not found:
            self.query_one("#block", Static).update("no block is like that")

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Show the block under the cursor."""
        if 0 <= event.cursor_row < len(self._shown):
            listing = self._lister.listing(self._shown[event.cursor_row])
            self.query_one("#block", Static).update(text.block(listing))

    def on_input_changed(self) -> None:
        """Search as it is typed."""
        self._fill()

    def on_input_submitted(self) -> None:
        """Back to the list."""
        self.action_list()

    def action_search(self) -> None:
        """Go to the search field."""
        self.query_one(Input).focus()

    def action_list(self) -> None:
        """Go to the list."""
        self.query_one(DataTable).focus()

    def action_sort(self) -> None:
        """The next order."""
        self._order = (self._order + 1) % len(_ORDERS)
        self._fill()

    def action_changed(self) -> None:
        """Only blocks in which something was rewritten, or all again."""
        self._only_changed = not self._only_changed
        self._fill()


def run(recording: Recording, chosen: Filter) -> None:
    """Show it until the user leaves."""
    Browser(recording, chosen).run()
