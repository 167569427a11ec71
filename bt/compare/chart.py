# SPDX-License-Identifier: GPL-2.0-or-later
"""The results of a comparison as an SVG bar chart, written by hand: it needs no library.

A group of bars for each nanobenchmark, on a logarithmic scale, since they span three decades; for
the seconds of the other workloads, those in the VMM among them, groups on a linear scale from zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from bt.compare.table import NATIVE, columns

_WIDTH, _HEIGHT = 960, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 70, 50  # margins of the plot
_GAP = 0.25  # between groups, as a share of a group's room
#: Told apart by people who do not see all colours, and in print (Okabe and Ito).
_COLOURS = ("#999999", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9")

Groups = dict[str, dict[str, float]]


def render(results: Mapping[str, Any]) -> str:
    """The chart, a whole SVG document. Engines without a result have no bars."""
    subjects = {name: one for name, one in columns(results).items() if "error" not in one}
    nano = any(one["ns"] for one in subjects.values())
    groups = _nano_groups(subjects) if nano else _time_groups(results["workload"], subjects)
    scale = _Scale(groups, logarithmic=nano)
    title = f"{results['what']}: {'ns an operation' if nano else 'seconds'}, less is better"
    colours = {name: _COLOURS[i % len(_COLOURS)] if name != NATIVE else _COLOURS[0]
               for i, name in enumerate(subjects, 0 if NATIVE in subjects else 1)}
    body = [f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            _text(_LEFT, 26, title, size=16, anchor="start"),
            *_legend(colours), *_grid(scale), *_bars(groups, scale, colours)]
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            f'font-family="sans-serif" role="img" aria-label={quoteattr(title)}>\n'
            + "\n".join(body) + "\n</svg>\n")


class _Scale:
    """From a value to a y coordinate."""

    def __init__(self, groups: Groups, *, logarithmic: bool) -> None:
        values = [value for bars in groups.values() for value in bars.values() if value > 0]
        top, low = max(values, default=1.0), min(values, default=1.0)
        self.logarithmic = logarithmic
        if logarithmic:
            self.low = 10.0 ** math.floor(math.log10(low))
            self.high = 10.0 ** math.ceil(math.log10(top))
            if self.high <= self.low:
                self.high = self.low * 10
            decades = round(math.log10(self.high / self.low))
            self.ticks = [self.low * 10 ** i for i in range(decades + 1)]
        else:
            step = 10.0 ** math.floor(math.log10(top))
            step = next(s for s in (step / 5, step / 2, step, 2 * step) if top / s <= 6)
            self.low, self.high = 0.0, step * math.ceil(top / step)
            self.ticks = [i * step for i in range(round(self.high / step) + 1)]

    def y(self, value: float) -> float:
        if self.logarithmic:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = value / self.high
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _nano_groups(subjects: Mapping[str, Any]) -> Groups:
    names = next(one["ns"] for one in subjects.values() if one["ns"])
    return {name: {subject: one["ns"][name] for subject, one in subjects.items()}
            for name in names}


def _time_groups(workload: str, subjects: Mapping[str, Any]) -> Groups:
    groups = {f"{workload}: start of bt to its end":
              {name: one["wall_s"] for name, one in subjects.items()}}
    inside = {name: one["guest_s"] for name, one in subjects.items() if one["guest_s"] is not None}
    vmm = {name: one["sampled"]["vmm_s"] for name, one in subjects.items()
           if "vmm_s" in one.get("sampled", {})}     # files of 0.1 have none
    return groups | ({"workload, by the guest's clock": inside} if inside else {}) | (
        {"time in the VMM, sampled": vmm} if vmm else {})


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "middle") -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
            f'fill="#222222">{escape(text)}</text>')


def _legend(colours: Mapping[str, str]) -> list[str]:
    parts, x = [], _LEFT
    for name, colour in colours.items():
        parts += [f'<rect x="{x}" y="40" width="12" height="12" fill="{colour}"/>',
                  _text(x + 17, 50, name, anchor="start")]
        x += 34 + 8 * len(name)
    return parts


def _grid(scale: _Scale) -> list[str]:
    parts = []
    for tick in scale.ticks:
        y = scale.y(tick)
        parts += [f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" '
                  'stroke="#dddddd"/>',
                  _text(_LEFT - 8, y + 4, f"{tick:g}", anchor="end")]
    return parts


def _bars(groups: Groups, scale: _Scale, colours: Mapping[str, str]) -> list[str]:
    parts = []
    base = _HEIGHT - _BOTTOM
    room = (_WIDTH - _LEFT - _RIGHT) / max(len(groups), 1)
    width = room * (1 - _GAP) / max(len(colours), 1)
    for number, (group, bars) in enumerate(groups.items()):
        left = _LEFT + room * (number + _GAP / 2)
        for at, name in enumerate(colours):
            if name not in bars:
                continue
            x, y = left + width * at, scale.y(bars[name])
            label = _number(bars[name])
            parts += [f'<rect x="{x:.1f}" y="{y:.1f}" width="{width * 0.94:.1f}" '
                      f'height="{base - y:.1f}" fill="{colours[name]}">'
                      f"<title>{escape(f'{group}, {name}: {label}')}</title></rect>",
                      _text(x + width * 0.47, y - 4, label, size=9)]
        parts.append(_text(left + room * (1 - _GAP) / 2, base + 20, group))
    return parts


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
