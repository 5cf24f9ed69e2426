"""Charts as inline SVG: they scale and print, take their colours from the page, and hold their numbers as tooltips."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup
from torch import Tensor

from cifarctl.evaluation import reliability_bins
from cifarctl.rate import RatePoint
from cifarctl.training.checkpoint import Record

_WIDTH, _HEIGHT = 400, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 10, 42
_BINS = 40


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
    """Accuracy against confidence, and how many images have that confidence, in 15 bins.

    probabilities: float (N, classes). labels: int64 (N,).
    """
    count, accuracy, _ = (tensor.tolist() for tensor in reliability_bins(probabilities, labels))
    confidence = Axis("confidence", 0, 1, text=_percent)
    upper = _Drawing("Accuracy by confidence", confidence, Axis("accuracy", 0, 1, text=_percent))
    lower = _Drawing("Images by confidence", confidence, Axis("images", 0, max(count) * 1.05))
    for i, (images, right) in enumerate(zip(count, accuracy, strict=True)):
        low, high = i / len(count), (i + 1) / len(count)
        span = f"confidence {low:.0%} to {high:.0%}"
        if images:
            upper.bar(low, high, right, "blue", f"{span}: {right:.1%} of {images:,} images are right")
            lower.bar(low, high, images, "grey", f"{span}: {images:,} images")
    upper.rule((0, 0), (1, 1), "orange dashed")
    note = "Below the diagonal the model is surer than it is right, above it less sure. Bins of few images say little."
    return [
        Chart("Reliability", upper.svg(), [("blue", "accuracy of the bin"), ("orange dashed", "calibrated")], note),
        Chart("Confidence", lower.svg(), [], "How sure the model is of its answers."),
    ]


def learning_curves(history: Sequence[Record], kind: str) -> list[Chart]:
    """Training and validation loss, and the validation metric, by epoch; none without two epochs."""
    metric, name = ("val_accuracy", "accuracy") if kind == "classifier" else ("val_psnr", "PSNR")
    lines = {
        key: [(record["epoch"], record[key]) for record in history if math.isfinite(record.get(key, math.nan))]
        for key in ("train_loss", "val_loss", metric)
    }
    if min(len(line) for line in lines.values()) < 2:
        return []
    epochs = Axis("epoch", history[0]["epoch"], history[-1]["epoch"], whole=True)
    losses = [loss for key in ("train_loss", "val_loss") for _, loss in lines[key]]
    loss = _Drawing("Loss by epoch", epochs, Axis.around(losses, "loss", log=min(losses) > 0))
    loss.line(lines["train_loss"], "grey", lambda x, y: f"epoch {x:.0f}: training loss {y:.4g}")
    loss.line(lines["val_loss"], "blue", lambda x, y: f"epoch {x:.0f}: validation loss {y:.4g}")

    text, label = (_percent, name) if kind == "classifier" else ("{:.4g}".format, f"{name} (dB)")
    score = _Drawing(
        f"Validation {name} by epoch", epochs, Axis.around([y for _, y in lines[metric]], label, text=text)
    )
    shown = "{:.2%}".format if kind == "classifier" else "{:.2f} dB".format
    score.line(lines[metric], "blue", lambda x, y: f"epoch {x:.0f}: {shown(y)}")
    best = max(lines[metric], key=lambda point: (point[1], point[0]))
    return [
        Chart("Loss", loss.svg(), [("grey", "training"), ("blue", "validation")]),
        Chart(f"Validation {name}", score.svg(), [], f"Best: {shown(best[1])}, in epoch {best[0]:.0f}."),
    ]


def psnr_histogram(image_psnr: Tensor, psnr: float, pca_psnr: float) -> Chart:
    """How the images' PSNR, float (N,) in dB, are distributed, with that of the mean error, and PCA's."""
    axis = Axis.around([*image_psnr.tolist(), pca_psnr], "PSNR of an image (dB)")
    edges = [axis.low + i * (axis.high - axis.low) / _BINS for i in range(_BINS + 1)]
    count = image_psnr.histc(_BINS, axis.low, axis.high).int().tolist()
    drawing = _Drawing("Images by their PSNR", axis, top := Axis("images", 0, max(count) * 1.05))
    for (low, high), images in zip(pairwise(edges), count, strict=True):
        if images:
            drawing.bar(low, high, images, "blue", f"{low:.1f} to {high:.1f} dB: {images:,} images")
    drawing.rule((psnr, 0), (psnr, top.high), "orange")
    drawing.rule((pca_psnr, 0), (pca_psnr, top.high), "grey dashed")
    legend = [
        ("orange", f"of the mean error, {psnr:.2f} dB"),
        ("grey dashed", f"of PCA's, {pca_psnr:.2f} dB"),
    ]
    return Chart("PSNR of the images", drawing.svg(), legend)


def rate_curve(points: Sequence[RatePoint], images: int) -> Chart:
    """PSNR against bytes an image, a line for each codec."""
    size = Axis.around([point.size for point in points], "bytes an image", log=True)
    drawing = _Drawing("PSNR by bytes", size, Axis.around([point.psnr for point in points], "PSNR (dB)"))
    styles = {"latents": "orange", "jpeg": "grey", "webp": "blue"}
    for codec, style in styles.items():
        line = [(point.size, point.psnr) for point in points if point.codec == codec]
        drawing.line(line, style, lambda x, y: f"{x:.0f} bytes, {y:.2f} dB")
    return Chart(
        "Rate",
        drawing.svg(),
        [("orange", "latents, 2 to 8 bits each"), ("grey", "JPEG"), ("blue", "WebP")],
        f"The mean of {images:,} images; codecs without headers and containers.",
    )


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"
