"""Charts as SVG on one HTML page: lines, stacks, and when alerts fired. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count

_Scale = Callable[[float], float]

_PALETTE = ("#3a78c2", "#e8801a", "#3d9a50", "#c9303e", "#8a4fbf", "#1aa3a3", "#b0762e", "#777777")
_SEVERE = "#c9303e"
_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 190, 56, 10, 8, 20
_ROW = 20
_COLUMNS = 3
# A gap of more than so many minutes is a gap.
_GAP = 0.5
_STYLE = """
body { margin: 0; padding: 12px; font: 12px system-ui, "DejaVu Sans", sans-serif; background: #f2f3f5; color: #222 }
main { display: grid; grid-template-columns: repeat(3, 1fr); gap: 10px }
section { background: #fff; border: 1px solid #dcdee3; border-radius: 4px; padding: 8px 10px }
section.wide { grid-column: 1 / -1 }
h2 { font-size: 13px; margin: 0 0 4px; font-weight: 600 }
svg { display: block } text { font: 11px system-ui, "DejaVu Sans", sans-serif; fill: #666 }
ul { list-style: none; margin: 4px 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: 2px 12px; min-height: 32px; color: #444 }
li { font-size: 11px } i { display: inline-block; width: 10px; height: 3px; margin-right: 5px; vertical-align: middle }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Something that happened, in minutes."""

    name: str
    begins: float
    ends: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One series: pairs of minute and value."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One panel."""

    title: str
    unit: str
    lines: Sequence[Line]
    stacked: bool
    is_timeline: bool
    bands: Sequence[Band]
    end: float


def page(charts: Sequence[Chart], *, width: int) -> tuple[str, int]:
    """Return a page, and how high it is."""
    inner = width - 24
    column = (inner - 10 * (_COLUMNS - 1)) // _COLUMNS
    sections, height, small = [], 24, 0
    for chart in charts:
        if chart.is_timeline:
            body, drawn = _timeline(chart, inner - 22)
            sections.append(f'<section class="wide"><h2>{escape(chart.title)}</h2>{body}</section>')
            height += drawn + 46
        else:
            small += 1
            body = _graph(chart, column - 22)
            sections.append(f"<section><h2>{escape(chart.title)}</h2>{body}</section>")
    height += math.ceil(small / _COLUMNS) * (_HEIGHT + 88)
    return (
        f"<!doctype html><meta charset=utf-8><style>{_STYLE}</style><main>{''.join(sections)}</main>",
        height,
    )


def _graph(chart: Chart, width: int) -> str:
    lines = _stacked(chart.lines) if chart.stacked else list(chart.lines)
    values = [v for line in lines for _, v in line.points if math.isfinite(v)]
    low, high = min([0.0, *values]), max(values, default=1.0) or 1.0
    ticks = list(_ticks(low, high))
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    bottom = _HEIGHT - _BOTTOM

    def x(minute: float) -> float:
        return _LEFT + minute / chart.end * (width - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - _TOP)

    parts = [_bands(chart.bands, x, top=_TOP, bottom=bottom)]
    for tick in ticks:
        parts.append(
            f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#e6e8ec"/>'
        )
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{_value(tick, chart.unit)}</text>'
        )
    parts.append(_minutes(chart.end, x, bottom))
    palette = count()
    legend = []
    # Stacks lie behind what is below them.
    drawn = []
    for line in lines:
        color = line.color or _PALETTE[next(palette) % len(_PALETTE)]
        legend.append(f'<li><i style="background:{color}"></i>{escape(line.name)}</li>')
        drawn.append(
            "".join(
                _path(piece, x, y, color, fill=chart.stacked, floor=y(max(low, 0.0)))
                for piece in _pieces(line)
            )
        )
    parts += reversed(drawn)
    svg = f'<svg width="{width}" height="{_HEIGHT}">{"".join(parts)}</svg>'
    return f"{svg}<ul>{''.join(legend)}</ul>"


def _timeline(chart: Chart, width: int) -> tuple[str, int]:
    names = list(dict.fromkeys(line.name for line in chart.lines))
    left, top = 330, 18
    bottom = top + _ROW * len(names)

    def x(minute: float) -> float:
        return left + minute / chart.end * (width - left - _RIGHT)

    parts = [_bands(chart.bands, x, top=top, bottom=bottom, named=True)]
    for row, name in enumerate(names):
        at = top + _ROW * row
        parts.append(
            f'<text x="{left - 8}" y="{at + 14}" text-anchor="end" style="fill:#222">{escape(name)}</text>'
        )
        parts.append(
            f'<line x1="{left}" x2="{width - _RIGHT}" y1="{at + _ROW}" y2="{at + _ROW}" stroke="#eef0f3"/>'
        )
        for line in chart.lines:
            if line.name == name:
                for piece in _pieces(line):
                    begins, ends = x(piece[0][0]), x(piece[-1][0])
                    parts.append(
                        f'<rect x="{begins:.1f}" y="{at + 4}" width="{max(ends - begins, 3):.1f}" height="{_ROW - 8}" rx="2" fill="{_SEVERE}"/>'
                    )
    parts.append(_minutes(chart.end, x, bottom))
    return f'<svg width="{width}" height="{bottom + 22}">{"".join(parts)}</svg>', bottom + 22


def _bands(bands: Sequence[Band], x: _Scale, *, top: int, bottom: int, named: bool = False) -> str:
    parts = []
    for band in bands:
        begins, ends = x(band.begins), x(band.ends)
        parts.append(
            f'<rect x="{begins:.1f}" y="{top}" width="{max(ends - begins, 2):.1f}" height="{bottom - top}" fill="#f3d9a8" opacity="0.55"/>'
        )
        if named:
            parts.append(
                f'<text x="{begins:.1f}" y="{top - 5}" style="fill:#8a5a00">{escape(band.name)}</text>'
            )
    return "".join(parts)


def _minutes(end: float, x: _Scale, bottom: float) -> str:
    step = 5 if end <= 60 else 15
    marks = range(0, int(end) + 1, step)
    return "".join(
        f'<text x="{x(mark):.1f}" y="{bottom + 15:.0f}" text-anchor="middle">{mark} min</text>'
        for mark in marks
    )


def _pieces(line: Line) -> Iterator[list[tuple[float, float]]]:
    piece: list[tuple[float, float]] = []
    for point in line.points:
        if not math.isfinite(point[1]):
            continue
        if piece and point[0] - piece[-1][0] > _GAP:
            yield piece
            piece = []
        piece.append(point)
    if piece:
        yield piece


def _path(
    piece: list[tuple[float, float]], x: _Scale, y: _Scale, color: str, *, fill: bool, floor: float
) -> str:
    points = " ".join(f"{x(m):.1f},{y(v):.1f}" for m, v in piece)
    area = ""
    if fill:
        first, last = x(piece[0][0]), x(piece[-1][0])
        area = f'<polygon points="{first:.1f},{floor:.1f} {points} {last:.1f},{floor:.1f}" fill="#fff"/><polygon points="{first:.1f},{floor:.1f} {points} {last:.1f},{floor:.1f}" fill="{color}" opacity="0.35"/>'
    return f'{area}<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>'


def _stacked(lines: Sequence[Line]) -> list[Line]:
    """Return lines on top of each other, less those that are 0 throughout."""
    sums: dict[float, float] = {}
    found = []
    for line in lines:
        if not any(v > 0 for _, v in line.points if math.isfinite(v)):
            continue
        points = []
        for minute, value in line.points:
            sums[minute] = sums.get(minute, 0.0) + (value if math.isfinite(value) else 0.0)
            points.append((minute, sums[minute]))
        found.append(Line(name=line.name, points=points, color=line.color))
    return found


def _ticks(low: float, high: float) -> Iterator[float]:
    rough = (high - low) / 4 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    tick = math.floor(low / step) * step
    yield tick
    while tick < high:
        tick += step
        yield tick


def _value(value: float, unit: str) -> str:
    text = f"{value:.10g}" if abs(value) < 1e6 else f"{value:.3g}"
    return {
        "s": f"{text} s",
        "reqps": f"{text}/s",
        "ops": f"{text}/s",
        "percentunit": f"{value:.0%}",
    }.get(unit, text)
