"""Charts as SVG on one HTML page: lines, stacks, and when alerts fired. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

_Scale = Callable[[float], float]
_Points = Sequence[tuple[float, float]]

_PALETTE = ("#3a78c2", "#e8801a", "#3d9a50", "#c9303e", "#8a4fbf", "#1aa3a3", "#b0762e", "#777777")
_FIRING, _BAND, _GRID, _DARK, _NAMED = "#c9303e", "#f9ebcf", "#e6e8ec", "#222222", "#8a5a00"
_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 190, 56, 10, 8, 20
# Of the chart of alerts: room for their names, and for those of what happened.
_NAMES, _HEAD, _ROW = 330, 32, 20
_COLUMNS, _SPACE, _PADDING = 3, 10, 11
# Title and legend of a panel.
_AROUND = 88
# No point for so many minutes is a gap.
_GAP = 0.5
_STYLE = """
body { margin: 0; padding: 12px; background: #f2f3f5; color: #222;
       font: 12px system-ui, "DejaVu Sans", sans-serif }
main { display: grid; grid-template-columns: repeat(3, 1fr); gap: 10px }
section { background: #fff; border: 1px solid #dcdee3; border-radius: 4px; padding: 8px 10px }
section.wide { grid-column: 1 / -1 }
h2 { font-size: 13px; margin: 0 0 4px; font-weight: 600 }
svg { display: block }
text { font: 11px system-ui, "DejaVu Sans", sans-serif }
ul { list-style: none; margin: 4px 0 0; padding: 0; min-height: 32px; color: #444;
     display: flex; flex-wrap: wrap; gap: 2px 12px; align-content: start }
li { font-size: 11px }
i { display: inline-block; width: 10px; height: 3px; margin-right: 5px; vertical-align: middle }
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
    points: _Points
    color: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One panel, from minute 0 to ``end``."""

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
    column = (inner - _SPACE * (_COLUMNS - 1)) // _COLUMNS
    sections, height, small = list[str](), 24, 0
    for chart in charts:
        title = f"<h2>{escape(chart.title)}</h2>"
        if chart.is_timeline:
            body, drawn = _timeline(chart, inner - 2 * _PADDING)
            sections.append(f'<section class="wide">{title}{body}</section>')
            height += drawn + 46
        else:
            small += 1
            sections.append(f"<section>{title}{_graph(chart, column - 2 * _PADDING)}</section>")
    height += math.ceil(small / _COLUMNS) * (_HEIGHT + _AROUND)
    main = f"<main>{''.join(sections)}</main>"
    return f"<!doctype html><meta charset=utf-8><style>{_STYLE}</style>{main}", height


def _graph(chart: Chart, width: int) -> str:
    lines = _colored(_stacked(chart.lines) if chart.stacked else chart.lines)
    values = [value for line in lines for _, value in line.points if math.isfinite(value)]
    ticks = _ticks(min([0.0, *values]), max(values, default=1.0) or 1.0)
    low, high, bottom = ticks[0], ticks[-1], _HEIGHT - _BOTTOM

    def x(minute: float) -> float:
        return _LEFT + minute / chart.end * (width - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - _TOP)

    parts = [_tag("rect", **_box(x, band, _TOP, bottom), fill=_BAND) for band in chart.bands]
    for tick in ticks:
        parts.append(
            _tag("line", x1=_LEFT, x2=width - _RIGHT, y1=y(tick), y2=y(tick), stroke=_GRID)
        )
        parts.append(_text(_value(tick, chart.unit), _LEFT - 6, y(tick) + 4, anchor="end"))
    parts.append(_minutes(chart.end, x, bottom))
    # The highest of a stack first: each lies behind what is below it.
    for line in reversed(lines):
        for piece in _pieces(line.points):
            corners = [(x(minute), y(value)) for minute, value in piece]
            parts.append(_drawn(corners, line.color or "", floor=y(0) if chart.stacked else None))
    legend = (f'<li><i style="background:{one.color}"></i>{escape(one.name)}</li>' for one in lines)
    return f"{_svg(width, _HEIGHT, parts)}<ul>{''.join(legend)}</ul>"


def _timeline(chart: Chart, width: int) -> tuple[str, int]:
    names = list(dict.fromkeys(line.name for line in chart.lines))
    bottom = _HEAD + _ROW * len(names)

    def x(minute: float) -> float:
        return _NAMES + minute / chart.end * (width - _NAMES - _RIGHT)

    parts = list[str]()
    for number, band in enumerate(chart.bands):
        parts.append(_tag("rect", **_box(x, band, _HEAD, bottom), fill=_BAND))
        # On two lines in turn: what follows soon would be written over it.
        parts.append(_text(band.name, x(band.begins), _HEAD - 5 - number % 2 * 14, color=_NAMED))
    for row, name in enumerate(names):
        top = _HEAD + _ROW * row
        parts.append(_text(name, _NAMES - 8, top + 14, anchor="end", color=_DARK))
        for line in chart.lines:
            for piece in _pieces(line.points) if line.name == name else ():
                band = Band(name=name, begins=piece[0][0], ends=piece[-1][0])
                parts.append(_tag("rect", **_box(x, band, top + 4, top + _ROW - 4), fill=_FIRING))
    parts.append(_minutes(chart.end, x, bottom))
    return _svg(width, bottom + 22, parts), bottom + 22


def _colored(lines: Sequence[Line]) -> list[Line]:
    palette = iter(_PALETTE * (len(lines) // len(_PALETTE) + 1))
    return [line if line.color else replace(line, color=next(palette)) for line in lines]


def _stacked(lines: Sequence[Line]) -> list[Line]:
    """Return lines on top of each other, less those that are 0 throughout."""
    sums: dict[float, float] = {}
    found = list[Line]()
    for line in lines:
        values = {minute: value for minute, value in line.points if math.isfinite(value)}
        if not any(values.values()):
            continue
        for minute, value in values.items():
            sums[minute] = sums.get(minute, 0.0) + value
        found.append(replace(line, points=[(minute, sums[minute]) for minute in values]))
    return found


def _pieces(points: _Points) -> Iterator[list[tuple[float, float]]]:
    """Yield what lies between gaps."""
    piece: list[tuple[float, float]] = []
    for point in points:
        if not math.isfinite(point[1]):
            continue
        if piece and point[0] - piece[-1][0] > _GAP:
            yield piece
            piece = []
        piece.append(point)
    if piece:
        yield piece


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers, evenly spread, around two others."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, last + 1)]


def _drawn(corners: _Points, color: str, *, floor: float | None) -> str:
    """Return a line, with what is under it where there is a floor."""
    line = _tag("polyline", points=_path(corners), fill="none", stroke=color)
    if floor is None:
        return line
    area = _path([(corners[0][0], floor), *corners, (corners[-1][0], floor)])
    white = _tag("polygon", points=area, fill="#ffffff")
    return white + _tag("polygon", points=area, fill=color, opacity=0.35) + line


def _minutes(end: float, x: _Scale, bottom: float) -> str:
    marks = range(0, int(end) + 1, 5)
    return "".join(_text(f"{mark} min", x(mark), bottom + 15, anchor="middle") for mark in marks)


def _box(x: _Scale, band: Band, top: float, bottom: float) -> dict[str, float]:
    begins = x(band.begins)
    width = max(x(band.ends) - begins, 2.0)
    return {"x": begins, "y": top, "width": width, "height": bottom - top}


def _value(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{value:.0%}"
    suffix = {"s": " s", "reqps": "/s", "ops": "/s"}.get(unit, "")
    return f"{value:.6g}{suffix}"


def _path(corners: _Points) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)


def _text(words: str, x: float, y: float, *, anchor: str = "start", color: str = "#666666") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}"'
    return f"<text {place}>{escape(words)}</text>"


def _tag(name: str, **attributes: float | str) -> str:
    texts = ((k, v if isinstance(v, str) else f"{v:.2f}") for k, v in attributes.items())
    inside = " ".join(f'{key}="{text}"' for key, text in texts)
    return f"<{name} {inside}/>"


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return f'<svg width="{width:.0f}" height="{height:.0f}">{"".join(parts)}</svg>'
