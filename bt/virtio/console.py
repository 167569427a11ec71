# SPDX-License-Identifier: GPL-2.0-or-later
"""Console device (virtio 1.2, 5.3) with one port: /dev/hvc0 in a Linux guest.

A queue to receive what is typed, one to send what is shown. Input waits here until the driver has
buffers for it, as the serial ports' does (bt/devices/uart.py); output is handed on as it comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bt.virtio.device import VirtioDevice
from bt.virtio.queue import Chain

F_SIZE = 1 << 0
RECEIVE, TRANSMIT = 0, 1
INPUT_CAP = 1 << 20
#: Of one request; a driver can describe the same page a thousand times over.
OUTPUT_CAP = 1 << 20


class VirtioConsole(VirtioDevice):
    """``on_output(data)`` gets what the guest sends. ``size``: columns and rows of the terminal."""

    name = "virtio-console"
    device_id = 3
    pci_class = 0x078000  # communication controller, other
    queue_sizes = (64, 64)

    def __init__(self, on_output: Callable[[bytes], None],
                 size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self._on_output = on_output
        self._config = b""
        if size is not None:
            self.features = F_SIZE
            self._config = b"".join(min(number, 0xFFFF).to_bytes(2, "little") for number in size)
        self._input = bytearray()

    def config_read(self, offset: int, length: int) -> bytes:
        return self._config[offset:offset + length].ljust(length, b"\0")

    def notify(self, index: int) -> None:
        if index == RECEIVE:
            self._fill()
        else:
            self._take()

    # InputPort (bt/machine/machine.py) ------------------------------------------------------------

    def feed(self, data: bytes) -> int:
        """Queue input for the guest. Returns how many bytes found room (INPUT_CAP in all)."""
        taken = data[:max(0, INPUT_CAP - len(self._input))]
        self._input += taken
        self._fill()
        return len(taken)

    @property
    def pending_input(self) -> int:
        """Bytes fed that the driver has not been given."""
        return len(self._input)

    # ----------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        queue = self.queues[RECEIVE]
        while self._input and (chain := queue.pop()) is not None:
            if chain.readable_bytes or not chain.writable_bytes:
                self.broken("a buffer for input that cannot be filled")
                return
            length = chain.write(self._input[:chain.writable_bytes])
            del self._input[:length]
            queue.push(chain, length)
        self.interrupt(RECEIVE)

    def _take(self) -> None:
        queue = self.queues[TRANSMIT]
        output: deque[bytes] = deque()
        taken: deque[Chain] = deque()
        while (chain := queue.pop()) is not None:
            if chain.writable_bytes or chain.readable_bytes > OUTPUT_CAP:
                self.broken(f"output of {chain.readable_bytes} bytes")
                return
            output.append(chain.read(0, chain.readable_bytes))
            taken.append(chain)
        if output:
            self._on_output(b"".join(output))
        for chain in taken:
            queue.push(chain, 0)
        self.interrupt(TRANSMIT)
