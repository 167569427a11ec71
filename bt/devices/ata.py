# SPDX-License-Identifier: GPL-2.0-or-later
"""ATA disks on the primary channel, programmed I/O only: what every kernel has a driver for.

Source: ATA/ATAPI-6 (T13/1410D); section numbers are its own. Ports 0x1f0-0x1f7 (command block) and
0x3f6 (control block), IRQ 14, up to two disks. Sector addresses of 28 and 48 bits, or cylinder,
head and sector. Left out: DMA, packet commands, security, SMART, power saving (accepted, and does
nothing), the secondary channel.

A guest moves data by REP INS and REP OUTS at the data port, a block of sectors for each interrupt.
The block is in the bus's FIFO, which the compiled core empties and fills by itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from bt.devices.disk import SECTOR, Disk
from bt.errors import InputError
from bt.machine.bus import Bus

DATA, COMMAND_BLOCK, CONTROL = 0x1F0, 0x1F1, 0x3F6

# Registers by offset from DATA.
_FEATURES, _COUNT, _LBA_LOW, _LBA_MID, _LBA_HIGH, _DEVICE, _COMMAND = range(1, 8)

# Status (7.15.6) and error (7.9.6).
ERR, DRQ, DSC, DRDY = 0x01, 0x08, 0x10, 0x40
ABRT, IDNF, UNC = 0x04, 0x10, 0x40
_LBA_MODE, _SLAVE = 0x40, 0x10
# Device control (7.8.6).
_NIEN, _SRST, _HOB = 0x02, 0x04, 0x80

#: Sectors a DRQ block of READ and WRITE MULTIPLE, as firmware would have set it.
MULTIPLE = 16
_HEADS, _SECTORS = 16, 63

_READ, _WRITE, _VERIFY = "read", "write", "verify"
#: command: (what it does, 48-bit address, MULTIPLE)
_TRANSFERS = {
    0x20: (_READ, False, False), 0x21: (_READ, False, False), 0x24: (_READ, True, False),
    0xC4: (_READ, False, True), 0x29: (_READ, True, True),
    0x30: (_WRITE, False, False), 0x31: (_WRITE, False, False), 0x34: (_WRITE, True, False),
    0xC5: (_WRITE, False, True), 0x39: (_WRITE, True, True),
    0x40: (_VERIFY, False, False), 0x41: (_VERIFY, False, False), 0x42: (_VERIFY, True, False),
}
_FLUSHES = (0xE7, 0xEA)
#: Commands of the power management feature set, and INITIALIZE DEVICE PARAMETERS' like.
_DO_NOTHING = (0xE0, 0xE1, 0xE2, 0xE3, 0xE6)
_IDENTIFY, _SET_MULTIPLE, _SET_FEATURES, _SET_GEOMETRY, _CHECK_POWER, _DIAGNOSE = (
    0xEC, 0xC6, 0xEF, 0x91, 0xE5, 0x90)
#: SET FEATURES subcommands that are accepted: write cache on and off, transfer mode, look-ahead.
_FEATURES_KNOWN = (0x02, 0x03, 0x55, 0x82, 0xAA)


class _Drive:
    """One disk, and what the guest has set on it."""

    def __init__(self, disk: Disk, serial: str) -> None:
        self.disk = disk
        self.serial = serial
        self.multiple = MULTIPLE
        self.heads, self.sectors = _HEADS, _SECTORS
        self.cylinders = max(1, min(disk.sectors // (_HEADS * _SECTORS), 16383))
        self.write_cache = True

    def identify(self) -> bytes:
        """The 512 bytes of IDENTIFY DEVICE (8.15)."""
        words = [0] * 256
        total = self.disk.sectors
        chs = min(self.cylinders * self.heads * self.sectors, 0xFFFF_FFFF)
        words[0] = 0x0040                       # a fixed ATA device
        words[1], words[3], words[6] = self.cylinders, self.heads, self.sectors
        words[47] = 0x8000 | MULTIPLE
        words[49] = 1 << 9 | 1 << 11            # LBA, IORDY
        words[50] = 1 << 14
        words[51] = 2 << 8                      # PIO mode 2
        words[53] = 3                           # words 54-58 and 64-70 are valid
        words[54], words[55], words[56] = self.cylinders, self.heads, self.sectors
        words[57], words[58] = chs & 0xFFFF, chs >> 16
        words[59] = 0x100 | self.multiple if self.multiple else 0
        short = min(total, (1 << 28) - 1)
        words[60], words[61] = short & 0xFFFF, short >> 16
        words[64] = 3                           # PIO modes 3 and 4
        words[67] = words[68] = 120             # ns a cycle
        words[80] = 0x7E                        # ATA-1 to ATA-6
        words[82] = 1 << 5 | 1 << 14            # write cache, NOP
        words[83] = 1 << 14 | 1 << 13 | 1 << 12 | 1 << 10   # FLUSH CACHE EXT, FLUSH CACHE, 48 bits
        words[84] = 1 << 14
        words[85] = words[82] & ~(1 << 5) | self.write_cache << 5
        words[86], words[87] = words[83] & 0x3FFF, 1 << 14
        words[100:104] = [total >> 16 * i & 0xFFFF for i in range(4)]
        data = bytearray(struct.pack("<256H", *words))
        for word, count, text in ((10, 10, self.serial), (23, 4, "1"), (27, 20, "Ring1 disk")):
            raw = text.encode("ascii", "replace")[:2 * count].ljust(2 * count)
            for i in range(0, 2 * count, 2):    # the first character is in the upper byte (8.15.8)
                data[2 * word + i], data[2 * word + i + 1] = raw[i + 1], raw[i]
        return bytes(data)


class _DataPort:
    """Port 0x1f0: 16 bits wide (32 on every controller that is not ISA), the FIFO behind it."""

    wide = True

    def __init__(self, channel: AtaChannel) -> None:
        self._channel = channel

    def read_port(self, port: int, size: int) -> int:
        return self._channel.read_data(size)

    def write_port(self, port: int, size: int, value: int) -> None:
        self._channel.write_data(size, value)


class AtaChannel:
    """The primary channel. ``set_irq(level)`` drives line IRQ."""

    IRQ = 14

    def __init__(self, bus: Bus, set_irq: Callable[[bool], None]) -> None:
        self._bus = bus
        self._fifo = bus.fifo
        self._set_irq = set_irq
        self._drives: list[_Drive] = []
        self._control = 0
        self._irq = False
        bus.claim(_DataPort(self), DATA, 1)
        bus.claim(self, COMMAND_BLOCK, 7)
        bus.claim(self, CONTROL, 1)
        self._reset()

    def add(self, disk: Disk, serial: str = "") -> None:
        """Connect a disk, before the guest runs: the first is device 0. Raises InputError."""
        if len(self._drives) == 2:
            raise InputError("an ATA channel has room for two disks")
        self._drives.append(_Drive(disk, serial))
        self._publish()

    def _reset(self) -> None:
        """Power-on and software reset: the signature of an ATA device (9.12)."""
        # Each register holds two values, the newer one last, for 48-bit commands.
        self._registers = [[0, 0] for _ in range(8)]
        for register in (_COUNT, _LBA_LOW):
            self._registers[register] = [0, 1]
        self._error = 1                         # diagnostics: passed
        self._left = 0                          # sectors still to transfer
        self._sector = 0
        self._block = 1
        self._writing = False
        self._active: _Drive | None = None      # whose transfer it is
        self._fifo.close()
        self._set_status(DRDY | DSC)
        self._lower_irq()

    # Registers --------------------------------------------------------------------------------

    def read_port(self, port: int, size: int) -> int:
        if port == CONTROL:
            return self._visible_status()
        register = port - DATA
        drive = self._drive()
        if drive is None and register != _DEVICE:
            return 0                            # device 0 answers for a missing device 1 (9.16.1)
        if register == _COMMAND:
            self._lower_irq()
            return self._status
        if register == _FEATURES:
            return self._error
        return self._registers[register][0 if self._control & _HOB else 1]

    def write_port(self, port: int, size: int, value: int) -> None:
        if port == CONTROL:
            reset = self._control & _SRST
            self._control = value
            if reset and not value & _SRST:
                self._reset()
            self._update_irq()
            return
        self._control &= ~_HOB                  # any write to the command block clears it
        register = port - DATA
        if register == _COMMAND:
            if self._drive() is not None:
                self._command(value)
        else:
            pair = self._registers[register]
            pair[0], pair[1] = pair[1], value
            if register == _DEVICE:
                self._set_status(self._status)

    def _drive(self) -> _Drive | None:
        number = bool(self._registers[_DEVICE][1] & _SLAVE)
        return self._drives[number] if number < len(self._drives) else None

    def _visible_status(self) -> int:
        return self._status if self._drive() is not None else 0

    def _set_status(self, status: int) -> None:
        self._status = status
        self._publish()

    def _publish(self) -> None:
        """Reading the status acknowledges an interrupt; where there is none, nobody need ask."""
        status = self._visible_status()
        self._bus.publish(CONTROL, status)
        self._bus.publish(DATA + _COMMAND, None if self._irq else status)

    def _raise_irq(self) -> None:
        self._irq = True
        self._update_irq()

    def _lower_irq(self) -> None:
        self._irq = False
        self._update_irq()

    def _update_irq(self) -> None:
        self._set_irq(self._irq and not self._control & _NIEN)
        self._publish()

    # Commands ---------------------------------------------------------------------------------

    def _command(self, command: int) -> None:
        drive = self._drive()
        assert drive is not None
        self._fifo.close()
        self._error = 0
        self._left = 0
        self._lower_irq()
        if command in _TRANSFERS:
            self._start(drive, *_TRANSFERS[command])
            return
        if command == _IDENTIFY:
            self._offer(drive.identify())
            return
        good = True
        if command in _FLUSHES:
            try:
                drive.disk.flush()
            except OSError:
                good = False
        elif command == _SET_MULTIPLE:
            count = self._registers[_COUNT][1]
            good = count <= MULTIPLE and count & (count - 1) == 0
            if good:
                drive.multiple = count
        elif command == _SET_FEATURES:
            feature = self._registers[_FEATURES][1]
            # Of the transfer modes, the PIO modes (8.46.11).
            good = feature in _FEATURES_KNOWN and \
                (feature != 0x03 or self._registers[_COUNT][1] < 0x10)
            if good and feature in (0x02, 0x82):
                drive.write_cache = feature == 0x02
        elif command == _SET_GEOMETRY:
            sectors = self._registers[_COUNT][1]
            heads = (self._registers[_DEVICE][1] & 0x0F) + 1
            good = sectors > 0
            if good:
                drive.heads, drive.sectors = heads, sectors
                drive.cylinders = max(1, min(drive.disk.sectors // (heads * sectors), 16383))
        elif command == _CHECK_POWER:
            self._registers[_COUNT] = [0, 0xFF]         # active
        elif command == _DIAGNOSE:
            self._reset()
            self._raise_irq()
            return
        else:
            good = command in _DO_NOTHING or command & 0xF0 == 0x10     # 1x: RECALIBRATE
        if good:
            self._set_status(DRDY | DSC)
            self._raise_irq()
        else:
            self._fail(ABRT)

    def _fail(self, error: int) -> None:
        self._left = 0
        self._fifo.close()
        self._error = error
        self._set_status(DRDY | DSC | ERR)
        self._raise_irq()

    def _address(self, drive: _Drive, long: bool) -> tuple[int, int]:
        """(first sector, sectors) of a transfer; a sector of -1 is none."""
        low, mid, high = (self._registers[r] for r in (_LBA_LOW, _LBA_MID, _LBA_HIGH))
        device = self._registers[_DEVICE][1]
        old, count = self._registers[_COUNT]
        if long:
            sector = low[1] | mid[1] << 8 | high[1] << 16 | low[0] << 24 | mid[0] << 32 \
                | high[0] << 40
            return sector, (old << 8 | count) or 65536
        if device & _LBA_MODE:
            return low[1] | mid[1] << 8 | high[1] << 16 | (device & 0x0F) << 24, count or 256
        cylinder, head = mid[1] | high[1] << 8, device & 0x0F
        if not 1 <= low[1] <= drive.sectors or head >= drive.heads:
            return -1, count or 256
        return (cylinder * drive.heads + head) * drive.sectors + low[1] - 1, count or 256

    def _start(self, drive: _Drive, kind: str, long: bool, multiple: bool) -> None:
        sector, count = self._address(drive, long)
        if multiple and not drive.multiple:
            self._fail(ABRT)
        elif kind == _WRITE and drive.disk.read_only:
            self._fail(ABRT)
        elif sector < 0 or sector + count > drive.disk.sectors:
            self._fail(IDNF)
        elif kind == _VERIFY:
            self._set_status(DRDY | DSC)
            self._raise_irq()
        else:
            self._active, self._sector, self._left = drive, sector, count
            self._block = drive.multiple if multiple else 1
            self._writing = kind == _WRITE
            if self._writing:
                self._ask_for_data()            # no interrupt before the first block (9.6)
            else:
                self._next_read()

    # Data -------------------------------------------------------------------------------------

    def _offer(self, data: bytes) -> None:
        self._writing = False
        self._fifo.data[:len(data)] = data
        self._fifo.open(DATA, len(data), output=False, done=self._block_done)
        self._set_status(DRDY | DSC | DRQ)
        self._raise_irq()

    def _next_read(self) -> None:
        sectors = min(self._block, self._left)
        length = sectors * SECTOR
        try:
            assert self._active is not None
            self._active.disk.readv([self._fifo.data[:length]], self._sector * SECTOR)
        except OSError:
            self._fail(UNC)
            return
        self._sector += sectors
        self._left -= sectors
        self._fifo.open(DATA, length, output=False, done=self._block_done)
        self._set_status(DRDY | DSC | DRQ)
        self._raise_irq()

    def _ask_for_data(self) -> None:
        length = min(self._block, self._left) * SECTOR
        self._fifo.open(DATA, length, output=True, done=self._block_done)
        self._set_status(DRDY | DSC | DRQ)

    def _block_done(self, length: int) -> None:
        """The guest has taken, or filled, the whole block."""
        if not self._writing:
            if self._left:
                self._next_read()
            else:
                self._set_status(DRDY | DSC)
            return
        sectors = length // SECTOR
        try:
            assert self._active is not None
            self._active.disk.writev([self._fifo.data[:length]], self._sector * SECTOR)
            if not self._active.write_cache:
                self._active.disk.flush()
        except OSError:
            self._fail(ABRT)
            return
        self._sector += sectors
        self._left -= sectors
        if self._left:
            self._ask_for_data()
        else:
            self._set_status(DRDY | DSC)
        self._raise_irq()

    def read_data(self, size: int) -> int:
        """IN at the data port, when the core has not done it by itself."""
        return self._fifo.read(size)

    def write_data(self, size: int, value: int) -> None:
        """OUT at the data port."""
        self._fifo.write(size, value)
