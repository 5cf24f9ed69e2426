"""Charts as inline SVG: they scale and print, take their colours from the page, and hold their numbers as tooltips."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup
from torch import Tensor

from cifarctl import figure_data
from cifarctl.figure_data import AxisData, ChartData
from cifarctl.metrics import headline
from cifarctl.rate_distortion import RateDistortionPoint
from cifarctl.training.checkpoint import Record

_WIDTH, _HEIGHT = 400, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 10, 42


@dataclass(frozen=True)
class Chart:
    """A drawing with its title, its legend (CSS class and text of each entry), and a sentence on how to read it."""

    title: str
    svg: Markup
    legend: list[tuple[str, str]]
    note: str = ""


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`, linear or logarithmic. whole: ticks at integers only."""

    label: str
    low: float
    high: float
    log: bool = False
    whole: bool = False
    text: Callable[[float], str] = "{:.4g}".format

    @classmethod
    def around(
        cls, values: Sequence[float], label: str, *, log: bool = False, text: Callable[[float], str] = "{:.4g}".format
    ) -> "Axis":
        """An axis that holds all the values with a little room."""
        low, high = min(values), max(values)
        if log:
            room = max((high / low) ** 0.05, 1.02)
            return cls(label, low / room, high * room, log=True, text=text)
        room = (high - low) * 0.05 or abs(high) * 0.05 or 1
        return cls(label, low - room, high + room, text=text)

    def fraction(self, value: float) -> float:
        """Where on the axis a value lies: 0 at its low end, 1 at its high one."""
        scale = math.log if self.log else float
        low, high, value = map(scale, (self.low, self.high, value))
        return (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """About five round numbers."""
        if self.log:
            first = math.floor(math.log10(self.low))
            last = math.ceil(math.log10(self.high))
            for mantissas in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 6, 8)):
                marks = [m * 10.0**power for power in range(first, last + 1) for m in mantissas]
                marks = [mark for mark in marks if self.low <= mark <= self.high]
                if len(marks) >= 3:
                    return marks
        rough = (self.high - self.low) / 5
        magnitude = 10.0 ** math.floor(math.log10(rough))
        step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * 0.999)
        if self.whole:
            step = max(1.0, step)
        return [i * step for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


class _Drawing:
    """Marks on two axes, in the order in which they are added."""

    def __init__(self, title: str, x: Axis, y: Axis) -> None:
        self._title, self._x, self._y = title, x, y
        self._marks: list[Markup] = []

    def line(self, points: Sequence[tuple[float, float]], style: str, tip: Callable[[float, float], str]) -> None:
        """A line through the points, each with a dot that tells its numbers."""
        places = [(self._across(x), self._up(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        self._marks.append(Markup('<polyline class="{} stroke" points="{}"/>').format(style, path))
        dot = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>')
        radius = 3 if len(points) <= 40 else 1.5
        for (x, y), point in zip(places, points, strict=True):
            self._marks.append(dot.format(style, x, y, radius, tip(*point)))

    def bar(self, left: float, right: float, value: float, style: str, tip: str) -> None:
        """A bar from the bottom of the drawing up to `value`."""
        x, width = self._across(left), self._across(right) - self._across(left)
        top, bottom = self._up(value), self._up(self._y.low)
        rect = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>')
        self._marks.append(rect.format(style, x + 0.5, top, max(width - 1, 0.5), bottom - top, tip))

    def rule(self, start: tuple[float, float], end: tuple[float, float], style: str) -> None:
        """A straight line without dots."""
        mark = Markup('<line class="{} stroke" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
        ends = (self._across(start[0]), self._up(start[1]), self._across(end[0]), self._up(end[1]))
        self._marks.append(mark.format(style, *ends))

    def svg(self) -> Markup:
        """The drawing with its axes."""
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        parts = [
            Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(_WIDTH, _HEIGHT, self._title),
            *self._grid(bottom, right),
            *self._marks,
            Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                (_LEFT + right) / 2, _HEIGHT - 6, self._x.label
            ),
            Markup(
                '<text class="label" transform="translate(12 {}) rotate(-90)" text-anchor="middle">{}</text>'
            ).format((_TOP + bottom) / 2, self._y.label),
            Markup("</svg>"),
        ]
        return Markup("").join(parts)

    def _grid(self, bottom: float, right: float) -> list[Markup]:
        line = Markup('<line class="grid" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
        text = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
        parts = []
        for tick in self._x.ticks():
            x = self._across(tick)
            parts += [line.format(x, _TOP, x, bottom), text.format(x, bottom + 15, "middle", self._x.text(tick))]
        for tick in self._y.ticks():
            y = self._up(tick)
            parts += [line.format(_LEFT, y, right, y), text.format(_LEFT - 6, y + 4, "end", self._y.text(tick))]
        return parts

    def _across(self, value: float) -> float:
        return _LEFT + self._x.fraction(value) * (_WIDTH - _LEFT - _RIGHT)

    def _up(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - self._y.fraction(value) * (_HEIGHT - _TOP - _BOTTOM)


def reliability(probabilities: Tensor, labels: Tensor) -> list[Chart]:
    """Accuracy against confidence, and how many images have that confidence.

    probabilities: float (N, classes). labels: int64 (N,).
    """
    return [draw(data) for data in figure_data.reliability(probabilities, labels)]


def learning_curves(history: Sequence[Record], kind: str) -> list[Chart]:
    """Training and validation loss, and the validation metric, by epoch; none without two epochs."""
    charts = figure_data.learning_curves(history, headline(kind).name)
    if min(len(line.points) for data in charts for line in data.lines) < 2:
        return []
    return [draw(data) for data in charts]


def psnr_histogram(image_psnr: Tensor, psnr: float, pca_psnr: float) -> Chart:
    """The distribution of the images' PSNR, float (N,) in dB, with that of the mean squared error, and PCA's."""
    return draw(figure_data.psnr_histogram(image_psnr, psnr, pca_psnr))


def rate_distortion(points: Sequence[RateDistortionPoint], images: int) -> Chart:
    """PSNR against bytes per image, a line for each codec, measured on N images (`images`)."""
    return draw(figure_data.rate_distortion(points, images))


def draw(data: ChartData) -> Chart:
    """Any chart as SVG."""
    points = [point for line in data.lines for point in line.points]
    x, y = (_axis(axis, [point[i] for point in points]) for i, axis in enumerate((data.x, data.y)))
    drawing = _Drawing(data.description, x, y)
    legend: list[tuple[str, str]] = []
    if bars := data.bars:
        rows = zip(pairwise(bars.edges), bars.heights, bars.descriptions, strict=True)
        for (left, right), height, description in rows:
            if description:
                drawing.bar(left, right, height, bars.colour, description)
        legend.append((bars.colour, bars.label))
    for line in data.lines:
        style = f"{line.colour} dashed" if line.dashed else line.colour
        if line.describe:
            drawing.line(line.points, style, line.describe)
        else:
            drawing.rule(line.points[0], line.points[-1], style)
        legend.append((style, line.label))
    return Chart(data.title, drawing.svg(), [entry for entry in legend if entry[1]], data.note)


def _axis(axis: AxisData, values: Sequence[float]) -> Axis:
    text = _percent if axis.is_fraction else "{:.4g}".format
    if axis.limits or axis.whole:
        low, high = axis.limits or (min(values), max(values))
        return Axis(axis.label, low, high, whole=axis.whole, text=text)
    return Axis.around(values, axis.label, log=axis.log, text=text)


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"
