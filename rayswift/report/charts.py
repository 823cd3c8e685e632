"""Curves -> figures in HTML: lines in an SVG that scales with the page, labels as HTML text of fixed size."""

import html
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rayswift.report.curves import Bucket, Curve

_SIZE = 1000  # width and height of the SVG in its own coordinates
_DOTTED_BELOW = 40
_LOG_FROM_RATIO = 200.0
_STEPS_OF_TICKS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Chart:
    """A figure. lines: name of each line -> metric; from_zero: the axis begins at 0; cap: largest possible value.

    log: the axis is logarithmic if the values spread widely; varying: hidden while all values are equal.
    """

    title: str
    lines: dict[str, str]
    unit: str = ""
    from_zero: bool = False
    log: bool = False
    cap: float | None = None
    varying: bool = False


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool

    def place(self, value: float) -> float:
        """The position of a value, from 0 (low end) to 1."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round values of the axis."""
        if self.log:
            exponents = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            stride = max(1, -(-len(exponents) // 6))
            return [10.0**e for e in exponents][::stride]
        rough = (self.high - self.low) / 4
        scale = 10.0 ** math.floor(math.log10(rough))
        step = next(s * scale for s in _STEPS_OF_TICKS if s * scale >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def draw(chart: Chart, curves: dict[str, Curve], restarts: Sequence[int]) -> str:
    """The figure; empty if no metric of it exists. restarts: steps at which workers started again."""
    shown = {name: curves[key] for name, key in chart.lines.items() if key in curves}
    drawn = {name: curve.buckets for name, curve in shown.items() if curve.buckets}
    if not shown or (chart.varying and len({limit for b in _all(drawn) for limit in (b.low, b.high)}) < 2):
        return ""
    legend = "".join(
        f'<span class="key c{index}">{html.escape(name)} <b>{show(curve.last, chart.unit)}</b></span>'
        for index, (name, curve) in enumerate(shown.items())
    )
    head = f"<figcaption><h3>{html.escape(chart.title)}</h3>{legend}</figcaption>"
    if not drawn:
        return f'<figure>{head}<p class="none">no finite value</p></figure>'
    buckets = _all(drawn)
    y = _value_axis(chart, buckets)
    first, last = min(bucket.step for bucket in buckets), max(bucket.step for bucket in buckets)
    first = 0 if first < 0.2 * last else first
    x = _Axis(first, last if last > first else first + 1, False)
    grid = [f"M0 {_py(y.place(tick))}H{_SIZE}" for tick in y.ticks()]
    parts = [f'<path class="grid" d="{"".join(grid)}"/>']
    for index, (name, line) in enumerate(drawn.items()):
        colour = list(shown).index(name)
        dotted = len(line) == 1 or (index > 0 and len(line) < _DOTTED_BELOW)
        parts.append(_line(line, x, y, colour, dotted))
    for step in restarts:
        if x.low < step < x.high:
            parts.append(f'<path class="restart" d="M{_px(x.place(step))} 0V{_SIZE}"><title>restart</title></path>')
    svg = (
        f'<svg viewBox="0 0 {_SIZE} {_SIZE}" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(chart.title)} by step">{"".join(parts)}</svg>'
    )
    labels = _labels(x, y, chart.unit)
    return f'<figure>{head}<div class="plot">{svg}{labels}</div>{_points(drawn, shown, x, y, chart.unit)}</figure>'


def show(value: float | None, unit: str = "") -> str:
    """A number in short: 12.3k, 0.00021, 98.4 %."""
    if value is None:
        return "none"
    if not math.isfinite(value):
        return str(value)
    if unit == "%":
        return f"{_significant(100 * value, 3 if value >= 0.1 else 2)} %"
    suffix = f" {unit}" if unit else ""
    for limit, scale, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= limit:
            return f"{_significant(value / scale, 3)}{letter}{suffix}"
    return f"{_significant(value, 3 if unit else 4)}{suffix}"


def _significant(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    if abs(value) <= 1e-3:
        mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _all(drawn: dict[str, list[Bucket]]) -> list[Bucket]:
    return [bucket for line in drawn.values() for bucket in line]


def _value_axis(chart: Chart, buckets: list[Bucket]) -> _Axis:
    low, high = min(bucket.low for bucket in buckets), max(bucket.high for bucket in buckets)
    if chart.log and low > 0 and high / low > _LOG_FROM_RATIO:
        return _Axis(low / 1.2, high * 1.2, True)
    if chart.from_zero and low >= 0:
        low = 0.0
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        spare = abs(high) * 0.1 or 1.0
        low, high = (0.0 if chart.from_zero and low >= 0 else low - spare), high + spare
    else:
        spare = (high - low) * 0.06
        low, high = (low if low == 0 else low - spare), high + spare
    if chart.cap is not None and max(bucket.high for bucket in buckets) <= chart.cap:
        high = min(high, chart.cap)
    return _Axis(low, high, False)


def _line(line: list[Bucket], x: _Axis, y: _Axis, colour: int, dotted: bool) -> str:
    def path(points: Sequence[Bucket], value: Callable[[Bucket], float]) -> str:
        return "L".join(f"{_px(x.place(bucket.step))} {_py(y.place(value(bucket)))}" for bucket in points)

    band = ""
    if any(bucket.count > 1 for bucket in line):
        outline = f"M{path(line, lambda b: b.high)}L{path(line[::-1], lambda b: b.low)}Z"
        band = f'<path class="band c{colour}" d="{outline}"/>'
    mean = path(line, lambda b: b.mean)
    dots = ""
    if dotted:
        dots = f'<path class="dots c{colour}" d="{"".join(f"M{point}h0" for point in mean.split("L"))}"/>'
    return f'{band}<path class="line c{colour}" d="M{mean}"/>{dots}'


def _labels(x: _Axis, y: _Axis, unit: str) -> str:
    def edge(place: float) -> str:
        return " first" if place < 0.06 else " last" if place > 0.9 else ""

    ys = "".join(
        f'<span class="y" style="bottom:{100 * y.place(tick):.1f}%">{show(tick, unit)}</span>' for tick in y.ticks()
    )
    xs = "".join(
        f'<span class="x{edge(x.place(tick))}" style="left:{100 * x.place(tick):.1f}%">{show(tick)}</span>'
        for tick in x.ticks()
        if tick == round(tick)
    )
    return f'{ys}{xs}<span class="x step">step</span>'


def _points(drawn: dict[str, list[Bucket]], shown: dict[str, Curve], x: _Axis, y: _Axis, unit: str) -> str:
    """JSON for the page's script, which shows step and value of the bucket under the pointer."""
    lines = [
        {
            "name": name,
            "colour": list(shown).index(name),
            "x": [round(x.place(bucket.step), 4) for bucket in line],
            "y": [round(y.place(bucket.mean), 4) for bucket in line],
            "step": [bucket.step for bucket in line],
            "text": [show(bucket.mean, unit) for bucket in line],
        }
        for name, line in drawn.items()
    ]
    text = json.dumps(lines, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json">{text}</script>'


def _px(place: float) -> str:
    return f"{place * _SIZE:.1f}".removesuffix(".0")


def _py(place: float) -> str:
    return f"{(1 - place) * _SIZE:.1f}".removesuffix(".0")
