# SPDX-License-Identifier: GPL-2.0-or-later
"""16550A serial port.

Source: National Semiconductor PC16550D data sheet (TL/C/8652).

The line is infinitely fast, both ways. A byte written is sent at once: the transmitter is always
empty, and its interrupt returns as soon as it is cleared. Input waits outside (:meth:`Uart.feed`)
and has arrived whenever the guest may look at it: up to 16 bytes (1 with the FIFOs off) show as
received, and the next take their place as they are read. So the receiver never overruns, the four
character times of the timeout interrupt are zero, and a FIFO reset loses no input (what the guest
has not read was not sent yet).

The other end honours RTS, as a modem with hardware flow control does: once the guest has written
MCR, input arrives only while RTS is set there. A kernel that probes and resets the port before it
opens it loses none of what was typed ahead, and one that uses RTS/CTS flow control is never
flooded. A guest that never touches MCR just gets its input.

Most reads never reach Python: every register that can be read without a side effect is published
on the bus. Output is collected and handed on at a newline, when FLUSH_AT bytes are there, or by
:meth:`Uart.flush`, which the run loop calls when the guest goes idle.

Left out: baud rate, word length and parity (kept, no effect), break, framing and parity errors,
DMA mode. The interrupt line is gated by OUT2, as on every PC.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bt.machine.bus import Bus

FIFO_DEPTH = 16
FLUSH_AT = 4096
INPUT_CAP = 1 << 20

# Registers, offsets from the base port
RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR = 3
MCR = 4
LSR = 5
MSR = 6
SCR = 7

IER_RX, IER_TX, IER_LINE, IER_MODEM = 1, 2, 4, 8
IIR_NONE, IIR_MODEM, IIR_TX, IIR_RX, IIR_LINE, IIR_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
LCR_DLAB = 0x80
MCR_RTS, MCR_OUT2, MCR_LOOP = 0x02, 0x08, 0x10
LSR_DR, LSR_OE, LSR_EMPTY = 0x01, 0x02, 0x60  # EMPTY = THRE and TEMT
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
_TRIGGER = (1, 4, 8, 14)


class Uart:
    """One port at ``base`` to ``base`` + 7; ``irq(level)`` is its interrupt line.

    ``on_output(data)`` gets what the guest sends; None drops it.
    """

    def __init__(self, bus: Bus, base: int, irq: Callable[[bool], None],
                 on_output: Callable[[bytes], None] | None = None) -> None:
        self.on_output = on_output
        self._bus = bus
        self._base = base
        self._irq = irq
        self._level = False
        self._out = bytearray()
        self._wire: deque[int] = deque()  # input from outside, not read yet
        self._loop: deque[int] = deque()  # the receiver FIFO in loopback mode
        self._ier = self._lcr = self._mcr = self._scr = 0
        self._divisor = [0, 0]
        self._msr = MSR_CTS | MSR_DSR | MSR_DCD
        self._errors = 0  # the LSR bits that a read clears
        self._fifo = False
        self._trigger = 1
        self._mcr_written = False
        self._tx_pending = False
        self._iir = IIR_NONE
        # The two questions of the output path, answered beforehand: at which port does a write
        # go straight out (none while DLAB or loopback is set), and does it raise the interrupt?
        self._thr_port = base
        self._tx_armed = False
        bus.claim(self, base, 8)
        self._settings_changed()

    # The outside

    def feed(self, data: bytes) -> int:
        """Queue input for the guest. Returns how many bytes found room (INPUT_CAP in all)."""
        taken = data[:max(0, INPUT_CAP - len(self._wire))]
        self._wire.extend(taken)
        self._refresh()
        return len(taken)

    @property
    def pending_input(self) -> int:
        """Bytes fed that the guest has not read."""
        return len(self._wire)

    def flush(self) -> None:
        """Hand on the output collected so far."""
        if self._out:
            data = bytes(self._out)
            self._out.clear()
            if self.on_output is not None:
                self.on_output(data)

    # State that follows from other state

    def _received(self) -> int:
        """How many bytes the guest can read now."""
        if self._mcr & MCR_LOOP:
            return len(self._loop)
        if self._mcr_written and not self._mcr & MCR_RTS:
            return 0
        return min(len(self._wire), FIFO_DEPTH if self._fifo else 1)

    def _refresh(self) -> None:
        """Work out LSR, IIR and the interrupt line, and publish what may be published."""
        ier, received = self._ier, self._received()
        if ier & IER_LINE and self._errors:
            iir = IIR_LINE
        elif ier & IER_RX and received:
            iir = IIR_TIMEOUT if self._fifo and received < self._trigger else IIR_RX
        elif ier & IER_TX and self._tx_pending:
            iir = IIR_TX
        elif ier & IER_MODEM and self._msr & 0x0F:
            iir = IIR_MODEM
        else:
            iir = IIR_NONE
        self._iir = iir | (0xC0 if self._fifo else 0)
        self._tx_armed = bool(ier & IER_TX) and not self._tx_pending

        base, publish = self._base, self._bus.publish
        if not self._lcr & LCR_DLAB:
            publish(base + RBR, None if received else 0)
        publish(base + IIR, None if iir == IIR_TX else self._iir)
        publish(base + LSR, None if self._errors else self._lsr(received))

        # Loopback disconnects OUT2 from the pin that gates the line.
        level = iir != IIR_NONE and self._mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
        if level != self._level:
            self._level = level
            self._irq(level)

    def _lsr(self, received: int) -> int:
        return LSR_EMPTY | self._errors | (LSR_DR if received else 0)

    def _settings_changed(self) -> None:
        """As :meth:`_refresh`, after a write to a register that holds a setting."""
        dlab = bool(self._lcr & LCR_DLAB)
        self._thr_port = -1 if dlab or self._mcr & MCR_LOOP else self._base
        base, publish = self._base, self._bus.publish
        if dlab:
            publish(base + DLL, self._divisor[0])
        publish(base + IER, self._divisor[1] if dlab else self._ier)
        publish(base + LCR, self._lcr)
        publish(base + MCR, self._mcr)
        publish(base + MSR, None if self._msr & 0x0F else self._msr)
        publish(base + SCR, self._scr)
        self._refresh()

    # The guest

    def write_port(self, port: int, size: int, value: int) -> None:
        """A register write; the first lines are the console's hot path."""
        if port == self._thr_port:
            out = self._out
            out.append(value)
            if value == 10 or len(out) >= FLUSH_AT:
                self.flush()
            if self._tx_armed:
                self._tx_pending = True
                self._refresh()
            return
        register = port & 7
        if register <= DLM and self._lcr & LCR_DLAB:
            self._divisor[register] = value
        elif register == THR:
            self._send_to_self(value)
        elif register == IER:
            value &= 0x0F
            if value & IER_TX and not self._ier & IER_TX:
                # Enabling the interrupt of an empty transmitter raises it.
                self._tx_pending = True
            self._ier = value
        elif register == FCR:
            self._write_fcr(value)
        elif register == LCR:
            self._lcr = value
        elif register == MCR:
            self._write_mcr(value & 0x1F)
        elif register == SCR:
            self._scr = value
        # LSR and MSR are factory-test registers to a writer: no effect.
        self._settings_changed()

    def _send_to_self(self, value: int) -> None:
        """Loopback: what is transmitted is received."""
        if len(self._loop) < (FIFO_DEPTH if self._fifo else 1):
            self._loop.append(value)
        else:
            self._errors |= LSR_OE
            if not self._fifo:
                # Without FIFO the new byte destroys the old; with it, the new one is lost.
                self._loop[0] = value
        self._tx_pending = True

    def _write_fcr(self, value: int) -> None:
        enable = bool(value & 0x01)
        if enable != self._fifo or (enable and value & 0x02):
            self._loop.clear()
        self._fifo = enable
        if enable:
            self._trigger = _TRIGGER[value >> 6]

    def _write_mcr(self, value: int) -> None:
        self._mcr_written = True
        if (value ^ self._mcr) & MCR_LOOP:
            self._loop.clear()
        self._mcr = value
        if value & MCR_LOOP:
            # The modem inputs are this chip's own outputs: RTS, DTR, OUT1, OUT2.
            lines = ((value & 0x02) << 3 | (value & 0x01) << 5 | (value & 0x04) << 4
                     | (value & 0x08) << 4)
        else:
            lines = MSR_CTS | MSR_DSR | MSR_DCD
        changed = (lines ^ self._msr) & 0xF0
        deltas = self._msr & 0x0F
        deltas |= (changed & (MSR_CTS | MSR_DSR | MSR_DCD)) >> 4
        if changed & MSR_RI and not lines & MSR_RI:
            deltas |= 0x04
        self._msr = lines | deltas

    def read_port(self, port: int, size: int) -> int:
        """A register read, with its side effect."""
        register = port & 7
        if register == RBR:
            if self._lcr & LCR_DLAB:
                return self._divisor[0]
            if not self._received():
                return 0
            byte = (self._loop if self._mcr & MCR_LOOP else self._wire).popleft()
            self._refresh()
            return byte
        if register == IIR:
            iir = self._iir
            if iir & 0x0F == IIR_TX:
                self._tx_pending = False
                self._refresh()
            return iir
        if register == LSR:
            lsr = self._lsr(self._received())
            self._errors = 0
            self._refresh()
            return lsr
        if register == MSR:
            msr = self._msr
            self._msr &= 0xF0
            self._bus.publish(port, self._msr)
            self._refresh()
            return msr
        if register == IER:
            return self._divisor[1] if self._lcr & LCR_DLAB else self._ier
        return (self._lcr, self._mcr)[register - LCR] if register != SCR else self._scr
