"""What a report shows of one model on one split: the images to look at, chosen and packed, and the charts."""

import base64
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cifarctl.data import Dataset
from cifarctl.evaluation import AutoencoderReport
from cifarctl.model_outputs import confident_mistakes
from cifarctl.rate_distortion import RateDistortionPoint
from cifarctl.report import charts
from cifarctl.report.charts import Chart
from cifarctl.training.checkpoint import Record
from cifarctl.wording import model_name

OFF_DIAGONAL, DIAGONAL = 30, 12  # images of a cell of the confusion matrix, at most
_GALLERY = 24
_PAIRS = 12
_COLUMNS = 40
_SIDE = 32


@dataclass(frozen=True)
class Sprite:
    """Many images of 32×32 in one picture, as a data URI: a picture for each would be many times larger."""

    uri: str
    columns: int
    rows: int

    @classmethod
    def pack(cls, images: Tensor) -> "Sprite":
        """Images, uint8 (N, 3, 32, 32), row by row. Lossless, since what a model confuses may be a few pixels."""
        columns = min(len(images), _COLUMNS)
        rows = -(-len(images) // columns)
        sheet = torch.zeros(rows * columns, 3, _SIDE, _SIDE, dtype=torch.uint8)
        sheet[: len(images)] = images
        pixels = sheet.view(rows, columns, 3, _SIDE, _SIDE).permute(0, 3, 1, 4, 2).reshape(rows * _SIDE, -1, 3)
        stream = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(stream, "webp", lossless=True, quality=100, method=4)
        return cls(f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}", columns, rows)


@dataclass(frozen=True)
class Thumb:
    """An image by its place in the sprite, and what it shows, in words."""

    column: int
    row: int
    text: str

    @classmethod
    def at(cls, position: int, text: str) -> "Thumb":
        """The image that was packed as number `position`."""
        return cls(position % _COLUMNS, position // _COLUMNS, text)


@dataclass(frozen=True)
class Answer:
    """An image, its number in the split, its true label, and the model's likeliest labels with their probabilities."""

    thumb: Thumb
    number: int
    truth: str
    top: list[tuple[str, float]]


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix. total: images of its row. answers: the most confident ones of its images."""

    row: int
    column: int
    truth: str
    label: str
    count: int
    total: int
    answers: list[Answer]

    @property
    def is_hit(self) -> bool:
        """Whether it is on the diagonal."""
        return self.row == self.column

    @property
    def share(self) -> float:
        """Its fraction of the row."""
        return self.count / max(self.total, 1)

    @property
    def shade(self) -> float:
        """How strong its colour is, 0 to 1; mistakes are rare, and shown stronger."""
        return self.share if self.is_hit else min(math.sqrt(3 * self.share), 1)

    @property
    def text(self) -> str:
        """What it counts."""
        verb = "recognised" if self.is_hit else f"called {self.label}"
        return f"{self.truth} {verb}: {self.count:,} of {self.total:,} ({self.share:.1%})"


@dataclass(frozen=True)
class ClassRow:
    """A class: its scores, and what it is mistaken for most often, with that fraction of its images."""

    scores: Mapping[str, Any]
    mistaken_for: tuple[str, float] | None


@dataclass(frozen=True)
class Pair:
    """An original and its reconstruction."""

    original: Thumb
    reconstruction: Thumb
    label: str
    psnr: float


@dataclass(frozen=True)
class Section:
    """One model on one split. result: what `evaluate --json` shows."""

    name: str
    result: Mapping[str, Any]
    sprite: Sprite
    curves: list[Chart]


@dataclass(frozen=True)
class ClassifierSection(Section):
    """cells: the confusion matrix, rows are the truth. first: the one to show first, the mistake made most often."""

    cells: list[list[Cell]]
    first: Cell
    classes: list[ClassRow]
    reliability: list[Chart]
    mistakes: list[Answer]
    uncertain: list[Answer]
    least_typical: list[Answer]


@dataclass(frozen=True)
class AutoencoderSection(Section):
    """pairs: the worst, median and best reconstructions by those names."""

    pairs: dict[str, list[Pair]]
    charts: list[Chart]


def classifier_section(
    result: Mapping[str, Any],
    data: Dataset,
    probabilities: Tensor,
    history: Sequence[Record],
    limit: int,
    typicality: Tensor | None = None,
) -> ClassifierSection:
    """Choose what to show of a classifier.

    result: of `evaluate --json`. probabilities: float (N, classes), on the CPU. history: the run's epochs, or none.
    limit: how many images the cells of the confusion matrix may show in all. typicality: of each image, (N,).
    """
    labels = data.labels.cpu()
    confidence, predicted = probabilities.max(1)
    matrix: list[list[int]] = result["confusion_matrix"]
    chosen = _choose(labels.tolist(), predicted.tolist(), confidence.argsort(descending=True).tolist(), matrix, limit)
    mistakes = confident_mistakes(probabilities, labels)[:_GALLERY].tolist()
    uncertain = confidence.argsort()[:_GALLERY].tolist()
    least_typical = [] if typicality is None else typicality.argsort(stable=True)[:_GALLERY].tolist()

    shown = _unique([*mistakes, *uncertain, *least_typical, *(i for indices in chosen.values() for i in indices)])
    place = {index: position for position, index in enumerate(shown)}
    top = probabilities.topk(min(3, len(data.classes)))

    def answer(index: int) -> Answer:
        truth = data.classes[int(labels[index])]
        values = zip(top.indices[index].tolist(), top.values[index].tolist(), strict=True)
        return Answer(
            Thumb.at(place[index], truth), index, truth, [(data.classes[label], value) for label, value in values]
        )

    cells = [
        [
            Cell(row, column, truth, label, count, sum(counts), [answer(index) for index in chosen[row, column]])
            for column, (label, count) in enumerate(zip(data.classes, counts, strict=True))
        ]
        for row, (truth, counts) in enumerate(zip(data.classes, matrix, strict=True))
    ]
    return ClassifierSection(
        model_name(result["model"]),
        result,
        Sprite.pack(data.images[torch.tensor(shown, device=data.images.device)].cpu()),
        charts.learning_curves(history, "classifier"),
        cells,
        max((cell for row in cells for cell in row), key=lambda cell: (not cell.is_hit and cell.count > 0, cell.count)),
        [_class_row(scores, row) for scores, row in zip(result["per_class"], cells, strict=True)],
        charts.reliability(probabilities, labels),
        [answer(index) for index in mistakes],
        [answer(index) for index in uncertain],
        [answer(index) for index in least_typical],
    )


def autoencoder_section(
    result: Mapping[str, Any],
    data: Dataset,
    report: AutoencoderReport,
    history: Sequence[Record],
    rate: Sequence[RateDistortionPoint],
    rate_images: int,
) -> AutoencoderSection:
    """Choose what to show of an autoencoder.

    result: of `evaluate --json`. history: the run's epochs, or none. rate: its points, measured on `rate_images`.
    """
    order = report.image_psnr.argsort().tolist()
    middle = max((len(order) - _PAIRS) // 2, 0)
    groups = {"worst": order[:_PAIRS], "median": order[middle : middle + _PAIRS], "best": order[::-1][:_PAIRS]}
    shown = _unique(index for indices in groups.values() for index in indices)
    place = {index: position for position, index in enumerate(shown)}
    originals = data.images[torch.tensor(shown, device=data.images.device)].cpu()
    outputs = (report.reconstructions[shown] * 255).round().byte()

    def pair(index: int) -> Pair:
        label, position = data.classes[int(data.labels[index])], place[index]
        return Pair(
            Thumb.at(position, f"{label}, the original"),
            Thumb.at(position + len(shown), f"{label}, reconstructed"),
            label,
            report.image_psnr[index].item(),
        )

    return AutoencoderSection(
        model_name(result["model"]),
        result,
        Sprite.pack(torch.cat((originals, outputs))),
        charts.learning_curves(history, "autoencoder"),
        {name: [pair(index) for index in indices] for name, indices in groups.items()},
        [
            charts.psnr_histogram(report.image_psnr, report.metrics["psnr"], report.metrics["pca_psnr"]),
            charts.rate_distortion(rate, rate_images),
        ],
    )


def _choose(
    labels: list[int], predicted: list[int], order: list[int], matrix: list[list[int]], limit: int
) -> dict[tuple[int, int], list[int]]:
    """The images of each cell that are shown: the first ones in `order`, and if all together would be more than
    `limit`, fewer of every cell alike.
    """
    seen: Counter[tuple[int, int]] = Counter()
    candidates = []
    for index in order:
        cell = labels[index], predicted[index]
        most = DIAGONAL if cell[0] == cell[1] else OFF_DIAGONAL
        if seen[cell] < most:
            # The cell's fuller ones come later; among equals, those of large cells first.
            candidates.append((seen[cell] / most, -matrix[cell[0]][cell[1]], index, cell))
            seen[cell] += 1
    chosen: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for *_, index, cell in sorted(candidates)[:limit]:
        chosen[cell].append(index)
    return chosen


def _class_row(scores: Mapping[str, Any], cells: Sequence[Cell]) -> ClassRow:
    missed = [cell for cell in cells if cell.count and not cell.is_hit]
    most = max(missed, key=lambda cell: cell.count, default=None)
    return ClassRow(scores, (most.label, most.share) if most else None)


def _unique(indices: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(indices))
