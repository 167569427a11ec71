# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt run --net``: what it may say, and the network card that comes of it."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bt.errors import InputError

if TYPE_CHECKING:
    from bt.machine.machine import Machine
    from bt.virtio.net import VirtioNet

HELP = ("a network card; again for more. user, unix:PATH (to another guest) or tap:NAME; then "
        ",mac=ADDRESS ,ip=ADDRESS/BITS (or dhcp, none); for user ,host ,forward=PORT:GUESTPORT")
MODULES = ("virtio_pci", "virtio_net")
MOST_CARDS = 8

#: How our /init sets a card up when ``ip=`` does not say.
_DHCP, _ONLY_UP = "dhcp", "none"
_OPTION = re.compile(r",(mac|ip|forward)=([^,]*)$|,(host)$")
#: Locally administered, and the prefix that QEMU made known.
_MAC_PREFIX = b"\x52\x54\x00"


@dataclass(frozen=True)
class NetOption:
    """One ``--net``. ``ip`` is "" unless it was given."""

    kind: str
    target: str = ""
    mac: bytes = b""
    ip: str = ""
    host: bool = False
    forwards: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Card:
    """A network card to be, and how the guest is to set it up: "dhcp", "none" or ADDRESS/BITS."""

    device: VirtioNet
    setup: str
    said: str


def parse(text: str) -> NetOption | None:
    """One ``--net``; None for "none". Raises ArgumentTypeError (for argparse)."""
    mac, ip, host = b"", "", False
    forwards = []
    rest = text
    # From the end: a path may have commas too.
    while match := _OPTION.search(rest):
        rest = rest[:match.start()]
        name, value = match[1], match[2]
        if match[3]:
            host = True
        elif name == "mac":
            mac = _mac(value)
        elif name == "ip":
            ip = _ip(value)
        else:
            forwards.insert(0, _forward(value))
    kind, colon, target = rest.partition(":")
    if rest == "none" or (kind == "user" and not colon) or (kind in ("unix", "tap") and target):
        if (host or forwards) and kind != "user":
            raise argparse.ArgumentTypeError("host and forward= go with --net user")
        return None if kind == "none" else NetOption(kind, target, mac, ip, host, forwards)
    raise argparse.ArgumentTypeError(
        f"no network {rest!r}: none, user, unix:PATH or tap:NAME, and options behind commas")


def _mac(text: str) -> bytes:
    if not re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", text):
        raise argparse.ArgumentTypeError(f"no MAC address: {text!r}")
    mac = bytes.fromhex(text.replace(":", ""))
    if mac[0] & 1 or not any(mac):
        raise argparse.ArgumentTypeError(f"{text} is no address of one card")
    return mac


def _ip(text: str) -> str:
    if text in (_DHCP, _ONLY_UP):
        return text
    import ipaddress
    try:
        return str(ipaddress.ip_interface(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"no ADDRESS/BITS, dhcp or none: {text!r}") from None


def _forward(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5}):(\d{1,5})", text)
    if match and 0 < int(match[1]) < 65536 and 0 < int(match[2]) < 65536:
        return int(match[1]), int(match[2])
    raise argparse.ArgumentTypeError(f"forward= needs PORT:GUESTPORT, not {text!r}")


def make(number: int, option: NetOption) -> Card:
    """The card for the ``number``-th (from 0) ``--net``, not plugged in. Raises InputError."""
    from bt.net.link import Link
    from bt.virtio.net import VirtioNet

    link: Link
    mac = _MAC_PREFIX + b"\x72\x30" + bytes((number,))
    if option.kind == "unix":
        from bt.net import sides
        from bt.net.peer import Peer

        side, holder = sides.take_number(option.target)
        link = Peer(option.target, holder)
        mac, setup = _MAC_PREFIX + b"\x72\x31" + bytes((side,)), f"10.0.1.{side}/24"
    elif option.kind == "tap":
        from bt.net.tap import Tap

        # Others may be on the same bridge.
        link, mac, setup = Tap(option.target), _MAC_PREFIX + os.urandom(3), _ONLY_UP
    else:
        from bt.net.user import User

        link, setup = User(option.forwards, host_loopback=option.host), _DHCP
    setup, mac = option.ip or setup, option.mac or mac
    where = option.kind + (f":{option.target}" if option.target else "")
    return Card(VirtioNet(link, mac), setup, f"eth{number}: {where}, {mac.hex(':')}, {setup}")


def attach(machine: Machine, cards: list[Card]) -> None:
    """Put the cards into ``machine`` and plug them in. Raises InputError."""
    for card in cards:
        machine.add_virtio(card.device)
        card.device.plug_in(machine.host)


def check(options: list[NetOption | None], deterministic: bool) -> list[NetOption]:
    """The cards that were asked for. Raises InputError when they cannot be had together."""
    wanted = [option for option in options if option is not None]
    if wanted and len(wanted) != len(options):
        raise InputError("--net none and another --net exclude each other")
    if len(wanted) > MOST_CARDS:
        raise InputError(f"at most {MOST_CARDS} network cards")
    if wanted and deterministic:
        raise InputError("--deterministic and --net exclude each other: what comes over a network "
                         "does not repeat")
    return wanted
