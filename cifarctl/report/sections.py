"""What a report shows of one model on one split: the images to look at, chosen and packed, and the charts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from cifarctl.data import Dataset
from cifarctl.evaluation import AutoencoderReport
from cifarctl.model_outputs import confident_mistakes
from cifarctl.rate_distortion import RateDistortionPoint
from cifarctl.report import charts
from cifarctl.report.charts import Chart
from cifarctl.report.confusion import MANY_CLASSES, Cell, ClassRow, choose_images, class_row, most_confused, overview
from cifarctl.report.pictures import Answer, Pair, Sprite, Thumb
from cifarctl.training.checkpoint import Record
from cifarctl.wording import model_name

_GALLERY = 24
_PAIRS = 12


@dataclass(frozen=True)
class Section:
    """One model on one split. result: what `evaluate --json` shows."""

    name: str
    result: Mapping[str, Any]
    sprite: Sprite
    curves: list[Chart]


@dataclass(frozen=True)
class ClassifierSection(Section):
    """cells: the confusion matrix, rows are the truth; none if there are more than `MANY_CLASSES` classes. For these:
    confused: the most frequent mistakes. overview: a picture of the matrix, as a URI.

    first: the cell to show first, the mistake made most often.
    """

    cells: list[list[Cell]]
    confused: list[Cell]
    overview: Markup | None
    first: Cell
    classes: list[ClassRow]
    reliability: list[Chart]
    mistakes: list[Answer]
    uncertain: list[Answer]
    least_typical: list[Answer]

    @property
    def shown(self) -> list[Cell]:
        """The cells whose images can be looked at."""
        return self.confused or [cell for row in self.cells for cell in row if cell.count]


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
    confused = most_confused(matrix) if len(data.classes) > MANY_CLASSES else []
    order = confidence.argsort(descending=True).tolist()
    chosen = choose_images(labels.tolist(), predicted.tolist(), order, matrix, limit, set(confused) or None)
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
            Thumb.at(place[index], truth),
            index,
            data.paths[index] if data.paths else None,
            truth,
            [(data.classes[label], value) for label, value in values],
            None if typicality is None else typicality[index].item(),
        )

    def cell(row: int, column: int) -> Cell:
        truth, label, counts = data.classes[row], data.classes[column], matrix[row]
        return Cell(
            row, column, truth, label, counts[column], sum(counts), [answer(index) for index in chosen[row, column]]
        )

    numbers = range(len(data.classes))
    cells = [] if confused else [[cell(row, column) for column in numbers] for row in numbers]
    listed = [cell(row, column) for row, column in confused]
    classes = [
        class_row(scores, label, matrix[label], data.classes) for label, scores in enumerate(result["per_class"])
    ]
    if confused:  # in a long table, the worst come first; those without a score last
        classes.sort(key=lambda row: (row.scores["f1"] is None, row.scores["f1"] or 0))
    return ClassifierSection(
        model_name(result["model"]),
        result,
        Sprite.pack(data.images[torch.tensor(shown, device=data.images.device)].cpu()),
        charts.learning_curves(history, "classifier"),
        cells,
        listed,
        overview(matrix) if confused else None,
        max(
            listed[:1] or (cell for row in cells for cell in row),
            key=lambda cell: (not cell.is_hit and cell.count > 0, cell.count),
        ),
        classes,
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
            data.paths[index] if data.paths else None,
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


def _unique(indices: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(indices))
