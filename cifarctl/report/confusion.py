"""What a report shows of a confusion matrix: all cells of a small one; of a large one a picture, and the mistakes that
are made most often.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup
from torch.nn.functional import max_pool2d

from cifarctl.report.pictures import Answer, data_uri

OFF_DIAGONAL, DIAGONAL = 30, 12  # images of a cell of the confusion matrix, at most
MANY_CLASSES = 100  # a table of more is too large for a page: a million cells of 1,000 classes take 11 MB
_CONFUSED = 100
_OVERVIEW_SIDE = 500  # pixels
_BLUE, _ORANGE = (31, 111, 178), (217, 113, 28)

Matrix = Sequence[Sequence[int]]
"""Counts; rows are the truth."""
Place = tuple[int, int]
"""A cell's row and column."""


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


def most_confused(matrix: Matrix) -> list[Place]:
    """The cells of the most frequent mistakes, the first one first; without any mistake, the fullest cell."""
    counts = torch.tensor(matrix)
    mistakes = counts.clone().fill_diagonal_(0)
    most = mistakes.flatten().argsort(descending=True, stable=True)[: min(_CONFUSED, int((mistakes > 0).sum()))]
    found = most.tolist() or [int(counts.argmax())]
    return [divmod(index, len(matrix)) for index in found]


def overview(matrix: Matrix) -> Markup:
    """A picture of the matrix as a URI: a pixel for each cell or, if they are too many, for the strongest of a square
    of cells. Blue is right, orange is wrong; the smaller the fraction of the row, the fainter.
    """
    counts = torch.tensor(matrix, dtype=torch.float32)
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    hits = shares.diagonal().diag()
    mistakes = (3 * (shares - hits)).sqrt().clamp_max(1)  # as `Cell.shade`
    block = -(-len(matrix) // _OVERVIEW_SIDE)
    hit, mistake = max_pool2d(torch.stack((hits, mistakes)), block, ceil_mode=True)
    colours = torch.where(hit[..., None] > 0, torch.tensor(_BLUE), torch.tensor(_ORANGE))
    opacity = torch.where(hit > 0, hit, mistake)
    return data_uri(torch.cat((colours, (255 * opacity[..., None]).round()), 2).byte())


def choose_images(
    labels: Sequence[int],
    predicted: Sequence[int],
    order: Sequence[int],
    matrix: Matrix,
    limit: int,
    places: Collection[Place] | None = None,
) -> dict[Place, list[int]]:
    """The images that are shown of each cell, or of each one of `places`: the first ones in `order`, and if all
    together would be more than `limit`, fewer of every cell alike.
    """
    seen: Counter[Place] = Counter()
    candidates = []
    for index in order:
        cell = labels[index], predicted[index]
        if places is not None and cell not in places:
            continue
        most = DIAGONAL if cell[0] == cell[1] else OFF_DIAGONAL
        if seen[cell] < most:
            # The cell's fuller ones come later; among equals, those of large cells first.
            candidates.append((seen[cell] / most, -matrix[cell[0]][cell[1]], index, cell))
            seen[cell] += 1
    chosen: defaultdict[Place, list[int]] = defaultdict(list)
    for *_, index, cell in sorted(candidates)[:limit]:
        chosen[cell].append(index)
    return chosen


def class_row(scores: Mapping[str, Any], label: int, counts: Sequence[int], classes: Sequence[str]) -> ClassRow:
    """The class `label`. counts: its row of the matrix."""
    missed = [0 if column == label else count for column, count in enumerate(counts)]
    most = max(missed)
    return ClassRow(scores, (classes[missed.index(most)], most / sum(counts)) if most else None)
